"""Looks whether deployments live."""

from __future__ import annotations

import asyncio

import pytest
from route_fakes import FakeClock, Routed, leftovers, upstream

from langport.errors import Unavailable
from langport.gateway.checks import TIMEOUT_S
from langport.gateway.health import State


class Patient:
    """What it says when it is asked, and how often it was; `answer` None keeps everybody waiting."""

    def __init__(self, answer=True):
        self.answer = answer
        self.num_calls = 0
        self.num_open = 0
        self.most_open = 0

    async def __call__(self):
        self.num_calls += 1
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            if self.answer is None:
                await asyncio.Event().wait()
            if self.answer is not True:
                raise self.answer
        finally:
            self.num_open -= 1


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


class Rig(Routed):
    def __init__(self, checks, settings):
        self.patients = checks
        models = {name: upstream(name, check=check) for name, check in checks.items()}
        super().__init__(models, settings, clock=FakeClock())
        self.routing.checks.start()

    async def forward(self, seconds):
        await settle()
        self.clock.forward(seconds)
        await settle()


async def test_a_dead_one_is_found_before_requests_do_and_asked_again_as_soon_as_it_lives():
    patient = Patient(ConnectionRefusedError())
    health = {"max_failures": 2, "check_interval_s": 10, "cooldown_s": 60}
    rig = Rig({"a": patient, "b": None}, {"chat": {"deployments": ["a", "b"], "health": health}})
    await rig.forward(10)
    assert rig.deployment("a").health.state is State.HEALTHY
    await rig.forward(10)
    assert rig.deployment("a").health.state is State.COOLING
    assert {(await rig.ask()).headers["x-langport-deployment"] for _ in range(4)} == {"b"}
    patient.answer = True
    await rig.forward(10)
    assert rig.deployment("a").health.state is State.HALF_OPEN
    seen = {(await rig.ask()).headers["x-langport-deployment"] for _ in range(4)}
    assert seen == {"a", "b"}
    assert rig.deployment("a").health.state is State.HEALTHY
    await rig.routing.checks.close()
    assert not await leftovers()


async def test_one_that_does_not_say_in_time_does_not_live_and_is_never_asked_twice_at_once():
    patient = Patient(None)
    health = {"max_failures": 1, "check_interval_s": 1}
    rig = Rig({"a": patient}, {"chat": {"deployments": ["a"], "health": health}})
    for _ in range(4):
        await rig.forward(1)
    assert (patient.num_calls, rig.deployment("a").health.state) == (1, State.HEALTHY)
    await rig.forward(TIMEOUT_S)
    assert rig.deployment("a").health.state is State.COOLING
    await rig.forward(1)
    assert (patient.num_calls, patient.most_open) == (2, 1)
    await rig.routing.checks.close()
    assert patient.num_open == 0
    assert not await leftovers()


@pytest.mark.parametrize("error", [Unavailable("no"), TimeoutError(), ZeroDivisionError("our bug")])
async def test_every_failure_counts_and_the_looking_goes_on(error):
    patient = Patient(error)
    rig = Rig({"a": patient}, {"chat": {"deployments": ["a"], "health": {"max_failures": 3, "check_interval_s": 1}}})
    for _ in range(3):
        await rig.forward(1)
    assert rig.deployment("a").health.state is State.COOLING
    await rig.routing.checks.close()


async def test_one_behind_several_routes_is_asked_once_for_all():
    patient = Patient(OSError())
    slow = {"max_failures": 1, "check_interval_s": 8}
    fast = {"max_failures": 1, "check_interval_s": 2}
    never = {"max_failures": 1, "check_interval_s": 0}
    rig = Rig(
        {"a": patient},
        {name: {"deployments": ["a"], "health": each} for name, each in zip("xyz", (slow, fast, never), strict=True)},
    )
    await rig.forward(2)
    assert patient.num_calls == 1
    states = [rig.deployment("a", route).health.state for route in "xyz"]
    assert states == [State.COOLING, State.COOLING, State.HEALTHY]
    await rig.routing.checks.close()


async def test_new_settings_look_at_others():
    one, two = Patient(), Patient()
    rig = Rig({"a": one, "b": two}, {"chat": {"deployments": ["a"], "health": {"check_interval_s": 1}}})
    other = Routed({}, {"chat": {"deployments": ["b"], "health": {"check_interval_s": 1}}}).settings
    await rig.forward(1)
    rig.routing.update(other, shows_deployment=True)
    await rig.forward(1)
    await rig.forward(1)
    assert (one.num_calls, two.num_calls) == (1, 2)
    rig.routing.update({}, shows_deployment=True)
    assert not await leftovers()


async def test_those_that_cannot_be_asked_and_those_that_are_gone_are_left_out():
    rig = Rig({"a": None, "b": Patient()}, {"chat": {"deployments": ["a", "b"], "health": {"check_interval_s": 1}}})
    del rig.models["b"]
    await rig.forward(1)
    assert [rig.deployment(name).health.state for name in "ab"] == [State.HEALTHY] * 2
    await rig.routing.checks.close()
