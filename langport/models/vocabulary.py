"""A model's tokens as grammars see them: the bytes of each, and which of them end an answer.

Both processes make one: the API's to check a grammar before it is asked for, the engine's to follow it. llguidance
turns a grammar into a matcher, an Earley parser over a lexer, that says which tokens may come next. torch is not
needed.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from langport.models.checkpoint import Checkpoint
from langport.text.grammar import with_usual_spaces
from langport.text.tokenizer import Tokenizer
from langport.types import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, TokenizerWrapper

MAX_LEXER_STATES = 50_000
"""Per compiled grammar, about 1 to 2 kB each: no grammar of a stranger fills the memory."""


_OPTIONS = '\n%llguidance {"no_forcing": true}'
"""Any tokens may spell a text that is fixed. Otherwise the tokenizer is asked for one spelling of it, unknown tokens
included."""


class GrammarError(ValueError):
    """The grammar is wrong, or more than a matcher can do; the message names the rule or keyword."""


class Vocabulary:
    """All tokens that a model can draw. Making one takes a second for 150,000 tokens."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        """`vocab_size`: the width of the logits. What the tokenizer does not know of it is never allowed."""
        import llguidance

        ends = [token_id for token_id in eos_token_ids if token_id < vocab_size]
        self.size = vocab_size
        self.can_end = bool(ends)
        """The model has a token that ends an answer."""
        source = _Source(tokenizer, vocab_size, ends)
        self._tokens = llguidance.LLTokenizer(
            cast("TokenizerWrapper", source), n_vocab=len(source.tokens), eos_token=source.ends
        )
        self.num_mask_words = -(-len(source.tokens) // 32)
        """32-bit words of a mask, a bit per token, that of token 0 lowest."""
        self._tokenizer = tokenizer
        self._bytes = source.tokens
        self._special = frozenset(source.special_token_ids)
        self._limits = llguidance.LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)

    @classmethod
    def of(cls, checkpoint: Checkpoint, vocab_size: int, eos_token_ids: tuple[int, ...]) -> Vocabulary:
        """Read the checkpoint's tokenizer. Raises: CheckpointError."""
        return cls(Tokenizer.from_directory(checkpoint.path), vocab_size, eos_token_ids)

    def compile(self, grammar: Grammar) -> LLMatcher:
        """A matcher at the grammar's beginning; copies of it are cheap.

        Raises: GrammarError, also when no token of the model can begin such a text.
        """
        import llguidance

        if self._tokenizer.pieces() is None:
            raise GrammarError("this model's tokens become text only together with their neighbours")
        matcher = llguidance.LLMatcher(self._tokens, grammar.text + _OPTIONS, log_level=0, limits=self._limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error() and _is_at_dead_end(matcher):
            raise GrammarError("no text follows it, or this model has no token that one begins with")
        if problem := problem_of(matcher):
            raise GrammarError(problem)
        return matcher

    def compile_usual(self, grammar: Grammar) -> LLMatcher | None:
        """A matcher of the grammar whose JSON has the usual spaces; None where that is nothing else, or too much."""
        usual = with_usual_spaces(grammar)
        try:
            return None if usual == grammar else self.compile(usual)
        except GrammarError:
            return None

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text; b"" for special tokens and unknown ids."""
        return b"" if token_id in self._special or token_id >= len(self._bytes) else self._bytes[token_id]

    def first_token(self, text: bytes) -> int | None:
        """What the tokenizer would begin this part of a text with, or else the longest token that it begins with."""
        encoded = self._tokenizer.encode(text.decode("utf-8", "ignore"), add_special_tokens=False)
        written = self.token_bytes(encoded[0]) if encoded else b""
        if written and text.startswith(written):
            return encoded[0]
        lengths = range(min(len(text), self._longest), 0, -1)
        return next((self._ids[text[:length]] for length in lengths if text[:length] in self._ids), None)

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        """Tokens by the bytes that they add."""
        return {text: token_id for token_id, text in enumerate(self._bytes) if self.token_bytes(token_id)}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids), default=0)

    @cached_property
    def first_mask(self) -> NDArray[np.int32]:
        """A bit per token, (num_mask_words,): whether at the beginning of a text it shows what the grammar read of it.

        That is without its space, where it has one: a word begins so. The continuation of one may show as such there.
        """
        shown = [self._shows_first(token_id, text) for token_id, text in enumerate(self._bytes)]
        bits = np.zeros(4 * self.num_mask_words, np.uint8)
        packed = np.packbits(np.array(shown, dtype=bool), bitorder="little")
        bits[: len(packed)] = packed
        return bits.view(np.int32)

    def _shows_first(self, token_id: int, text: bytes) -> bool:
        try:
            expected = text.removeprefix(b" ").decode()
        except UnicodeDecodeError:
            return True  # part of a character
        return token_id >= self._tokenizer.vocab_size or self._tokenizer.decode([token_id]) in (expected, "")


def problem_of(matcher: LLMatcher) -> str | None:
    """Why a matcher cannot go on; None while it can, or has come to a good end."""
    if not matcher.is_error():
        return None
    if _is_at_dead_end(matcher):
        return "the model has no token for what has to come next"
    return matcher.get_error().replace("<non-verbose/>", "").strip()


def _is_at_dead_end(matcher: LLMatcher) -> bool:
    """Something has to follow, and no token can."""
    return "NoExtension" in matcher.get_error()


class _Source:
    """What llguidance reads of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ends: list[int]) -> None:
        self._tokenizer = tokenizer
        num_known = min(tokenizer.vocab_size, vocab_size)
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(num_known)]
        self.tokens += [b""] * (vocab_size - num_known)
        # llguidance needs an end token: a model without one gets one that lies behind its logits.
        self.ends = ends or [vocab_size]
        if not ends:
            self.tokens.append(b"<end>")
        self.eos_token_id = self.ends[0]
        special = {token_id for token_id in tokenizer.special_ids if token_id < vocab_size}
        self.special_token_ids = sorted(special.union(self.ends))

    def __call__(self, text: bytes | str) -> list[int]:
        """Encode a text; masks do without it."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self._tokenizer.encode(text, add_special_tokens=False)
