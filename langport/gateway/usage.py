"""What an answer took in tokens, read as it passes by.

An upstream of this process says itself how to count (`types.Meter`). Of any other one the last kilobytes are kept, and
`usage` is looked for in them once, when the answer has ended: chunks are neither parsed nor copied. OpenAI's servers
put it at the end of a plain answer, and of a stream when `stream_options.include_usage` asks for it; Anthropic's put
the prompt's part into a stream's first event. What nobody counted is estimated.
"""

from __future__ import annotations

import json
import re
from collections import deque
from typing import Any, TypeGuard

from langport.types import TokenUsage

TAIL_BYTES = 8192
"""Of an answer's end. OpenAI's objects have at most their metadata behind `usage`."""
MAX_COUNT = 10**12
"""Tokens of one request; more is nonsense, of which a store could not even add up the cost."""
BYTES_PER_TOKEN = 4
"""Of JSON in English, about."""

NOTHING = TokenUsage()
_USAGE = re.compile(r'"usage"\s*:\s*(?=\{)')
_INLINE_DATA = re.compile(rb";base64,[^\"]*")
_decode = json.JSONDecoder().raw_decode


class UsageReader:
    """Feed it the chunks of one answer."""

    __slots__ = ("_head", "_num_bytes", "_num_events", "_num_kept", "_prompt_estimate", "_tail")

    def __init__(self, request_body: bytes) -> None:
        self._prompt_estimate = estimate_prompt(request_body)
        self._head = b""
        self._tail: deque[bytes] = deque()
        self._num_kept = 0
        self._num_bytes = 0
        self._num_events = 0

    def feed(self, chunk: bytes) -> None:
        """Any piece of the body, in order."""
        if not self._head:
            self._head = chunk
        tail = self._tail
        tail.append(chunk)
        self._num_events += chunk.count(b"data:")
        self._num_bytes += len(chunk)
        self._num_kept += len(chunk)
        while self._num_kept - len(tail[0]) >= TAIL_BYTES:
            self._num_kept -= len(tail.popleft())

    def usage(self) -> TokenUsage:
        """What the answer says, or an estimate of what of it has come."""
        found = _find(b"".join(self._tail))
        if self._num_events:
            found = {**_find(self._head), **found}
        if "prompt" in found and "completion" in found:
            return TokenUsage(found["prompt"], found["completion"])
        # A stream has an event for about every token, and one more at its end.
        completion = max(0, self._num_events - 1) if self._num_events else self._num_bytes // BYTES_PER_TOKEN
        return TokenUsage(found.get("prompt", self._prompt_estimate), completion, is_estimated=True)


def estimate_prompt(body: bytes) -> int:
    """Tokens of a request by the size of its body, without images and files that are in it as base64."""
    num_bytes = len(body)
    if b";base64," in body:
        num_bytes -= sum(len(data) for data in _INLINE_DATA.findall(body))
    return num_bytes // BYTES_PER_TOKEN


def _find(data: bytes) -> dict[str, int]:
    """The counts of the last `usage` that has any: those there are of `prompt` and `completion`.

    A text that looks like it does not match: in JSON the quotation marks within a text have backslashes.
    """
    text = data.decode("utf-8", "replace")
    for place in reversed(list(_USAGE.finditer(text))):
        try:
            value, _ = _decode(text, place.end())
        except (ValueError, RecursionError):
            continue  # cut off
        if counts := _counts(value):
            return counts
    return {}


def _counts(usage: dict[str, Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    completion = usage.get("completion_tokens", usage.get("output_tokens"))
    if _is_count(prompt):
        # Anthropic's input_tokens are those that no cache knew; OpenAI's are all.
        others = (usage.get(name) for name in ("cache_read_input_tokens", "cache_creation_input_tokens"))
        counts["prompt"] = prompt + sum(count for count in others if _is_count(count))
        if "total_tokens" in usage and completion is None:  # embeddings
            counts["completion"] = 0
    if _is_count(completion):
        counts["completion"] = completion
    return counts


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MAX_COUNT
