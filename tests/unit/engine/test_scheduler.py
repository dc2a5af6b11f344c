"""The scheduler without a model: random lives of many sequences, whose cache is followed token by token; fairness."""

from __future__ import annotations

import random
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import pytest

from langport.engine.blocks import NULL_BLOCK, BlockPool, window_blocks
from langport.engine.budget import StepBudget
from langport.engine.drafts import Chance, Draft, Drafter
from langport.engine.scheduler import AGING_S, ScheduledSequence, Scheduler
from langport.engine.sequence import Sequence, SequenceStatus
from langport.types import GenerateRequest, SamplingParams

BLOCK_SIZE = 4
MAX_LENGTH = 48
STEP_TOKENS = 12
MAX_NUM_SEQS = 5


class WatchedScheduler(Scheduler):
    """Notes whom it preempts."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.preempted: list[Sequence] = []

    def _preempt(self, sequence: Sequence) -> None:
        self.preempted.append(sequence)
        super()._preempt(sequence)


@dataclass
class Machine:
    """Stands for the model: writes the cache, checks what it would read, and draws tokens; it has its own clock.

    A slot holds what the keys of a layer depend on: the sequence's tokens up to there, and its salt.
    """

    rng: random.Random
    scheduler: WatchedScheduler
    clock: list[float]
    slots: dict[tuple[int, int], object] = field(default_factory=dict)
    live: list[Sequence] = field(default_factory=list)
    num_cached: int = 0
    under_way: list[ScheduledSequence] = field(default_factory=list)

    def step(self) -> list[ScheduledSequence]:
        scheduler = self.scheduler
        before = list(scheduler.running)
        decoding = [s for s in before if s.num_pending_tokens == 1]
        num_preempted = len(scheduler.preempted)
        step = scheduler.schedule()
        assert step
        self._check_choice(step, before, decoding, scheduler.preempted[num_preempted:])
        self.under_way = step
        scheduler.check_integrity(step)
        for scheduled in step:
            self._compute(scheduled)
        with scheduler.measure(step):
            self.clock[0] += 0.01 + 0.004 * sum(s.num_rows for s in step)
        for scheduled in step:
            self._advance(scheduled.sequence, scheduled.num_tokens)
            while scheduled.accept():
                self._advance(scheduled.sequence, 1)
        scheduler.settle(step)
        self.under_way = []
        scheduler.check_integrity()
        return step

    def add(self, request: GenerateRequest, *, has_encoder: bool = False) -> None:
        leader: Sequence | None = None
        for index in range(request.n):
            prompt = list(request.prompt_token_ids)
            tokens, encoder_tokens = ([1], prompt) if has_encoder else (prompt, None)
            waits = None if has_encoder or len(prompt) <= BLOCK_SIZE else leader
            sequence = Sequence(request, index, 0, tokens=tokens, encoder_tokens=encoder_tokens, leader=waits)
            leader = leader or sequence
            self.live.append(sequence)
            self.scheduler.add(sequence)

    def abort(self, sequence: Sequence) -> None:
        self.scheduler.finish(sequence)
        self.live.remove(sequence)
        self.scheduler.check_integrity(self.under_way)

    def _check_choice(
        self,
        step: list[ScheduledSequence],
        before: list[Sequence],
        decoding: list[Sequence],
        preempted: list[Sequence],
    ) -> None:
        scheduler = self.scheduler
        kept = [s.rank for s in before if s not in preempted]
        assert all(s.rank > max(kept) for s in preempted)  # the youngest gave way, and the oldest never does
        assert len(scheduler.running) <= MAX_NUM_SEQS
        assert sum(s.num_rows for s in step) <= STEP_TOKENS
        counts = {id(s.sequence): s.num_tokens for s in step}
        assert len(counts) == len(step)
        assert all(counts[id(s)] == 1 for s in decoding if s not in preempted)
        assert scheduler.waiting == sorted(scheduler.waiting, key=lambda s: s.turn)

    def _compute(self, scheduled: ScheduledSequence) -> None:
        sequence, window = scheduled.sequence, self.scheduler.window
        begin = sequence.num_computed_tokens
        contents: list[object] = [sequence.salt]
        for token in sequence.tokens + scheduled.draft_tokens:
            contents.append(hash((contents[-1], token)))
        assert scheduled.token_ids == (sequence.tokens + scheduled.draft_tokens)[begin : begin + scheduled.num_rows]
        for position in range(begin, begin + scheduled.num_rows):
            self.slots[self._slot(sequence.block_table, position)] = contents[position + 1]
            first = 0 if window is None else max(0, position - window + 1)
            for seen in range(first, position + 1):
                assert self.slots[self._slot(sequence.block_table, seen)] == contents[seen + 1]
        for position, token in enumerate(sequence.encoder_tokens or ()):
            slot = self._slot(sequence.cross_block_table, position)
            if not sequence.is_encoded:
                self.slots[slot] = token
            assert self.slots[slot] == token
        sequence.is_encoded = True

    @staticmethod
    def _slot(table: list[int], position: int) -> tuple[int, int]:
        block = table[position // BLOCK_SIZE]
        assert block != NULL_BLOCK
        return block, position % BLOCK_SIZE

    def _advance(self, sequence: Sequence, num_tokens: int) -> None:
        is_complete = sequence.num_pending_tokens == num_tokens
        self.scheduler.computed(sequence, num_tokens)
        if not is_complete:
            return
        if sequence.num_output_tokens == 0:
            self.num_cached += sequence.num_cached_tokens or 0
        if sequence.num_output_tokens < sequence.sampling.max_tokens:
            self.scheduler.append(sequence, self.rng.randrange(2))
        if sequence.num_output_tokens >= sequence.sampling.max_tokens:
            self.abort(sequence)


class GuessingDrafter(Drafter):
    """Guesses what the machine will draw, as much as there is room for."""

    def __init__(self, seed: int) -> None:
        super().__init__(STEP_TOKENS, max_model_len=2 * MAX_LENGTH)
        self.rng = random.Random(seed)

    def draft(self, sequences: Seq[Sequence], room: int) -> list[Draft | None]:
        drafts: list[Draft | None] = []
        for sequence in sequences:
            count = max(0, min(self.rng.randrange(7), self._most(sequence), room))
            room -= count
            tokens = [self.rng.randrange(2) for _ in range(count)]
            drafts.append(Draft(tokens, Chance(0.5), Chance(0.5)) if tokens else None)
        return drafts


def machine(
    seed: int,
    num_blocks: int,
    window: int | None = None,
    *,
    trained_length: int | None = None,
    drafter: Drafter | None = None,
) -> Machine:
    clock = [0.0]
    if drafter is not None:
        drafter.trained_length = trained_length
    scheduler = WatchedScheduler(
        BlockPool(num_blocks + 1, BLOCK_SIZE),
        max_num_seqs=MAX_NUM_SEQS,
        budget=StepBudget(STEP_TOKENS, smallest=MAX_NUM_SEQS, clock=lambda: clock[0]),
        trained_length=trained_length,
        window=window,
        drafter=drafter,
        clock=lambda: clock[0],
    )
    return Machine(random.Random(seed), scheduler, clock)


def requests(rng: random.Random, count: int, *, max_length: int = MAX_LENGTH) -> Iterator[GenerateRequest]:
    """Prompts that begin alike, of all lengths up to the context."""
    beginnings = [[rng.randrange(9) for _ in range(max_length)] for _ in range(2)]
    for number in range(count):
        length = rng.randrange(1, max_length + 1)
        shared = rng.randrange(length + 1)
        prompt = rng.choice(beginnings)[:shared] + [rng.randrange(9) for _ in range(length - shared)]
        sampling = SamplingParams(
            max_tokens=rng.randrange(max_length - length + 1), prompt_logprobs=rng.choice([None, None, None, 0])
        )
        lora, salt = rng.choice([(None, ""), (None, ""), ("adapter", ""), ("adapter", "salt"), (None, "salt")])
        priority, n = rng.choice([0, 0, -1, 2]), rng.choice([1, 1, 1, 2, 4])
        yield GenerateRequest(f"r{number}", prompt, sampling, n=n, priority=priority, lora=lora, cache_salt=salt)


def live_through(subject: Machine, arriving: list[GenerateRequest], *, has_encoder: bool = False) -> None:
    """All of them, some aborted at whatever stage they are, to the last one's end."""
    rng, scheduler = subject.rng, subject.scheduler
    num_steps = 0
    while arriving or scheduler.has_work:
        while arriving and rng.random() < 0.3:
            subject.add(arriving.pop(), has_encoder=has_encoder)
        if rng.random() < 0.05 and subject.live:
            subject.abort(rng.choice(subject.live))
        if scheduler.has_work:
            subject.step()
            num_steps += 1
        assert num_steps < 20_000
    assert subject.live == []
    assert scheduler.pool.num_free == scheduler.pool.num_usable


