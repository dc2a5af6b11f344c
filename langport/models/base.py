"""What the runners ask of a model family. A family is one file: a class of one of these kinds, and a registry line.

Modules are built on torch's meta device from config.json, without memory; `weights.load_weights` then fills the
parameters, whose names are those of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from langport.layers.attention import DecoderBatch
from langport.layers.encoder import EncoderBatch
from langport.ops.native import Kernels

Config = dict[str, Any]
"""A checkpoint's config.json."""


@dataclass(frozen=True)
class CacheSpec:
    """What the KV cache of one model holds per token."""

    num_layers: int
    kv_heads: int
    head_dim: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """With numbers of `dtype`; int8 ones have a scale in float32 for each head."""
        scale_bytes = 4 if dtype == torch.int8 else 0
        return 2 * self.num_layers * self.kv_heads * (self.head_dim * dtype.itemsize + scale_bytes)


def widest(windows: Iterable[int | None]) -> int | None:
    """The largest of the layers' windows, in tokens; None when one of them has none."""
    known = list(windows)
    sizes = [window for window in known if window is not None]
    return max(sizes) if sizes and len(sizes) == len(known) else None


class Model(nn.Module):
    """Base of all families: how checkpoint names map to parameters."""

    base_prefix: ClassVar[str] = ""
    """Optional first part of checkpoint names that the parameters here do not carry, e.g. `bert.`."""
    stacked: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Parameters read as one matrix here and stored as several there: {module here: (modules there, in order)}."""
    tied: ClassVar[dict[str, str]] = {}
    """{parameter: the one it shares when the checkpoint does not hold it}."""
    aliases: ClassVar[dict[str, str]] = {}
    """Other names under which a checkpoint may hold a parameter: {name there: name here}."""
    aliased_prefixes: ClassVar[dict[str, str]] = {}
    """Other beginnings of names: {prefix there: prefix here}."""
    renamed: ClassVar[dict[str, str]] = {}
    """Parts of names that differ: {part there: part here}."""
    unstacked: ClassVar[dict[str, str]] = {}
    """Tensors there that hold one matrix for each of several parameters here: {end there: end here, {} the number}."""
    zero_when_absent: ClassVar[tuple[str, ...]] = ()
    """Parameters that are zero when the checkpoint does not hold them."""
    transposed: ClassVar[tuple[str, ...]] = ()
    """Ends of parameter names that the checkpoint stores as (in, out)."""
    heads: ClassVar[tuple[str, ...]] = ()
    """Linear layers whose errors would go straight to the answer, so they are never quantized."""
    may_pack: ClassVar[bool] = True
    """Whether its linear layers may be replaced by the native kernels' own."""
    kernels: Kernels | None = None
    """The native kernels that compute its linear layers and attention; None: torch does."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.piece_sizes: dict[str, list[int]] = {}
        """Outputs of each of the modules that a stacked module was read from, known once the weights are loaded."""

    def read_weights(self, stored: Callable[[], dict[str, Tensor]], *, dtype: torch.dtype, device: str) -> bool:
        """Load the checkpoint's weights, which `stored` gives, in the model's own way.

        False: it has none, and `weights.load_weights` fills it.
        """
        return False

    def prepare(self, device: str, max_model_len: int) -> None:
        """Called once after the weights are in place: tables that are computed, not loaded."""


class DecoderModel(Model):
    """A decoder-only causal language model."""

    cache_spec: CacheSpec
    trained_length: int | None = None
    """Sequences longer than this are computed in another way from their first token on (longrope), so what the cache
    holds of a sequence is of no use once it grows past it."""
    widest_window: int | None = None
    """When every layer has a sliding window, the largest of them in tokens: what no layer sees any more leaves the
    cache. None when some layer sees everything (Gemma 2 and 3, Cohere R7B, some Qwen2): one block holds the keys of
    all layers, so it stays for that layer's sake."""

    def forward(self, batch: DecoderBatch) -> Tensor:
        """Last hidden states (num_tokens, hidden_size) of the step's tokens, normalized for `logits`."""
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalized log-probabilities (n, vocab_size) for some of the hidden states."""
        raise NotImplementedError


class EncoderDecoderModel(DecoderModel):
    """A decoder that also reads an encoder's output. `cache_spec` covers self and cross attention alike."""

    def encode(self, batch: EncoderBatch) -> Tensor:
        """Encoder states (num_tokens, hidden_size)."""
        raise NotImplementedError

    def cross_key_value(self, layer: int, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (num_tokens, kv_heads, head_dim) of one decoder layer for encoder states (num_tokens, ..)."""
        raise NotImplementedError


class EncoderModel(Model):
    """A bidirectional encoder whose states are pooled to one vector."""

    def forward(self, batch: EncoderBatch) -> Tensor:
        """Hidden states (num_tokens, hidden_size)."""
        raise NotImplementedError


class ClassifierModel(EncoderModel):
    """An encoder whose answer is what its head makes of the first token's state."""

    def classify(self, states: Tensor) -> Tensor:
        """Outputs (num_seqs, num_labels) for the states (num_seqs, hidden_size) of the first tokens."""
        raise NotImplementedError
