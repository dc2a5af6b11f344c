"""Items of the Responses API on their way into a model: read from a request, then turned into chat messages.

An item's id holds the id of the response that it was kept with, so that a reference to it finds it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from langport.errors import InvalidRequest
from langport.text.tools import input_arguments
from langport.wire.response_items import (
    CallItem,
    CallOutputItem,
    Content,
    CustomToolCallItem,
    CustomToolCallOutputItem,
    FunctionCallItem,
    FunctionCallOutputItem,
    InputItem,
    InputPart,
    InputText,
    Item,
    MessageItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    Refusal,
    SummaryText,
)

if TYPE_CHECKING:
    from langport.text.chat_template import Message

_KEY_BYTES = 24
_OF_RESPONSE = re.compile(rf"[a-z]+_([0-9a-f]{{{2 * _KEY_BYTES}}})")
_GIVEN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PREFIXES = {
    MessageItem: "msg",
    FunctionCallItem: "fc",
    FunctionCallOutputItem: "fco",
    CustomToolCallItem: "ctc",
    CustomToolCallOutputItem: "ctco",
    ReasoningItem: "rs",
}
_TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


@dataclass(frozen=True)
class Reference:
    """Stands for an item of an earlier response."""

    id: str
    param: str


class ItemIds:
    """Ids of one response's items."""

    def __init__(self, response_id: str) -> None:
        self._key = response_id.partition("_")[2]
        self._num_items = 0

    def input(self, kind: type[Item], position: int) -> str:
        return f"{_PREFIXES[kind]}_{self._key}i{position:x}"

    def output(self, kind: type[Item]) -> str:
        """A fresh one."""
        self._num_items += 1
        return f"{_PREFIXES[kind]}_{self._key}{self._num_items:02x}"


def new_response_id() -> str:
    return f"resp_{secrets.token_hex(_KEY_BYTES)}"


def response_of(item_id: str) -> str | None:
    """The id of the response that an item was kept with; None for an id that was not made here."""
    found = _OF_RESPONSE.match(item_id)
    return f"resp_{found[1]}" if found else None


def read_items(given: str | Sequence[InputItem], ids: ItemIds) -> list[Item | Reference]:
    """The items of `input`; a string is a user's message.

    Raises: InvalidRequest naming the item that is incomplete, or that a text model cannot take.
    """
    if isinstance(given, str):
        given = [InputItem(role="user", content=given)]
    taken: set[str] = set()
    found: list[Item | Reference] = []
    for position, item in enumerate(given):
        read = _READERS.get(_type(item, position))
        if read is None:
            raise InvalidRequest(
                f"input[{position}] is of type {_type(item, position)}; this server reads {', '.join(_READERS)}.",
                param=f"input[{position}].type",
            )
        entry = read(item, f"input[{position}]")
        if not isinstance(entry, Reference):
            is_free = entry.id not in taken and _GIVEN_ID.fullmatch(entry.id) is not None
            entry.id = entry.id if is_free else ids.input(type(entry), position)
            taken.add(entry.id)
        found.append(entry)
    return found


def _type(item: InputItem, position: int) -> str:
    if item.type is not None:
        return item.type
    if item.role is not None:
        return "message"
    if item.id is not None:
        return "item_reference"
    raise InvalidRequest(f"input[{position}].role is required in a message.", param=f"input[{position}].role")


def _message(item: InputItem, where: str) -> MessageItem:
    if item.role is None:
        raise InvalidRequest(f"{where}.role is required in a message.", param=f"{where}.role")
    make = OutputText if item.role == "assistant" else InputText
    content = _required(item.content, f"{where}.content")
    if isinstance(content, str):
        return MessageItem(id=item.id or "", role=item.role, content=[make(content)])
    parts: list[InputText | OutputText | Refusal] = []
    for index, part in enumerate(content):
        if part.type == "refusal" and part.refusal is not None:
            parts.append(Refusal(part.refusal))
        else:
            parts.append(make(_text(part, f"{where}.content[{index}]")))
    return MessageItem(id=item.id or "", role=item.role, content=parts)


