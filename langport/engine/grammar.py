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
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from langport.engine.forced import Forecast, Guide
from langport.models.vocabulary import Vocabulary, problem_of
from langport.ops import native
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
        self,
        state: LLMatcher,
        *,
        can_end: bool,
        num_before: int = 0,
        first_mask: Tensor | None = None,
        guide: Guide | None = None,
    ) -> None:
        """`num_before`: tokens that the checkpoint forces before the text; they are no part of it.

        `first_mask`: a further mask for the first of the others. `guide`: says what has to follow.
        """
        self.state = state
        self.first_mask = first_mask
        """None when there is none, or the first token is there."""
        self.problem: str | None = None
        """Why the sequence cannot go on; known once its mask was computed."""
        self._can_end = can_end
        self._num_before = num_before
        self._guide = guide
        self._later: tuple[int, Matcher] | None = None
        """A token that may come next, and where it leads."""

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
            later, self._later = self._later, None
            if later is not None and later[0] == token:
                self.state, self.problem, self._later = later[1].state, later[1].problem, later[1]._later
            else:
                self.state.consume_token(token)
            self.first_mask = None
            if self._guide is not None:
                self._guide.accept(token)

    def after(self, token: int) -> Matcher:
        """A matcher that has moved on by a token which may come next; this one stays where it is.

        What is found out about that place is known here, too, if the token does come next.
        """
        assert self.has_begun
        later = Matcher(self.state.deep_copy(), can_end=self._can_end)
        later.state.consume_token(token)
        self._later = token, later
        return later

    def forced(self, most: int) -> tuple[list[int], list[float]]:
        """Up to `most` tokens that the grammar leaves little choice about, and how likely each is after the others."""
        if self._guide is None or self._num_before or self.first_mask is not None:
            return [], []
        return self._guide.forced(most)


@dataclass(frozen=True)
class Compiled:
    """A grammar that sequences can follow."""

    state: LLMatcher
    """At the beginning; to be copied."""
    forecast: Forecast | None
    """What its guides have in common, where there are any."""


class Masks:
    """Which tokens the sequences of one step must not draw; asked for when the model has been called."""

    def __init__(self, rows: list[int], bits: Callable[[], Tensor]) -> None:
        """`rows`: the sequences that have a grammar, by their numbers in the step.

        `bits` gives a bit per token for each of them, set where it is allowed, in 32-bit words (num_rows, words).
        """
        self.rows = rows
        self._make_bits = bits

    @cached_property
    def bits(self) -> Tensor:
        """(num_rows, words): see above. Waits until they are computed."""
        return self._make_bits()

    def of(self, sequences: list[int]) -> Masks | None:
        """The masks of some of the step's sequences, by their numbers, as of a step of their own."""
        places = {row: place for place, row in enumerate(self.rows)}
        rows = [number for number, row in enumerate(sequences) if row in places]
        if not rows:
            return None
        chosen = [places[sequences[number]] for number in rows]
        return Masks(rows, lambda: self.bits[chosen])

    def hide_(self, logits: Tensor) -> None:
        """Make minus infinity of what the sequences must not draw: logits (num_seqs, vocab_size), float32.

        Those of a sequence without a grammar, or in trouble, stay as they are.
        """
        _hide(logits, self.rows, self.bits)

    def hidden(self, logits: Tensor, row: int) -> Tensor:
        """The logits (vocab_size,) of the sequence with this number under its mask, if it has one."""
        logits = logits[None].clone()
        if row in self.rows:
            place = self.rows.index(row)
            _hide(logits, [0], self.bits[place : place + 1])
        return logits[0]


def _hide(logits: Tensor, rows: list[int], bits: Tensor) -> None:
    """Where a row of bits has no bit for a token, the row of the logits that it is about becomes minus infinity."""
    kernels = native.kernels()
    if logits.device.type == "cpu" and kernels is not None:
        kernels.hide_(logits, torch.tensor(rows), bits)
        return
    forbidden = unpack(bits.to(logits.device), logits.shape[1]).logical_not_()
    if len(rows) == len(logits):
        logits.masked_fill_(forbidden, float("-inf"))
    else:
        logits[rows] = logits[rows].masked_fill_(forbidden, float("-inf"))


def unpack(bits: Tensor, vocab_size: int) -> Tensor:
    """Booleans (num_rows, vocab_size) from 32-bit words (num_rows, words)."""
    if bits.device.type != "cpu":
        return unpack_on_device(bits, vocab_size)
    unpacked = np.unpackbits(bits.numpy().view(np.uint8), axis=1, count=vocab_size, bitorder="little")
    return torch.from_numpy(unpacked).view(torch.bool)


