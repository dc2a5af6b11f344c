"""Which sequences run in the next step, and how many of their tokens.

Continuous batching: every step may hold decoding sequences (one token each) beside pieces of long prompts, up to a
token budget, so a long prompt delays the others by one step's budget at most. Prompts take turns by when they would
be computed if each had the device for itself from its arrival on: a short one passes a long one, and no prompt is
passed by those that arrive later than it takes. When the blocks run out, the youngest sequence is preempted and
computed again later.

Sources: Orca, Yu et al. 2022 (iteration-level scheduling); Sarathi-Serve, Agrawal et al. 2024 (chunked prefill).
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from heapq import merge

from langport.engine.blocks import NULL_BLOCK, BlockLeak, BlockPool, extend_hashes, window_blocks
from langport.engine.budget import StepBudget
from langport.engine.drafts import AnyDraft, Drafter, ForcedDraft
from langport.engine.sequence import Sequence, SequenceStatus

AGING_S = 10.0
"""Seconds of waiting that make up for one class of priority."""


@dataclass(frozen=True)
class ScheduledSequence:
    """`num_tokens` tokens of `sequence` from its `num_computed_tokens` on, and a draft after them, run in this step."""

    sequence: Sequence
    num_tokens: int
    draft: AnyDraft | None = None

    @property
    def num_rows(self) -> int:
        """Tokens that go through the model, those of the draft included."""
        return self.num_tokens + len(self.draft_tokens)

    @property
    def draft_tokens(self) -> list[int]:
        return [] if self.draft is None else self.draft.tokens

    @property
    def token_ids(self) -> list[int]:
        """What the rows compute, as long as the step is not over."""
        begin = self.sequence.num_computed_tokens
        return self.sequence.tokens[begin : begin + self.num_tokens] + self.draft_tokens

    def places(self) -> list[Sequence]:
        """The sequence as it is and, where its draft is nearly sure, as it will be after each token of it."""
        places = [self.sequence]
        if isinstance(self.draft, ForcedDraft):
            for token in self.draft.tokens:
                places.append(places[-1].after(token))
        return places

    def accept(self) -> bool:
        """Whether the token that was just drawn is the draft's next one, so that the one after it can be drawn, too."""
        draft = self.draft
        is_right = (
            draft is not None
            and self.sequence.status is SequenceStatus.RUNNING
            and draft.tokens[draft.num_accepted : draft.num_accepted + 1] == self.sequence.tokens[-1:]
        )
        if draft is not None and is_right:
            draft.num_accepted += 1
        return is_right

    @property
    def is_sampled(self) -> bool:
        """The step reaches the last known token, so the next one can be drawn."""
        return self.num_tokens == self.sequence.num_pending_tokens


