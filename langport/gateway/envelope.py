"""The few fields of a request that the gateway reads; the rest of the body is the upstream's."""

from __future__ import annotations

from typing import Any

import msgspec

from langport.errors import InvalidRequest
from langport.wire.error import decode_body


class Envelope(msgspec.Struct):
    """Fields of any type: the API over the model says precisely what is wrong with those it uses."""

    model: Any = None
    stream: Any = None
    store: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    n: Any = None
    best_of: Any = None


_DECODER = msgspec.json.Decoder(Envelope)


def read_envelope(body: bytes) -> Envelope:
    """Raises: InvalidRequest when the body is no JSON object."""
    return decode_body(_DECODER, body)


class _StickyFields(msgspec.Struct):
    prompt_cache_key: Any = None
    user: Any = None


class _Conversation(msgspec.Struct):
    """In the order in which chat templates write them, so that what is shared comes first."""

    tools: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()


_STICKY_DECODER = msgspec.json.Decoder(_StickyFields)
_CONVERSATION_DECODER = msgspec.json.Decoder(_Conversation)


def sticky_key(body: bytes) -> str | None:
    """What requests that belong together share: `prompt_cache_key`, else `user`. Raises: InvalidRequest."""
    fields = decode_body(_STICKY_DECODER, body)
    return next((key for key in (fields.prompt_cache_key, fields.user) if isinstance(key, str) and key), None)


def conversation(body: bytes, most: int) -> list[bytes]:
    """The JSON of what a model reads, beginning first, as the client wrote it; of each field so many bytes at most.

    Raises: InvalidRequest.
    """
    fields = decode_body(_CONVERSATION_DECODER, body)
    parts = (getattr(fields, name) for name in _Conversation.__struct_fields__)
    return [bytes(memoryview(part)[:most]) for part in parts if part]


def requested_model(envelope: Envelope, in_path: str | None) -> str:
    """The public name asked for; one in the path (Azure, engines) goes before the body's.

    Raises: InvalidRequest (param `model`).
    """
    if in_path is not None:
        return in_path
    if isinstance(envelope.model, str) and envelope.model:
        return envelope.model
    if envelope.model is None or envelope.model == "":
        raise InvalidRequest("you must provide a model parameter; GET /v1/models lists the names", param="model")
    raise InvalidRequest(
        f"model must be a string, not {_json_type(envelope.model)}; GET /v1/models lists the names",
        param="model",
    )


def _json_type(value: object) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", list: "an array", dict: "an object"}
    return names[type(value)]
