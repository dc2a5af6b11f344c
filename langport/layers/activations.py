"""Activation functions by the names that Hugging Face configurations use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from langport.errors import CheckpointError
from langport.ops import native

Activation = Callable[[Tensor], Tensor]

TAIL = 64
"""torch computes what remains of a tensor beyond a multiple of this many elements by other functions than the rest."""


def without_tail(function: Activation) -> Activation:
    """The function, giving a row of x (..., size) the same bits whatever the number of rows.

    Where the tail of a tensor begins depends on its number of rows, unless there is none.
    """

    def apply(x: Tensor) -> Tensor:
        missing = -x.shape[-1] % TAIL
        return function(F.pad(x, (0, missing)))[..., : x.shape[-1]] if missing else function(x)

    return apply


def _quick_gelu(x: Tensor) -> Tensor:
    return x * (1.702 * x).sigmoid()


@without_tail
def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x.contiguous())  # which torch computes by another library than what is not contiguous


_tanh_gelu = without_tail(partial(F.gelu, approximate="tanh"))
_silu = without_tail(F.silu)

ACTIVATIONS: dict[str, Activation] = {
    "gelu": _gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "quick_gelu": without_tail(_quick_gelu),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "sigmoid": without_tail(F.sigmoid),
    "silu": _silu,
    "swish": _silu,
    "tanh": without_tail(F.tanh),
}


def activation(name: str) -> Activation:
    """Raises: CheckpointError for a name that no family here knows."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise CheckpointError(f"config.json asks for the activation {name!r}; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Activated(nn.Module):
    """What an activation function makes of a linear layer's result."""

    kernels: native.Kernels | None = None

    def __init__(self, name: str) -> None:
        """Raises: CheckpointError for a name that no family here knows."""
        super().__init__()
        self.name = name
        self.function = activation(name)
        self.is_native = name in native.ACTIVATIONS

    def forward(self, linear: nn.Module, x: Tensor) -> Tensor:
        """Of linear(x), in the pass that computes it where that can be."""
        if isinstance(linear, native.NativeLinear) and self.is_native:
            activated: Tensor = linear(x, self.name)
            return activated
        y: Tensor = linear(x)
        if self.kernels is not None and self.is_native and y.dtype in native.DTYPES:
            return self.kernels.activate_(y, self.name)
        return self.function(y)