def unpack_on_device(bits: Tensor, vocab_size: int) -> Tensor:
    """The same by torch's operators, which devices have."""
    places = torch.arange(32, dtype=torch.int32, device=bits.device)
    return ((bits[:, :, None] >> places) & 1).bool().flatten(1)[:, :vocab_size]


class Grammars:
    """Everything that an engine knows of grammars. The vocabulary is read when the first one comes."""

    def __init__(
        self, read_vocabulary: Callable[[], Vocabulary], *, num_before: int = 0, has_guides: bool = False
    ) -> None:
        """`num_before`: see `Matcher`. `has_guides`: matchers say what has to follow, so that it can be drafted."""
        self._read_vocabulary = read_vocabulary
        self._vocabulary: Vocabulary | None = None
        self._num_before = num_before
        self.has_guides = has_guides
        self._compiled: OrderedDict[Grammar, Future[Compiled]] = OrderedDict()
        self._compiler = ThreadPoolExecutor(1, "langport-grammar")
        self._masker = ThreadPoolExecutor(1, "langport-mask")
        self._executor: LLExecutor | None = None
        self._last_s = 0.0
        """What the masks of the last step took."""

    def compile(self, grammar: Grammar) -> Future[Compiled]:
        """Begin to compile a grammar, unless it is known. The future may hold a GrammarError or a CheckpointError."""
        known = self._compiled.pop(grammar, None)
        if known is None or (known.done() and known.exception() is not None):
            known = self._compiler.submit(self._compile, grammar)
        self._compiled[grammar] = known
        if len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)
        return known

    def matcher(self, compiled: Compiled, grammar: Grammar) -> Matcher:
        """A matcher of its own for one more sequence."""
        vocabulary = self._vocabulary
        assert vocabulary is not None
        return Matcher(
            compiled.state.deep_copy(),
            can_end=vocabulary.can_end,
            num_before=self._num_before,
            first_mask=torch.from_numpy(vocabulary.first_mask) if grammar.hides_first_space else None,
            guide=None if compiled.forecast is None else Guide(compiled.forecast),
        )

    def masks(self, sequences: Seq[Sequence]) -> Masks | None:
        """The masks for the next token of each, begun at once if they take long; None where none has a grammar."""
        matchers: list[Matcher] = []
        rows: list[int] = []
        for row, sequence in enumerate(sequences):
            if sequence.matcher is not None and sequence.matcher.has_begun:
                matchers.append(sequence.matcher)
                rows.append(row)
        if not matchers:
            return None
        fill = partial(self._fill, matchers)
        return Masks(rows, fill if self._last_s < SHORT_S else self._masker.submit(fill).result)

    def _compile(self, grammar: Grammar) -> Compiled:
        if self._vocabulary is None:
            self._vocabulary = self._read_vocabulary()
        vocabulary = self._vocabulary
        state = vocabulary.compile(grammar)
        if grammar.hides_first_space:
            _ = vocabulary.first_mask  # made here, where nobody waits for the next token
        if not self.has_guides:
            return Compiled(state, None)
        forecast = Forecast(vocabulary, grammar)
        self._compiler.submit(forecast.prepare)  # nobody waits for it
        return Compiled(state, forecast)

    def _fill(self, matchers: list[Matcher]) -> Tensor:
        """See `Masks`."""
        begin = time.perf_counter()
        assert self._vocabulary is not None
        num_words = self._vocabulary.num_mask_words
        bits = torch.empty(len(matchers), num_words, dtype=torch.int32)
        address, num_bytes = bits.data_ptr(), 4 * num_words
        if self._last_s < SHORT_S or len(matchers) == 1:
            for place, matcher in enumerate(matchers):
                matcher.state.unsafe_compute_mask_ptr(address + place * num_bytes, num_bytes)
        else:
            states = [(matcher.state, place) for place, matcher in enumerate(matchers)]
            self._parallel().unsafe_compute_mask_ptr(states, address, num_bytes, len(matchers))
        for place, matcher in enumerate(matchers):
            if matcher.state.is_error():
                matcher.problem = problem_of(matcher.state)
                bits[place] = -1
            elif matcher.first_mask is not None:
                bits[place] &= matcher.first_mask
                if not bits[place].any():
                    matcher.problem = NO_FIRST_TOKEN
                    bits[place] = -1
        self._last_s = time.perf_counter() - begin
        return bits

    def _parallel(self) -> LLExecutor:
        if self._executor is None:
            import llguidance

            self._executor = llguidance.LLExecutor()
        return self._executor
