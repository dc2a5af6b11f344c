"""Decoders that have no family here: transformers' own modelling code over our paged cache, in the same flat batch.

What it runs is found out, not listed: a model is asked for its layers' shapes, and before it serves it must give the
logits that transformers gives alone for sequences that lie in one batch, and in pieces. A model with recurrent state,
or one whose attention cannot be ours, is refused by name. Code that comes with a checkpoint runs only where nothing
else knows the architecture, and only where a setting allows it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from langport.errors import CheckpointError
from langport.layers.attention import AttentionGroup, DecoderBatch
from langport.models.base import CacheSpec, DecoderModel
from langport.models.checkpoint import Checkpoint
from langport.models.fallback_attention import NAME, AttentionShape, attending
from langport.ops.attention import LayerCache

log = logging.getLogger("langport.engine")

ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Values of a config's `layer_types` that are attention over keys and values and nothing else."""
TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 0.1, torch.float16: 0.05}
"""How far logits may be from transformers', relative to their spread: rounding stays far below, mistakes far above."""


class Fallback(DecoderModel):
    """Any attention-only causal language model that transformers knows."""

    may_pack: ClassVar[bool] = False  # transformers' code may look into its linear layers

    def __init__(self, checkpoint: Checkpoint, *, trusts_code: bool = False) -> None:
        """`trusts_code`: code of the checkpoint's own may run.

        Raises: CheckpointError when nothing that may run knows it, or what it needs is not attention alone.
        """
        super().__init__(checkpoint.config)
        self.checkpoint = checkpoint
        runs_own = _runs_own_code(checkpoint, trusts_code)
        self.hf_config = _read_config(checkpoint, runs_own)
        try:
            self.causal_lm: Any = AutoModelForCausalLM.from_config(
                self.hf_config, attn_implementation=NAME, trust_remote_code=runs_own
            )
        except (ValueError, ImportError, KeyError, AttributeError, TypeError) as error:
            raise self._refusal(f"transformers {transformers.__version__} cannot build it: {error}") from error
        self._refuse_other_state()

    def read_weights(self, stored: Callable[[], dict[str, Tensor]], *, dtype: torch.dtype, device: str) -> bool:
        """Load through transformers, which knows the older names and layouts of each architecture's weights.

        Raises: CheckpointError when weights are missing, of another shape, or damaged.
        """
        if hasattr(self.hf_config, "quantization_config"):
            del self.hf_config.quantization_config  # what is stored quantized comes as floats
        is_bar_shown = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()
        try:
            model, report = type(self.causal_lm).from_pretrained(
                None,
                config=self.hf_config,
                state_dict=stored(),
                dtype=dtype,
                attn_implementation=NAME,
                ignore_mismatched_sizes=True,  # else it names no tensor; they are refused below
                output_loading_info=True,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self.checkpoint.path}: transformers cannot load the weights: {error}") from error
        finally:
            if is_bar_shown:
                transformers_logging.enable_progress_bar()
        for name, found, expected in sorted(report["mismatched_keys"]):
            files = self.checkpoint.weight_files
            raise CheckpointError(
                f"{files[0] if len(files) == 1 else self.checkpoint.path}: tensor {name} has shape {list(found)}, but "
                f"config.json describes {list(expected)}; the two do not belong together"
            )
        missing = sorted(report["missing_keys"])
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise CheckpointError(
                f"{self.checkpoint.path}: the weights lack {', '.join(missing[:3])}{more}, which config.json "
                f"({self.checkpoint.architecture}) needs; the download may be incomplete"
            )
        self.causal_lm = model.to(device).eval()
        self.dtype = dtype
        return True

    @torch.inference_mode()
    def prepare(self, device: str, max_model_len: int) -> None:
        """Raises: CheckpointError when the model gives other logits in a flat batch than alone."""
        self._refuse_changing_rotation(max_model_len)
        check = _Check(self.checkpoint.vocab_size, device)
        try:
            expected = [self._alone(tokens) for tokens in check.sequences]
            self._take_base()
            self.cache_spec = self._find_cache_spec(device)
            found = check.run(self, self.dtype)
        except CheckpointError as error:
            raise self._refusal(str(error)) from error
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
            raise self._refusal(f"its code fails there: {type(error).__name__}: {error}") from error
        for logits, reference in zip(found, expected, strict=True):
            difference = _difference(logits, reference)
            if not difference < TOLERANCE[self.dtype]:
                raise self._refusal(
                    "in one batch with others it gives other logits than alone (relative difference "
                    f"{difference:.2g}), so its code does more between tokens than attend"
                )
        log.warning(
            "%s (%s) runs through transformers' own modelling code: slower than a native family",
            self.checkpoint.path.name,
            self.checkpoint.architecture,
        )

    def forward(self, batch: DecoderBatch) -> Tensor:
        with attending(batch):
            return self._hidden(batch.token_ids, batch.positions)

    def logits(self, hidden: Tensor) -> Tensor:
        self.head_input.hidden = hidden[None]
        token_ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        return self.causal_lm(input_ids=token_ids, use_cache=False).logits[0]

    def _hidden(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Last hidden states (num_tokens, hidden_size) of flat tokens."""
        # The mask says that nothing is padding. Without it, transformers would look for sequences in the positions.
        out = self.base(
            input_ids=token_ids[None],
            attention_mask=torch.ones_like(token_ids)[None],
            position_ids=positions[None],
            use_cache=False,
        )
        return out[0][0]

    def _alone(self, tokens: Tensor) -> Tensor:
        """transformers' own logits (num_tokens, vocab_size) of one sequence."""
        self.causal_lm.set_attn_implementation("eager")
        logits = self.causal_lm(input_ids=tokens[None], use_cache=False).logits[0]
        self.causal_lm.set_attn_implementation(NAME)
        return logits

    def _take_base(self) -> None:
        """Part the model from its head, which then reads the hidden states that `logits` is given."""
        parts = {name for name, part in self.causal_lm.named_children() if isinstance(part, PreTrainedModel)}
        if len(parts) != 1:
            raise CheckpointError(f"it has {len(parts)} models inside, where a language model has one")
        name = parts.pop()
        self.base = getattr(self.causal_lm, name)
        self.head_input = _HeadInput()
        setattr(self.causal_lm, name, self.head_input)
        self.aliased_prefixes = {f"{name}.": "base."}  # type: ignore[misc] # known only now

    def _find_cache_spec(self, device: str) -> CacheSpec:
        token_ids = torch.zeros(2, dtype=torch.long, device=device)
        with attending(None) as current:
            self._hidden(token_ids, torch.arange(2, device=device))
        if not current.shapes:
            raise CheckpointError("its attention does not go through transformers' AttentionInterface")
        return _common_spec(current.shapes)

    def _refuse_other_state(self) -> None:
        """What config and class tell before any weight is read."""
        config, model_class = self.hf_config, type(self.causal_lm)
        layers = set(getattr(config, "layer_types", None) or ())
        others = ", ".join(sorted(layers - ATTENTION_LAYERS))
        # Granite 4 and its like come with recurrent layers, or in the same class without.
        if model_class._is_stateful and (others or not layers):
            what = f" (layers of the type {others})" if others else ""
            raise self._refusal(f"it has recurrent state{what}, which LangPort's cache does not hold")
        if others:
            raise self._refusal(f"it has {others} layers, whose state LangPort's cache does not hold")
        if getattr(config, "add_cross_attention", False) or getattr(config, "is_encoder_decoder", False):
            raise self._refusal("it attends to an encoder")
        if not model_class._can_set_attn_implementation():
            raise self._refusal("its attention does not go through transformers' AttentionInterface")

    def _refuse_changing_rotation(self, max_model_len: int) -> None:
        """longrope turns all tokens by other angles once one sequence of the batch is long."""
        rotations = getattr(self.hf_config, "rope_parameters", None) or {}
        for parameters in (rotations, *rotations.values()):
            if isinstance(parameters, dict) and parameters.get("rope_type") == "longrope":
                trained = getattr(self.hf_config, "original_max_position_embeddings", None)
                trained = trained or parameters.get("original_max_position_embeddings")
                if trained is not None and max_model_len > trained:
                    raise self._refusal(
                        f"its rotary scaling (longrope) changes with the longest sequence in the batch; use "
                        f"--max-model-len {trained}, up to which it does not"
                    )

    def _refusal(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self.checkpoint.path}: LangPort has no family of its own for {self.checkpoint.architecture}, and cannot "
            f"run it through transformers' code: {reason}"
        )


