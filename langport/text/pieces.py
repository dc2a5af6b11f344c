"""What each token adds to a decoded text, worked out once per token.

A tokenizer.json says how tokens become text as a chain of decoder steps. Most chains act on each token alone,
the first one apart, and only join bytes afterwards; for those a table from token id to piece replaces
decoding. `read_plan` recognises them and returns None for the others, which are decoded through a window.
The steps follow the decoders of the `tokenizers` library to the letter, their quirks included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

TokenMap = Callable[[str, bool], str]
"""From a token and whether it is the first one shown to its text."""

Piece = str | bytes | None
"""A token's text, or the raw bytes it stands for, or None when it is not shown."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in of every byte, as character to byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_level_alphabet()


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a byte-level token; a token with any other character stands for itself."""
    try:
        return bytes([_BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:
        return token.encode()


@dataclass
class DecodingPlan:
    """How tokens become text when each can be looked at alone."""

    is_byte_level: bool = False
    maps: list[TokenMap] = field(default_factory=list)
    has_byte_fallback: bool = False
    run_maps: list[TokenMap] = field(default_factory=list)
    """Steps after the bytes were joined; they see a run of bytes as one token."""
    is_fused: bool = False
    strip_left: tuple[str, int] = ("", 0)
    """A character and how many of it are taken from the start of the whole text."""

    def piece(self, token: str, is_first: bool) -> str | bytes:
        """The text of a token, or its raw bytes."""
        if self.is_byte_level:
            return byte_level_bytes(token)
        for step in self.maps:
            token = step(token, is_first)
        if self.has_byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return self.run_text(token, is_first)

    def run_text(self, text: str, is_first: bool) -> str:
        """Apply the steps that follow the joining of bytes."""
        for step in self.run_maps:
            text = step(text, is_first)
        return text


class PieceTable(dict[int, Piece]):
    """Pieces of tokens that are not the first one, filled as they are asked for; shared by all streams."""

    def __init__(self, plan: DecodingPlan, token_of: Callable[[int], str | None], hidden: frozenset[int]) -> None:
        super().__init__()
        self.plan = plan
        self._token_of = token_of
        self._hidden = hidden
        self._nothing: Piece = b"" if plan.is_byte_level else None

    def __missing__(self, token_id: int) -> Piece:
        token = None if token_id in self._hidden else self._token_of(token_id)
        piece = self._nothing if token is None else self.plan.piece(token, False)
        self[token_id] = piece
        return piece

    def first(self, token_id: int) -> Piece:
        """The piece of a token that begins the text."""
        token = self._token_of(token_id)
        return self._nothing if token is None else self.plan.piece(token, True)


def read_plan(decoder: dict[str, Any] | None) -> DecodingPlan | None:
    """The plan for a decoder as written in tokenizer.json; None when it has steps that need neighbours."""
    if decoder is None:
        return DecodingPlan(maps=[lambda token, is_first: token if is_first else f" {token}"])
    steps = _flatten(decoder)
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return DecodingPlan(is_byte_level=True)
    plan = DecodingPlan()
    return plan if all(_add_step(plan, step) for step in steps) else None


def _flatten(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in _flatten(part)]
    return [decoder]


def _add_step(plan: DecodingPlan, step: dict[str, Any]) -> bool:
    """Add one step; False when it does not fit a plan."""
    kind = step["type"]
    if kind == "Fuse":
        plan.is_fused = True
        return True
    if plan.is_fused:
        fits = kind == "Strip" and step["stop"] == 0 and not plan.strip_left[1]
        if fits:
            plan.strip_left = (step["content"], step["start"])
        return fits
    if kind == "ByteFallback" and not plan.has_byte_fallback:
        plan.has_byte_fallback = True
        return True
    step_map = _token_map(step)
    if step_map is None or (plan.has_byte_fallback and kind != "Metaspace"):
        return False
    (plan.run_maps if plan.has_byte_fallback else plan.maps).append(step_map)
    return True


def _token_map(step: dict[str, Any]) -> TokenMap | None:
    match step:
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)} if pattern:
            return lambda token, is_first: token.replace(pattern, content)
        case {"type": "Metaspace", "replacement": str(mark), "prepend_scheme": scheme}:
            at_start = " " if scheme == "never" else ""
            return lambda token, is_first: token.replace(mark, at_start if is_first else " ")
        case {"type": "WordPiece", "prefix": str(prefix), "cleanup": bool(cleanup)}:
            return lambda token, is_first: _word_piece(token, is_first, prefix, cleanup)
    return None


def _word_piece(token: str, is_first: bool, prefix: str, cleanup: bool) -> str:
    if not is_first:
        token = token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"
    if cleanup:
        for pattern, replacement in _WORD_PIECE_CLEANUP:
            token = token.replace(pattern, replacement)
    return token


def _pairs(*patterns: str) -> list[tuple[str, str]]:
    return [(pattern, pattern.strip()) for pattern in patterns]


_WORD_PIECE_CLEANUP: Sequence[tuple[str, str]] = (
    *_pairs(" .", " ?", " !", " ,", " ' ", " n't", " 'm"),
    (" do not", " don't"),
    *_pairs(" 's", " 've", " 're"),
)

CLEANUP: Sequence[tuple[str, str]] = _pairs(" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
"""What `clean_up_tokenization_spaces` in tokenizer_config.json asks for, in transformers' order."""


def clean_up(text: str) -> str:
    """Take the spaces out that a word-by-word decoder leaves before punctuation."""
    for pattern, replacement in CLEANUP:
        text = text.replace(pattern, replacement)
    return text
