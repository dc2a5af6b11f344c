"""Texts and pairs are cut as transformers' tokenizers cut them, and token types stay where they belong."""

from __future__ import annotations

import pytest
import tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from langport.text.tokenizer import Tokenizer
from langport.text.truncation import EncodedTexts

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(chr(97 + number) for number in range(26))]
PAIRS = [("a b c d e f g", "h i"), ("a b", "h i j k l m n"), ("a b c d e", "h i j k l"), ("a b c", ""), ("", "")]


@pytest.fixture(scope="module")
def reference() -> PreTrainedTokenizerFast:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")


@pytest.fixture
def encode(reference):
    backend = tokenizers.Tokenizer.from_str(reference.backend_tokenizer.to_str())
    tokenizer = Tokenizer(backend, {}, {})

    def one(*texts: str) -> EncodedTexts:
        return EncodedTexts.of(tokenizer.backend.encode(*texts))

    return one


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pair", PAIRS)
def test_pairs_are_cut_as_transformers_cuts_them(reference, encode, pair, side):
    reference.truncation_side = side
    for limit in range(4, 16):
        # As lists: alone, it takes an empty second text for none.
        firsts, seconds = [pair[0]], [pair[1]]
        expected = reference(firsts, seconds, truncation=True, max_length=limit, return_token_type_ids=True)
        found = encode(*pair).cut(limit, side)
        assert found.ids == expected["input_ids"][0]
        types = [int(place >= found.second_text) for place in range(len(found.ids))]
        assert types == expected["token_type_ids"][0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_so_is_one_text(reference, encode, side):
    reference.truncation_side = side
    for limit in range(3, 12):
        expected = reference("a b c d e f g", truncation=True, max_length=limit)["input_ids"]
        assert encode("a b c d e f g").cut(limit, side).ids == expected


def test_one_text_of_a_pair_may_have_a_limit_of_its_own(encode):
    pair = encode("a b c", "d e f")
    assert pair.cut_text(1, 1, "right") == encode("a b c", "d")
    assert pair.cut_text(1, 2, "left") == encode("a b c", "e f")
    assert pair.cut_text(0, 1, "right") == encode("a", "d e f")
    assert pair.cut_text(0, 9, "right") is pair


def test_special_tokens_are_counted(encode):
    assert (encode("a", "b").num_special, encode("a").num_special) == (3, 2)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, True),
        ({"tokenizer_class": BertTokenizer.__name__}, True),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, False),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "token_type_ids"]}, True),
        ({"tokenizer_class": "BertTokenizer", "model_input_names": ["input_ids"]}, False),
    ],
)
def test_whether_texts_are_told_apart_by_type(encode, reference, config, expected):
    backend = tokenizers.Tokenizer.from_str(reference.backend_tokenizer.to_str())
    assert Tokenizer(backend, {}, config).has_token_types is expected