class _HeadInput(nn.Module):
    """Stands where the model was, so that transformers' code for the head runs on hidden states that are given."""

    hidden: Tensor

    def forward(self, *args: object, **kwargs: object) -> _HeadOutput:
        return _HeadOutput(self.hidden)


class _HeadOutput:
    """A base model's output of which only the last hidden states exist."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


class _Check:
    """Two short sequences that are computed together, in two pieces each, through a cache of a few blocks."""

    BLOCK_SIZE = 4
    PIECES = ((0, 0, 5, 3), (5, 3, 6, 7))
    """Per step: first positions of both sequences, then ends."""

    def __init__(self, vocab_size: int, device: str) -> None:
        self.device = device
        rows = torch.arange(14, device=device).view(2, 7)
        self.sequences = [row[:length] % vocab_size for row, length in zip(rows * 13 + 5, (6, 7), strict=True)]
        self.block_tables = torch.tensor([[1, 2], [3, 4]], device=device)

    def run(self, model: Fallback, dtype: torch.dtype) -> list[Tensor]:
        """Logits of both sequences."""
        spec = model.cache_spec
        shape = (5, spec.kv_heads, self.BLOCK_SIZE, spec.head_dim)
        zeros = torch.zeros(shape, dtype=dtype, device=self.device)
        caches = [LayerCache(zeros.clone(), zeros.clone()) for _ in range(spec.num_layers)]
        pieces: list[list[Tensor]] = [[], []]
        for first_a, first_b, end_a, end_b in self.PIECES:
            logits = model.logits(model(self._batch(caches, (first_a, first_b), (end_a, end_b))))
            for piece, part in zip(pieces, logits.split((end_a - first_a, end_b - first_b)), strict=True):
                piece.append(part)
        return [torch.cat(parts) for parts in pieces]

    def _batch(self, caches: list[LayerCache], firsts: tuple[int, int], ends: tuple[int, int]) -> DecoderBatch:
        spans = [torch.arange(first, end, device=self.device) for first, end in zip(firsts, ends, strict=True)]
        starts, size = (0, len(spans[0])), self.BLOCK_SIZE
        tables = zip(self.block_tables, spans, strict=True)
        groups = [
            AttentionGroup(
                rows=(start + torch.arange(len(span), device=self.device))[None],
                positions=span[None],
                block_tables=self.block_tables[number, None],
                context_size=2 * size,
                real=None,
            )
            for number, (start, span) in enumerate(zip(starts, spans, strict=True))
        ]
        return DecoderBatch(
            token_ids=torch.cat([tokens[span] for tokens, span in zip(self.sequences, spans, strict=True)]),
            positions=torch.cat(spans),
            slots=torch.cat([table[span // size] * size + span % size for table, span in tables]),
            make_groups=lambda: groups,
            caches=caches,
        )


def _runs_own_code(checkpoint: Checkpoint, trusts_code: bool) -> bool:
    """Whether the model's class is the checkpoint's own. Raises: CheckpointError where that may not run."""
    kind = checkpoint.config.get("model_type")
    found = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind, ()) if isinstance(kind, str) else ()
    known = (found,) if isinstance(found, str) else tuple(found)
    auto_map = checkpoint.config.get("auto_map")
    own = auto_map.get("AutoModelForCausalLM") if isinstance(auto_map, dict) else None
    if known and (own is None or checkpoint.architecture in known):
        return False
    unknown = (
        f"{checkpoint.path}: LangPort has no family of its own for {checkpoint.architecture}, and transformers "
        f"{transformers.__version__} does not know it either (model_type {kind!r})"
    )
    if not isinstance(own, str):
        raise CheckpointError(f"{unknown}. A newer transformers may know the architecture")
    file = checkpoint.path / f"{own.rpartition('.')[0]}.py"
    if not trusts_code:
        raise CheckpointError(
            f"{unknown}. The checkpoint comes with code of its own ({file.name}), which is not run: it could do "
            "anything that this server may. If you trust its authors, allow it with --trust-remote-code"
        )
    if not file.is_file():
        raise CheckpointError(
            f"{unknown}. Its config.json names the code {own}, which is not in the directory; download it too"
        )
    log.warning("%s: THE CHECKPOINT'S OWN CODE RUNS (%s), as --trust-remote-code allows", checkpoint.path, file.name)
    return True


def _read_config(checkpoint: Checkpoint, runs_own_code: bool) -> Any:
    kind = checkpoint.config.get("model_type")
    if kind not in CONFIG_MAPPING and not runs_own_code:
        raise CheckpointError(f"{checkpoint.path / 'config.json'}: transformers has no configuration for {kind!r}")
    try:
        return AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=runs_own_code)
    except (StrictDataclassError, ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint.path / 'config.json'}: transformers refuses it: {error}") from error


def _common_spec(shapes: list[AttentionShape]) -> CacheSpec:
    """One shape for all layers: smaller heads are filled up with zeros, fewer key-value heads repeated."""
    kv_heads = max(shape.kv_heads for shape in shapes)
    if any(kv_heads % shape.kv_heads or shape.heads % kv_heads for shape in shapes):
        found = ", ".join(sorted({f"{shape.kv_heads} for {shape.heads} query heads" for shape in shapes}))
        raise CheckpointError(f"its layers differ in their key-value heads ({found}); LangPort's cache has one shape")
    return CacheSpec(len(shapes), kv_heads, max(shape.head_dim for shape in shapes))


def _difference(logits: Tensor, reference: Tensor) -> float:
    """Of most tokens: the distance of the logits from the reference, relative to the reference's spread."""
    reference = reference.float()
    spread = (reference - reference.mean(-1, keepdim=True)).norm(dim=-1)
    distance = (logits.float() - reference).norm(dim=-1)
    return float((distance / spread).quantile(0.75))
