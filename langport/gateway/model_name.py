"""The model's name in the bytes of a request: replaced there, and nothing else.

Raises nothing about JSON: the gateway has read the envelope of every body that comes here.
"""

from __future__ import annotations

import re

import msgspec

from langport.errors import InvalidRequest

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'  # possessive: nothing is remembered for long texts
_TOKEN = re.compile(_STRING + rb"|[{}\[\]]", re.DOTALL)
_MODEL = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*(' + _STRING + rb")", re.DOTALL)
_VALUE = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*(" + _STRING + rb"|[^ \t\r\n,}]+)", re.DOTALL)
_SPACE = b" \t\r\n"


def with_model(body: bytes, model: str, *, has_own: bool) -> bytes:
    """The JSON object `body` with `model` as its model; all other bytes as they are.

    `has_own`: the envelope had a model, so that one need not be searched for among what is inside.

    Raises: InvalidRequest (`model`) when it names several: servers do not agree on which one counts.
    """
    spans = _spans(body, has_own=has_own)
    if len(spans) > 1:
        raise InvalidRequest("model is there more than once.", param="model")
    value = msgspec.json.encode(model)
    if not spans:
        start = body.index(b"{") + 1
        separator = b"" if body[start:].lstrip(_SPACE).startswith(b"}") else b","
        return b'%b"model":%b%b%b' % (body[:start], value, separator, body[start:])
    start, end = spans[0]
    return body if body[start:end] == value else body[:start] + value + body[end:]


def _spans(body: bytes, *, has_own: bool) -> list[tuple[int, int]]:
    """Where the values of the object's own `model` are."""
    # No letter of it is written as a number, for which a single byte is looked first: that is found far faster.
    if has_own and body.count(b'"model"') == 1 and (b"\\" not in body or b"\\u006" not in body):
        found = _MODEL.search(body)
        if found is not None:
            return [found.span(1)]
    return _searched_spans(body)


def _searched_spans(body: bytes) -> list[tuple[int, int]]:
    """The same, for any body: every bracket and string is looked at."""
    spans = []
    depth = 0
    position = 0
    while token := _TOKEN.search(body, position):
        position = token.end()
        text = token[0]
        if text in b"{[":
            depth += 1
        elif text in b"}]":
            depth -= 1
        elif depth == 1 and _is_model(text) and (value := _VALUE.match(body, position)):
            spans.append(value.span(1))
            position = value.end() if value[1][:1] == b'"' else position
    return spans


def _is_model(key: bytes) -> bool:
    return key == b'"model"' or (b"\\" in key and msgspec.json.decode(key) == "model")
