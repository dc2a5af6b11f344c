"""Answers taken apart and put together again, for the tests of what parses them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from langport.text.answer import (
    AnswerDelta,
    AnswerParser,
    ReasoningDelta,
    TextDelta,
    ToolCallBegin,
    ToolCallDelta,
    ToolCallEnd,
)


@dataclass
class Parsed:
    """The fold of an answer's deltas."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Names and arguments."""
    whole: list[bool] = field(default_factory=list)
    """Which calls have ended."""

    def add(self, delta: AnswerDelta) -> None:
        match delta:
            case TextDelta(text):
                self.text += text
            case ReasoningDelta(text):
                self.reasoning += text
            case ToolCallBegin(index, id, name):
                assert index == len(self.calls)
                assert id.startswith("call_")
                assert len(id) == 29
                self.calls.append((name, ""))
                self.whole.append(False)
            case ToolCallDelta(index, arguments):
                name, before = self.calls[index]
                assert index == len(self.calls) - 1
                assert arguments
                self.calls[index] = (name, before + arguments)
            case ToolCallEnd(index):
                assert index == len(self.calls) - 1
                self.whole[index] = True


def parse(parser: AnswerParser, pieces: Iterable[str]) -> Parsed:
    """What the parser makes of a text in pieces. The places of text deltas are checked on the way."""
    parsed, whole = Parsed(), ""
    for piece in [*pieces, None]:
        whole += piece or ""
        for delta in parser.end() if piece is None else parser.push(piece):
            parsed.add(delta)
            if isinstance(delta, TextDelta):
                assert delta.text
                assert whole[delta.offset : delta.offset + len(delta.text)] == delta.text
    return parsed


def cuts(text: str) -> Iterable[list[str]]:
    """The text cut once at every place, and into single characters."""
    for place in range(len(text) + 1):
        yield [text[:place], text[place:]]
    yield list(text)
