"""A linear layer whose weight is held as small integers and a scale per row or per group of a row's values.

The meaning is that of the float layer whose weight is `values * scale`. Every layer picks one routine when it is made
and keeps it for any number of rows, so that a token's result does not depend on its neighbours. The native kernels of a
CPU (`ops/native.py`) make the activations 8-bit numbers, too, as llama.cpp does; elsewhere activations stay in the
model's dtype: torch's own kernels for bfloat16 on the CPU, else the weight is made float for each call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from langport.ops import native
from langport.ops.rows import steady_linear

Bits = Literal[4, 8]
GROUP_SIZES = (128, 32)
"""Input values that share a scale in 4 bits: the first that divides the layer's input."""
KERNEL_GROUP_SIZES = frozenset({32, 64, 128, 256})
"""What torch's 4-bit CPU kernel knows, which also wants its outputs in sixteens."""

INT8_KERNEL_STEP = 32
"""What torch's 8-bit CPU kernel wants its inputs to be a multiple of."""


@dataclass(frozen=True)
class IntWeight:
    """A weight (out_features, in_features) that is `values * scale`."""

    values: Tensor
    """int8 (out_features, in_features); in 4 bits from -8 to 7."""
    scale: Tensor
    """(out_features, num_groups): value i of a row belongs to group i // group_size."""
    bits: Bits

    @property
    def group_size(self) -> int:
        return self.values.shape[1] // self.scale.shape[1]

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """(out_features, in_features), computed in float32 and rounded once."""
        grouped = self.values.unflatten(1, (-1, self.group_size))
        return (grouped * self.scale.float()[:, :, None]).flatten(1).to(dtype)

    def to(self, device: str, dtype: torch.dtype) -> IntWeight:
        """On `device`, with scales of `dtype`."""
        return IntWeight(self.values.to(device), self.scale.to(device, dtype), self.bits)

    @staticmethod
    def cat(parts: Sequence[IntWeight]) -> IntWeight:
        """The rows of all parts, which have the same bits and groups."""
        return IntWeight(
            torch.cat([part.values for part in parts]), torch.cat([part.scale for part in parts]), parts[0].bits
        )


def quantize(weight: Tensor, bits: Bits, dtype: torch.dtype) -> IntWeight:
    """The nearest IntWeight to a float weight (out_features, in_features), with scales of `dtype`.

    8 bits have one scale per row. 4 bits have one per group, chosen so that the group's largest value is -8, which
    uses the whole range (GGML's Q4_0); a row that no group size divides gets 8 bits.
    """
    group_size = next((size for size in GROUP_SIZES if weight.shape[1] % size == 0), None) if bits == 4 else None
    if group_size is None:
        bits = 8
    kernels = native.kernels() if weight.device.type == "cpu" else None
    if kernels is not None and {weight.dtype, dtype} <= native.DTYPES.keys():
        return IntWeight(*kernels.quantize(weight, bits, group_size or weight.shape[1], dtype), bits)
    if group_size is None:
        scale = weight.float().abs().amax(1, keepdim=True) / 127
        return _rounded(weight.float()[:, None], scale, 8, dtype)
    grouped = weight.float().unflatten(1, (-1, group_size))  # (out_features, num_groups, group_size)
    top, bottom = grouped.amax(2), grouped.amin(2)
    largest = torch.where(top > -bottom, top, bottom)
    return _rounded(grouped, largest / -8, 4, dtype)


def _rounded(grouped: Tensor, scale: Tensor, bits: Bits, dtype: torch.dtype) -> IntWeight:
    scale = scale.to(dtype)
    divisor = torch.where(scale == 0, 1, scale.float())[:, :, None]
    limit = 1 << bits - 1
    values = (grouped / divisor).round_().clamp_(-limit, limit - 1).to(torch.int8)
    return IntWeight(values.flatten(1), scale, bits)


class QuantizedLinear(nn.Module):
    """Stands for an `nn.Linear` whose weight is an IntWeight."""

    def __init__(self, weight: IntWeight, bias: nn.Parameter | None, *, is_tied: bool = False) -> None:
        """`is_tied`: the model keeps the weight as floats elsewhere, too, as embeddings."""
        super().__init__()
        self.out_features, self.in_features = weight.values.shape
        self.num_weights = 0 if is_tied else weight.values.numel()
        """Parameters that the model has here only."""
        self.bits: Bits = weight.bits
        self.bias = bias
        self.packed = _pack(weight)
        """What the native kernels multiply with; None: `_multiply` does."""
        self._multiply = _kernel(weight) if self.packed is None else None

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) to (..., out_features)."""
        if self.packed is not None:
            return self.packed.kernels.int_linear(x, self.packed, self.bias)
        assert self._multiply is not None
        out = self._multiply(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


def _pack(weight: IntWeight) -> native.PackedInts | None:
    """The weight as the native kernels want it, if there are any for it. Raises: MemoryError."""
    kernels = native.kernels() if weight.values.device.type == "cpu" else None
    if kernels is None or not native.can_pack_ints(weight.values, weight.scale, weight.bits):
        return None
    return native.PackedInts(kernels, weight.values, weight.scale, weight.bits)


def _kernel(weight: IntWeight) -> Callable[[Tensor], Tensor]:
    """torch's routine that multiplies rows (n, in_features) with the weight's transpose."""
    if weight.scale.dtype == torch.bfloat16 and weight.values.device.type == "cpu":
        # torch's kernel reads in steps of so many, beyond the end of other rows (and crashes there).
        if weight.bits == 8 and weight.scale.shape[1] == 1 and weight.values.shape[1] % INT8_KERNEL_STEP == 0:
            return _Int8Kernel(weight)
        if weight.bits == 4 and weight.group_size in KERNEL_GROUP_SIZES and weight.values.shape[0] % 16 == 0:
            return _Int4Kernel(weight)
    return _Dequantized8(weight) if weight.bits == 8 else _Dequantized4(weight)


class _Int8Kernel:
    def __init__(self, weight: IntWeight) -> None:
        self.values, self.scale = weight.values.contiguous(), weight.scale.flatten()

    def __call__(self, x: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(x, self.values, self.scale)


class _Int4Kernel:
    """The kernel's own order of values depends on the processor, so it is made at load and never stored."""

    def __init__(self, weight: IntWeight) -> None:
        self.group_size = weight.group_size
        self.values = torch._convert_weight_to_int4pack_for_cpu(weight.values.int() + 8, 1)
        offsets = torch.zeros_like(weight.scale)
        self.scale = torch.stack([weight.scale, offsets], -1).transpose(0, 1).contiguous()  # (groups, out_features, 2)

    def __call__(self, x: Tensor) -> Tensor:
        return torch._weight_int4pack_mm_for_cpu(x.contiguous(), self.values, self.group_size, self.scale)


class _Dequantized8:
    def __init__(self, weight: IntWeight) -> None:
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return steady_linear(x, self.weight.dequantize(x.dtype))


class _Dequantized4:
    """Two values to a byte, the first in the low half."""

    def __init__(self, weight: IntWeight) -> None:
        low, high = (weight.values + 8).to(torch.uint8).unflatten(1, (-1, 2)).unbind(2)
        self.packed, self.scale = low | high << 4, weight.scale

    def __call__(self, x: Tensor) -> Tensor:
        values = torch.stack([self.packed & 15, self.packed >> 4], 2).flatten(1).to(torch.int8) - 8
        return steady_linear(x, IntWeight(values, self.scale, 4).dequantize(x.dtype))
