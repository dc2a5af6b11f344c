"""What an answer took in tokens, read as it passes by.

An upstream of this process says itself how to count (`types.Meter`). Of any other one the last kilobytes are kept, and
`usage` is looked for in them once, when the answer has ended: chunks are neither parsed nor copied. OpenAI's servers
put it at the end of a plain answer, and of a stream when `stream_options.include_usage` asks for it; Anthropic's put
the prompt's part into a stream's first event. What nobody counted is estimated.
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeGuard

from langport.types import TokenUsage

TAIL_BYTES = 8192
"""Of an answer's end. OpenAI's objects have at most their metadata behind `usage`."""
MAX_COUNT = 10**12
"""Tokens of one request; more is nonsense, of which a store could not even add up the cost."""
BYTES_PER_TOKEN = 4
"""Of JSON in English, about."""

NOTHING = TokenUsage()
_EVENT = b"data:"
_KEY = b'"usage"'
_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
_INLINE_DATA = re.compile(rb";base64,[^\"]*")
_decode = json.JSONDecoder().raw_decode


class UsageReader:
    """Feed it the chunks of one answer. They are looked at in lots, as that costs each of them next to nothing."""

    _found: TokenUsage | None = None
    """Of what has come."""
    _head = b""
    """The first chunk, once it was looked at."""
    _num_seen = 0
    """Bytes of `_chunks` that were looked at before: the end of what came then."""
    _num_kept = 0
    """Bytes of `_chunks`."""
    _num_bytes = 0
    """Of the answer as far as it was looked at, as the next."""
    _num_events = 0

    def __init__(self, prompt_estimate: int) -> None:
        """`prompt_estimate`: what counts where the answer does not say, as `estimate_prompt` has it."""
        self._prompt_estimate = prompt_estimate
        self._chunks: list[bytes] = []

    def feed(self, chunk: bytes) -> None:
        """Any piece of the body, in order."""
        self._chunks.append(chunk)
        self._num_kept += len(chunk)
        if self._num_kept > 2 * TAIL_BYTES:
            self._look()

    def usage(self) -> TokenUsage:
        """What the answer says, or an estimate of what of it has come."""
        if self._found is None or self._num_kept > self._num_seen:
            self._found = self._read()
        return self._found

    def _look(self) -> bytes:
        """Take note of what has come, and keep no more than its end."""
        chunks = self._chunks
        if not self._num_bytes:
            self._head = next(filter(None, chunks), b"")
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._num_bytes += self._num_kept - self._num_seen
        # The word may have been cut, its beginning seen before.
        self._num_events += data.count(_EVENT, max(0, self._num_seen - len(_EVENT) + 1))
        tail = data[-TAIL_BYTES:]
        self._chunks = [tail]
        self._num_kept = self._num_seen = len(tail)
        return tail

    def _read(self) -> TokenUsage:
        found = _find(self._look())
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
    if b";" in body and b";base64," in body:  # a single byte is found ten times as fast
        num_bytes -= sum(len(data) for data in _INLINE_DATA.findall(body))
    return num_bytes // BYTES_PER_TOKEN


def _find(data: bytes) -> dict[str, int]:
    """The counts of the last `usage` that has any: those there are of `prompt` and `completion`.

    A text that looks like it does not match: in JSON the quotation marks within a text have backslashes.
    """
    place = len(data)
    while (place := data.rfind(_KEY, 0, place)) >= 0:
        found = _USAGE.match(data, place)
        if found is None:
            continue
        try:
            value, _ = _decode(data[found.end() :].decode("utf-8", "replace"))
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
        if "prompt_tokens" not in usage:
            # Anthropic's input_tokens are those that no cache knew; OpenAI's are all.
            for name in ("cache_read_input_tokens", "cache_creation_input_tokens"):
                if _is_count(count := usage.get(name)):
                    prompt += count
        counts["prompt"] = prompt
        if "total_tokens" in usage and completion is None:  # embeddings
            counts["completion"] = 0
    if _is_count(completion):
        counts["completion"] = completion
    return counts


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MAX_COUNT
