"""How each family of models writes calls of tools, and which of the ways is a checkpoint's own.

A known way is recognized by what its template or tokenizer holds; an unknown one is learned from the template,
by rendering a conversation that has a call in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from langport.errors import InvalidRequest
from langport.text.chat_template import ChatTemplate
from langport.text.json_calls import JsonCalls
from langport.text.literal_calls import ID, ArgumentLayout, CallLayout, LiteralCalls, calls_of
from langport.text.python_calls import PythonCalls
from langport.text.reader import AnswerReader, Reading
from langport.text.tagged_calls import TaggedCalls
from langport.text.tools import FunctionTool


class ToolCallFormat(Protocol):
    """A way to write calls."""

    def read(self, reader: AnswerReader, tools: Sequence[FunctionTool]) -> Reading[None]:
        """Read an answer to its end: calls and the text around them. `tools`: those that may be called."""
        ...


_NAME = r"(?P<name>[\w.\-]+?)"

FORMATS: dict[str, ToolCallFormat] = {
    "hermes": JsonCalls(("<tool_call>",), "</tool_call>"),
    "llama3_json": JsonCalls(("<|python_tag|>",), is_bare=True),
    "mistral": LiteralCalls(
        "[TOOL_CALLS]",
        re.compile(rf"\s*{_NAME}\s*(?:\[CALL_ID\][\w\-]+)?(?:\[ARGS\])?\s*(?=\{{)"),
        next=("[TOOL_CALLS]",),
        takes_json=True,
    ),
    "granite": JsonCalls(("<|tool_call|>",), "<|/tool_call|>"),
    "command_a": JsonCalls(("<|START_ACTION|>",), "<|END_ACTION|>"),
    "jamba": JsonCalls(("<tool_calls>",), "</tool_calls>"),
    "deepseek": LiteralCalls(
        "<｜tool▁calls▁begin｜>",
        re.compile(rf"\s*(?:function<｜tool▁sep｜>)?{_NAME}(?:<｜tool▁sep｜>|\s*```json)\s*(?=\{{)"),
        before=("<｜tool▁call▁begin｜>",),
        after=("```", "<｜tool▁call▁end｜>"),
        next=("<｜tool▁call▁begin｜>",),
        end=("<｜tool▁calls▁end｜>",),
    ),
    "kimi": LiteralCalls(
        "<|tool_calls_section_begin|>",
        re.compile(rf"\s*(?:functions\.)?{_NAME}(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*(?=\{{)"),
        before=("<|tool_call_begin|>",),
        after=("<|tool_call_end|>",),
        next=("<|tool_call_begin|>",),
        end=("<|tool_calls_section_end|>",),
    ),
    "pythonic": PythonCalls(),
    "llama4_pythonic": PythonCalls("<|python_start|>", "<|python_end|>"),
    "lfm2": PythonCalls("<|tool_call_start|>", "<|tool_call_end|>"),
    "qwen3_coder": TaggedCalls(
        "<tool_call>",
        name=re.compile(r"\s*<function=([^<>]+)>"),
        parameter=re.compile(r"<parameter=([^<>]+)>"),
        value_end="</parameter>",
        call_end="</function>",
        end="</tool_call>",
    ),
    "glm": TaggedCalls(
        "<tool_call>",
        name=re.compile(r"\s*([\w.\-]+)\s*(?=<)"),
        parameter=re.compile(r"<arg_key>([^<>]+)</arg_key>\s*<arg_value>"),
        value_end="</arg_value>",
        call_end="</tool_call>",
    ),
    "minimax": TaggedCalls(
        "<minimax:tool_call>",
        name=re.compile(r'\s*<invoke name="([^"<>]+)">'),
        parameter=re.compile(r'<parameter name="([^"<>]+)">'),
        value_end="</parameter>",
        call_end="</invoke>",
        end="</minimax:tool_call>",
    ),
    "json": JsonCalls(is_bare=True),
}
"""By the names that --tool-call-parser takes; `template` is one more, for what the template shows."""

_KEYWORDS = ArgumentLayout("", "=", "", between=", ")
OWN_LAYOUTS: dict[str, CallLayout] = {
    "pythonic": CallLayout("[", "(", ")", ", ", "]", _KEYWORDS),
    "llama4_pythonic": CallLayout("<|python_start|>[", "(", ")", ", ", "]<|python_end|>", _KEYWORDS),
    "lfm2": CallLayout("<|tool_call_start|>[", "(", ")", ", ", "]<|tool_call_end|>", _KEYWORDS),
    "qwen3_coder": CallLayout(
        "<tool_call>\n<function=",
        ">\n",
        "</function>\n</tool_call>",
        "\n<tool_call>\n<function=",
        arguments=ArgumentLayout("<parameter=", ">\n", "\n</parameter>\n", text_end="</parameter>\n"),
    ),
    "glm": CallLayout(
        "<tool_call>",
        "\n",
        "</tool_call>",
        "\n<tool_call>",
        arguments=ArgumentLayout("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n", text_end="</arg_value>\n"),
    ),
    "minimax": CallLayout(
        '<minimax:tool_call>\n<invoke name="',
        '">\n',
        "</invoke>\n",
        '<invoke name="',
        "</minimax:tool_call>",
        ArgumentLayout('<parameter name="', '">', "</parameter>\n", text_end="</parameter>\n"),
    ),
}
"""How formats whose arguments are no JSON object are written by models that are made to write a call."""

_SIGNS: tuple[tuple[str, str], ...] = (
    ("<parameter=", "qwen3_coder"),
    ("<arg_key>", "glm"),
    ("<minimax:tool_call>", "minimax"),
    ("<|START_ACTION|>", "command_a"),
    ("<|tool_call_start|>", "lfm2"),
    ("<|python_start|>", "llama4_pythonic"),
    ("func_name1(params_name1=", "pythonic"),
    ("<｜tool▁call▁begin｜>", "deepseek"),
    ("<|tool_calls_section_begin|>", "kimi"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|tool_call|>", "granite"),
    ("<tool_calls>", "jamba"),
    ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama3_json"),
    ('"parameters": dictionary of argument name', "llama3_json"),
)
"""What shows a format in a template's text, or among the tokenizer's own tokens. The first that is there decides."""

GENERIC = CallLayout('[{"name": "', '", "arguments": ', "}", ', {"name": "', "]")
"""How calls are written that no format is known for; `json` reads it."""


def tool_call_format_for(template: ChatTemplate, tokens: Iterable[str]) -> str:
    """The name of the format of a checkpoint. `tokens`: those that its tokenizer has besides its vocabulary."""
    if not template.reads_tools:
        return "json"
    for sign, name in _SIGNS:
        if sign in template.text:
            return name
    layout = derive_layout(template)
    if layout is not None:
        return "json" if calls_of(layout) is None else "template"
    known = frozenset(tokens)
    return next((name for sign, name in _SIGNS if sign in known), "json")


class _Call(NamedTuple):
    name: str
    value: str
    id: str


_CALLS = (_Call("probefirst", "valueone", "callfirst"), _Call("probesecond", "valuetwo", "callother"))
_ASKED = {"role": "user", "content": "Look it up."}
_SAID = "saidinstead"
_OPEN_MARK = re.compile(r"<[^>]*\Z|\[[^\]]*\Z")
_TURNED = str.maketrans("<>[]", "><][")


def derive_layout(template: ChatTemplate) -> CallLayout | None:
    """How the template writes calls; None where it writes none, or not as names and JSON objects."""
    one, two = (_render(template, _message(_CALLS[:number])) for number in (1, 2))
    said = _render(template, {"role": "assistant", "content": _SAID})
    if one is None or said is None:
        return None
    before, _, behind = said.rpartition(_SAID)
    start = len(_common(before, one))
    first = _find(one, _CALLS[0], start)
    if first is None:
        return None
    after = _without_common_end(one[first.end :], behind)
    further = _further(two, first)
    ended = _common(after, further) if further else after
    return CallLayout(
        before_name=one[start : first.name_start],
        before_arguments=one[first.name_end : first.start],
        after_arguments=ended,
        next_name=further[len(ended) :],
        end=after[len(ended) :],
    )


class _Place(NamedTuple):
    """Where a call stands in a rendered conversation."""

    name_start: int
    name_end: int
    start: int
    end: int
    """Of the arguments."""


def _find(text: str, call: _Call, start: int) -> _Place | None:
    name_start = text.find(call.name, start)
    value = text.find(call.value, name_start)
    name_end = name_start + len(call.name)
    if name_start < 0 or value < 0:
        return None
    for match in re.compile(r"\{").finditer(text, name_end, value):
        try:
            found, end = json.JSONDecoder().raw_decode(text, match.start())
        except ValueError:
            continue
        if found == {"key": call.value}:
            return _Place(name_start, name_end, match.start(), end)
    return None


def _further(two: str | None, first: _Place) -> str:
    """What stands between two calls, from the arguments of the one to the name of the other."""
    second = None if two is None else _find(two, _CALLS[1], first.end)
    return "" if two is None or second is None else two[first.end : second.name_start]


def _common(one: str, other: str) -> str:
    """The longest beginning of both that does not end inside a mark such as <end>."""
    pairs = enumerate(zip(one, other, strict=False))
    length = next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
    if length in (len(one), len(other)):
        return one[:length]
    return _OPEN_MARK.sub("", one[:length])


def _without_common_end(text: str, other: str) -> str:
    """The text without the longest end of both that does not begin inside a mark."""
    turned = (part[::-1].translate(_TURNED) for part in (text, other))
    return text[: len(text) - len(_common(*turned))]


def _render(template: ChatTemplate, answer: dict[str, Any]) -> str | None:
    schema = {"type": "object", "properties": {"key": {"type": "string"}}}
    tools = [
        {"type": "function", "function": {"name": call.name, "description": "Look up.", "parameters": schema}}
        for call in _CALLS
    ]
    try:
        text = template.render([_ASKED, answer], tools=tools, add_generation_prompt=False)
    except InvalidRequest:
        return None
    for call in _CALLS:
        text = text.replace(call.id, ID)
    return text


def _message(calls: Sequence[_Call]) -> dict[str, Any]:
    functions = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": {"key": call.value}}}
        for call in calls
    ]
    return {"role": "assistant", "content": "", "tool_calls": functions}
