"""Requests that cannot be decoded become `InvalidRequest`; errors become OpenAI's error body.

Knows msgspec's messages and nothing about endpoints. OpenAI's clients need all four keys of the body.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from langport.errors import ApiError, InvalidRequest

T = TypeVar("T")

_PATH = re.compile(r" - at (?:`key` in )?`\$(?P<path>[^`]*)`$")
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]+)`$")


class _ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class _ErrorBody(msgspec.Struct):
    error: _ErrorDetail


def encode_error(error: ApiError) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`, all four keys always there."""
    return msgspec.json.encode(_ErrorBody(_ErrorDetail(error.message, error.type, error.param, error.code)))


def decode_body(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The request as a struct.

    Raises: InvalidRequest naming the field at fault, or saying what is wrong with the JSON.
    """
    if not body.strip():
        raise InvalidRequest("The request body is empty; send a JSON object.")
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise explain(error) from None
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.") from None


def explain(error: Exception, root: str = "") -> InvalidRequest:
    """Say a decoding error in the words of the API. `root` is the field that was decoded on its own."""
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequest("The request body is not valid UTF-8.", param=root or None)
    if not isinstance(error, msgspec.ValidationError):
        return InvalidRequest(f"The request body is not valid JSON: {error}.", param=root or None)
    text = str(error)
    found = _PATH.search(text)
    path = root
    if found:
        text = text[: found.start()]
        path = (root + found["path"].replace("[...]", "")).lstrip(".")
    missing = _MISSING.match(text)
    if missing:
        path = f"{path}.{missing['field']}".lstrip(".")
        return InvalidRequest(f"{path} is required.", param=path)
    if not path:
        return InvalidRequest(f"The request body must be a JSON object. {text}.")
    return InvalidRequest(f"Invalid value for {path}: {_plain(text)}.", param=path)


def _plain(text: str) -> str:
    """msgspec's message without its spelling of optional types."""
    return text.replace(" | null`", "`").replace("Expected", "expected", 1).replace("Invalid", "invalid", 1)
