"""Filling a gap: how models that were trained for it are given the text before and after it.

Such a model's tokenizer has special tokens for the two sides and for where the answer begins. Which ones, and in
what order the sides stand, is a fact about each family, read from its model card or training report; the method
is that of Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from langport.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class FimFormat:
    """One family's way."""

    prefix: str
    """The token before the text that precedes the gap."""
    suffix: str
    """The token before the text that follows it."""
    middle: str | None
    """The token after which the model fills the gap; None where it does so after the prefix."""
    order: Literal["PSM", "SPM"] = "PSM"
    """Prefix, suffix, middle, or the suffix first."""
    ends: tuple[str, ...] = ()
    """Tokens that end the filling and need not be eos; those the tokenizer lacks do not count."""
    joins: bool = False
    """The suffix was encoded without the space that SentencePiece puts before a text."""


FORMATS = (
    # Qwen2.5-Coder, CodeGemma, Granite 3 and 4, Yi-Coder
    FimFormat(
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ends=("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>", "<|endoftext|>", "<|end_of_text|>"),
    ),
    # StarCoder 1 and 2, Granite Code, StableCode, Refact
    FimFormat("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ends=("<fim_pad>", "<file_sep>", "<|endoftext|>")),
    # SantaCoder
    FimFormat("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ends=("<fim-pad>", "<|endoftext|>")),
    # DeepSeek-Coder and DeepSeek-V2, V3
    FimFormat("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", ends=("<|EOT|>", "<｜end▁of▁sentence｜>")),
    # Code Llama, as converted and as Meta spells them
    FimFormat("▁<PRE>", "▁<SUF>", "▁<MID>", ends=("▁<EOT>",), joins=True),
    FimFormat("<PRE>", "<SUF>", "<MID>", ends=("<EOT>",), joins=True),
    # Codestral and other models of Mistral
    FimFormat("[PREFIX]", "[SUFFIX]", None, order="SPM", joins=True),
    # Seed-Coder
    FimFormat("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>", order="SPM"),
)
"""The first whose tokens a tokenizer has is its own."""

MARKERS = frozenset(
    token
    for one in FORMATS
    for token in (one.prefix, one.suffix, one.middle)
    if token is not None
)  # fmt: skip
"""What no text may spell."""


@dataclass(frozen=True)
class Fim:
    """A format with the ids that one tokenizer gives its tokens."""

    format: FimFormat
    prefix_id: int
    suffix_id: int
    middle_id: int | None
    end_ids: tuple[int, ...]
    """Tokens at which the filling has ended, those of the format among them."""

    def arrange(self, prefix: Sequence[int], suffix: Sequence[int], start: Sequence[int]) -> tuple[list[int], slice]:
        """The prompt, `start` first, and where in it the prefix stands."""
        before, after = [self.prefix_id, *prefix], [self.suffix_id, *suffix]
        middle = [] if self.middle_id is None else [self.middle_id]
        if self.format.order == "PSM":
            first = len(start) + 1
            tokens = [*start, *before, *after, *middle]
        else:
            first = len(start) + len(after) + 1
            tokens = [*start, *after, *before, *middle]
        return tokens, slice(first, first + len(prefix))


def find_fim(tokenizer: Tokenizer) -> Fim | None:
    """The format that a tokenizer has the tokens of; None for one that has none."""

    def id_of(token: str) -> int | None:
        found: int | None = tokenizer.backend.token_to_id(token)
        return found

    for one in FORMATS:
        prefix_id, suffix_id = id_of(one.prefix), id_of(one.suffix)
        middle_id = None if one.middle is None else id_of(one.middle)
        if prefix_id is None or suffix_id is None or (middle_id is None and one.middle is not None):
            continue
        ends = [token_id for token in one.ends if (token_id := id_of(token)) is not None]
        own = [prefix_id, suffix_id, *([] if middle_id is None else [middle_id])]
        return Fim(one, prefix_id, suffix_id, middle_id, tuple(dict.fromkeys([*own, *ends])))
    return None
