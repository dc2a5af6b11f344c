"""Tokens to shown text: for any tokens, stop strings and cuts into deltas the stream tells the same story."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from langport.api.generation import merge
from langport.api.sequence import SequenceText, TextEvent, TextOptions
from langport.errors import EngineFailed
from langport.testing import EOS, byte_tokenizer
from langport.text.tokenizer import Tokenizer
from langport.types import Delta, TokenLogprob

TOKENIZER = byte_tokenizer()

TOKENS = st.lists(
    st.one_of(
        st.sampled_from([*b"abc,. ", *"é€😀".encode()]),
        st.integers(0, 258),
    ),
    max_size=40,
)
STOPS = st.lists(st.text("abc,. é", min_size=1, max_size=3), max_size=3, unique=True)


def deltas(tokens: Sequence[int], cuts: Sequence[int], *, has_logprobs: bool, ends: bool) -> list[Delta]:
    """The tokens in pieces of the given sizes; the last one finishes."""
    ids = [*tokens, EOS] if ends else list(tokens)
    found, position, sizes = [], 0, list(cuts)
    while position < len(ids) or not found:
        size = sizes.pop() if sizes else 1
        part = ids[position : position + size]
        position += size
        logprobs = [TokenLogprob(token, -0.5, []) for token in part] if has_logprobs else None
        found.append(Delta("r", 0, part, None, logprobs))
    found[-1].finish_reason = "stop" if ends else "length"
    return found


def run(options: TextOptions, parts: Sequence[Delta]) -> tuple[SequenceText, list[TextEvent]]:
    sequence = SequenceText(0, TOKENIZER, options)
    events = [event for part in parts if (event := sequence.take(part)) is not None]
    return sequence, events


@settings(max_examples=300, deadline=None)
@given(TOKENS, STOPS, st.lists(st.integers(1, 5)), st.booleans(), st.booleans())
def test_events_join_to_the_plain_text(tokens, stops, cuts, has_logprobs, ends):
    options = TextOptions(stop=tuple(stops), has_logprobs=has_logprobs)
    sequence, events = run(options, deltas(tokens, cuts, has_logprobs=has_logprobs, ends=ends))
    whole = TOKENIZER.decode(tokens)
    ends_at = [whole.find(stop) for stop in stops if stop in whole]
    text = "".join(event.text for event in events)
    if stops and ends_at:
        assert text == whole[: min(ends_at)]
        assert events[-1].finish_reason == "stop"
    else:
        assert text == whole
        assert events[-1].finish_reason == ("stop" if ends else "length")
        assert sequence.num_tokens == len(tokens) + ends
    assert all(event.finish_reason is None for event in events[:-1])
    assert all(event.text or event.tokens for event in events[:-1])
    assert sequence.logprob_sum == (-0.5 * sequence.num_tokens if has_logprobs else 0)


@settings(max_examples=300, deadline=None)
@given(TOKENS, st.lists(st.integers(1, 5)), st.booleans())
def test_logprobs_are_those_of_the_shown_tokens(tokens, cuts, ends):
    _, events = run(TextOptions(has_logprobs=True), deltas(tokens, cuts, has_logprobs=True, ends=ends))
    shown = [token for event in events for token in event.tokens or []]
    ordinary = [token for token in tokens if token not in TOKENIZER.special_ids]
    assert [token.text for token in shown] == [bytes([token]) for token in ordinary]
    assert b"".join(token.text for token in shown).decode("utf-8", "replace") == TOKENIZER.decode(tokens)
    offsets = [token.offset for token in shown]
    assert offsets == sorted(offsets)


@settings(max_examples=300, deadline=None)
@given(TOKENS, STOPS, st.lists(st.integers(1, 5)))
def test_a_tokens_logprob_comes_with_its_first_character(tokens, stops, cuts):
    options = TextOptions(stop=tuple(stops), has_logprobs=True)
    _, events = run(options, deltas(tokens, cuts, has_logprobs=True, ends=False))
    position = 0
    for event in events:
        for token in event.tokens or []:
            begins_here = position <= token.offset < position + len(event.text)
            assert begins_here or event.finish_reason == "length"
        position += len(event.text)


def test_offsets_count_what_stands_before_a_token():
    """A byte that turns out to begin no character is shown with the next token, and is not part of it."""
    tokens = [*b"a\xc3b", *"é".encode(), *b"c"]
    _, events = run(TextOptions(has_logprobs=True), deltas(tokens, [], has_logprobs=True, ends=False))
    shown = [(token.text, token.offset) for event in events for token in event.tokens or []]
    assert "".join(event.text for event in events) == "a\ufffdbéc"
    assert shown == [(b"a", 0), (b"\xc3", 1), (b"b", 2), (b"\xc3", 3), (b"\xa9", 3), (b"c", 4)]


def sentencepiece(*pieces: str) -> Tokenizer:
    """A tokenizer that writes spaces as in Llama 2, with bytes for what it does not know; ids are in order."""
    vocabulary = {piece: number for number, piece in enumerate(["<unk>", *pieces])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    decoders = tokenizers.decoders
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return Tokenizer(backend, {}, {})


def said(tokenizer: Tokenizer, ids: list[int], before: Sequence[int] = ()) -> tuple[str, list[bytes]]:
    """The text of a finished sequence and the bytes of its tokens."""
    delta = Delta("r", 0, ids, "length", [TokenLogprob(token_id, -1.0, []) for token_id in ids])
    event = SequenceText(0, tokenizer, TextOptions(has_logprobs=True), before=before).take(delta)
    assert event is not None
    return event.text, [token.text for token in event.tokens or []]


def test_a_completion_keeps_the_space_of_its_first_word():
    """Sentencepiece drops the space of the first token it decodes; a continued text has it."""
    tokenizer = sentencepiece("▁Once", "▁upon", "▁a")
    assert said(tokenizer, [2, 3]) == ("upon a", [b"upon", b" a"])
    assert said(tokenizer, [2, 3], before=[1]) == (" upon a", [b" upon", b" a"])


def test_a_completion_does_not_repeat_the_end_of_its_prompt():
    """Byte tokens at the end of the prompt wait for more of their kind; they are not the completion's."""
    tokenizer = sentencepiece("▁Once", "▁a", "<0xC3>", "<0xA9>")
    assert said(tokenizer, [2], before=[1, 3, 4]) == (" a", [b" a"])
    assert said(tokenizer, [2], before=[3, 4]) == (" a", [b" a"])


async def test_merged_streams_give_everything_and_close_together():
    closed = []

    async def count(number: int, to: int):
        try:
            for value in range(to):
                yield number, value
        finally:
            closed.append(number)

    got = [item async for item in merge([count(0, 3), count(1, 0), count(2, 5)])]
    assert sorted(got) == [(0, 0), (0, 1), (0, 2), *((2, value) for value in range(5))]
    assert [value for number, value in got if number == 2] == list(range(5))
    assert sorted(closed) == [0, 1, 2]

    closed.clear()
    merged = merge([count(0, 1000), count(1, 1000)])
    await anext(merged)
    await merged.aclose()
    assert sorted(closed) == [0, 1]


async def test_the_first_error_ends_merged_streams():
    async def fail():
        yield 1
        raise EngineFailed("broken")

    async def go_on():
        for _ in range(3):
            yield 2

    with pytest.raises(EngineFailed):
        [item async for item in merge([fail(), go_on()])]
