"""A model's tokens as grammars see them: the bytes of each, and which of them end an answer.

Both processes make one: the API's to check a grammar before it is asked for, the engine's to follow it. llguidance
turns a grammar into a matcher, an Earley parser over a lexer, that says which tokens may come next. torch is not
needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from langport.models.checkpoint import Checkpoint
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
    """All tokens that a model can draw. Making one takes a moment (0.3 s for 150,000 tokens)."""

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

        matcher = llguidance.LLMatcher(self._tokens, grammar.text + _OPTIONS, log_level=0, limits=self._limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error() and _is_at_dead_end(matcher):
            raise GrammarError("no text follows it, or this model has no token that one begins with")
        if problem := problem_of(matcher):
            raise GrammarError(problem)
        return matcher


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
