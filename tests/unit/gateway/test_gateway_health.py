"""The circuit breaker: when it opens, for how long, and who may try then."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from route_fakes import FakeClock

from langport.gateway.health import Health, State
from langport.settings.tree import HealthSettings


def make(**settings):
    clock = FakeClock()
    return Health(msgspec.convert(settings, HealthSettings), clock), clock


def fail(health, times=1, **more):
    for _ in range(times):
        health.failed(health.begin(), **more)


def test_failures_in_a_row_open_it():
    health, _ = make(max_failures=3)
    fail(health, 2)
    health.passed(health.begin())
    fail(health, 2)
    assert health.is_open
    fail(health)
    assert (health.state, health.is_open, health.wait_s) == (State.COOLING, False, 1.0)


def test_a_large_share_of_failures_opens_it_though_others_pass():
    health, _ = make(max_failures=100, failure_rate=0.5)
    for _ in range(4):
        health.passed(health.begin())
        fail(health)
    assert health.is_open, "eight requests say too little"
    health.passed(health.begin())
    fail(health)
    assert not health.is_open


def test_after_the_cooldown_one_request_tries():
    health, clock = make(max_failures=1)
    fail(health)
    clock.forward(0.99)
    assert not health.is_open
    clock.forward(0.01)
    assert (health.state, health.is_open) == (State.HALF_OPEN, True)
    trial = health.begin()
    assert trial.is_trial
    assert not health.is_open
    health.passed(trial)
    assert (health.state, health.is_open) == (State.HEALTHY, True)


def test_each_failed_trial_doubles_the_cooldown_up_to_the_most():
    health, clock = make(max_failures=1, cooldown_s=1, max_cooldown_s=5)
    waits = []
    for _ in range(5):
        fail(health)
        waits.append(health.wait_s)
        clock.forward(health.wait_s)
    assert waits == [1, 2, 4, 5, 5]
    health.passed(health.begin())
    fail(health)
    assert health.wait_s == 1


def test_a_trial_that_nobody_waited_for_lets_the_next_one_try():
    health, clock = make(max_failures=1)
    fail(health)
    clock.forward(1)
    health.given_up(health.begin())
    assert health.is_open


def test_what_began_before_the_cooldown_says_nothing_about_after_it():
    health, clock = make(max_failures=1)
    old = [health.begin() for _ in range(4)]
    fail(health)
    health.passed(old.pop())
    assert health.state is State.COOLING
    clock.forward(1)
    health.failed(old.pop())
    assert (health.state, health.wait_s) == (State.HALF_OPEN, 0)
    trial = health.begin()
    health.failed(old.pop())
    assert health.state is State.HALF_OPEN
    health.passed(trial)
    health.failed(old.pop())
    assert health.state is State.HEALTHY


def test_one_that_asks_for_less_is_left_alone_so_long_and_has_not_failed():
    health, clock = make(max_failures=1, cooldown_s=3)
    health.held(health.begin(), 7.5)
    assert (health.is_open, health.is_held, health.state, health.wait_s) == (False, True, State.HEALTHY, 7.5)
    clock.forward(7.5)
    assert (health.is_open, health.is_held) == (True, False)
    health.held(health.begin(), None)
    assert health.wait_s == 3
    health.held(health.begin(), 1e9)
    assert health.wait_s == 3600


def test_one_that_says_when_it_is_better_is_believed_at_once():
    health, _ = make(max_failures=3, max_cooldown_s=10)
    fail(health, retry_after_s=4.0)
    assert (health.is_open, health.wait_s, health.is_held) == (False, 4.0, False)
    health, _ = make(max_failures=3, max_cooldown_s=10)
    fail(health, retry_after_s=400.0)
    assert health.wait_s == 10


def test_a_look_that_finds_it_alive_allows_a_trial_and_no_more():
    health, _ = make(max_failures=1, cooldown_s=50)
    fail(health)
    health.checked(lives=True)
    assert health.state is State.HALF_OPEN
    fail(health)
    assert health.wait_s == 60, "doubled, but for the most there may be"


def test_looks_that_find_it_dead_open_it():
    health, clock = make(max_failures=3)
    for _ in range(3):
        health.checked(lives=False)
    assert health.state is State.COOLING
    clock.forward(1)
    health.checked(lives=False)
    assert health.wait_s == 2


EVENTS = st.sampled_from(["begin", "pass", "fail", "fail later", "hold", "give up", "wait", "alive", "dead"])


@given(st.lists(EVENTS, max_size=60), st.integers(0, 9))
def test_whatever_happens_one_trial_runs_at_most_and_none_is_lost(events, which):
    health, clock = make(max_failures=2, max_cooldown_s=8)
    running = []
    for number, event in enumerate(events):
        state = health.state
        if event == "begin" and health.is_open:
            running.append(health.begin())
        elif event == "wait":
            clock.forward(1)
        elif event in ("alive", "dead"):
            health.checked(lives=event == "alive")
        elif running:
            ticket = running.pop((which + number) % len(running))
            if event == "pass":
                health.passed(ticket)
            elif event.startswith("fail"):
                health.failed(ticket, 2.0 if event == "fail later" else None)
            elif event == "hold":
                health.held(ticket, 1.0)
            else:
                health.given_up(ticket)
        current = [ticket for ticket in running if ticket.is_trial and ticket.epoch == health._epoch]
        assert len(current) <= 1
        assert state is not State.COOLING or health.state is not State.HEALTHY
    for ticket in running:
        health.given_up(ticket)
    clock.forward(8)
    assert health.is_open


@pytest.mark.parametrize("num_failures", [70, 2000])
def test_a_deployment_that_is_down_for_days_overflows_nothing(num_failures):
    health, clock = make(max_failures=1)
    for _ in range(num_failures):
        fail(health)
        clock.forward(60)
    assert health.is_open
