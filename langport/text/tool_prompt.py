"""Tools for models whose chat template knows none: definitions, calls and results as ordinary text.

The calls have the form that `tool_calls.GENERIC` has, which the parser `json` reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]

_INTRODUCTION = "These tools can be called:"
_INSTRUCTION = (
    "To call tools, answer with nothing but a JSON list of calls, each with the name of the tool and its arguments:\n"
    '[{"name": NAME, "arguments": {...}}]\nOtherwise answer in words.'
)


def with_tools(messages: Sequence[Message], tools: Sequence[Any]) -> list[Message]:
    """The messages with the tools explained in the system message, or in the first one where there is none."""
    definitions = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    text = f"{_INTRODUCTION}\n{definitions}\n{_INSTRUCTION}"
    first, *others = messages
    is_system = first.get("role") in ("system", "developer")
    content = first.get("content") or ""
    parts = [content, "\n\n" + text] if is_system else [text + "\n\n", content]
    return [{**first, "content": _joined(parts)}, *others]


def with_calls_as_text(message: Message) -> Message:
    """A message whose calls stand at the end of its content."""
    functions = [call.get("function", call) for call in message["tool_calls"]]
    calls = ", ".join(
        f'{{"name": {json.dumps(function.get("name"))}, "arguments": {_arguments(function.get("arguments"))}}}'
        for function in functions
    )
    content = message.get("content") or ""
    kept = {name: value for name, value in message.items() if name != "tool_calls"}
    return {**kept, "content": _joined([content, ("\n" if content else "") + f"[{calls}]"])}


def with_results_as_text(messages: Sequence[Message]) -> list[Message]:
    """Results of calls as what the user says, those of one turn as one message."""
    found: list[Message] = []
    for message in messages:
        if message.get("role") != "tool":
            found.append(message)
            continue
        name = f" of {message['name']}" if message.get("name") else ""
        content = _joined([f"The result{name}:\n", message.get("content") or ""])
        if found and found[-1].get("is_result"):
            found[-1] = {**found[-1], "content": _joined([found[-1]["content"], "\n", content])}
        else:
            found.append({"role": "user", "content": content, "is_result": True})
    return [{name: value for name, value in message.items() if name != "is_result"} for message in found]


def _arguments(arguments: Any) -> str:
    if isinstance(arguments, str):
        return arguments or "{}"
    return json.dumps(arguments or {}, ensure_ascii=False)


def _joined(contents: Sequence[Any]) -> Any:
    """Contents one after the other: a text when all are texts, else parts."""
    if all(isinstance(content, str) for content in contents):
        return "".join(contents)
    parts: list[Any] = []
    for content in contents:
        parts += content if isinstance(content, list) else [{"type": "text", "text": content}]
    return parts
