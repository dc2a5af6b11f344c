"""Rotary position embedding and the ways checkpoints stretch it over longer contexts.

Sources: RoFormer, Su et al. 2021; position interpolation, Chen et al. 2023; dynamic NTK scaling, bloc97 and emozilla
2023; YaRN, Peng et al. 2023; LongRoPE, Ding et al. 2024; Llama 3.1's published configuration.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from langport.errors import CheckpointError

Parameters = dict[str, Any]
"""Rotary settings of a config.json, as `rope_parameters` gathers them."""


def rope_parameters(config: dict[str, Any], layer_type: str | None = None) -> Parameters:
    """The rotary settings of a config.json, in the newer form (`rope_parameters`) or the older one (`rope_scaling`).

    `layer_type` picks one of several, where layers of different types have their own.
    """
    parameters = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    if layer_type is not None and isinstance(parameters.get(layer_type), dict):
        parameters = dict(parameters[layer_type])
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    defaults = {
        "rope_theta": config.get("rope_theta", 10000.0),
        "partial_rotary_factor": config.get("partial_rotary_factor", 1.0),
        "max_position_embeddings": config.get("max_position_embeddings"),
        "original_max_position_embeddings": config.get("max_position_embeddings"),
    }
    parameters = defaults | {"rope_type": kind} | {k: v for k, v in parameters.items() if v is not None}
    # Phi-3 and its like keep the trained length beside the scaling, where it counts for more than inside.
    if config.get("original_max_position_embeddings") is not None:
        parameters["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    return parameters


class RotaryEmbedding:
    """Turns query and key by an angle that grows with the position.

    `is_interleaved`: neighbouring numbers form the pairs that are turned (GPT-J, Cohere), not the two halves of a head.
    """

    def __init__(
        self, parameters: Parameters, head_dim: int, max_positions: int, device: str, *, is_interleaved: bool = False
    ) -> None:
        self.rotary_dim = int(head_dim * parameters["partial_rotary_factor"])
        self.is_interleaved = is_interleaved
        self.trained_length: int | None = None
        """Longer sequences are turned by other angles from their first token on (longrope); None: never."""
        if parameters["rope_type"] == "longrope" and max_positions > parameters["original_max_position_embeddings"]:
            self.trained_length = parameters["original_max_position_embeddings"]
        angles, factor = _angles(parameters, self.rotary_dim, max_positions)
        # Tables, so that a position has the same bits in every batch; cos over other shapes may differ in the last.
        self.cos = (angles.cos() * factor).to(device).contiguous()  # (rows, rotary_dim / 2)
        self.sin = (angles.sin() * factor).to(device).contiguous()

    def tables(self, positions: Tensor, dtype: torch.dtype, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cosine and sine (num_tokens, 1, rotary_dim) for the step's positions: the same in every layer.

        `lengths` (num_tokens,) is the number of known tokens in each token's sequence. Without it longrope takes
        a sequence to end at the token itself.
        """
        rows = positions
        if self.trained_length is not None:
            is_long = (positions + 1 if lengths is None else lengths) > self.trained_length
            rows = positions + is_long * self.trained_length  # the long table lies behind the short one
        return self._widen(self.cos[rows].to(dtype)), self._widen(self.sin[rows].to(dtype))

    def _widen(self, table: Tensor) -> Tensor:
        """One number per pair to one per element: (num_tokens, rotary_dim / 2) to (num_tokens, 1, rotary_dim)."""
        if self.is_interleaved:
            return table.repeat_interleave(2, dim=-1)[:, None]
        return torch.cat((table, table), dim=-1)[:, None]

    def apply(self, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate x (num_tokens, heads, head_dim)."""
        if self.rotary_dim == x.shape[-1]:
            return self._turn(x, tables)
        turned, passed = x.split((self.rotary_dim, x.shape[-1] - self.rotary_dim), dim=-1)
        return torch.cat((self._turn(turned, tables), passed), dim=-1)

    def _turn(self, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = tables
        if self.is_interleaved:
            across = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
        else:
            first, second = x.chunk(2, dim=-1)
            across = torch.cat((-second, first), dim=-1)
        return x * cos + across * sin


def _angles(parameters: Parameters, rotary_dim: int, max_positions: int) -> tuple[Tensor, float]:
    """Angles (rows, rotary_dim / 2), a row per position, and the factor on their cosine and sine.

    longrope that reaches beyond the trained length has the rows of short sequences first, then those of long ones.
    """
    positions = torch.arange(max_positions, dtype=torch.float32)
    periods = parameters["rope_theta"] ** _exponents(rotary_dim)  # positions per radian
    frequencies = 1.0 / periods
    factor = 1.0
    match parameters["rope_type"]:
        case "default":
            pass
        case "linear":
            frequencies = frequencies / parameters["factor"]
        case "llama3":
            frequencies = _llama3_frequencies(frequencies, parameters)
        case "dynamic":
            return positions[:, None] * _dynamic_frequencies(parameters, rotary_dim, positions), 1.0
        case "yarn":
            frequencies, factor = _yarn_frequencies(periods, parameters), _yarn_factor(parameters)
        case "longrope":
            return _longrope_angles(periods, parameters, positions), _longrope_factor(parameters)
        case other:
            raise CheckpointError(
                f"config.json asks for the rotary scaling {other!r}, which LangPort cannot do; "
                "it knows default, linear, dynamic, yarn, longrope and llama3"
            )
    return torch.outer(positions, frequencies), factor


def _exponents(rotary_dim: int) -> Tensor:
    return torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim


def _llama3_frequencies(frequencies: Tensor, parameters: Parameters) -> Tensor:
    """Slow frequencies are stretched by `factor`, fast ones kept, those between are blended."""
    factor = parameters["factor"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    original = parameters["original_max_position_embeddings"]
    wavelengths = 2 * math.pi / frequencies
    blend = ((original / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * frequencies / factor + blend * frequencies


def _dynamic_frequencies(parameters: Parameters, rotary_dim: int, positions: Tensor) -> Tensor:
    """(num_positions, rotary_dim / 2): beyond the trained length the base grows with the length of the sequence.

    transformers turns a token by the length of the sequence when the token was computed: its own position for a
    generated token, but the whole prompt's length for every token of a prompt, so one text has several answers. Here
    it is always the token's own position, which is the same up to the trained length, and beyond it the same as
    transformers gives when the text is generated; it makes a token's key depend on nothing that follows it.
    """
    trained, factor = parameters["max_position_embeddings"], parameters["factor"]
    lengths = (positions.double() + 1).clamp(min=trained)
    growth = (factor * lengths / trained - (factor - 1)) ** (rotary_dim / (rotary_dim - 2))
    bases = (parameters["rope_theta"] * growth).float()
    return 1.0 / bases[:, None] ** _exponents(rotary_dim)


def _yarn_frequencies(periods: Tensor, parameters: Parameters) -> Tensor:
    """Fast frequencies are kept, slow ones stretched, with a ramp between them. Source: Peng et al. 2023, section 3."""
    num = len(periods)
    original, theta = parameters["original_max_position_embeddings"], parameters["rope_theta"]

    def pair_of(num_turns: float) -> float:
        """The pair, as a fraction, that makes `num_turns` whole turns within the trained length."""
        return num * math.log(original / (num_turns * 2 * math.pi)) / math.log(theta)

    low, high = pair_of(parameters.get("beta_fast", 32)), pair_of(parameters.get("beta_slow", 1))
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * num - 1)
    stretched = ((torch.arange(num, dtype=torch.float32) - low) / (high - low or 0.001)).clamp(0, 1)
    return stretched / (_factor(parameters) * periods) + (1 - stretched) / periods


def _yarn_factor(parameters: Parameters) -> float:
    """Scores grow with the stretch, to keep the softmax as sharp as it was."""
    given: float | None = parameters.get("attention_factor")
    if given is not None:
        return given
    factor = _factor(parameters)

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    above, below = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return scale(above) / scale(below) if above and below else scale(1.0)


def _longrope_angles(periods: Tensor, parameters: Parameters, positions: Tensor) -> Tensor:
    """Every frequency has its own stretch, one for short sequences and one for long ones."""
    trained = parameters["original_max_position_embeddings"]
    short = torch.outer(positions[:trained], 1.0 / (torch.tensor(parameters["short_factor"]) * periods))
    if len(positions) <= trained:
        return short
    return torch.cat((short, torch.outer(positions, 1.0 / (torch.tensor(parameters["long_factor"]) * periods))))


def _longrope_factor(parameters: Parameters) -> float:
    given: float | None = parameters.get("attention_factor")
    if given is not None:
        return given
    factor = _factor(parameters)
    trained: int = parameters["original_max_position_embeddings"]
    return math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0


def _factor(parameters: Parameters) -> float:
    """How many times the context is stretched: as stated, else what the two lengths tell."""
    stated: float | None = parameters.get("factor")
    return stated or parameters["max_position_embeddings"] / parameters["original_max_position_embeddings"]
