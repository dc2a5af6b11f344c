"""From a checkpoint to an engine that can step: device, weights, cache, scheduler."""

from __future__ import annotations

import logging
import os

import msgspec
import torch

from langport.engine.blocks import BlockPool, window_blocks
from langport.engine.budget import SMALLEST, StepBudget
from langport.engine.drafts import Drafter
from langport.engine.engine import EmbeddingEngine, EngineCore, GenerationEngine
from langport.engine.grammar import Grammars
from langport.engine.memory import (
    BLOCK_SIZE,
    allocate_caches,
    blocks_per_sequence,
    choose_num_blocks,
    free_memory_bytes,
)
from langport.engine.messages import Load
from langport.engine.rules import GenerationRules
from langport.engine.runners import DecoderRunner, EncoderRunner
from langport.engine.sampler import Sampler
from langport.engine.scheduler import Scheduler
from langport.errors import CheckpointError, ConfigError, OutOfMemory
from langport.layers.linear import QuantizedLinear
from langport.models.base import DecoderModel, EncoderDecoderModel, EncoderModel, Model
from langport.models.checkpoint import Checkpoint
from langport.models.llama import Llama
from langport.models.lora import Adapters
from langport.models.mapped import release_pages
from langport.models.registry import build_model
from langport.models.step import native_step
from langport.models.vocabulary import Vocabulary
from langport.models.weights import Progress, load_weights, quantize_heads
from langport.ops import native
from langport.ops.rows import make_steady
from langport.settings.tree import EngineSettings
from langport.types import ModelInfo

log = logging.getLogger("langport.engine")

STEP_TOKENS = {"cpu": 256, "cuda": 4096}
"""Most tokens of a step by device, where the settings do not say."""
EMBED_STEP_TOKENS = {"cpu": 4096, "cuda": 32768}
"""The same for encoders, padding included."""
TABLE_BYTES = 16
"""Most that the tables of rotary models take per position and element of a head, while they are made."""
SMALL_MODEL_PARAMETERS = 20_000_000
"""Below this, handing work to a second thread costs more than it brings."""


def load_engine(checkpoint: Checkpoint, load: Load, progress: Progress) -> tuple[EngineCore, ModelInfo]:
    """Build the engine of one model.

    Raises: CheckpointError when the weights, the device or the memory do not allow it.
    """
    try:
        return _load_engine(checkpoint, load, progress)
    except CheckpointError as error:
        if str(checkpoint.path) in str(error):
            raise
        raise type(error)(f"{checkpoint.path}: {error}") from error


def _load_engine(checkpoint: Checkpoint, load: Load, progress: Progress) -> tuple[EngineCore, ModelInfo]:
    settings = load.settings
    device = choose_device(settings.device)
    model = build_model(checkpoint, trusts_code=settings.trust_remote_code)
    _set_threads(model, settings.num_threads)
    kernels = _choose_kernels(device)
    dtype = getattr(torch, checkpoint.dtype if settings.dtype == "auto" else settings.dtype)
    max_model_len = min(settings.max_model_len or checkpoint.max_model_len, checkpoint.max_model_len)
    packs = kernels is not None and model.may_pack
    if packs:
        torch.set_num_threads(1)  # its threads would spin beside those that pack
    try:
        load_weights(
            model,
            checkpoint.weight_files,
            dtype=dtype,
            device=device,
            quantization=settings.quantization,
            kernels=kernels if packs else None,
            progress=progress,
        )
    except MemoryError as error:
        raise CheckpointError(f"the weights do not fit into memory: {error}") from error
    if isinstance(model, DecoderModel) and hasattr(model, "cache_spec"):
        _check_positions(model, max_model_len)  # before tables as long as the context are made
    model.prepare(device, max_model_len)
    model.eval()
    info = ModelInfo(
        kind=checkpoint.kind,
        architecture=checkpoint.architecture,
        max_model_len=max_model_len,
        vocab_size=checkpoint.vocab_size,
        eos_token_ids=checkpoint.eos_token_ids,
        bos_token_id=checkpoint.bos_token_id,
        num_parameters=num_parameters(model),
        dtype=str(dtype).removeprefix("torch."),
        device=device,
        max_num_seqs=settings.max_num_seqs,
    )
    _use_kernels(model, kernels, device)
    if packs:
        release_pages(checkpoint.weight_files)  # most of them are packed now
    kind = device.split(":")[0]
    if isinstance(model, EncoderModel):
        budget = settings.max_num_batched_tokens or EMBED_STEP_TOKENS[kind]
        return _embedding_engine(model, checkpoint, info, budget)
    assert isinstance(model, DecoderModel)
    return _generation_engine(model, checkpoint, info, load, _step_budget(settings, kind))


