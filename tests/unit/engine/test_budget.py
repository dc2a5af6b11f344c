"""The token budget that follows measured speed; the clock is the test's."""

from __future__ import annotations

import pytest

from langport.engine.budget import GRAIN, SMALLEST, STEP_S, StepBudget


class Device:
    """Computes at `fixed_s` per step and `token_s` per token, and is its own clock."""

    def __init__(self, fixed_s: float, token_s: float) -> None:
        self.fixed_s, self.token_s = fixed_s, token_s
        self.now = 0.0

    def step(self, budget: StepBudget, num_tokens: int) -> float:
        before = self.now
        with budget.measure(num_tokens):
            self.now += self.fixed_s + self.token_s * num_tokens
        return self.now - before

    def budget(self, largest: int = 256) -> StepBudget:
        return StepBudget(largest, clock=lambda: self.now)

    def compute(self, budget: StepBudget, num_tokens: int) -> list[float]:
        """A prompt's steps and how long each takes."""
        steps = []
        while num_tokens > 0:
            count = min(num_tokens, budget.tokens(0))
            steps.append(self.step(budget, count))
            num_tokens -= count
        return steps


@pytest.mark.parametrize("token_s", [0.001, 0.002, 0.004])
def test_steps_come_to_take_what_they_should(token_s: float) -> None:
    device = Device(0.03, token_s)
    steps = device.compute(device.budget(), 4000)
    settled = steps[5:-1]
    assert all(STEP_S - GRAIN * token_s <= seconds <= STEP_S for seconds in settled)
    assert max(steps) <= STEP_S


def test_the_bounds_hold_on_fast_and_slow_devices() -> None:
    fast, slow = Device(0.001, 1e-5), Device(1.0, 0.1)
    budget = fast.budget()
    assert budget.tokens(0) == SMALLEST  # nothing is known yet
    fast.compute(budget, 1000)
    assert budget.tokens(0) == 256
    budget = slow.budget()
    slow.compute(budget, 100)
    assert budget.tokens(0) == SMALLEST


def test_prompts_get_tokens_beside_however_many_decoding_sequences() -> None:
    slow = Device(1.0, 0.1)
    budget = slow.budget()
    slow.compute(budget, 100)
    assert budget.tokens(60) == 60 + SMALLEST
    assert budget.tokens(250) == 256


def test_a_few_decoding_sequences_do_not_make_the_engine_look_slow() -> None:
    device = Device(0.03, 0.001)
    budget = device.budget()
    device.compute(budget, 2000)
    settled = budget.tokens(0)
    for _ in range(50):
        device.step(budget, 3)
    assert budget.tokens(0) == settled


def test_it_follows_a_device_that_slows_down() -> None:
    device = Device(0.0, 0.001)
    budget = device.budget()
    device.compute(budget, 2000)
    fast = budget.tokens(0)
    device.token_s *= 4
    assert all(seconds <= STEP_S for seconds in device.compute(budget, 2000)[10:-1])
    assert budget.tokens(0) == fast // 4 // GRAIN * GRAIN


def test_a_fixed_budget_stays_and_still_knows_the_speed() -> None:
    budget = StepBudget.fixed(100)
    assert budget.seconds(500) == 0
    assert budget.tokens(30) == 100
    device = Device(0.0, 0.01)
    budget = StepBudget(100, smallest=100, clock=lambda: device.now)
    device.compute(budget, 1000)
    assert budget.tokens(0) == 100
    assert budget.seconds(500) == pytest.approx(5.0)


def test_a_step_that_fails_teaches_nothing() -> None:
    device = Device(0.0, 0.001)
    budget = device.budget()

    def fail() -> None:
        with budget.measure(SMALLEST):
            device.now += 100
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert budget.seconds(1) == 0
