"""Pieces of a streamed text, joined, are the decoded text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_kinds import CORPUS, KINDS

from langport.text.detokenizer import MAX_HELD_BYTES, Detokenizer
from langport.text.tokenizer import Tokenizer

_loaded: dict[str, Tokenizer] = {}


def load(directory: Path) -> Tokenizer:
    if str(directory) not in _loaded:
        _loaded[str(directory)] = Tokenizer.from_directory(directory)
    return _loaded[str(directory)]


def stream(tokenizer: Tokenizer, ids: list[int], cuts: list[int], skip_special_tokens: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    pieces = []
    start = 0
    for length in cuts:
        pieces.append(detokenizer.push(ids[start : start + length]))
        start += length
    return [*pieces, detokenizer.push(ids[start:]), detokenizer.flush()]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_random_ids_stream_to_the_decoded_text(directories: dict[str, Path], kind: str, data: st.DataObject) -> None:
    tokenizer = load(directories[kind])
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 1), max_size=MAX_HELD_BYTES))
    cuts = data.draw(st.lists(st.integers(0, 3), max_size=len(ids)))
    skip = data.draw(st.booleans())
    assert "".join(stream(tokenizer, ids, cuts, skip)) == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=50)
@given(text=st.text(max_size=60))
def test_real_text_streams_without_stray_replacement_characters(
    directories: dict[str, Path], kind: str, text: str
) -> None:
    tokenizer = load(directories[kind])
    ids = tokenizer.encode(text)
    whole = tokenizer.decode(ids)
    pieces = stream(tokenizer, ids, [1] * len(ids))
    assert "".join(pieces) == whole
    shown = ""
    for piece in pieces:
        shown += piece
        assert whole.startswith(shown)


@pytest.mark.parametrize("kind", KINDS)
def test_text_flows(directories: dict[str, Path], kind: str) -> None:
    """Most of a plain sentence is shown before its end: at any time little is held."""
    tokenizer = load(directories[kind])
    ids = tokenizer.encode(CORPUS[0], add_special_tokens=False)
    whole = tokenizer.decode(ids)
    shown = "".join(stream(tokenizer, ids, [1] * len(ids))[:-2])
    assert len(shown) >= len(whole) - 8


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    return [tokenizer.backend.token_to_id(f"<0x{byte:02X}>") for byte in data]


def test_a_long_valid_run_of_byte_tokens_flows_and_stays_exact(directories: dict[str, Path]) -> None:
    tokenizer = load(directories["byte-fallback"])
    ids = byte_ids(tokenizer, ("ភាសាខ្មែរ" * 20).encode())
    pieces = stream(tokenizer, ids, [1] * len(ids))
    assert "".join(pieces) == tokenizer.decode(ids) == "ភាសាខ្មែរ" * 20
    assert len("".join(pieces[: MAX_HELD_BYTES + 2])) > MAX_HELD_BYTES // 4


def test_a_broken_run_keeps_what_was_shown(directories: dict[str, Path]) -> None:
    tokenizer = load(directories["byte-fallback"])
    ids = byte_ids(tokenizer, "é".encode() * 40 + b"\xff\xfe")
    text = "".join(stream(tokenizer, ids, [1] * len(ids)))
    assert text == "é" * 40 + "\ufffd\ufffd"


@pytest.mark.parametrize("kind", ["byte-level", "word-end-suffix"])
def test_work_per_token_does_not_grow(directories: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No push decodes more than a short window."""
    tokenizer = load(directories[kind])
    longest = 0
    decode = tokenizer.decode_raw

    def counting(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids)

    monkeypatch.setattr(tokenizer, "decode_raw", counting)
    ids = tokenizer.encode(CORPUS[0], add_special_tokens=False) * 20
    detokenizer = Detokenizer(tokenizer)
    text = "".join(detokenizer.push([token_id]) for token_id in ids) + detokenizer.flush()
    assert text == tokenizer.decode(ids)
    assert longest < 32