@pytest.mark.parametrize("room", [1.0, 1.4, 3.0, 20.0])
@pytest.mark.parametrize("window", [None, 1, 7, 17, 100])
def test_random_lives(window: int | None, room: float) -> None:
    whole = MAX_LENGTH // BLOCK_SIZE
    per_sequence = whole if window is None else min(whole, window_blocks(window, STEP_TOKENS, BLOCK_SIZE))
    num_preempted = num_cached = 0
    for seed in range(5):
        subject = machine(seed, int(per_sequence * room), window)
        live_through(subject, [*requests(subject.rng, 40)])
        assert subject.scheduler.num_preemptions == len(subject.scheduler.preempted)
        num_preempted += len(subject.scheduler.preempted)
        num_cached += subject.num_cached
    assert num_cached > 0
    if window is None:
        assert (num_preempted > 0) == (room < MAX_NUM_SEQS)


@pytest.mark.parametrize("room", [1.0, 3.0, 20.0])
@pytest.mark.parametrize("window", [None, 1, 7, 17])
def test_random_lives_with_drafts(window: int | None, room: float) -> None:
    whole = MAX_LENGTH // BLOCK_SIZE
    per_sequence = whole if window is None else min(whole, window_blocks(window, STEP_TOKENS, BLOCK_SIZE))
    num_cached = 0
    for seed in range(5):
        drafter = GuessingDrafter(seed)
        subject = machine(seed, int(per_sequence * room), window, drafter=drafter)
        live_through(subject, [*requests(subject.rng, 40)])
        assert drafter.num_drafted > drafter.num_accepted > 10
        num_cached += subject.num_cached
    assert num_cached > 0
    drafter = GuessingDrafter(1)
    live_through(machine(0, 40, trained_length=20, drafter=drafter), [*requests(random.Random(1), 40)])
    assert drafter.num_accepted > 10