def _function_call(item: InputItem, where: str) -> FunctionCallItem:
    return FunctionCallItem(
        id=item.id or "",
        call_id=_required(item.call_id, f"{where}.call_id"),
        name=_required(item.name, f"{where}.name"),
        arguments=_required(item.arguments, f"{where}.arguments"),
    )


def _custom_tool_call(item: InputItem, where: str) -> CustomToolCallItem:
    return CustomToolCallItem(
        id=item.id or "",
        call_id=_required(item.call_id, f"{where}.call_id"),
        name=_required(item.name, f"{where}.name"),
        input=_required(item.input, f"{where}.input"),
    )


def _call_output(
    kind: type[FunctionCallOutputItem] | type[CustomToolCallOutputItem], item: InputItem, where: str
) -> FunctionCallOutputItem | CustomToolCallOutputItem:
    call_id = _required(item.call_id, f"{where}.call_id")
    output: Content = _required(item.output, f"{where}.output")
    if isinstance(output, str):
        return kind(id=item.id or "", call_id=call_id, output=output)
    texts = [InputText(_text(part, f"{where}.output[{index}]")) for index, part in enumerate(output)]
    return kind(id=item.id or "", call_id=call_id, output=texts)


def _reasoning(item: InputItem, where: str) -> ReasoningItem:
    content: Content = item.content or []
    parts = [InputPart("reasoning_text", content)] if isinstance(content, str) else content
    return ReasoningItem(
        id=item.id or "",
        summary=[SummaryText(_text(p, f"{where}.summary[{i}]")) for i, p in enumerate(item.summary or [])],
        content=[ReasoningText(_text(p, f"{where}.content[{i}]")) for i, p in enumerate(parts)],
    )


def _reference(item: InputItem, where: str) -> Reference:
    return Reference(_required(item.id, f"{where}.id"), where)


_READERS: dict[str, Callable[[InputItem, str], Item | Reference]] = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": partial(_call_output, FunctionCallOutputItem),
    "custom_tool_call": _custom_tool_call,
    "custom_tool_call_output": partial(_call_output, CustomToolCallOutputItem),
    "reasoning": _reasoning,
    "item_reference": _reference,
}


def _required(value: Any, where: str) -> Any:
    if value is None:
        raise InvalidRequest(f"{where} is required.", param=where)
    return value


def _text(part: InputPart, where: str) -> str:
    if part.type not in _TEXT_PARTS:
        raise InvalidRequest(f"{where} is of type {part.type}; this model reads text only.", param=f"{where}.type")
    text: str = _required(part.text, f"{where}.text")
    return text


def template_messages(items: Sequence[Item]) -> list[Message]:
    """The items as chat templates read them: reasoning, text and calls of one answer are one message."""
    messages: list[Message] = []
    answer: Message | None = None
    """The assistant's message that further items belong to."""
    for item in items:
        if isinstance(item, CallOutputItem):
            answer = None
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _output_text(item)})
        elif isinstance(item, MessageItem) and item.role != "assistant":
            answer = None
            messages.append({"role": item.role, "content": _content(item)})
        else:
            if answer is None or _begins_another(answer, item):
                answer = {"role": "assistant", "content": None}
                messages.append(answer)
            _add(answer, item)
    return messages


def _begins_another(answer: Message, item: Item) -> bool:
    if isinstance(item, CallItem):
        return False
    has_more = "tool_calls" in answer or answer["content"] is not None
    return has_more or (isinstance(item, ReasoningItem) and "reasoning" in answer)


def _add(answer: Message, item: Item) -> None:
    if isinstance(item, ReasoningItem):
        texts: Sequence[ReasoningText | SummaryText] = item.content or item.summary
        answer["reasoning"] = "\n".join(part.text for part in texts)
    elif isinstance(item, CallItem):
        arguments = item.arguments if isinstance(item, FunctionCallItem) else input_arguments(item.input)
        function = {"name": item.name, "arguments": arguments}
        answer.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})
    elif isinstance(item, MessageItem):
        answer["content"] = _content(item)


def _content(item: MessageItem) -> str | list[dict[str, str]]:
    texts = [part.refusal if isinstance(part, Refusal) else part.text for part in item.content]
    return texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]


def _output_text(item: CallOutputItem) -> str:
    return item.output if isinstance(item.output, str) else "\n".join(part.text for part in item.output)
