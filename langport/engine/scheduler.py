"""Which sequences run in the next step, and how many of their tokens.

Continuous batching: every step may hold decoding sequences (one token each) beside pieces of long prompts, up to a
token budget, so a long prompt delays the others by one step's budget at most. When the blocks run out, the youngest
sequence is preempted and computed again later.

Sources: Orca, Yu et al. 2022 (iteration-level scheduling); Sarathi-Serve, Agrawal et al. 2024 (chunked prefill).
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass

from langport.engine.blocks import BlockPool, extend_hashes
from langport.engine.sequence import Sequence, SequenceStatus

AGING_S = 10.0
"""Seconds of waiting that make up for one class of priority."""


@dataclass(frozen=True)
class ScheduledSequence:
    """`num_tokens` tokens of `sequence`, from its `num_computed_tokens` on, run in this step."""

    sequence: Sequence
    num_tokens: int

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
        max_num_batched_tokens: int,
        trained_length: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max(max_num_batched_tokens, max_num_seqs)
        self.trained_length = trained_length
        """Past this length a sequence is computed anew, and shares no blocks with shorter ones."""
        self.waiting: list[Sequence] = []
        """In order."""
        self.running: list[Sequence] = []
        self._clock = clock
        self._num_added = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self._num_added += 1
        sequence.rank = (self._clock() + AGING_S * sequence.priority, self._num_added)
        insort(self.waiting, sequence, key=_rank)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def schedule(self) -> list[ScheduledSequence]:
        """Choose the next step. Empty only when there is nothing to do."""
        step: list[ScheduledSequence] = []
        budget = self.max_num_batched_tokens
        # Decoding sequences first: they cost one token each, and nothing may stall them.
        for sequence in sorted(self.running, key=lambda s: s.num_pending_tokens > 1):
            if sequence.status is not SequenceStatus.RUNNING or budget == 0:
                continue  # preempted by one before it, or the budget is spent
            num_tokens = min(sequence.num_pending_tokens, budget)
            if not self._reserve(sequence):
                continue
            step.append(ScheduledSequence(sequence, num_tokens))
            budget -= num_tokens
        step = [s for s in step if s.sequence.status is SequenceStatus.RUNNING]
        for sequence in tuple(self.waiting):
            if budget == 0 or len(self.running) == self.max_num_seqs:
                break
            if sequence.waits_for_leader:
                continue
            if not self._admit(sequence):
                break
            num_tokens = min(sequence.num_pending_tokens, budget)
            step.append(ScheduledSequence(sequence, num_tokens))
            budget -= num_tokens
        return step

    def computed(self, scheduled: ScheduledSequence) -> None:
        """The step has filled the cache for these tokens; blocks that are full now may be shared."""
        sequence = scheduled.sequence
        sequence.num_computed_tokens += scheduled.num_tokens
        if sequence.encoder_tokens is None:
            first_full = (sequence.num_computed_tokens - scheduled.num_tokens) // self.pool.block_size
            num_full = sequence.num_computed_tokens // self.pool.block_size
            self._hash(sequence)
            for number in range(first_full, num_full):
                self.pool.remember(sequence.block_table[number], sequence.block_hashes[number])

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

    def check_integrity(self) -> None:
        """Raises: BlockLeak when blocks are lost or shared by accident."""
        self.pool.check_integrity(table for s in self.running for table in (s.block_table, s.cross_block_table))
        assert all(not s.block_table and not s.cross_block_table for s in self.waiting)

    def _reserve(self, sequence: Sequence) -> bool:
        """Blocks for all known tokens of a running sequence, preempting those after it if need be."""
        while not self.pool.grow(sequence.block_table, len(sequence.tokens)):
            victim = max(self.running, key=_rank)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _admit(self, sequence: Sequence) -> bool:
        """Move a waiting sequence to the running ones if its blocks are free, sharing those that are known."""
        shared = self._known_blocks(sequence)
        num_cross = len(sequence.encoder_tokens or ())
        needed = self.pool.blocks_for(len(sequence.tokens)) - len(shared) + self.pool.blocks_for(num_cross)
        if needed > self.pool.num_free_beside(shared):
            return False
        self.pool.share(shared)
        sequence.num_computed_tokens = len(shared) * self.pool.block_size
        sequence.block_table = shared
        self.pool.grow(sequence.block_table, len(sequence.tokens))
        self.pool.grow(sequence.cross_block_table, num_cross)
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed_tokens
        self.waiting.remove(sequence)
        self.running.append(sequence)
        sequence.status = SequenceStatus.RUNNING
        return True

    def _known_blocks(self, sequence: Sequence) -> list[int]:
        """Blocks with the beginning of the sequence's tokens; at least one token is left to compute."""
        if sequence.encoder_tokens is not None or sequence.wants_prompt_logprobs:
            return []
        self._hash(sequence)
        num_blocks = (len(sequence.tokens) - 1) // self.pool.block_size
        return self.pool.find(sequence.block_hashes[:num_blocks])

    def _hash(self, sequence: Sequence) -> None:
        is_long = self.trained_length is not None and len(sequence.tokens) > self.trained_length
        salt = sequence.salt + (b"long" if is_long else b"")
        extend_hashes(sequence.block_hashes, sequence.tokens, self.pool.block_size, salt)

    def _preempt(self, sequence: Sequence) -> None:
        """Back to its place in the queue; what was computed is computed again."""
        self.running.remove(sequence)
        self._release(sequence)
        sequence.status = SequenceStatus.WAITING
        insort(self.waiting, sequence, key=_rank)

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.block_table)
        self.pool.release(sequence.cross_block_table)
        sequence.num_computed_tokens = 0
        sequence.is_encoded = False


def _rank(sequence: Sequence) -> tuple[float, int]:
    return sequence.rank