def choose_device(device: str) -> str:
    """The torch device for `auto`, `cpu` or `cuda[:i]`. Raises: CheckpointError when there is no such GPU."""
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        number = int(device.partition(":")[2] or 0)
        if number >= torch.cuda.device_count():
            raise CheckpointError(
                f"--device {device}: PyTorch sees {torch.cuda.device_count()} CUDA devices here; "
                "use --device cpu, or install a CUDA build of PyTorch and its driver"
            )
        return f"cuda:{number}"
    return device


def num_parameters(model: Model) -> int:
    """Parameters, quantized and packed ones included and each tied one once."""
    kinds = (QuantizedLinear, native.NativeLinear)
    apart = sum(module.num_weights for module in model.modules() if isinstance(module, kinds))
    return apart + sum({p.data_ptr() or id(p): p.numel() for p in model.parameters()}.values())


def _set_threads(model: Model, num_threads: int | None) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_threads is None:
        is_small = num_parameters(model) < SMALL_MODEL_PARAMETERS
        num_threads = 1 if is_small else cores  # of several engines, an idle one uses none
    torch.set_num_threads(num_threads)


def _choose_kernels(device: str) -> native.Kernels | None:
    """The native kernels, ready to pack and to multiply; None where torch's operators compute.

    Raises: CheckpointError when the environment asks for kernels that this machine does not have.
    """
    try:
        kernels = native.kernels()
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    if kernels is None or device != "cpu":
        log.info(
            "torch's operators compute; native kernels: %s", "not on this device" if kernels else native.describe()
        )
        return None
    kernels.set_threads(torch.get_num_threads())
    return kernels


def _use_kernels(model: Model, kernels: native.Kernels | None, device: str) -> None:
    """Hand the model's linear layers and attention to the native kernels, if there are any.

    Float layers of transformers' code stay with torch. Raises: CheckpointError when memory runs out.
    """
    if kernels is None:
        if device == "cpu":
            make_steady(model)
        return
    is_quantized = any(isinstance(module, QuantizedLinear) for module in model.modules())
    if model.may_pack or is_quantized:
        torch.set_num_threads(1)  # its threads spin beside ours, and what is left to it is small
    else:
        kernels.set_threads(1)
    try:
        if model.may_pack and is_quantized:
            quantize_heads(model)
        native.use_kernels(model, kernels, max_weights=None if model.may_pack else 0)
    except MemoryError as error:
        raise OutOfMemory(f"the weights do not fit into memory: {error}") from error
    if isinstance(model, Llama):
        model.step = native_step(model, kernels)
    if model.may_pack:
        how = "" if getattr(model, "step", None) is None else ", a step in one call"
        log.info("native kernels: %s%s", kernels.level, how)
    else:
        log.info("native kernels: %s, but torch's operators compute linear layers of floats", kernels.level)
        make_steady(model)


def _step_budget(settings: EngineSettings, kind: str) -> StepBudget:
    """What the user sets, or else what is measured; at least one token for each sequence in any case."""
    if settings.max_num_batched_tokens is not None:
        return StepBudget.fixed(max(settings.max_num_batched_tokens, settings.max_num_seqs))
    largest = max(STEP_TOKENS[kind], settings.max_num_seqs + SMALLEST)
    # A GPU works on while the host goes on to the next step, so the host's clock would not measure its steps.
    return StepBudget.fixed(largest) if kind == "cuda" else StepBudget(largest)


def _embedding_engine(
    model: EncoderModel, checkpoint: Checkpoint, info: ModelInfo, budget: int
) -> tuple[EngineCore, ModelInfo]:
    if checkpoint.classification is not None:
        info = msgspec.structs.replace(info, num_labels=len(checkpoint.classification.labels))
        return EmbeddingEngine(EncoderRunner(model, checkpoint.pooling, info.device), budget), info
    info = msgspec.structs.replace(
        info,
        embedding_size=checkpoint.embedding_size,
        is_matryoshka=checkpoint.is_matryoshka,
        is_normalized=checkpoint.pooling.normalize,
    )
    return EmbeddingEngine(EncoderRunner(model, checkpoint.pooling, info.device), budget), info


