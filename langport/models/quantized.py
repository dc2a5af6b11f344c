"""Checkpoints whose weights are stored quantized: GPTQ, AWQ, compressed-tensors and FP8.

Each method is a way to make a float weight, or an exact `IntWeight`, of the tensors that a file holds for one linear
layer. Activations that a method would also quantize stay in the model's dtype.

Sources: GPTQ, Frantar et al. 2022, and the AutoGPTQ file format; AWQ, Lin et al. 2023, and AutoAWQ's "gemm" format;
the compressed-tensors documentation; FP8 with block scales, DeepSeek-V3 technical report 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from langport.errors import CheckpointError
from langport.layers.linear import Bits, IntWeight
from langport.models.tensors import TensorFiles

Parts = dict[str, Tensor]
"""What a file holds for one layer, by the last part of the names."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AutoAWQ puts the value of column AWQ_ORDER[i] into the i-th four bits of a word."""
FLOAT8 = frozenset({torch.float8_e4m3fn, torch.float8_e5m2})
COMPRESSED_FORMATS = frozenset({"pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "dense"})


@dataclass(frozen=True)
class Method:
    """How one kind of checkpoint stores the weight of a linear layer."""

    name: str
    """For the log: what the weights are stored as."""
    main: tuple[str, ...]
    """The part that every quantized layer has; one of these."""
    scale: tuple[str, ...]
    """One of these lies beside `main`; if not, that is an ordinary tensor ("weight"), or the file is damaged."""
    required: tuple[str, ...]
    """What packed weights ("qweight", "weight_packed") also need."""
    optional: tuple[str, ...]
    decode: Callable[[Parts], Tensor | IntWeight]
    """(out_features, in_features). Raises: ValueError when the parts do not fit together."""

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset((*self.main, *self.scale, *self.required, *self.optional))


@dataclass(frozen=True)
class Stored:
    """A weight of the checkpoint, decoded if need be."""

    file: Path
    name: str
    tensor: Tensor | IntWeight
    is_decoded: bool = False
    """It is (out_features, in_features), however the model's float checkpoints store it."""


def stored_weights(tensors: TensorFiles, method: Method | None) -> Iterator[Stored]:
    """Every weight of the checkpoint, one at a time.

    Raises: CheckpointError naming file and tensor where parts are missing or do not fit together.
    """
    for name in tensors.names:
        module, _, kind = name.rpartition(".")
        if method is None or kind not in method.kinds:
            yield Stored(tensors.file_of(name), name, tensors.get(name))
        elif kind in method.main:
            yield _decoded(tensors, method, module, kind)


def _decoded(tensors: TensorFiles, method: Method, module: str, kind: str) -> Stored:
    name = f"{module}.{kind}"
    file = tensors.file_of(name)
    if not any(f"{module}.{part}" in tensors for part in method.scale):
        if kind == "weight":
            return Stored(file, name, tensors.get(name))
        raise CheckpointError(f"{file}: {name} has no {module}.{method.scale[0]} beside it; download it again")
    parts = {part: tensors.get(full) for part in method.kinds if (full := f"{module}.{part}") in tensors}
    if absent := [part for part in method.required if kind != "weight" and part not in parts]:
        raise CheckpointError(f"{file}: {name} has no {module}.{absent[0]} beside it; download it again")
    try:
        return Stored(file, f"{module}.weight", method.decode(parts), is_decoded=True)
    except (ValueError, RuntimeError, IndexError, ArithmeticError, TypeError) as error:
        raise CheckpointError(f"{file}: {name} does not fit the tensors beside it ({error})") from error


def method_of(config: dict[str, Any]) -> Method | None:
    """How a checkpoint's config.json says its weights are stored; None: as floats.

    Raises: CheckpointError for a variant that is not read.
    """
    settings = config.get("quantization_config") or config.get("compression_config")
    if not settings:
        return None
    try:
        return METHODS[settings["quant_method"]](settings)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"config.json: quantization_config is not as the tools write it ({type(error).__name__}: {error}). Take "
            "config.json from the original checkpoint."
        ) from error


def _refuse(what: str) -> CheckpointError:
    return CheckpointError(
        f"config.json: the weights are stored as {what}, which LangPort does not read. Take the checkpoint that this "
        "one was made from, or another quantization of it."
    )


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """int32 words (rows, n) to unsigned values (rows, n * 32 / bits), low bits first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    values = torch.bitwise_right_shift(packed[:, :, None], shifts) & ((1 << bits) - 1)
    return values.flatten(1).to(torch.int16)


def _affine(values: Tensor, zeros: Tensor, scale: Tensor, groups: Tensor | None, bits: int) -> Tensor | IntWeight:
    """`(values - zeros) * scale` for unsigned values (out, in), zeros and scale (out, num_groups).

    `groups` (in,) says which group each input belongs to; None: they follow one another.
    """
    if zeros.shape != scale.shape or len(scale) != len(values):
        raise ValueError(f"zeros {list(zeros.shape)} and scales {list(scale.shape)} for {len(values)} outputs")
    if values.shape[1] % scale.shape[1] != 0 and groups is None:
        raise ValueError(f"{values.shape[1]} inputs are not {scale.shape[1]} groups of one size")
    middle = 1 << bits - 1
    if groups is None and bits in (4, 8) and bool((zeros == middle).all()):
        return IntWeight((values - middle).to(torch.int8), scale, cast(Bits, bits))
    if groups is None:
        groups = torch.arange(scale.shape[1]).repeat_interleave(values.shape[1] // scale.shape[1])
    return (values - zeros[:, groups]).float() * scale.float()[:, groups]


def _gptq(settings: dict[str, Any]) -> Method:
    bits = int(settings.get("bits", 4))
    variant = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if variant not in ("gptq", "gptq_v2") or settings.get("is_marlin_format"):
        raise _refuse(f"GPTQ in the format {'marlin' if settings.get('is_marlin_format') else variant}")
    if bits not in (2, 4, 8):
        raise _refuse(f"GPTQ with {bits} bits")
    # The first format stores each zero less one, which version 2 does not.
    offset = 1 if variant == "gptq" else 0

    def decode(parts: Parts) -> Tensor | IntWeight:
        values = _unpack(parts["qweight"].t(), bits)  # words run along the inputs
        scale = parts["scales"].t()
        zeros = (_unpack(parts["qzeros"], bits).t() + offset) & ((1 << bits) - 1)
        groups = parts.get("g_idx")
        size = values.shape[1] // scale.shape[1]
        if groups is not None and torch.equal(groups.long(), torch.arange(values.shape[1]) // size):
            groups = None
        return _affine(values, zeros[: len(values)], scale, None if groups is None else groups.long(), bits)

    return Method(f"GPTQ, {bits} bits", ("qweight",), ("scales",), ("qzeros",), ("g_idx",), decode)


def _awq(settings: dict[str, Any]) -> Method:
    bits = int(settings.get("bits", settings.get("w_bit", 4)))
    variant = str(settings.get("version") or settings.get("format") or "gemm").lower()
    if bits != 4 or variant != "gemm":
        raise _refuse(f"AWQ with {bits} bits in the format {variant}")
    place = torch.tensor(AWQ_ORDER).argsort()

    def unpack(words: Tensor) -> Tensor:
        """(rows, n) to (n * 8, rows) in the order of the columns."""
        return _unpack(words, 4).unflatten(1, (-1, 8))[:, :, place].flatten(1).t()

    def decode(parts: Parts) -> Tensor | IntWeight:
        return _affine(unpack(parts["qweight"]), unpack(parts["qzeros"]), parts["scales"].t(), None, 4)

    return Method("AWQ, 4 bits", ("qweight",), ("scales",), ("qzeros",), (), decode)


def _compressed(settings: dict[str, Any]) -> Method:
    schemes = list((settings.get("config_groups") or {}).values())
    formats = {settings.get("format") or "dense"} | {scheme.get("format") for scheme in schemes} - {None}
    if unread := formats - COMPRESSED_FORMATS - {"mixed-precision"}:
        raise _refuse(f"compressed-tensors in the format {', '.join(sorted(unread))}")
    if (sparsity := (settings.get("sparsity_config") or {}).get("format", "dense")) != "dense":
        raise _refuse(f"compressed-tensors with the sparsity {sparsity}")
    if (settings.get("transform_config") or {}).get("config_groups"):
        raise _refuse("compressed-tensors with transforms of the activations")
    weights = [scheme.get("weights") or {} for scheme in schemes]
    widths = {int(args["num_bits"]) for args in weights if "num_bits" in args}
    blocks = {tuple(block) for args in weights if (block := args.get("block_structure"))}

    def decode(parts: Parts) -> Tensor | IntWeight:
        if "weight_packed" not in parts:
            return _scaled(parts, parts["weight_scale"], next(iter(blocks), None))
        num_inputs = int(parts["weight_shape"][1])
        bits = parts["weight_packed"].shape[1] * 32 // num_inputs if len(widths) != 1 else min(widths)
        if bits not in (2, 4, 8):
            raise ValueError(f"{bits} bits")
        values = _unpack(parts["weight_packed"], bits)[:, :num_inputs]
        scale = parts["weight_scale"].reshape(-1, parts["weight_scale"].shape[-1]).expand(len(values), -1)
        zeros = torch.full_like(scale, 1 << bits - 1, dtype=torch.int16)
        if "weight_zero_point" in parts:
            zeros = _unpack(parts["weight_zero_point"].t(), bits).t()[: len(values)]
        groups = parts.get("weight_g_idx")
        is_ordered = groups is None or bool((groups < 0).all())
        return _affine(values, zeros, scale, None if is_ordered else cast(Tensor, groups).long(), bits)

    optional = ("weight_zero_point", "weight_g_idx", "input_scale", "input_zero_point")
    name = f"compressed-tensors, {settings.get('format') or 'dense'}"
    return Method(name, ("weight_packed", "weight"), ("weight_scale",), ("weight_shape",), optional, decode)


def _fp8(settings: dict[str, Any]) -> Method:
    block = settings.get("weight_block_size")
    scales = ("weight_scale_inv", "weight_scale")
    name = "FP8" + (f" in blocks of {block[0]} by {block[1]}" if block else "")

    def decode(parts: Parts) -> Tensor | IntWeight:
        scale = next(parts[kind] for kind in scales if kind in parts)
        return _scaled(parts, scale, tuple(block) if block else None)

    return Method(name, ("weight",), scales, (), ("input_scale", "activation_scale"), decode)


def _modelopt(settings: dict[str, Any]) -> Method:
    if settings.get("quant_algo") != "FP8":
        raise _refuse(f"ModelOpt's {settings.get('quant_algo')}")
    return _fp8(settings)


def _scaled(parts: Parts, scale: Tensor, block: tuple[int, ...] | None) -> Tensor | IntWeight:
    """8-bit values times a scale for all, per row, per group of a row, or per block."""
    values = parts["weight"]
    if values.dtype is not torch.int8 and values.dtype not in FLOAT8:
        raise ValueError(f"its values are {values.dtype}, neither int8 nor FP8")
    num_rows, num_columns = values.shape
    if scale.numel() == 1:
        scale = scale.reshape(1, 1).expand(num_rows, 1)
    elif scale.dim() == 1:
        scale = scale[:, None]
    if len(scale) != num_rows:
        if block is None or tuple(scale.shape) != (-(-num_rows // block[0]), -(-num_columns // block[1])):
            raise ValueError(f"its scale has shape {list(scale.shape)}")
        columns = torch.arange(num_columns) // block[1]
        return values.float() * scale.float()[torch.arange(num_rows) // block[0]][:, columns]
    if num_columns % scale.shape[1] != 0:
        raise ValueError(f"{num_columns} inputs are not {scale.shape[1]} groups of one size")
    zeros = parts.get("weight_zero_point")
    if values.dtype is torch.int8 and (zeros is None or not zeros.any()):
        return IntWeight(values, scale, 8)
    if zeros is not None:
        values = values.to(torch.int16) - zeros.to(torch.int16).reshape(-1, scale.shape[1]).repeat_interleave(
            num_columns // scale.shape[1], 1
        )
    return values.float() * scale.float().repeat_interleave(num_columns // scale.shape[1], 1)


METHODS: dict[str, Callable[[dict[str, Any]], Method]] = {
    "awq": _awq,
    "compressed-tensors": _compressed,
    "fbgemm_fp8": _fp8,
    "fp8": _fp8,
    "gptq": _gptq,
    "modelopt": _modelopt,
}
"""config.json's quant_method; `checkpoint` lets the same names through."""