class Scheduler:
    """Queues and block tables of all sequences of one engine."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_num_seqs: int,
        budget: StepBudget,
        trained_length: int | None = None,
        window: int | None = None,
        drafter: Drafter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.budget = budget
        assert budget.largest >= max_num_seqs, "every decoding sequence has its token in every step"
        self.trained_length = trained_length
        """Past this length a sequence is computed anew, and shares no blocks with shorter ones."""
        self.window = window
        """Tokens that the widest layer sees, when every layer has a window: blocks before it are let go."""
        self.drafter = drafter
        """None where nothing is drafted."""
        self.waiting: list[Sequence] = []
        """In the order of their turns."""
        self.running: list[Sequence] = []
        self.num_queried_tokens = 0
        """Prompt tokens that were looked for among the known blocks, at first admissions."""
        self.num_cached_tokens = 0
        """Those of them that were found."""
        self.num_preemptions = 0
        """How often a sequence gave way to others."""
        self.clock = clock
        self._num_added = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self._num_added += 1
        sequence.arrived_s = self.clock()
        arrival = sequence.arrived_s + AGING_S * sequence.priority
        sequence.rank = (arrival, self._num_added)
        sequence.turn = (arrival + self.budget.seconds(sequence.num_prompt_tokens), self._num_added)
        insort(self.waiting, sequence, key=_turn)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def schedule(self) -> list[ScheduledSequence]:
        """Choose the next step. Empty only when there is nothing to do."""
        for sequence in sorted(self.running, key=_rank):
            if sequence.status is SequenceStatus.RUNNING:  # not preempted by one before it
                self._reserve(sequence)
        # Decoding sequences cost one token each, and nothing may stall them: prompts share what is left.
        step = [ScheduledSequence(sequence, 1) for sequence in self.running if sequence.num_pending_tokens == 1]
        budget = self.budget.tokens(len(step)) - len(step)
        prompts = self._schedule_prompts(budget)
        if self.drafter is not None and step:
            step = self._add_drafts(step, self.drafter, budget - sum(scheduled.num_tokens for scheduled in prompts))
        return step + prompts

    def _schedule_prompts(self, budget: int) -> list[ScheduledSequence]:
        """Pieces of running sequences' prompts and of those that can be admitted, in the order of their turns."""
        step: list[ScheduledSequence] = []
        running = sorted((s for s in self.running if s.num_pending_tokens > 1), key=_turn)
        is_full = False
        for sequence in merge(running, tuple(self.waiting), key=_turn):
            if budget == 0:
                break
            if sequence.status is SequenceStatus.WAITING:
                if is_full or sequence.waits_for_leader:
                    continue
                # Nobody takes the blocks that an earlier one waits for.
                is_full = len(self.running) == self.max_num_seqs or not self._admit(sequence)
                if is_full:
                    continue
            num_tokens = min(sequence.num_pending_tokens, budget)
            step.append(ScheduledSequence(sequence, num_tokens))
            budget -= num_tokens
        return step

    def _add_drafts(self, step: list[ScheduledSequence], drafter: Drafter, room: int) -> list[ScheduledSequence]:
        """Give decoding sequences drafts out of the room that prompts have left, where free blocks hold them."""
        drafts = drafter.draft([scheduled.sequence for scheduled in step], room)
        drafted = []
        for scheduled, draft in zip(step, drafts, strict=True):
            sequence = scheduled.sequence
            if draft is not None:
                reach = self._reach(sequence, sequence.num_computed_tokens, len(draft.tokens))
                if not self.pool.grow(sequence.block_table, reach):
                    draft = None
            drafted.append(replace(scheduled, draft=draft) if draft else scheduled)
        return drafted

    @contextmanager
    def measure(self, step: list[ScheduledSequence]) -> Iterator[None]:
        """Learn from the step inside how long its tokens take."""
        with self.budget.measure(sum(scheduled.num_rows for scheduled in step)):
            if self.drafter is None:
                yield
            else:
                with self.drafter.measure(step):
                    yield

    def settle(self, step: Iterable[ScheduledSequence]) -> None:
        """A step is over: learn from its drafts, and give back the blocks that only they needed."""
        for scheduled in step:
            if scheduled.draft is not None and self.drafter is not None:
                self.drafter.learn(scheduled.draft)
                sequence = scheduled.sequence
                if sequence.status is SequenceStatus.RUNNING:
                    self.pool.shrink(sequence.block_table, self._reach(sequence, sequence.num_computed_tokens))

    def computed(self, sequence: Sequence, num_tokens: int) -> None:
        """The step has filled the cache for so many tokens: full blocks may be shared, unseen ones are let go."""
        sequence.num_computed_tokens += num_tokens
        if sequence.encoder_tokens is None:
            first_full = (sequence.num_computed_tokens - num_tokens) // self.pool.block_size
            num_full = sequence.num_computed_tokens // self.pool.block_size
            self._hash(sequence)
            for number in range(first_full, num_full):
                self.pool.remember(sequence.block_table[number], sequence.block_hashes[number])
        self.pool.release_first(sequence.block_table, self._num_hidden(sequence.num_computed_tokens))

    def append(self, sequence: Sequence, token: int) -> None:
        """Add a sampled token; a sequence that outgrows the trained length is computed again from its beginning."""
        sequence.append(token)
        if self.trained_length is not None and len(sequence.tokens) == self.trained_length + 1:
            sequence.block_hashes.clear()
            self._preempt(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, at whatever stage it is, and free its blocks. Harmless when called twice."""
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
        elif sequence.status is SequenceStatus.WAITING:
            self.waiting.remove(sequence)
        self._release(sequence)
        sequence.status = SequenceStatus.FINISHED

    def check_integrity(self, step: Iterable[ScheduledSequence] = ()) -> None:
        """Raises: BlockLeak when blocks are lost, shared by accident, or let go too early or too late.

        In a step, give it: it holds blocks for its drafts.
        """
        num_drafted = {id(scheduled.sequence): len(scheduled.draft_tokens) for scheduled in step}
        self.pool.check_integrity(table for s in self.running for table in (s.block_table, s.cross_block_table))
        for sequence in self.running:
            hidden = self._num_hidden(sequence.num_computed_tokens)
            places = [place for place, block in enumerate(sequence.block_table) if block == NULL_BLOCK]
            if places != [*range(hidden)]:
                raise BlockLeak(
                    f"{sequence.request_id} lacks the blocks {places}, but sees all after the first {hidden}"
                )
            length = len(sequence.tokens) + num_drafted.get(id(sequence), 0)
            if len(sequence.block_table) > self.pool.blocks_for(length):
                raise BlockLeak(f"{sequence.request_id} holds more blocks than {length} tokens need")
        if any(s.block_table or s.cross_block_table for s in self.waiting):
            raise BlockLeak("a waiting sequence holds blocks")

    def _num_hidden(self, num_computed: int) -> int:
        """Full blocks that no later token sees, once so many tokens are computed."""
        return 0 if self.window is None else max(0, num_computed - self.window + 1) // self.pool.block_size

    def _reach(self, sequence: Sequence, num_computed: int, num_drafted: int = 0) -> int:
        """Up to which token a sequence holds blocks: all that are known, or what the widest window and a step need.

        With windows it holds the same number of blocks from its admission on, whatever its length: those that a
        step lets go are as many as the next one reserves.
        """
        length = len(sequence.tokens) + num_drafted
        if self.window is None:
            return length
        num_blocks = self._num_hidden(num_computed) + window_blocks(
            self.window, self.budget.largest, self.pool.block_size
        )
        return min(length, num_blocks * self.pool.block_size)

    def _reserve(self, sequence: Sequence) -> bool:
        """Blocks for the known tokens of a running sequence, preempting those after it if need be."""
        reach = self._reach(sequence, sequence.num_computed_tokens)
        while not self.pool.grow(sequence.block_table, reach):
            victim = max(self.running, key=_rank)
            self.num_preemptions += 1
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _admit(self, sequence: Sequence) -> bool:
        """Move a waiting sequence to the running ones if its blocks are free, sharing those that are known."""
        shared = self._known_blocks(sequence)
        num_cross = len(sequence.encoder_tokens or ())
        num_computed = len(shared) * self.pool.block_size
        reach = self._reach(sequence, num_computed)
        needed = self.pool.blocks_for(reach) - len(shared) + self.pool.blocks_for(num_cross)
        if needed > self.pool.num_free_beside(shared):
            return False
        self.pool.share(shared)
        sequence.num_computed_tokens = num_computed
        sequence.block_table = shared
        self.pool.grow(sequence.block_table, reach)
        self.pool.grow(sequence.cross_block_table, num_cross)
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed_tokens
            sequence.started_s = self.clock()
            if _may_share(sequence):
                self.num_queried_tokens += sequence.num_prompt_tokens
                self.num_cached_tokens += sequence.num_cached_tokens
        self.waiting.remove(sequence)
        self.running.append(sequence)
        sequence.status = SequenceStatus.RUNNING
        return True

    def _known_blocks(self, sequence: Sequence) -> list[int]:
        """Blocks with the beginning of the sequence's tokens; at least one token is left to compute."""
        if not _may_share(sequence):
            return []
        self._hash(sequence)
        num_blocks = (len(sequence.tokens) - 1) // self.pool.block_size
        hashes = sequence.block_hashes[:num_blocks]
        if self.window is None:
            return self.pool.find(hashes)
        return self.pool.find_windowed(hashes, self.pool.blocks_for(self.window - 1))

    def _hash(self, sequence: Sequence) -> None:
        is_long = self.trained_length is not None and len(sequence.tokens) > self.trained_length
        salt = sequence.salt + (b"long" if is_long else b"")
        extend_hashes(sequence.block_hashes, sequence.tokens, self.pool.block_size, salt)

    def _preempt(self, sequence: Sequence) -> None:
        """Back to its place in the queue; what was computed is computed again."""
        self.running.remove(sequence)
        self._release(sequence)
        sequence.status = SequenceStatus.WAITING
        insort(self.waiting, sequence, key=_turn)

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.block_table)
        self.pool.release(sequence.cross_block_table)
        sequence.num_computed_tokens = 0
        sequence.is_encoded = False


def _may_share(sequence: Sequence) -> bool:
    """Whether it may begin with blocks that others computed: not where its prompt has to be seen by the model."""
    return sequence.encoder_tokens is None and not sequence.wants_prompt_logprobs


def _rank(sequence: Sequence) -> tuple[float, int]:
    return sequence.rank


def _turn(sequence: Sequence) -> tuple[float, int]:
    return sequence.turn
