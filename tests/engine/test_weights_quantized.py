"""Checkpoints that are stored quantized, packed here bit by bit from the formats' descriptions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from langport.engine.engine import GenerationEngine
from langport.errors import CheckpointError
from langport.layers.linear import QuantizedLinear
from tests.engine.inprocess import load
from tests.engine.test_weights import answers, logprobs, rewrite

Checkpoints = Callable[[str], Path]
Array = NDArray[Any]
GROUP = 32
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def words(values: Array, bits: int) -> Tensor:
    """Unsigned values (n, m) in 32-bit words along m, the first value in the lowest bits."""
    grouped = values.astype(np.uint64).reshape(len(values), -1, 32 // bits)
    packed = np.zeros(grouped.shape[:2], np.uint64)
    for place in range(32 // bits):
        packed |= grouped[:, :, place] << np.uint64(bits * place)
    return torch.from_numpy(packed.astype(np.uint32).view(np.int32).copy())


@dataclass
class Affine:
    """A random quantized weight: `(values - zeros) * scale`, one zero and scale per row and group."""

    values: Array
    zeros: Array
    scale: Tensor
    groups: Array

    @classmethod
    def draw(
        cls, shape: torch.Size, bits: int, *, symmetric: bool, shuffled: bool = False, group: int = GROUP
    ) -> Affine:
        rng = np.random.default_rng(shape[0] * 1000 + shape[1] + bits)
        rows, columns = shape
        values = rng.integers(0, 1 << bits, (rows, columns))
        zeros = rng.integers(0, 1 << bits, (rows, columns // group))
        if symmetric:
            zeros[:] = 1 << bits - 1
        else:
            zeros[:2] = [[0], [(1 << bits) - 1]]
        scale = torch.from_numpy(rng.uniform(0.1, 0.3, zeros.shape) / (1 << bits)).half()
        groups = np.arange(columns) // group
        return cls(values, zeros, scale, rng.permutation(groups) if shuffled else groups)

    def floats(self) -> Tensor:
        scale = self.scale.double().numpy()
        return torch.from_numpy((self.values - self.zeros[:, self.groups]) * scale[:, self.groups]).float()


Packed = tuple[dict[str, Tensor], Tensor]
"""The tensors that stand for a weight, by the end of their names, and the weight they mean."""


def gptq(shape: torch.Size, *, bits: int, symmetric: bool, shuffled: bool, version: int) -> Packed:
    affine = Affine.draw(shape, bits, symmetric=symmetric, shuffled=shuffled)
    stored_zeros = (affine.zeros - (1 if version == 1 else 0)) % (1 << bits)
    parts = {
        "qweight": words(affine.values, bits).t().contiguous(),
        "qzeros": words(stored_zeros.T, bits),
        "scales": affine.scale.t().contiguous(),
        "g_idx": torch.from_numpy(affine.groups.astype(np.int32)),
    }
    return parts, affine.floats()


def awq(shape: torch.Size, *, symmetric: bool) -> Packed:
    affine = Affine.draw(shape, 4, symmetric=symmetric)
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # place i of a word holds column order[i] of its eight

    def pack(columns: Array) -> Tensor:
        return words(columns.reshape(len(columns), -1, 8)[:, :, order].reshape(columns.shape), 4)

    parts = {
        "qweight": pack(affine.values.T),
        "qzeros": pack(affine.zeros.T),
        "scales": affine.scale.t().contiguous(),
    }
    return parts, affine.floats()


def packed(shape: torch.Size, *, bits: int, symmetric: bool, strategy: str = "group", shuffled: bool = False) -> Packed:
    group = GROUP if strategy == "group" else shape[1]
    affine = Affine.draw(shape, bits, symmetric=symmetric, shuffled=shuffled, group=group)
    parts = {
        "weight_packed": words(affine.values, bits),
        "weight_scale": affine.scale,
        "weight_shape": torch.tensor(list(shape)),
    }
    if not symmetric:
        parts["weight_zero_point"] = words(affine.zeros.T, bits).t().contiguous()
    if shuffled:
        parts["weight_g_idx"] = torch.from_numpy(affine.groups.astype(np.int32))
    return parts, affine.floats()


def whole_bytes(shape: torch.Size, *, symmetric: bool, strategy: str = "channel") -> Packed:
    group = GROUP if strategy == "group" else shape[1]
    affine = Affine.draw(shape, 8, symmetric=symmetric, group=group)
    if strategy == "tensor":
        affine.scale[:] = affine.scale[0, 0]
    parts = {
        "weight": torch.from_numpy((affine.values - 128).astype(np.int8)),
        "weight_scale": affine.scale[0] if strategy == "tensor" else affine.scale,
        "input_scale": torch.ones(1),
    }
    if not symmetric:
        parts["weight_zero_point"] = torch.from_numpy((affine.zeros - 128).astype(np.int8))
    return parts, affine.floats()


def fp8(shape: torch.Size, *, block: tuple[int, int] | None, name: str, scalar: bool = False) -> Packed:
    generator = torch.Generator().manual_seed(shape[0])
    values = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    if block is not None:
        rows, columns = (-(-size // step) for size, step in zip(shape, block, strict=True))
        scale = torch.rand(rows, columns, generator=generator)
        full = torch.tensor(
            [[float(scale[r // block[0], c // block[1]]) for c in range(shape[1])] for r in range(shape[0])]
        )
    else:
        scale = torch.rand((), generator=generator) if scalar else torch.rand(shape[0], 1, generator=generator)
        full = scale.expand(shape)
    return {"weight": values, name: scale}, values.float() * full


def int_groups(**weights: Any) -> dict[str, Any]:
    return {"group_0": {"targets": ["Linear"], "weights": {"type": "int", **weights}, "input_activations": None}}


def compressed(form: str, **weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": int_groups(**weights)}


CASES: dict[str, tuple[dict[str, Any], Callable[[torch.Size], Packed]]] = {}
for _bits in (2, 4, 8):
    for _symmetric, _shuffled, _version in ((True, False, 1), (False, False, 1), (True, True, 1), (False, True, 2)):
        CASES[f"gptq-{_bits}-{_symmetric}-{_shuffled}-v{_version}"] = (
            {
                "quant_method": "gptq",
                "bits": _bits,
                "group_size": GROUP,
                "checkpoint_format": "gptq" if _version == 1 else "gptq_v2",
            },
            lambda shape, b=_bits, s=_symmetric, d=_shuffled, v=_version: gptq(  # type: ignore[misc]
                shape, bits=b, symmetric=s, shuffled=d, version=v
            ),
        )
CASES |= {
    "awq": ({"quant_method": "awq", "bits": 4}, lambda shape: awq(shape, symmetric=False)),
    "awq-symmetric": ({"quant_method": "awq", "version": "GEMM"}, lambda shape: awq(shape, symmetric=True)),
    "packed-4": (
        compressed("pack-quantized", num_bits=4, symmetric=True, group_size=GROUP),
        lambda shape: packed(shape, bits=4, symmetric=True),
    ),
    "packed-4-asymmetric": (
        compressed("pack-quantized", num_bits=4, symmetric=False),
        lambda shape: packed(shape, bits=4, symmetric=False),
    ),
    "packed-4-actorder": (
        compressed("pack-quantized", num_bits=4, symmetric=True, actorder="group"),
        lambda shape: packed(shape, bits=4, symmetric=True, shuffled=True),
    ),
    "packed-8-channel": (
        compressed("pack-quantized", num_bits=8, symmetric=True, strategy="channel"),
        lambda shape: packed(shape, bits=8, symmetric=True, strategy="channel"),
    ),
    "int8-channel": (
        compressed("int-quantized", num_bits=8, strategy="channel"),
        lambda shape: whole_bytes(shape, symmetric=True),
    ),
    "int8-asymmetric": (
        compressed("int-quantized", num_bits=8, strategy="channel"),
        lambda shape: whole_bytes(shape, symmetric=False),
    ),
    "int8-tensor": (
        compressed("int-quantized", num_bits=8, strategy="tensor"),
        lambda shape: whole_bytes(shape, symmetric=True, strategy="tensor"),
    ),
    "int8-group": (
        compressed("naive-quantized", num_bits=8, strategy="group"),
        lambda shape: whole_bytes(shape, symmetric=False, strategy="group"),
    ),
    "fp8-blocks": (
        {"quant_method": "fp8", "weight_block_size": [24, 40]},
        lambda shape: fp8(shape, block=(24, 40), name="weight_scale_inv"),
    ),
    "fp8-tensor": (
        {"quant_method": "fp8", "activation_scheme": "static"},
        lambda shape: fp8(shape, block=None, name="weight_scale", scalar=True),
    ),
    "fp8-rows": ({"quant_method": "fbgemm_fp8"}, lambda shape: fp8(shape, block=None, name="weight_scale")),
    "fp8-compressed": (
        compressed("float-quantized", num_bits=8),
        lambda shape: fp8(shape, block=None, name="weight_scale"),
    ),
    "fp8-compressed-blocks": (
        compressed("float-quantized", num_bits=8, strategy="block", block_structure=[24, 40]),
        lambda shape: fp8(shape, block=(24, 40), name="weight_scale"),
    ),
}


def is_quantized(name: str) -> bool:
    return name.endswith(".weight") and name.split(".")[-2] in LAYERS


def write_pair(case: str, source: Path, path: Path) -> tuple[Path, Path]:
    """A quantized checkpoint, and one with the floats that it means."""
    settings, pack = CASES[case]
    meant: dict[str, Tensor] = {}

    def quantized(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if not is_quantized(name):
                out[name] = tensor
                continue
            parts, meant[name] = pack(tensor.shape)
            out |= {f"{name.removesuffix('weight')}{part}": value for part, value in parts.items()}
        return out

    one = rewrite(path / "quantized", source, quantized, quantization_config=settings)
    return one, rewrite(path / "floats", source, lambda tensors: tensors | meant)


def parameters(path: Path, **settings: object) -> dict[str, Tensor]:
    core = load(path, **settings)
    assert isinstance(core, GenerationEngine)
    return core.runner.model.state_dict()


@pytest.mark.parametrize("case", CASES)
def test_stored_weights_mean_what_their_format_says(
    case: str, checkpoint: Checkpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = write_pair(case, checkpoint("llama"), tmp_path)
    with caplog.at_level("INFO", logger="langport.engine"):
        found, expected = parameters(one), parameters(other)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name].numpy(), tensor.numpy(), rtol=1e-6, atol=1e-7, err_msg=name)
    assert "stored quantized" in caplog.text


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize(
    ("case", "quantization"), [("gptq-4-True-False-v1", "int4"), ("packed-4", "int8"), ("int8-channel", "int8")]
)
def test_what_fits_the_wanted_bits_is_kept_exactly(
    case: str, quantization: str, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    """Without the native kernels, which make the activations 8-bit numbers, too."""
    one, other = write_pair(case, checkpoint("llama"), tmp_path)
    core = load(one, quantization=quantization)
    assert isinstance(core, GenerationEngine)
    layers = [module for module in core.runner.model.modules() if isinstance(module, QuantizedLinear)]
    assert len(layers) == 12
    assert {layer.bits for layer in layers} == {8 if case == "int8-channel" else 4}
    for found, expected in zip(answers(one, quantization=quantization), answers(other), strict=True):
        assert found.tokens == expected.tokens
        np.testing.assert_allclose(logprobs(found), logprobs(expected), atol=1e-4)


def test_what_does_not_fit_the_wanted_bits_is_quantized_anew(checkpoint: Checkpoints, tmp_path: Path) -> None:
    one, other = write_pair("gptq-8-False-True-v2", checkpoint("llama"), tmp_path)
    for found, expected in zip(answers(one, quantization="int4"), answers(other, quantization="int4"), strict=True):
        assert found.tokens == expected.tokens


def test_the_fallback_reads_them_too(checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = write_pair("gptq-4-False-True-v2", checkpoint("llama"), tmp_path)
    expected = answers(other)
    monkeypatch.delitem(__import__("langport.models.registry", fromlist=["FAMILIES"]).FAMILIES, "LlamaForCausalLM")
    for quantization in ("none", "int8"):
        for found, stream in zip(answers(one, quantization=quantization), expected, strict=True):
            tolerance = 1e-3 if quantization == "none" else 0.5
            np.testing.assert_allclose(found.logprobs[0].logprob, stream.logprobs[0].logprob, atol=tolerance)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"quant_method": "gptq", "bits": 3}, "3 bits"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "marlin"),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "marlin"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "gemv"),
        (compressed("nvfp4-pack-quantized"), "nvfp4"),
        (compressed("mixed-precision") | {"config_groups": {"a": {"format": "marlin-24"}}}, "marlin-24"),
        (compressed("dense") | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ],
)
def test_other_formats_are_refused_by_name(
    settings: dict[str, Any], named: str, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    path = rewrite(tmp_path, checkpoint("llama"), lambda tensors: tensors, quantization_config=settings)
    with pytest.raises(CheckpointError, match=named):
        load(path)


@pytest.mark.parametrize(
    ("case", "part", "change"),
    [
        ("gptq-4-True-False-v1", "scales", None),
        ("gptq-4-True-False-v1", "scales", lambda tensor: tensor[:, :-1].contiguous()),
        ("gptq-4-True-False-v1", "qzeros", None),
        ("gptq-4-True-False-v1", "g_idx", lambda tensor: tensor + 5),
        ("awq", "qzeros", lambda tensor: tensor[:, :-1].contiguous()),
        ("packed-4", "weight_shape", None),
        ("packed-4", "weight_packed", lambda tensor: tensor[:-1].contiguous()),
        ("fp8-blocks", "weight_scale_inv", lambda tensor: tensor[:, :-1].contiguous()),
        ("fp8-rows", "weight", lambda tensor: tensor.float()),
    ],
)
def test_parts_that_do_not_fit_are_named_with_their_file(
    case: str, part: str, change: Callable[[Tensor], Tensor] | None, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    one, _ = write_pair(case, checkpoint("llama"), tmp_path)
    module = "model.layers.1.self_attn.o_proj"

    def damaged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensor = tensors.pop(f"{module}.{part}")
        return tensors if change is None else tensors | {f"{module}.{part}": change(tensor)}

    path = rewrite(tmp_path / "damaged", one, damaged)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert str(path / "model.safetensors") in str(caught.value)
    assert module in str(caught.value)
