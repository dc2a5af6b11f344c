"""Rotary position embedding and the ways checkpoints stretch it over longer contexts.

Sources: RoFormer, Su et al. 2021; position interpolation, Chen et al. 2023; Llama 3.1's published configuration.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from langport.errors import CheckpointError


def rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings of a config.json, in the newer form (`rope_parameters`) or the older one."""
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    parameters.setdefault("rope_type", parameters.pop("type", "default"))
    parameters.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    parameters.setdefault("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    return parameters


class RotaryEmbedding:
    """Turns query and key by an angle that grows with the position."""

    def __init__(self, parameters: dict[str, Any], head_dim: int, max_positions: int, device: str) -> None:
        self.rotary_dim = int(head_dim * parameters["partial_rotary_factor"])
        frequencies = _inverse_frequencies(parameters, self.rotary_dim)
        angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), frequencies)
        angles = torch.cat((angles, angles), dim=-1)
        self._cos = angles.cos().to(device)  # (max_positions, rotary_dim)
        self._sin = angles.sin().to(device)

    def tables(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine (num_tokens, 1, rotary_dim) for the step's positions: the same in every layer."""
        return self._cos[positions, None].to(dtype), self._sin[positions, None].to(dtype)

    def apply(self, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate x (num_tokens, heads, head_dim)."""
        cos, sin = tables
        if self.rotary_dim == x.shape[-1]:
            return x * cos + _rotate_half(x) * sin
        turned, passed = x.split((self.rotary_dim, x.shape[-1] - self.rotary_dim), dim=-1)
        return torch.cat((turned * cos + _rotate_half(turned) * sin, passed), dim=-1)


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _inverse_frequencies(parameters: dict[str, Any], rotary_dim: int) -> Tensor:
    """(rotary_dim / 2,) radians per position."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    frequencies = 1.0 / (parameters["rope_theta"] ** exponents)
    match parameters["rope_type"]:
        case "default":
            return frequencies
        case "linear":
            return frequencies / parameters["factor"]
        case "llama3":
            return _llama3_frequencies(frequencies, parameters)
        case other:
            raise CheckpointError(
                f"config.json asks for the rotary scaling {other!r}, which LangPort cannot do yet; "
                "it knows default, linear and llama3"
            )


def _llama3_frequencies(frequencies: Tensor, parameters: dict[str, Any]) -> Tensor:
    """Slow frequencies are stretched by `factor`, fast ones kept, those between are blended."""
    factor = parameters["factor"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    original = parameters["original_max_position_embeddings"]
    wavelengths = 2 * math.pi / frequencies
    blend = ((original / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * frequencies / factor + blend * frequencies
