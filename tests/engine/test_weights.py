"""Weights as they lie on disk: PyTorch's files, damage, quantization while loading."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from langport.engine.engine import GenerationEngine
from langport.engine.load import num_parameters
from langport.errors import CheckpointError
from langport.layers.linear import QuantizedLinear
from langport.models.checkpoint import read_checkpoint
from langport.models.registry import build_model
from langport.models.weights import load_weights
from langport.ops import native
from langport.types import GenerateRequest, SamplingParams
from tests.checkpoints import byte_tokenizer, save_checkpoint
from tests.engine.inprocess import Stream, embed, load, run
from tests.engine.parity import assert_equals_transformers

Checkpoints = Callable[[str], Path]
PROMPTS = [[5, 6, 7, 8, 9], [20, 21] * 30, [100]]


def answers(path: Path, **settings: object) -> list[Stream]:
    """Greedy tokens with their log-probabilities, and those of the prompts."""
    sampling = SamplingParams(max_tokens=12, temperature=0, logprobs=0, prompt_logprobs=0, ignore_eos=True)
    streams = run(load(path, **settings), [GenerateRequest(str(i), p, sampling) for i, p in enumerate(PROMPTS)])
    return [streams[str(i), 0] for i in range(len(PROMPTS))]


def logprobs(stream: Stream) -> list[float]:
    return [entry.logprob for entry in [*stream.prompt_logprobs, *stream.logprobs] if entry is not None]


def rewrite(path: Path, source: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], **config: Any) -> Path:
    """A copy of a one-file checkpoint with other tensors, and fields added to config.json."""
    path.mkdir(exist_ok=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (path / file.name).write_bytes(file.read_bytes())
    save_file(change(load_file(source / "model.safetensors")), path / "model.safetensors")
    content = json.loads((source / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**content, **config}))
    return path


def as_bin(source: Path, path: Path, *, legacy: bool = False, shards: int = 1) -> Path:
    """The same checkpoint in PyTorch's own files."""
    rewrite(path, source, lambda tensors: tensors)
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = ["pytorch_model.bin"]
    if shards > 1:
        names = [f"pytorch_model-{number}.bin" for number in range(shards)]
        weight_map = {name: names[i % shards] for i, name in enumerate(tensors)}
        (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for number, name in enumerate(names):
        part = {key: tensor for i, (key, tensor) in enumerate(tensors.items()) if i % shards == number}
        torch.save(part, path / name, _use_new_zipfile_serialization=not legacy)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    return str(caught.value)


@pytest.mark.parametrize(("legacy", "shards"), [(False, 1), (True, 1), (False, 3)])
def test_pytorch_files_are_read(legacy: bool, shards: int, checkpoint: Checkpoints, tmp_path: Path) -> None:
    path = as_bin(checkpoint("llama"), tmp_path, legacy=legacy, shards=shards)
    assert answers(path) == answers(checkpoint("llama"))


def test_the_fallback_reads_pytorch_files_too(tmp_path: Path) -> None:
    from transformers.models.persimmon import PersimmonConfig

    from tests.checkpoints import _llama_like
    from tests.engine.parity import save_random

    save_random(_llama_like(PersimmonConfig), tmp_path / "plain")
    assert_equals_transformers(as_bin(tmp_path / "plain", tmp_path / "bin"))


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_and_never_executed(
    legacy: bool, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    path = as_bin(checkpoint("llama"), tmp_path / "model")
    content = {"model.norm.weight": torch.ones(64), "trap": Trap(tmp_path / "sprung")}
    torch.save(content, path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    message = refusal(path)
    assert str(path / "pytorch_model.bin") in message
    assert "weights_only" not in message  # torch's own message says how to run the code
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    assert str(path / "pytorch_model.bin") in refusal(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("size", [3, 200, -1000])
def test_a_truncated_pytorch_file_is_named(size: int, checkpoint: Checkpoints, tmp_path: Path) -> None:
    path = as_bin(checkpoint("llama"), tmp_path)
    file = path / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:size])
    assert str(file) in refusal(path)


def test_a_pytorch_file_of_something_else_is_named(checkpoint: Checkpoints, tmp_path: Path) -> None:
    path = as_bin(checkpoint("llama"), tmp_path)
    for content in ([torch.ones(3)], {"state": {"a": torch.ones(3)}}):
        torch.save(content, path / "pytorch_model.bin")
        assert "pytorch_model.bin" in refusal(path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.norm.weight", lambda tensor: tensor[:-1]),
        ("model.layers.1.self_attn.k_proj.weight", lambda tensor: tensor[:, :-1]),
        ("model.layers.1.self_attn.v_proj.weight", lambda tensor: tensor[:-1]),
        ("model.layers.0.mlp.down_proj.weight", lambda tensor: tensor.to(torch.int8)),
        ("model.layers.0.mlp.down_proj.weight", lambda tensor: tensor.to(torch.float8_e4m3fn)),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_with_its_file(
    name: str, change: Callable[[Tensor], Tensor], checkpoint: Checkpoints, tmp_path: Path
) -> None:
    path = rewrite(tmp_path, checkpoint("llama"), lambda tensors: {**tensors, name: change(tensors[name]).contiguous()})
    message = refusal(path)
    assert str(path / "model.safetensors") in message
    assert name in message or "qkv_proj" in message


def rewrite_header(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a safetensors file says about its tensors, and leave their bytes."""
    raw = file.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


NORM, EMBED = "model.norm.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header[NORM].update(data_offsets=header[EMBED]["data_offsets"]),
        lambda header: header[NORM].update(
            data_offsets=header["model.layers.0.input_layernorm.weight"]["data_offsets"]
        ),
        lambda header: header[NORM].update(data_offsets=header[NORM]["data_offsets"][::-1]),
        lambda header: header[NORM].update(data_offsets=[-5, 10]),
        lambda header: header[NORM].update(shape=[10**12]),
        lambda header: header[NORM].update(shape=[2**40, 2**40]),
        lambda header: header[NORM].update(dtype="F1024"),
        lambda header: header.pop(NORM),
    ],
)
def test_a_header_that_does_not_describe_its_file_is_refused(
    change: Callable[[dict[str, Any]], object], checkpoint: Checkpoints, tmp_path: Path
) -> None:
    path = rewrite(tmp_path, checkpoint("llama"), lambda tensors: tensors)
    rewrite_header(path / "model.safetensors", change)
    message = refusal(path)
    assert str(path / "model.safetensors") in message
    assert "\n" not in message


def without(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {other: tensor for other, tensor in tensors.items() if other != name}


def test_a_missing_tensor_is_named_with_its_file(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Also where other matrices of the stacked one are there."""
    for name in ("model.layers.1.mlp.down_proj.weight", "model.layers.1.self_attn.k_proj.weight"):
        path = rewrite(tmp_path, checkpoint("llama"), lambda tensors, name=name: without(tensors, name))
        message = refusal(path)
        assert f"{path / 'model.safetensors'}: the weights lack {name.removeprefix('model.')}" in message


def test_an_index_that_names_what_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save_checkpoint("llama", tmp_path, shard_size="100KB")
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = content["weight_map"]["model.layers.2.mlp.down_proj.weight"]
    index.write_text(json.dumps({"weight_map": content["weight_map"] | {"model.extra.weight": shard}}))
    load(path)
    assert f"{path / shard} lacks the tensor model.extra.weight" in caplog.text
    tensors = load_file(path / shard)
    del tensors["model.layers.2.mlp.down_proj.weight"]
    save_file(tensors, path / shard)
    assert f"{path / shard}: the weights lack layers.2.mlp.down_proj.weight" in refusal(path)


def test_a_pickle_cannot_call_a_few_bytes_a_huge_tensor(checkpoint: Checkpoints, tmp_path: Path) -> None:
    path = as_bin(checkpoint("llama"), tmp_path)
    sparse = torch.sparse_coo_tensor(size=(2**20, 2**20), check_invariants=True)
    for tensor in (torch.zeros(1).expand(2**20, 2**20), sparse):
        torch.save({"model.norm.weight": tensor}, path / "pytorch_model.bin")
        message = refusal(path)
        assert f"{path / 'pytorch_model.bin'} is refused: tensor model.norm.weight has shape [1048576" in message


def test_a_context_whose_tables_would_fill_the_memory_is_refused(checkpoint: Checkpoints, tmp_path: Path) -> None:
    path = rewrite(tmp_path, checkpoint("llama"), lambda tensors: tensors, max_position_embeddings=2**31)
    message = refusal(path)
    assert str(path) in message
    assert "--max-model-len" in message
    assert load(path, max_model_len=64)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"num_attention_heads": [4]}, "does not describe a LlamaForCausalLM"),
        ({"hidden_act": ["silu"]}, "['silu']"),
        ({"quantization_config": {"quant_method": "gptq", "bits": "x"}}, "quantization_config"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 77}}, "77 bits"),
    ],
)
def test_a_config_of_the_wrong_form_is_named(
    config: dict[str, Any], named: str, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    message = refusal(rewrite(tmp_path, checkpoint("llama"), lambda tensors: tensors, **config))
    assert str(tmp_path) in message
    assert named in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "rules",
    [
        {"suppress_tokens": [1e99]},
        {"forced_eos_token_id": {}},
        {"forced_bos_token_id": 384},
        {"begin_suppress_tokens": "x"},
        {"no_repeat_ngram_size": -4},
    ],
)
def test_a_wrong_generation_config_is_named(rules: dict[str, Any], checkpoint: Checkpoints, tmp_path: Path) -> None:
    path = rewrite(tmp_path, checkpoint("llama"), lambda tensors: tensors)
    (path / "generation_config.json").write_text(json.dumps(rules))
    assert next(iter(rules)) in refusal(path)