def _generation_engine(
    model: DecoderModel, checkpoint: Checkpoint, info: ModelInfo, load: Load, budget: StepBudget
) -> tuple[EngineCore, ModelInfo]:
    settings = load.settings
    dtype = getattr(torch, info.dtype)
    in_int8 = settings.kv_cache_dtype == "int8"
    has_encoder = isinstance(model, EncoderDecoderModel)
    contexts = 2 if has_encoder else 1
    window = model.widest_window
    held = None if window is None else window_blocks(window, budget.largest, BLOCK_SIZE)
    num_blocks = choose_num_blocks(
        model.cache_spec.bytes_per_token(torch.int8 if in_int8 else dtype),
        max_model_len=info.max_model_len,
        contexts=contexts,
        window_blocks=held,
        max_num_seqs=settings.max_num_seqs,
        budget_bytes=settings.kv_cache_memory or int(free_memory_bytes(info.device) * load.kv_cache_share / 2),
        explicit=settings.kv_cache_memory is not None,
    )
    caches = allocate_caches(model.cache_spec, num_blocks, dtype, info.device, in_int8=in_int8)
    scores_processed = settings.logprobs_mode == "processed"
    rules = GenerationRules.of(checkpoint)
    sampler = Sampler(info.eos_token_ids, rules, scores_processed=scores_processed, kernels=model.kernels)
    drafter = _drafter(model, info, settings)
    grammars = Grammars(
        lambda: Vocabulary.of(checkpoint, info.vocab_size, info.eos_token_ids),
        num_before=0 if rules.forced_bos_token_id is None else 1,
        has_guides=drafter is not None,
    )
    scheduler = Scheduler(
        BlockPool(num_blocks, BLOCK_SIZE),
        max_num_seqs=settings.max_num_seqs,
        budget=budget,
        trained_length=model.trained_length,
        window=window,
        drafter=drafter,
    )
    num_usable = scheduler.pool.num_usable
    info = msgspec.structs.replace(
        info,
        kv_cache_dtype="int8" if in_int8 else info.dtype,
        kv_cache_blocks=num_usable,
        kv_cache_tokens=num_usable * BLOCK_SIZE,
        kv_cache_sequences=num_usable // blocks_per_sequence(info.max_model_len, contexts, held),
    )
    adapters = Adapters(model, dtype=dtype, device=info.device)
    runner = DecoderRunner(model, caches, sampler, adapters, grammars, info.device)
    return GenerationEngine(info, scheduler, runner, _decoder_start(checkpoint) if has_encoder else None), info


def _drafter(model: DecoderModel, info: ModelInfo, settings: EngineSettings) -> Drafter | None:
    """What drafts tokens, where that is wanted: by default where a row's bits do not depend on the rows beside it."""
    is_steady = model.kernels is not None and model.may_pack
    if settings.speculation == "off" or (settings.speculation == "auto" and not is_steady):
        return None
    return Drafter(
        settings.speculation_tokens,
        max_model_len=info.max_model_len,
        end_token_ids=info.eos_token_ids,
        trained_length=model.trained_length,
    )


def _check_positions(model: DecoderModel, max_model_len: int) -> None:
    """Raises: CheckpointError when sines and cosines for every position could not be held."""
    per_position = TABLE_BYTES * model.cache_spec.head_dim
    fitting = free_memory_bytes("cpu") // 2 // per_position
    if max_model_len > fitting:
        raise CheckpointError(
            f"a context of {max_model_len} tokens needs {max_model_len * per_position / 2**30:,.1f} GiB for its "
            f"positions alone, more than there is; use --max-model-len {fitting} or less"
        )


def _decoder_start(checkpoint: Checkpoint) -> int:
    """The token an encoder-decoder's decoder begins with, as transformers chooses it."""
    for source in (checkpoint.generation_config, checkpoint.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if source.get(name) is not None:
                return int(source[name])
    raise CheckpointError(f"{checkpoint.path}: config.json lacks decoder_start_token_id")
