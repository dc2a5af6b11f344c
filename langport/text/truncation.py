"""Texts as an encoder reads them, one or two at once with special tokens around, cut where they are too long.

What is cut is what transformers' tokenizers cut: never a special token; of two texts the longer one, until both are as
long (their strategy `longest_first`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

Side = Literal["left", "right"]
"""Where tokens are left out."""
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """Token ids and where the texts are among them."""

    ids: list[int]
    spans: tuple[Span, Span]
    """First and last place (exclusive) of each text's tokens; the same twice where it has none."""
    second_text: int
    """Where the tokens begin whose type is that of a second text; the number of tokens when none is."""

    @classmethod
    def of(cls, encoding: Any) -> EncodedTexts:
        """From a tokenizers.Encoding of a text or of a pair."""
        texts: list[int | None] = encoding.sequence_ids
        types: list[int] = encoding.type_ids
        second = types.index(1) if 1 in types else len(types)
        return cls(encoding.ids, (_span(texts, 0), _span(texts, 1)), second)

    @property
    def num_special(self) -> int:
        """Tokens that belong to no text."""
        return len(self.ids) - sum(end - begin for begin, end in self.spans)

    def cut(self, limit: int, side: Side) -> EncodedTexts:
        """At most `limit` tokens, special ones included, of which there must be no more than that."""
        first, second = (end - begin for begin, end in self.spans)
        if len(self.ids) <= limit:
            return self
        return self._with_lengths(_balanced(first, second, limit - self.num_special), side)

    def cut_text(self, number: Literal[0, 1], limit: int, side: Side) -> EncodedTexts:
        """At most `limit` tokens of one of the texts."""
        first, second = (end - begin for begin, end in self.spans)
        lengths = (min(first, limit), second) if number == 0 else (first, min(second, limit))
        return self._with_lengths(lengths, side)

    def _with_lengths(self, lengths: tuple[int, int], side: Side) -> EncodedTexts:
        shorter = self
        for number in (1, 0):  # the later one first, so that the earlier one's place stays
            begin, end = shorter.spans[number]
            num_left_out = end - begin - lengths[number]
            if num_left_out > 0:
                at = begin if side == "left" else end - num_left_out
                shorter = shorter._without(at, num_left_out, number)
        return shorter

    def _without(self, at: int, count: int, number: int) -> EncodedTexts:
        """Without `count` tokens of text `number` from the place `at` on."""
        (begin, end), (other_begin, other_end) = self.spans
        if number == 1:
            spans = ((begin, end), (other_begin, other_end - count))
        else:
            moved = count if other_begin >= end else 0
            spans = ((begin, end - count), (other_begin - moved, other_end - moved))
        moved = min(max(self.second_text - at, 0), count)
        return replace(
            self, ids=self.ids[:at] + self.ids[at + count :], spans=spans, second_text=self.second_text - moved
        )


def _span(texts: list[int | None], number: int) -> Span:
    if number not in texts:
        return (0, 0)
    begin = texts.index(number)
    return begin, begin + texts.count(number)


def _balanced(first: int, second: int, room: int) -> tuple[int, int]:
    """What is left of two lengths when the longer one is cut first."""
    shorter, longer = min(first, second), max(first, second)
    longer = max(shorter, room - shorter)
    if shorter + longer > room:
        shorter = room // 2
        longer = room - shorter
    return (shorter, longer) if first <= second else (longer, shorter)