def quantized_layers(path: Path, **settings: object) -> dict[str, QuantizedLinear]:
    core = load(path, **settings)
    assert isinstance(core, GenerationEngine)
    model = core.runner.model
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    assert num_parameters(model) == num_parameters(load(path).runner.model)  # type: ignore[attr-defined]
    return layers


def explicit(weight: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """What quantizing should leave of a weight, from its definition, in float64: per row, or per group of a row."""
    rows = weight.double().numpy()
    size = rows.shape[1]
    if bits == 4:
        size = 128 if size % 128 == 0 else 32
    groups = rows.reshape(len(rows), -1, size)
    if bits == 8:
        scale = np.abs(groups).max(-1) / 127
    else:
        largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0]
        scale = -largest / 8
    scale = torch.from_numpy(scale).float().to(dtype).double().numpy()[..., None]
    limit = 2 ** (bits - 1)
    values = np.clip(np.round(groups.astype(np.float32) / scale.astype(np.float32)), -limit, limit - 1)
    return torch.from_numpy((values * scale).reshape(rows.shape))


@pytest.mark.usefixtures("without_kernels")  # which make the activations 8-bit numbers, too
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "mixtral"])
@pytest.mark.parametrize(("quantization", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantized_while_loading(
    family: str, quantization: str, bits: int, dtype: str, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    """Every token is the likeliest under a transformers model whose weights were quantized and made float again."""
    path = mixtral(tmp_path) if family == "mixtral" else checkpoint(family)
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    torch_dtype = getattr(torch, dtype)
    kept = ("lm_head", "embed", "wte", "wpe", "gate.weight", "router")
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            stored = parameter.to(torch_dtype)
            if parameter.dim() >= 2 and not any(part in name for part in kept):
                for matrix, source in zip(_matrices(parameter), _matrices(stored), strict=True):
                    is_conv = family == "gpt2"
                    source = parameter.t() if is_conv else matrix  # quantized from what is stored, float32
                    done = explicit(source, bits, torch_dtype).float()
                    matrix.copy_(done.t() if is_conv else done)
            else:
                parameter.copy_(stored)
    streams = answers(path, quantization=quantization, dtype=dtype)
    plain = answers(path, dtype=dtype)
    for prompt, stream, other in zip(PROMPTS, streams, plain, strict=True):
        text = prompt + stream.tokens
        with torch.inference_mode():
            scores = reference(torch.tensor([text])).logits[0].log_softmax(-1)
        expected = [scores[i, token].item() for i, token in enumerate(text[1:])]
        tolerance = 1e-3 if dtype == "float32" else 0.3
        np.testing.assert_allclose(logprobs(stream), expected, atol=tolerance)
        if dtype == "float32":
            assert stream.tokens == scores.argmax(-1)[len(prompt) - 1 : -1].tolist()
        prompt_only = len(prompt) - 1
        found, float_found = np.array(logprobs(stream))[:prompt_only], np.array(logprobs(other))[:prompt_only]
        if prompt_only:
            assert np.abs(found - float_found).mean() < (0.25 if bits == 8 else 2.5)
            assert (found != float_found).any()


def _matrices(parameter: Tensor) -> list[Tensor]:
    return [parameter] if parameter.dim() == 2 else list(parameter)


def mixtral(path: Path) -> Path:
    from transformers.models.mixtral import MixtralConfig

    from tests.checkpoints import _llama_like
    from tests.engine.parity import save_random

    return save_random(_llama_like(MixtralConfig, num_local_experts=4, sliding_window=None), path)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantized_answers_do_not_depend_on_the_batch(quantization: str, dtype: str, checkpoint: Checkpoints) -> None:
    together = answers(checkpoint("llama"), quantization=quantization, dtype=dtype)
    sampling = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    core = load(checkpoint("llama"), quantization=quantization, dtype=dtype, max_num_batched_tokens=16, max_num_seqs=4)
    for number, prompt in enumerate(PROMPTS):
        [alone] = run(core, [GenerateRequest("a", prompt, sampling)]).values()
        assert alone.tokens == together[number].tokens


LAYERS = {
    f"layers.{number}.{part}"
    for number in range(3)
    for part in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
}


@pytest.mark.usefixtures("without_kernels")
def test_without_kernels_head_and_embeddings_stay_as_they_are(checkpoint: Checkpoints) -> None:
    layers = quantized_layers(checkpoint("llama"), quantization="int8")
    assert set(layers) == LAYERS
    assert {layer.bits for layer in layers.values()} == {8}


@pytest.mark.skipif(native.kernels() is None, reason="the native kernels are not built")
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_kernels_take_the_head_in_eight_bits(family: str, checkpoint: Checkpoints) -> None:
    """Whether it is tied (qwen3) or not; embeddings stay floats, and what is shared counts once."""
    core = load(checkpoint(family), quantization="int4")
    assert isinstance(core, GenerationEngine)
    model = core.runner.model
    head = model.get_submodule("lm_head")
    assert isinstance(head, QuantizedLinear)
    assert head.bits == 8
    embeddings = model.get_parameter("embed_tokens.weight")
    assert embeddings.is_floating_point()
    assert head.num_weights == (0 if family == "qwen3" else embeddings.numel())
    floats = load(checkpoint(family))
    assert isinstance(floats, GenerationEngine)
    assert num_parameters(model) == num_parameters(floats.runner.model)
    x = torch.randn(5, head.in_features)
    weight = AutoModelForCausalLM.from_pretrained(checkpoint(family)).get_output_embeddings().weight
    found, expected = model.logits(x), x @ weight.float().T
    assert (found - expected).norm() < 0.012 * expected.norm()


def test_other_kinds_of_models_are_quantized(checkpoint: Checkpoints) -> None:
    for family in ("t5", "bart"):
        sampling = SamplingParams(max_tokens=12, temperature=0, logprobs=0, ignore_eos=True)
        request = GenerateRequest("a", PROMPTS[1], sampling)
        [plain] = run(load(checkpoint(family)), [request]).values()
        [quantized] = run(load(checkpoint(family), quantization="int8"), [request]).values()
        assert abs(quantized.logprobs[0].logprob - plain.logprobs[0].logprob) < 0.3
        assert logprobs(quantized) != logprobs(plain)
    [vector] = embed(load(checkpoint("bert")), PROMPTS[:1])
    [near] = embed(load(checkpoint("bert"), quantization="int8"), PROMPTS[:1])
    assert 0.99 < vector @ near / np.linalg.norm(vector) / np.linalg.norm(near) < 1


def test_the_start_says_what_is_quantized(
    checkpoint: Checkpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="langport.engine"):
        load(checkpoint("llama"), quantization="int4")
    assert "12 linear layers are int4" in caplog.text


def test_a_width_that_no_group_divides_gets_eight_bits(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=384,
        hidden_size=40,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    bits = {name: layer.bits for name, layer in quantized_layers(tmp_path, quantization="int4").items()}
    assert bits["layers.0.self_attn.qkv_proj"] == 8
    assert bits["layers.0.mlp.down_proj"] == 4


def test_float16_and_shards(tmp_path: Path) -> None:
    path = save_checkpoint("llama", tmp_path, dtype="float16", shard_size="100KB")
    assert len(list(path.glob("*.safetensors"))) > 1
    for stream in answers(path, quantization="int4"):
        assert len(stream.tokens) == 12


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "t5"])
def test_a_layer_is_packed_as_soon_as_it_is_whole(family: str, checkpoint: Checkpoints) -> None:
    """So that the floats of one layer at most are held beside what is packed."""
    kernels = native.kernels()
    if kernels is None:
        pytest.skip("there are no native kernels here")
    files = read_checkpoint(checkpoint(family))
    model = build_model(files)
    tied = {name.removesuffix(".weight") for pair in model.tied.items() for name in pair}
    num_packed: list[int] = []

    def look(share: float) -> None:
        whole = {
            name
            for name, module in model.named_modules()
            if type(module) is nn.Linear and not any(parameter.is_meta for parameter in module.parameters())
        }
        assert whole <= tied
        num_packed.append(sum(isinstance(module, native.NativeLinear) for module in model.modules()))

    load_weights(model, files.weight_files, dtype=torch.float32, device="cpu", kernels=kernels, progress=look)

    assert num_packed == sorted(num_packed)
    assert len(set(num_packed)) > 4
    assert not [name for name, module in model.named_modules() if type(module) is nn.Linear and name not in tied]
