"""Reasoning before an answer: what a model thinks between two marks, apart from what it says.

OpenAI's gpt-oss writes channels instead, which are not read here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from langport.text.reader import AnswerReader, Markers, Reading

ReasoningState = Literal["open", "possible", "none"]
"""Whether an answer begins inside reasoning, may begin with some, or holds none."""


@dataclass(frozen=True)
class ReasoningFormat:
    """The marks around a model's reasoning, which stands at the beginning of its answer."""

    begin: str
    end: str

    def read(self, reader: AnswerReader, *, is_open: bool) -> Reading[None]:
        """Give the reasoning, if there is any, and stand behind it. `is_open`: the prompt holds its beginning."""
        start = reader.position
        yield from reader.spaces()
        if not (yield from reader.literal(self.begin)) and not is_open:
            reader.go_back(start)
            return
        reader.reasoning_end = None
        yield from reader.spaces()
        if width := (yield from reader.text_until(Markers([self.end]), reader.reason)):
            reader.skip(width)
            reader.reasoning_end = reader.position
            yield from _lines(reader)

    def state_behind(self, prompt: str, *, continues: bool) -> ReasoningState:
        """What an answer to the prompt begins with. `continues`: the prompt ends inside an answer, not before one."""
        _, is_begun, inside = prompt.rpartition(self.begin)
        if is_begun and self.end not in inside and (continues or not inside.strip()):
            return "open"
        return "none" if continues or prompt.rstrip().endswith(self.end) else "possible"


FORMATS = {
    "think": ReasoningFormat("<think>", "</think>"),
    "mistral": ReasoningFormat("[THINK]", "[/THINK]"),
    "seed_oss": ReasoningFormat("<seed:think>", "</seed:think>"),
    "command_a": ReasoningFormat("<|START_THINKING|>", "<|END_THINKING|>"),
    "kimi": ReasoningFormat("◁think▷", "◁/think▷"),
}
"""By the names that --reasoning-parser takes."""


def reasoning_format_for(template: str, special_tokens: Iterable[str]) -> str | None:
    """The format of a checkpoint, by the marks in its template's text or among its tokenizer's own tokens."""
    tokens = frozenset(special_tokens)
    for name, marks in FORMATS.items():
        if marks.end in template or {marks.begin, marks.end} <= tokens:
            return name
    return None


def _lines(reader: AnswerReader) -> Reading[None]:
    """Skip line ends, which templates write behind reasoning."""
    while character := (yield from reader.peek()):
        if character not in "\r\n":
            return
        reader.skip(1)
