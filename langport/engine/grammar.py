"""Sequences that follow a grammar: one matcher each, and the masks of a step computed beside the model.

Compiling has a thread, so requests wait for their grammar without holding up others. So have masks where they take
long: llguidance gives up the GIL and shares them out among threads of its own, and they are ready, most often, when the
model's logits are. Short ones, of small vocabularies, are computed one by one after the model has been called, which
costs less than waking a thread.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from langport.models.vocabulary import Vocabulary, problem_of
from langport.types import Grammar

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

    from langport.engine.sequence import Sequence

MAX_COMPILED = 64
"""Grammars that are kept compiled, the ones used last."""
SHORT_S = 200e-6
"""Masks of a step that took no longer than this are computed without a thread."""


NO_FIRST_TOKEN = "the model has no token that its text can begin with"


class Matcher:
    """Where one sequence stands in its grammar."""

    def __init__(
        self, state: LLMatcher, *, can_end: bool, num_before: int = 0, first_mask: Tensor | None = None
    ) -> None:
        """`num_before`: tokens that the checkpoint forces before the text; they are no part of it.

        `first_mask`: a further mask for the first of the others.
        """
        self.state = state
        self.first_mask = first_mask
        """None when there is none, or the first token is there."""
        self.problem: str | None = None
        """Why the sequence cannot go on; known once its mask was computed."""
        self._can_end = can_end
        self._num_before = num_before

    @property
    def has_begun(self) -> bool:
        """The next token is one of the grammar's."""
        return self._num_before == 0

    @property
    def has_ended(self) -> bool:
        """Nothing may follow, and the model has no token to say so."""
        return not self._can_end and self.state.is_stopped() and not self.state.is_error()

    def num_allowed(self, tokens: list[int]) -> int:
        """How many of the first of these tokens the grammar would take."""
        return self.state.validate_tokens(tokens) if self.first_mask is None else 0

    def accept(self, token: int) -> None:
        """Move on by a token that the mask allowed."""
        if self._num_before:
            self._num_before -= 1
        else:
            self.state.consume_token(token)
            self.first_mask = None


class Masks:
    """Which tokens the sequences of one step must not draw; asked for when the model has been called."""

    def __init__(self, bits: Callable[[], Tensor]) -> None:
        """`bits` gives a bit per token, set where it is allowed, in 32-bit words (num_seqs, words)."""
        self._bits = bits

    def forbidden(self, vocab_size: int, device: torch.device) -> Tensor:
        """Booleans (num_seqs, vocab_size); of a sequence without a grammar, or in trouble, none is true."""
        bits = self._bits().bitwise_not_()
        if device.type == "cpu":
            unpacked = np.unpackbits(bits.numpy().view(np.uint8), axis=1, count=vocab_size, bitorder="little")
            return torch.from_numpy(unpacked).view(torch.bool)
        return unpack(bits.to(device), vocab_size)


def unpack(bits: Tensor, vocab_size: int) -> Tensor:
    """Booleans (num_rows, vocab_size) from 32-bit words (num_rows, words), on any device."""
    places = torch.arange(32, dtype=torch.int32, device=bits.device)
    return ((bits[:, :, None] >> places) & 1).bool().flatten(1)[:, :vocab_size]


class Grammars:
    """Everything that an engine knows of grammars. The vocabulary is read when the first one comes."""

    def __init__(self, read_vocabulary: Callable[[], Vocabulary], *, num_before: int = 0) -> None:
        """`num_before`: see `Matcher`."""
        self._read_vocabulary = read_vocabulary
        self._vocabulary: Vocabulary | None = None
        self._num_before = num_before
        self._compiled: OrderedDict[Grammar, Future[LLMatcher]] = OrderedDict()
        self._compiler = ThreadPoolExecutor(1, "langport-grammar")
        self._masker = ThreadPoolExecutor(1, "langport-mask")
        self._executor: LLExecutor | None = None
        self._last_s = 0.0
        """What the masks of the last step took."""

    def compile(self, grammar: Grammar) -> Future[LLMatcher]:
        """Begin to compile a grammar, unless it is known. The future may hold a GrammarError or a CheckpointError."""
        known = self._compiled.pop(grammar, None)
        if known is None or (known.done() and known.exception() is not None):
            known = self._compiler.submit(self._compile, grammar)
        self._compiled[grammar] = known
        if len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)
        return known

    def matcher(self, compiled: LLMatcher, grammar: Grammar) -> Matcher:
        """A matcher of its own for one more sequence."""
        vocabulary = self._vocabulary
        assert vocabulary is not None
        return Matcher(
            compiled.deep_copy(),
            can_end=vocabulary.can_end,
            num_before=self._num_before,
            first_mask=torch.from_numpy(vocabulary.first_mask) if grammar.hides_first_space else None,
        )

    def masks(self, sequences: Seq[Sequence]) -> Masks | None:
        """The masks for the next token of each, begun at once if they take long; None where none has a grammar."""
        matchers = [
            (sequence.matcher, row)
            for row, sequence in enumerate(sequences)
            if sequence.matcher is not None and sequence.matcher.has_begun
        ]
        if not matchers:
            return None
        fill = partial(self._fill, matchers, len(sequences))
        return Masks(fill if self._last_s < SHORT_S else self._masker.submit(fill).result)

    def _compile(self, grammar: Grammar) -> LLMatcher:
        if self._vocabulary is None:
            self._vocabulary = self._read_vocabulary()
        compiled = self._vocabulary.compile(grammar)
        if grammar.hides_first_space:
            _ = self._vocabulary.first_mask  # made here, where nobody waits for the next token
        return compiled

    def _fill(self, matchers: list[tuple[Matcher, int]], num_rows: int) -> Tensor:
        """See `Masks`."""
        begin = time.perf_counter()
        assert self._vocabulary is not None
        num_words = self._vocabulary.num_mask_words
        bits = torch.full((num_rows, num_words), -1, dtype=torch.int32)
        address, num_bytes = bits.data_ptr(), 4 * num_words
        if self._last_s < SHORT_S or len(matchers) == 1:
            for matcher, row in matchers:
                matcher.state.unsafe_compute_mask_ptr(address + row * num_bytes, num_bytes)
        else:
            states = [(matcher.state, row) for matcher, row in matchers]
            self._parallel().unsafe_compute_mask_ptr(states, address, num_bytes, num_rows)
        for matcher, row in matchers:
            if matcher.state.is_error():
                matcher.problem = problem_of(matcher.state)
                bits[row] = -1
            elif matcher.first_mask is not None:
                bits[row] &= matcher.first_mask
                if not bits[row].any():
                    matcher.problem = NO_FIRST_TOKEN
                    bits[row] = -1
        self._last_s = time.perf_counter() - begin
        return bits

    def _parallel(self) -> LLExecutor:
        if self._executor is None:
            import llguidance

            self._executor = llguidance.LLExecutor()
        return self._executor