@pytest.mark.parametrize("room", [1, 2])
def test_random_lives_past_the_trained_length(room: int) -> None:
    subject = machine(0, room * MAX_LENGTH // BLOCK_SIZE, trained_length=20)
    live_through(subject, [*requests(subject.rng, 40)])


@pytest.mark.parametrize("room", [1, 2])
def test_random_lives_with_an_encoder(room: int) -> None:
    for seed in range(5):
        subject = machine(seed, room * (MAX_LENGTH // 2 + MAX_LENGTH // 2 + 1) // BLOCK_SIZE + 2)
        live_through(subject, [*requests(subject.rng, 40, max_length=MAX_LENGTH // 2)], has_encoder=True)


def request(name: str, num_tokens: int, max_tokens: int = 1, **more: object) -> GenerateRequest:
    """A prompt that shares no block with others."""
    prompt = [hash((name, position)) % 2**31 for position in range(num_tokens)]
    return GenerateRequest(name, prompt, SamplingParams(max_tokens=max_tokens), **more)  # type: ignore[arg-type]


def names(step: list[ScheduledSequence]) -> list[str]:
    return [scheduled.sequence.request_id for scheduled in step]


def test_who_was_preempted_comes_before_those_that_arrived_later() -> None:
    subject = machine(0, 6)
    for number in range(3):
        subject.add(request(f"r{number}", BLOCK_SIZE, max_tokens=8))
    while not subject.scheduler.preempted:
        subject.step()
    assert [s.request_id for s in subject.scheduler.preempted] == ["r2"]
    subject.add(request("late", BLOCK_SIZE))
    order: list[str] = []
    while subject.scheduler.has_work:
        order += names(subject.step())
    assert order.index("r2") < order.index("late")


def test_a_window_bounds_what_a_sequence_holds_and_lets_any_length_in() -> None:
    subject = machine(0, num_blocks=window_blocks(6, STEP_TOKENS, BLOCK_SIZE), window=6)
    pool = subject.scheduler.pool
    subject.add(request("long", 400, max_tokens=100))
    most = 0
    while subject.scheduler.has_work:
        subject.step()
        most = max(most, pool.num_usable - pool.num_free)
    assert most <= pool.num_usable < 400 // BLOCK_SIZE
    # The end of the prompt is known still, its beginning is gone; that is enough to go on after it.
    subject.add(GenerateRequest("again", request("long", 400).prompt_token_ids[:390], SamplingParams(max_tokens=1)))
    [scheduled] = subject.step()
    assert scheduled.sequence.num_cached_tokens == 0  # 100 further tokens have taken all the places
    while subject.scheduler.has_work:
        subject.step()
    subject.add(GenerateRequest("third", request("long", 400).prompt_token_ids[:391], SamplingParams(max_tokens=1)))
    [scheduled] = subject.step()
    assert scheduled.sequence.num_cached_tokens == 388
    assert scheduled.num_tokens == 3


def test_a_short_prompt_passes_long_ones() -> None:
    subject = machine(0, num_blocks=3000)
    subject.add(request("measured", 200))
    while subject.scheduler.has_work:
        subject.step()
    for name in ("long", "longer"):
        subject.add(request(name, 4000))
    for _ in range(20):
        assert names(subject.step()) == ["long"]
    subject.add(request("short", 5))
    assert names(subject.step()) == ["short", "long"]


def test_no_prompt_is_passed_for_ever() -> None:
    subject = machine(0, num_blocks=1100)
    subject.add(request("measured", 200))
    while subject.scheduler.has_work:
        subject.step()
    subject.add(request("long", 1000, max_tokens=3))
    begin, alone = subject.clock[0], subject.scheduler.budget.seconds(1000)
    number = 0
    while any(s.request_id == "long" for s in subject.live):
        if len(subject.live) < 4:  # more work than can be done
            subject.add(request(f"short{number}", 30, max_tokens=10))
            number += 1
        subject.step()
    assert number > 20
    assert subject.clock[0] - begin < 2.5 * alone


def test_a_long_prompt_gets_its_blocks_though_short_ones_keep_coming() -> None:
    subject = machine(0, num_blocks=110)
    subject.scheduler.budget = StepBudget.fixed(STEP_TOKENS)
    for number in range(4):
        subject.add(request(f"first{number}", 20, max_tokens=30))
    subject.step()
    subject.add(request("long", 400, max_tokens=30))
    for number in range(300):
        subject.add(request(f"short{number}", 20, max_tokens=30))
        subject.step()
        if not any(s.request_id == "long" for s in subject.live):
            break
    assert not any(s.request_id == "long" for s in subject.live)


def test_aging_makes_up_for_priority_and_running_prompts_yield_to_urgent_ones() -> None:
    subject = machine(0, num_blocks=300)
    subject.add(request("normal", 200))
    subject.step()
    subject.add(request("urgent", 30, priority=-1))
    assert names(subject.step())[0] == "urgent"
    subject.add(request("later", 200, priority=1))
    subject.clock[0] += AGING_S + 1
    subject.add(request("fresh", 200))
    order: list[str] = []
    while subject.scheduler.has_work:
        order += [s.sequence.request_id for s in subject.step() if s.sequence.status is SequenceStatus.FINISHED]
    assert order == ["urgent", "normal", "later", "fresh"]


def test_the_time_in_the_queue_ends_with_the_first_admission() -> None:
    subject = machine(0, num_blocks=2 * MAX_LENGTH // BLOCK_SIZE)
    for number in range(MAX_NUM_SEQS + 1):
        subject.add(request(f"r{number}", 1, max_tokens=3))
    last = subject.live[-1]
    while last.status is SequenceStatus.WAITING:
        subject.step()
    began_s = subject.clock[0]
    assert (last.arrived_s, subject.live[0].arrived_s) == (0.0, 0.0)
    assert 0 < last.started_s < began_s
    started_s = last.started_s
    while subject.scheduler.has_work:
        subject.step()
    assert last.started_s == started_s
