"""Activation functions by the names that Hugging Face configurations use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from langport.errors import CheckpointError

Activation = Callable[[Tensor], Tensor]


def _quick_gelu(x: Tensor) -> Tensor:
    return x * (1.702 * x).sigmoid()


_tanh_gelu = partial(F.gelu, approximate="tanh")

ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "sigmoid": F.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": F.tanh,
}


def activation(name: str) -> Activation:
    """Raises: CheckpointError for a name that no family here knows."""
    if name not in ACTIVATIONS:
        raise CheckpointError(f"config.json asks for the activation {name!r}; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
