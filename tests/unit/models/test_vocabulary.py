"""Tokens as grammars see them, for every kind of tokenizer: what the masks let through is what the text becomes."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest

from langport.models.vocabulary import GrammarError, Vocabulary
from langport.testing import BOS, EOS, TURN, byte_tokenizer
from langport.text.grammar import (
    ANY_OBJECT,
    ebnf_grammar,
    grammar,
    json_schema_grammar,
    matching,
    regex_grammar,
    sequence,
    token,
)
from langport.text.tokenizer import Tokenizer
from langport.types import Grammar
from tests.unit.text.text_kinds import KINDS, save

CANNOT_SPELL = {"word-piece", "words-only"}
"""Their words are whole, or a space comes before them: not every pattern can be met."""


def allowed(matcher: object) -> list[int]:
    mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)  # type: ignore[attr-defined]
    return np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist()


def draw(vocabulary: Vocabulary, made: Grammar, ends: tuple[int, ...], rng: random.Random) -> list[int] | None:
    """Tokens drawn evenly from the masks, without the end; None at a dead end."""
    matcher = vocabulary.compile(made).deep_copy()
    tokens: list[int] = []
    while True:
        choices = allowed(matcher)
        if made.hides_first_space and not tokens:
            first = np.unpackbits(vocabulary.first_mask.view(np.uint8), bitorder="little")
            choices = [token_id for token_id in choices if first[token_id]]
        if matcher.is_error() or not choices:
            return None
        chosen = rng.choice(choices)
        if chosen in ends:
            assert matcher.is_accepting()
            return tokens
        assert matcher.consume_token(chosen)
        tokens.append(chosen)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", ["[a-z]{3}( [a-z]+){0,3}", "The (sky|grass) is [a-z]{1,9}"])
def test_what_the_masks_allow_is_what_the_text_becomes(tmp_path: Path, kind: str, pattern: str) -> None:
    tokenizer = Tokenizer.from_directory(save(tmp_path, *KINDS[kind]()))
    end = tokenizer.vocab_size  # of no tokenizer's own tokens, so that those are all text or special
    vocabulary = Vocabulary(tokenizer, end + 1, (end,))
    piece = grammar(matching(pattern), hides_first_space=tokenizer.hides_first_space)
    if tokenizer.pieces() is None:
        with pytest.raises(GrammarError, match="together with their neighbours"):
            vocabulary.compile(piece)
        return
    rng = random.Random(1)
    try:
        drawn = [draw(vocabulary, piece, (end,), rng) for _ in range(40)]
    except GrammarError:
        drawn = []
    texts = [tokenizer.decode(tokens) for tokens in drawn if tokens is not None]
    assert all(re.fullmatch(pattern, text) for text in texts)
    assert not tokenizer.special_ids.intersection(token for tokens in drawn for token in tokens or ())
    assert texts or kind in CANNOT_SPELL


@pytest.mark.parametrize("kind", KINDS)
def test_which_tokenizers_hide_the_first_space(tmp_path: Path, kind: str) -> None:
    tokenizer = Tokenizer.from_directory(save(tmp_path, *KINDS[kind]()))
    spaced = [i for i in range(tokenizer.vocab_size) if re.fullmatch(b" [a-z]+", tokenizer.token_bytes(i))]
    assert spaced or not tokenizer.hides_first_space
    hidden = [tokenizer.decode([i])[:1] != " " for i in spaced]
    assert hidden == [tokenizer.hides_first_space] * len(spaced)


class TestOfBytes:
    tokenizer = byte_tokenizer()
    vocabulary = Vocabulary(tokenizer, 300, (EOS, TURN))
    """Wider than the tokenizer, as padded logits are."""

    def test_the_end_is_allowed_only_where_the_text_may_end(self) -> None:
        matcher = self.vocabulary.compile(regex_grammar("ab?"))
        assert allowed(matcher) == [ord("a")]
        matcher.consume_token(ord("a"))
        assert allowed(matcher) == [ord("b"), EOS, TURN]
        matcher.consume_token(ord("b"))
        assert allowed(matcher) == [EOS, TURN]

    def test_special_and_unknown_tokens_are_no_text(self) -> None:
        matcher = self.vocabulary.compile(regex_grammar("(?s:.*)"))
        assert max(allowed(matcher)) == TURN
        assert BOS not in allowed(matcher)
        assert self.vocabulary.num_mask_words == 10

    def test_a_special_token_may_be_named(self) -> None:
        matcher = self.vocabulary.compile(grammar(sequence(token(BOS), matching("a"))))
        assert allowed(matcher) == [BOS]

    def test_strings_are_utf_8(self) -> None:
        matcher = self.vocabulary.compile(json_schema_grammar({"type": "string"}))
        matcher.consume_token(ord('"'))
        assert not {0x80, 0xBF, 0xC0, 0xFF, 0x0A, 0x1F}.intersection(allowed(matcher))
        matcher.consume_token(0xE2)
        assert allowed(matcher) == list(range(0x80, 0xC0))

    def test_without_an_end_token_one_lies_behind_the_logits(self) -> None:
        vocabulary = Vocabulary(self.tokenizer, 300, ())
        assert not vocabulary.can_end
        matcher = vocabulary.compile(regex_grammar("a"))
        matcher.consume_token(ord("a"))
        assert allowed(matcher) == [300]

    def test_end_tokens_that_the_model_does_not_have_are_left_out(self) -> None:
        assert not Vocabulary(self.tokenizer, 200, (EOS,)).can_end

    @pytest.mark.parametrize(
        ("made", "words"),
        [
            (json_schema_grammar({"type": "strnig"}), "strnig"),
            (json_schema_grammar({"$ref": "#"}), "no text follows it"),
            (ebnf_grammar("start: a\na: b"), "b"),
            (regex_grammar("(a"), "unclosed"),
            (Grammar(""), "start"),
        ],
    )
    def test_errors_say_what_is_wrong(self, made: Grammar, words: str) -> None:
        with pytest.raises(GrammarError, match=re.escape(words)):
            self.vocabulary.compile(made)

    def test_a_vocabulary_without_a_brace(self) -> None:
        with pytest.raises(GrammarError, match="no token"):
            Vocabulary(self.tokenizer, 100, (0,)).compile(json_schema_grammar(ANY_OBJECT))
