"""What one checkpoint's answers are made of besides text, and how to take them apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass

from langport.errors import ConfigError
from langport.text.answer import AnswerParser, PlainText, ToolCallBegin, ToolCallDelta, ToolCallEnd
from langport.text.chat_template import ChatTemplate
from langport.text.literal_calls import ID, CallLayout, calls_of
from langport.text.reader import AnswerReader, Markers, Reading
from langport.text.reasoning import FORMATS as REASONING_FORMATS
from langport.text.reasoning import ReasoningFormat, ReasoningState, reasoning_format_for
from langport.text.tokenizer import Tokenizer
from langport.text.tool_calls import FORMATS, GENERIC, OWN_LAYOUTS, ToolCallFormat, derive_layout, tool_call_format_for
from langport.text.tools import FunctionTool
from langport.text.written_arguments import can_write


@dataclass(frozen=True)
class AnswerFormat:
    """How a model writes reasoning and calls of tools."""

    reasoning: ReasoningFormat | None = None
    calls: ToolCallFormat | None = None
    """None: calls are not looked for."""
    layout: CallLayout = GENERIC
    """How it writes calls that it is made to write."""
    forced_calls: ToolCallFormat = FORMATS["json"]
    """What reads those."""
    own_layout: CallLayout | None = None
    """How it writes calls that it is made to write where their arguments can stand one by one; `calls` reads those."""
    reasoning_ids: frozenset[int] = frozenset()
    """Special tokens among the marks of reasoning; the text must hold them for it to be found."""
    call_ids: frozenset[int] = frozenset()
    """The same of calls."""

    @classmethod
    def of(
        cls, template: ChatTemplate | None, tokenizer: Tokenizer, *, calls: str = "auto", reasoning: str = "auto"
    ) -> AnswerFormat:
        """The format of a checkpoint. `calls` and `reasoning` are names in the tables, `auto` or `none`.

        Raises: ConfigError for calls as in the `template` where that shows none.
        """
        if template is None:
            return cls()
        if reasoning == "auto":
            reasoning = reasoning_format_for(template.text, tokenizer.added_tokens) or "none"
        if calls == "auto":
            calls = tool_call_format_for(template, tokenizer.added_tokens)
        layout = derive_layout(template)
        derived = None if layout is None else calls_of(layout)
        found = derived if calls == "template" else FORMATS.get(calls)
        if calls == "template" and found is None:
            raise ConfigError(
                f"--tool-call-parser template: {template.source} does not mark calls in a way that can be learned. "
                f"Name a format, or leave the option out."
            )
        marks = REASONING_FORMATS.get(reasoning)
        is_writable = found is not None and layout is not None and _reads(found, layout)
        own = OWN_LAYOUTS.get(calls)
        return cls(
            marks,
            found,
            layout if layout and is_writable else GENERIC,
            found if found and is_writable else FORMATS["json"],
            own if found and own and not is_writable and _reads(found, own) else None,
            reasoning_ids=_special_ids(tokenizer, marks),
            call_ids=_special_ids(tokenizer, found),
        )

    def parser(
        self, prompt: str, tools: Sequence[FunctionTool], *, continues: bool = False, is_forced: bool = False
    ) -> AnswerParser:
        """A parser for one answer to the prompt; without tools it looks for no calls.

        `continues`: the prompt ends inside an answer. `is_forced`: calls are written as `writing` has them.
        """
        reasoning = self.reasoning
        state = self.reasoning_state(prompt, continues=continues)
        forced = self.calls if self.writing(tools).arguments else self.forced_calls
        calls = (forced if is_forced else self.calls) if tools else None
        if reasoning is None and calls is None:
            return PlainText()

        def read(reader: AnswerReader) -> Reading[None]:
            if reasoning is not None and state != "none":
                yield from reasoning.read(reader, is_open=state == "open")
            if calls is not None:
                yield from calls.read(reader, tools)
            yield from reader.text_until(Markers(()))

        return AnswerReader(read)

    def writing(self, tools: Sequence[FunctionTool]) -> CallLayout:
        """How it writes calls of these tools that it is made to write."""
        own = self.own_layout
        if own is not None and own.arguments is not None and all(can_write(tool, own.arguments) for tool in tools):
            return own
        return self.layout

    def reasoning_state(self, prompt: str, *, continues: bool = False) -> ReasoningState:
        """Whether an answer to the prompt begins inside reasoning, may begin with some, or holds none."""
        return "none" if self.reasoning is None else self.reasoning.state_behind(prompt, continues=continues)


def _reads(calls: ToolCallFormat, layout: CallLayout) -> bool:
    """Whether a call in this layout is read as one, and nothing of it as text."""
    reader = AnswerReader(lambda reader: calls.read(reader, [FunctionTool("probe")]))
    arguments = "" if layout.arguments else "{}"
    call = layout.before_name + "probe" + layout.before_arguments + arguments + layout.after_arguments + layout.end
    deltas = [*reader.push(call.replace(ID, "abcdefghi")), *reader.end()]
    return [type(delta) for delta in deltas] == [ToolCallBegin, ToolCallDelta, ToolCallEnd]


def _special_ids(tokenizer: Tokenizer, format: object) -> frozenset[int]:
    """The special tokens that stand in a format's marks."""
    marks = _literals(format)
    return frozenset(
        token_id for token_id in tokenizer.special_ids if (tokenizer.backend.id_to_token(token_id) or "\0") in marks
    )


def _literals(value: object) -> str:
    """All text in a format."""
    match value:
        case str():
            return value
        case re.Pattern(pattern=pattern):
            return str(pattern).replace("\\", "")
        case tuple():
            return " ".join(map(_literals, value))
        case _ if is_dataclass(value):
            return " ".join(_literals(getattr(value, field.name)) for field in fields(value))
    return ""
