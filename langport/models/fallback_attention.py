"""Our paged cache inside transformers' modelling code.

transformers lets a program register an attention function and a mask function under a name of its own. Ours leave the
mask unmade, as a rule about positions, and read each sequence's keys and values from the paged cache, so that all
sequences of a step can lie flat in one row. Whatever else a model asks of its attention is honoured or refused.

Source: transformers' documentation of AttentionInterface and AttentionMaskInterface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from langport.errors import CheckpointError
from langport.layers.attention import AttentionGroup, DecoderBatch
from langport.ops.attention import additive_mask

NAME = "langport_paged"
"""What a model's `attn_implementation` is set to."""

IRRELEVANT = frozenset(
    {
        "cache_position",
        "deterministic",
        "dropout",
        "input_ids",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)
"""Arguments of an attention function that say nothing about the attention itself."""


@dataclass
class PagedMask:
    """A mask as transformers describes it, before it becomes a tensor: which key a query may see, by position."""

    is_visible: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """(batch index, head index, query position, key position), broadcast."""
    local_size: int | None = None
    """What transformers says of a mask that hides far keys: the size of its window or of its chunks."""
    biases: list[Tensor] = field(default_factory=list)
    """Made in the first layer that uses the mask; it lives for one step."""

    @property
    def is_plain(self) -> bool:
        """A query sees itself and all before it."""
        return self.is_visible is causal_mask_function

    @cached_property
    def is_window(self) -> bool:
        """A query sees itself and the `local_size` - 1 before it: asked at the edges of two windows."""
        if self.local_size is None:
            return False
        size = self.local_size
        query = torch.tensor([0, size - 1, size, size + 1, 2 * size, 2 * size + 1])[None, None, :, None]
        key = query - torch.tensor([0, 1, size - 1, size, size + 1])
        is_key = key >= 0
        found = self.is_visible(torch.zeros(()).long(), torch.zeros(()).long(), query, key.clamp(min=0))
        return bool(((found == (key > query - size)) | ~is_key).all())

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise CheckpointError(f"it computes with its attention mask ({name}), which LangPort's cache cannot follow")

    def __getitem__(self, index: tuple[slice, ...]) -> PagedMask:
        """Some models cut their mask to the last tokens, of which there are as many as there are tokens."""
        if any(part != slice(0, None) and part != slice(None) for part in index):
            raise CheckpointError("it computes with its attention mask, which LangPort's cache cannot follow")
        return self

    def over(self, groups: list[AttentionGroup], dtype: torch.dtype) -> list[Tensor]:
        """Per group (num_seqs, 1, max_query, context): 0 where visible, minus infinity elsewhere."""
        if not self.biases:
            self.biases = [self._over_group(group, dtype) for group in groups]
        return self.biases

    def _over_group(self, group: AttentionGroup, dtype: torch.dtype) -> Tensor:
        query = group.positions[:, None, :, None]
        key = torch.arange(group.context_size, device=query.device)
        first = torch.zeros((), dtype=torch.long, device=query.device)
        visible = self.is_visible(first, first, query, key) & (key <= query)
        return additive_mask(visible, dtype)


@dataclass(frozen=True)
class AttentionShape:
    """What one layer's attention needs of the cache."""

    heads: int
    kv_heads: int
    head_dim: int
    """The larger of a key's and a value's size."""


@dataclass
class Pass:
    """One forward pass under way. Layers are numbered in the order in which they attend."""

    batch: DecoderBatch | None
    """None while a model is asked for its shapes."""
    shapes: list[AttentionShape] = field(default_factory=list)


_pass: ContextVar[Pass] = ContextVar("pass")


@contextmanager
def attending(batch: DecoderBatch | None) -> Iterator[Pass]:
    """Within it, attention reads and writes the caches of `batch`; without one it only notes what it would need."""
    current = Pass(batch)
    token = _pass.set(current)
    try:
        yield current
    finally:
        _pass.reset(token)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query (1, heads, num_tokens, head_dim), key and value with kv_heads.

    Returns (1, num_tokens, heads, size of a value) and no weights.
    Raises: CheckpointError that names what the model asks for and the paged cache cannot do.
    """
    current = _pass.get()
    mask = _understood_mask(attention_mask)
    window, softcap, sinks = (options.pop(name, None) for name in ("sliding_window", "softcap", "s_aux"))
    _refuse_others(module, options)
    value_dim = value.shape[-1]
    layer = len(current.shapes)
    current.shapes.append(AttentionShape(query.shape[1], key.shape[1], max(key.shape[-1], value_dim)))
    scale = key.shape[-1] ** -0.5 if scaling is None else float(scaling)
    if current.batch is None:
        return query.new_zeros(1, query.shape[2], query.shape[1], value_dim), None
    cache = current.batch.caches[layer]
    # Some models turn query and key in float32, whatever type they run in.
    dtype = cache.dtype
    flat = [_flat(x, cache.head_dim).to(dtype) for x in (query, key, value)]
    repeats = cache.kv_heads // key.shape[1]
    if repeats > 1:
        flat[1:] = [x.repeat_interleave(repeats, dim=1) for x in flat[1:]]
    masks = None
    if mask is not None:
        # Where there is a mask it holds the window, too.
        window = mask.local_size if mask.is_window else None
        if not mask.is_plain and window is None:
            masks = mask.over(current.batch.groups, dtype)
    out = current.batch.attend(
        layer, *flat, scale=scale, window=window, masks=masks, softcap=softcap, sinks=_per_head(sinks)
    )
    return out.view(1, len(out), -1, cache.head_dim)[..., :value_dim].to(query.dtype), None


def describe_mask(
    *,
    mask_function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    use_vmap: bool = False,
    local_size: int | None = None,
    **sizes: Any,
) -> PagedMask:
    """transformers' mask function. Raises: CheckpointError for a mask that may depend on more than positions."""
    if use_vmap:
        raise CheckpointError("it adds a rule of its own to the causal mask, which LangPort's cache cannot follow")
    return PagedMask(mask_function, local_size)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, describe_mask)


def _understood_mask(mask: object) -> PagedMask | None:
    if mask is None or isinstance(mask, PagedMask):
        return mask
    raise CheckpointError("it builds an attention mask of its own, which LangPort's cache cannot follow")


def _refuse_others(module: nn.Module, options: dict[str, Any]) -> None:
    is_causal = options.pop("is_causal", None)
    if is_causal is False or (is_causal is None and getattr(module, "is_causal", True) is False):
        raise CheckpointError("its attention also looks ahead, so it does not write from left to right")
    unknown = sorted(name for name, value in options.items() if value is not None and name not in IRRELEVANT)
    if unknown:
        raise CheckpointError(f"its attention asks for {', '.join(unknown)}, which LangPort's cache cannot do")


def _flat(x: Tensor, head_dim: int) -> Tensor:
    """(1, heads, num_tokens, size) to (num_tokens, heads, head_dim), with zeros behind what is smaller."""
    flat = x[0].transpose(0, 1)
    return F.pad(flat, (0, head_dim - x.shape[-1])) if x.shape[-1] < head_dim else flat.contiguous()


def _per_head(sinks: Tensor | None) -> Tensor | None:
    return None if sinks is None else sinks.flatten()
