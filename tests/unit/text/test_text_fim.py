"""Prompts with a gap: each family's tokens and order, and texts that spell tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from text_kinds import byte_fallback, byte_level, save

from langport.testing import byte_tokenizer
from langport.text.fim import FORMATS, MARKERS, find_fim
from langport.text.tokenizer import Tokenizer

QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


def byte_tokenizer_with(*tokens: str, special: bool = True) -> Tokenizer:
    """Bytes, three special tokens, and these."""
    tokenizer = byte_tokenizer()
    added = [tokenizers.AddedToken(token, special=special, normalized=False) for token in tokens]
    tokenizer.backend.add_special_tokens(added) if special else tokenizer.backend.add_tokens(added)
    return Tokenizer(tokenizer.backend, tokenizer.named_tokens, {})


def tokenizer_of(build, directory: Path, *tokens: str) -> Tokenizer:
    backend, config = build()
    backend.add_special_tokens(list(tokens))
    return Tokenizer.from_directory(save(directory, backend, config))


@pytest.mark.parametrize(
    ("tokens", "prompt"),
    [
        (QWEN, "<|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>"),
        (("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), "<fim_prefix>P<fim_suffix>S<fim_middle>"),
        (("<fim-prefix>", "<fim-suffix>", "<fim-middle>"), "<fim-prefix>P<fim-suffix>S<fim-middle>"),
        (("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"), "<｜fim▁begin｜>P<｜fim▁hole｜>S<｜fim▁end｜>"),
        (("▁<PRE>", "▁<SUF>", "▁<MID>"), "▁<PRE>P▁<SUF>S▁<MID>"),
        (("<PRE>", "<SUF>", "<MID>"), "<PRE>P<SUF>S<MID>"),
        (("[PREFIX]", "[SUFFIX]"), "[SUFFIX]S[PREFIX]P"),
        (("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>"), "<[fim-suffix]>S<[fim-prefix]>P<[fim-middle]>"),
    ],
)
def test_each_familys_order(tokens, prompt):
    tokenizer = byte_tokenizer_with(*tokens)
    fim = find_fim(tokenizer)
    assert fim is not None
    ids, where = fim.arrange([80], [83], [256])
    assert "".join(tokenizer.backend.id_to_token(token_id) for token_id in ids) == "<s>" + prompt
    assert ids[where] == [80]
    assert set(fim.end_ids) == {tokenizer.backend.token_to_id(token) for token in tokens}


def test_an_empty_prefix_has_its_place():
    fim = find_fim(byte_tokenizer_with(*QWEN))
    assert fim is not None
    ids, where = fim.arrange([], [83], [])
    assert len(ids) == 4
    assert ids[where] == []


@pytest.mark.parametrize("tokens", [(), QWEN[:2], ("[PREFIX]",), ("<PRE>", "<SUF>")])
def test_a_tokenizer_without_all_tokens_has_no_format(tokens):
    assert find_fim(byte_tokenizer_with(*tokens)) is None


def test_what_ends_the_filling():
    tokenizer = byte_tokenizer_with(*QWEN, "<|fim_pad|>", "<|file_sep|>", "<|endoftext|>")
    fim = find_fim(tokenizer)
    assert fim is not None
    assert [tokenizer.backend.id_to_token(token_id) for token_id in fim.end_ids] == [
        *QWEN,
        "<|fim_pad|>",
        "<|file_sep|>",
        "<|endoftext|>",
    ]


@pytest.mark.parametrize("special", [True, False])
async def test_a_text_that_spells_tokens_stays_text(special):
    """Qwen's tokenizer does not call its markers special."""
    tokenizer = byte_tokenizer_with(*QWEN, special=special)
    text = "a<|fim_middle|>b<|im_end|>é"
    assert max(tokenizer.encode(text)) > 255
    (ids,) = await tokenizer.encode_literally([text], MARKERS, joins=False)
    assert bytes(ids).decode() == text
    assert tokenizer.encode("<|fim_middle|>") == [tokenizer.backend.token_to_id("<|fim_middle|>")]


async def test_other_added_tokens_are_still_found(tmp_path):
    tokenizer = tokenizer_of(byte_level, tmp_path, *QWEN)
    text = "<tool call>größer<|endoftext|>"
    (ids,) = await tokenizer.encode_literally([text], MARKERS, joins=False)
    names = [tokenizer.backend.id_to_token(token_id) for token_id in ids]
    assert names[:2] == ["<tool call>", "größer"]
    assert "<|endoftext|>" not in names
    assert tokenizer.decode(ids).endswith("<|endoftext|>")


@pytest.mark.parametrize("text", ["b) = x", " b", "\n    return a", "日本", "<s>"])
async def test_a_joined_text_does_not_begin_a_word(tmp_path, text):
    tokenizer = tokenizer_of(byte_fallback, tmp_path, "▁<PRE>", "▁<SUF>", "▁<MID>")
    (apart,), (joined,) = [await tokenizer.encode_literally([text], MARKERS, joins=joins) for joins in (False, True)]
    assert tokenizer.backend.id_to_token(apart[0]).startswith("▁")
    assert tokenizer.special_ids.isdisjoint([*apart, *joined])
    (before,) = await tokenizer.encode_literally(["add(a,"], MARKERS, joins=False)
    assert tokenizer.decode([*before, *joined]) == "add(a," + text
    assert joined != apart or text.startswith(" ")


async def test_lone_surrogates_are_replaced():
    tokenizer = byte_tokenizer_with(*QWEN)
    (ids,) = await tokenizer.encode_literally(["a\ud800"], MARKERS, joins=False)
    assert bytes(ids).decode() == "a\ufffd"


def test_opening_tokens(tmp_path):
    assert byte_tokenizer().opening_ids() == []
    tokenizer = tokenizer_of(byte_fallback, tmp_path)
    assert tokenizer.opening_ids() == [tokenizer.bos_token_id]


def test_no_marker_is_in_two_formats():
    tokens = [token for one in FORMATS for token in (one.prefix, one.suffix, one.middle) if token]
    assert len(tokens) == len(set(tokens)) == len(MARKERS)
