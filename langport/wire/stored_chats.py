"""Stored chat completions: what is kept of a request and its answer, whoever gave the answer.

The answer's documents are not taken apart into structs: what an upstream adds of its own is kept as it came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from langport.wire import sse
from langport.wire.stored import ListQuery, Metadata

KEPT_FIELDS = (
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "tools",
    "tool_choice",
    "response_format",
)
"""Of the request, in the stored document."""
_NOT_JOINED = frozenset(("role", "id", "type", "name", "finish_reason"))
"""Texts of a delta that come whole; all others are pieces."""
_OF_CHUNKS_ONLY = frozenset(("choices", "object", "obfuscation", "usage"))

Json = dict[str, Any]
_decode = msgspec.json.Decoder(Json).decode


class ChatListQuery(ListQuery, kw_only=True):
    model: str | None = None


class StoredRequest(msgspec.Struct):
    """What a stored completion says of its request."""

    messages: list[Json]
    metadata: Metadata | None = None
    user: str | None = None


class _Identity(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[Json]


class StoredChat(msgspec.Struct):
    """A completion as it is kept."""

    id: str
    model: str
    metadata: dict[str, str]
    body: bytes
    messages: list[tuple[str, bytes]]
    """Id and document of each message of the request."""


def stored_chat(request_body: bytes, completion: Json, request_id: str) -> StoredChat:
    """Raises: msgspec.DecodeError when this is no completion."""
    request = msgspec.json.decode(request_body, type=StoredRequest)
    fields = _decode(request_body)
    answer = msgspec.convert(completion, _Identity)
    metadata = request.metadata or {}
    document = {
        **completion,
        "object": "chat.completion",
        "request_id": request_id,
        "input_user": request.user,
        **{name: fields[name] for name in KEPT_FIELDS if fields.get(name) is not None},
        "metadata": metadata,
    }
    messages = [(f"{answer.id}-{number}", message) for number, message in enumerate(request.messages)]
    return StoredChat(
        answer.id,
        answer.model,
        metadata,
        msgspec.json.encode(document),
        [(id, msgspec.json.encode(_stored_message(id, message))) for id, message in messages],
    )


def _stored_message(id: str, message: Json) -> Json:
    content = message.get("content")
    has_parts = isinstance(content, list)
    parts = {"content": None, "content_parts": content} if has_parts else {"content": content, "content_parts": None}
    return {"id": id, **message, **parts}


def with_metadata(body: bytes, metadata: Mapping[str, str]) -> bytes:
    """A stored document with other metadata."""
    return msgspec.json.encode({**_decode(body), "metadata": metadata})


class PlainAnswer:
    """Reads a completion that comes as one document."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def feed(self, data: bytes, *, is_last: bool) -> Json | None:
        """The completion, once it is whole. Raises: msgspec.DecodeError."""
        self._parts.append(data)
        return _decode(b"".join(self._parts)) if is_last else None


class StreamedAnswer:
    """Folds the events of a streamed completion into one document."""

    def __init__(self) -> None:
        self._rest = b""
        self._head: Json = {}
        self._usage: Json | None = None
        self._choices: dict[int, Json] = {}

    def feed(self, data: bytes, *, is_last: bool) -> Json | None:
        """The completion, once the stream has ended as it should. Raises: msgspec.DecodeError."""
        *events, self._rest = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            if event + b"\n\n" == sse.DONE:
                return self._completion()
            if event.startswith(b"data:"):
                self._add(_decode(event.removeprefix(b"data:")))
        return None

    def _add(self, chunk: Json) -> None:
        self._head |= {name: value for name, value in chunk.items() if name not in _OF_CHUNKS_ONLY}
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            own = self._choices.setdefault(choice["index"], {"index": choice["index"], "message": {}})
            _join(own["message"], choice.get("delta") or {})
            if choice.get("logprobs"):
                _join(own.setdefault("logprobs", {}), choice["logprobs"])
            if choice.get("finish_reason"):
                own["finish_reason"] = choice["finish_reason"]

    def _completion(self) -> Json | None:
        choices = [self._choices[index] for index in sorted(self._choices)]
        if "error" in self._head or not choices or any("finish_reason" not in choice for choice in choices):
            return None
        for choice in choices:
            choice["message"] = {"role": "assistant", "content": None, "refusal": None, **choice["message"]}
            choice.setdefault("logprobs", None)
            for call in choice["message"].get("tool_calls") or ():
                call.pop("index", None)
        usage = {} if self._usage is None else {"usage": self._usage}
        return {**self._head, "object": "chat.completion", "choices": choices, **usage}


def _join(whole: Json, piece: Json) -> None:
    """Add a delta to what came before it."""
    for name, value in piece.items():
        old = whole.get(name)
        if old is None or value is None:
            whole[name] = old if value is None else _fresh(value)
        elif isinstance(old, str) and isinstance(value, str) and name not in _NOT_JOINED:
            whole[name] = old + value
        elif isinstance(old, dict) and isinstance(value, dict):
            _join(old, value)
        elif isinstance(old, list) and isinstance(value, list):
            _extend(old, value)
        else:
            whole[name] = value


def _fresh(value: Any) -> Any:
    """Lists of parts with an index may hold several pieces of one part in the first delta already."""
    if not isinstance(value, list):
        return value
    new: list[Any] = []
    _extend(new, value)
    return new


def _extend(old: list[Any], new: list[Any]) -> None:
    """Parts of the same `index` are pieces of one, as in `tool_calls`; all others follow each other."""
    for value in new:
        index = value.get("index") if isinstance(value, dict) else None
        same = [part for part in old if index is not None and part.get("index") == index]
        if same:
            _join(same[0], value)
        else:
            old.append(value)
