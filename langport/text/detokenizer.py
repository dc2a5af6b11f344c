"""Token ids to text while they arrive, in time proportional to the new tokens.

The pieces, joined, are what decoding all ids at once gives. A character split over tokens is held until it is
whole, so a piece never ends in a replacement character that the whole text does not have.

One exception is made so that text keeps flowing: `tokenizers` turns a run of byte tokens (<0xE2> and so on)
into replacement characters altogether when any of it is not UTF-8. Such a run is held only up to
`MAX_HELD_BYTES`; a run that goes wrong later keeps what was already shown.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from langport.text.pieces import CLEANUP, DecodingPlan, PieceTable
from langport.text.tokenizer import Tokenizer

MAX_HELD_BYTES = 64
_REPLACEMENT = "\ufffd"
_MAX_SPLIT_TOKENS = 8
_WINDOW_CONTEXT = 6
_WINDOW_SIZE = 16


class _Stream(Protocol):
    def push(self, ids: Sequence[int]) -> str: ...

    def flush(self) -> str: ...


class Detokenizer:
    """One sequence's text. `push` new ids as they come, `flush` once at the end."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        shown_ids: frozenset[int] = frozenset(),
    ) -> None:
        """`shown_ids`: special tokens that are not skipped."""
        hidden_ids = tokenizer.special_ids - shown_ids if skip_special_tokens else frozenset()
        table = tokenizer.pieces(hidden_ids=hidden_ids)
        self._stream: _Stream
        if table is None:
            self._stream = _WindowStream(tokenizer, hidden_ids)
        elif table.plan.is_byte_level:
            self._stream = _Utf8Stream(table)
        else:
            self._stream = _PieceStream(table)
        if tokenizer.cleans_up_spaces:
            self._stream = _CleanedStream(self._stream)
        self.push = self._stream.push
        """Add ids; return the text that is certain now, often "" or one token's."""
        self.flush = self._stream.flush
        """The ids have ended: return the rest of the text."""


class _Utf8Stream:
    """Byte-level tokens: each is some bytes, and all of them together are UTF-8."""

    def __init__(self, table: PieceTable) -> None:
        self._table = table
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, ids: Sequence[int]) -> str:
        table = self._table
        return self._decode(b"".join([table[token_id] for token_id in ids]))  # type: ignore[misc]

    def flush(self) -> str:
        return self._decode(b"", True)


class _PieceStream:
    """Tokens that are text each, some of them perhaps single bytes."""

    def __init__(self, table: PieceTable) -> None:
        self._table = table
        self._is_first = True
        self._run: _ByteRun | None = None
        self._strip_character, self._num_to_strip = table.plan.strip_left

    def push(self, ids: Sequence[int]) -> str:
        text = "".join([self._piece(token_id) for token_id in ids])
        return self._strip(text) if self._num_to_strip else text

    def flush(self) -> str:
        return self._strip(self._end_run())

    def _piece(self, token_id: int) -> str:
        piece = self._table[token_id]
        if piece is None:
            return ""
        is_first, self._is_first = self._is_first, False
        if is_first:
            piece = self._table.first(token_id)
        if isinstance(piece, bytes):
            self._run = self._run or _ByteRun(self._table.plan, is_first)
            return self._run.push(piece)
        return self._end_run() + (piece or "")

    def _end_run(self) -> str:
        run, self._run = self._run, None
        return run.end() if run else ""

    def _strip(self, text: str) -> str:
        while self._num_to_strip and text.startswith(self._strip_character):
            text = text.removeprefix(self._strip_character)
            self._num_to_strip -= 1
        if text:
            self._num_to_strip = 0
        return text


class _ByteRun:
    """Consecutive byte tokens: their text when all of them are UTF-8, else U+FFFD for each."""

    def __init__(self, plan: DecodingPlan, is_first: bool) -> None:
        self._plan = plan
        self._is_first = is_first
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self._is_broken = False
        self._num_bytes = 0
        self._num_unshown = 0
        self._text = ""

    def push(self, byte: bytes) -> str:
        self._num_bytes += 1
        self._num_unshown += 1
        if not self._is_broken:
            try:
                self._text += self._decoder.decode(byte)
            except UnicodeDecodeError:
                self._is_broken = True
        if self._is_broken:
            return self._replacements()
        return self._show() if self._num_bytes > MAX_HELD_BYTES else ""

    def end(self) -> str:
        is_incomplete = self._is_broken or bool(self._decoder.getstate()[0])
        return self._replacements() if is_incomplete else self._show()

    def _show(self) -> str:
        text, self._text = self._text, ""
        self._num_unshown -= len(text.encode())
        return self._plan.run_text(text, self._is_first)

    def _replacements(self) -> str:
        count, self._num_unshown = self._num_unshown, 0
        return _REPLACEMENT * count


class _WindowStream:
    """Any other decoder: decode a few tokens back and take what the new ones add.

    Exact as long as a token's text depends only on close neighbours, and a split character spans at most
    `_MAX_SPLIT_TOKENS` tokens.
    """

    def __init__(self, tokenizer: Tokenizer, hidden_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden_ids
        self._ids: list[int] = []
        self._num_shown_ids = 0
        self._shown = ""

    def push(self, ids: Sequence[int]) -> str:
        return "".join([self._push_one(token_id) for token_id in ids if token_id not in self._hidden])

    def flush(self) -> str:
        return self._show(self._decode(self._ids))

    def _push_one(self, token_id: int) -> str:
        self._ids.append(token_id)
        text = self._decode(self._ids)
        is_split = text.endswith(_REPLACEMENT) and len(self._ids) - self._num_shown_ids < _MAX_SPLIT_TOKENS
        return "" if is_split else self._show(text)

    def _show(self, text: str) -> str:
        piece = text[len(self._shown) :]
        self._shown = text
        if len(self._ids) >= _WINDOW_SIZE:
            del self._ids[:-_WINDOW_CONTEXT]
            self._shown = self._decode(self._ids)
        self._num_shown_ids = len(self._ids)
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode_raw(ids)


class _CleanedStream:
    """Another stream's text with `pieces.clean_up` applied."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._replacers = [_StreamReplacer(pattern, replacement) for pattern, replacement in CLEANUP]

    def push(self, ids: Sequence[int]) -> str:
        text = self._stream.push(ids)
        for replacer in self._replacers:
            text = replacer.push(text)
        return text

    def flush(self) -> str:
        text = self._stream.flush()
        for replacer in self._replacers:
            text = replacer.push(text) + replacer.flush()
        return text


class _StreamReplacer:
    """`str.replace` on a text in pieces."""

    def __init__(self, pattern: str, replacement: str) -> None:
        self._pattern = pattern
        self._replacement = replacement
        self._beginnings = tuple(pattern[:length] for length in range(len(pattern) - 1, 0, -1))
        self._held = ""

    def push(self, text: str) -> str:
        if self._held:
            text = self._held + text
            self._held = ""
        done, found, rest = text.rpartition(self._pattern) if self._pattern in text else ("", "", text)
        if rest.endswith(self._beginnings):
            self._held = next(beginning for beginning in self._beginnings if rest.endswith(beginning))
            rest = rest[: -len(self._held)]
        return (done + found).replace(self._pattern, self._replacement) + rest

    def flush(self) -> str:
        text, self._held = self._held, ""
        return text
