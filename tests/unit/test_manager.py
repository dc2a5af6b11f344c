"""Who is in memory and who has to go, with models that load when the test says so, and its clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from langport.errors import CheckpointError, OutOfMemory, Unavailable
from langport.gateway.asgi import ClientGone, Receive, Scope, Send
from langport.manager import ManagedModel, ModelManager, State
from langport.testing import AsgiClient
from langport.types import TokenUsage
from tests.unit.gateway.fake_clock import FakeClock, settle

MiB = 1 << 20


class Model:
    """Loads at once, unless `loading` is cleared. `error` is what the next load fails with."""

    def __init__(self, name: str, needed_bytes: int = 0) -> None:
        self.name = name
        self.loading = asyncio.Event()
        self.loading.set()
        self.unloading = asyncio.Event()
        self.unloading.set()
        self.error: Exception | None = None
        self.is_loaded = False
        self.num_unloads = 0
        self._needed_bytes = needed_bytes

    async def load(self) -> None:
        assert not self.is_loaded
        await self.loading.wait()
        error, self.error = self.error, None
        if error is not None:
            raise error
        self.is_loaded = True

    async def unload(self) -> None:
        await self.unloading.wait()
        self.is_loaded = False
        self.num_unloads += 1

    def needed_bytes(self) -> int:
        return self._needed_bytes

    def memory_bytes(self) -> int:
        return 7 if self.is_loaded else 0


class House:
    """A manager and what is in it."""

    def __init__(self, max_loaded: int | None = None, free_bytes: Callable[[], int] = lambda: 1 << 40) -> None:
        self.clock = FakeClock()
        self.manager = ModelManager(max_loaded, free_bytes, clock=self.clock)

    def add(
        self, name: str, *, needed: int = 0, pinned: bool = False, starts: bool = False, idle: float = 0.0
    ) -> tuple[Model, ManagedModel]:
        model = Model(name, needed)
        return model, self.manager.add(model, is_pinned=pinned, starts=starts, idle_unload_s=idle)


async def entered(managed: ManagedModel) -> None:
    """A request that is in the model."""
    await asyncio.wait_for(managed.enter(), 5)
    assert managed.state is State.READY


async def waiting(managed: ManagedModel) -> asyncio.Task[None]:
    """A request that has to wait."""
    task = asyncio.create_task(managed.enter())
    await settle()
    assert not task.done()
    return task


async def test_the_first_request_loads_and_those_that_come_meanwhile_wait() -> None:
    model, managed = House().add("a")
    model.loading.clear()
    first, second = await waiting(managed), await waiting(managed)
    assert managed.state is State.LOADING
    assert managed.answers_later
    assert managed.status().num_waiting == 2
    model.loading.set()
    await asyncio.gather(first, second)
    assert (managed.state, managed.num_open, managed.num_loads) == (State.READY, 2, 1)
    await entered(managed)
    assert managed.num_loads == 1


async def test_a_model_that_starts_is_not_ready_before_it_was_loaded_once() -> None:
    house = House(1)
    model, managed = house.add("a", starts=True)
    model.loading.clear()
    assert not managed.answers_later
    early = await waiting(managed)
    starting = asyncio.create_task(house.manager.start(managed))
    await settle()
    assert not managed.answers_later
    model.loading.set()
    await asyncio.gather(starting, early)
    managed.leave()
    managed.unload()
    await settle()
    assert managed.state is State.UNLOADED
    assert managed.answers_later


async def test_a_failed_load_is_told_to_those_who_wait_and_a_later_request_tries_again() -> None:
    model, managed = House().add("a")
    model.error = CheckpointError("the weights are cut short")
    results = await asyncio.gather(managed.enter(), managed.enter(), return_exceptions=True)
    for result in results:
        assert isinstance(result, Unavailable)
        assert str(result) == "The model a could not be loaded: the weights are cut short"
        assert result.retry_after_s
    assert managed.status().problem == "the weights are cut short"
    assert (managed.state, model.num_unloads) == (State.UNLOADED, 1)
    await entered(managed)
    assert managed.status().problem is None


async def test_an_error_that_nobody_expected_ends_the_wait_as_well() -> None:
    model, managed = House().add("a")
    model.error = KeyError("merges")
    with pytest.raises(Unavailable, match="KeyError: 'merges'"):
        await managed.enter()
    model.error = CheckpointError("no such thing")
    with pytest.raises(CheckpointError, match="no such thing"):
        await managed.load()


async def test_the_place_is_taken_from_the_idle_model_that_was_not_used_for_longest() -> None:
    house = House(2)
    rows = [house.add(name) for name in "abc"]
    (_, a), (_, b), (_, c) = rows
    for managed in (a, b, a):
        await entered(managed)
        house.clock.advance(1)
        managed.leave()
    await entered(c)
    assert [managed.state for managed in (a, b, c)] == [State.READY, State.UNLOADED, State.READY]
    assert sum(model.is_loaded for model, _ in rows) == 2


async def test_an_idle_model_goes_before_a_busy_one_and_a_pinned_one_never() -> None:
    house = House(3)
    (_, old), (_, idle), (_, pinned), (_, new) = (house.add(n, pinned=n == "pinned") for n in ("o", "i", "pinned", "n"))
    await entered(pinned)
    pinned.leave()
    house.clock.advance(5)
    await entered(old)
    house.clock.advance(5)
    await entered(idle)
    idle.leave()
    await entered(new)
    assert [m.state for m in (old, idle, pinned)] == [State.READY, State.UNLOADED, State.READY]


async def test_a_request_that_runs_is_not_disturbed_and_new_ones_wait_for_the_reload() -> None:
    house = House(1)
    (model, a), (_, b) = house.add("a"), house.add("b")
    await entered(a)
    await entered(a)
    for_b = await waiting(b)
    assert (a.state, b.state) == (State.DRAINING, State.WAITING)
    late = await waiting(a)
    a.leave()
    await settle()
    assert model.is_loaded
    assert not for_b.done()
    a.leave()
    await for_b
    await settle()
    assert not model.is_loaded
    assert (a.state, b.state) == (State.WAITING, State.DRAINING)
    b.leave()
    await late
    assert (a.state, a.num_open, a.num_loads, b.state) == (State.READY, 1, 2, State.UNLOADED)


async def test_a_model_stays_when_the_one_that_wanted_its_place_is_given_up() -> None:
    house = House(1)
    (model, a), (_, b) = house.add("a"), house.add("b")
    await entered(a)
    for_b = await waiting(b)
    late = await waiting(a)
    for_b.cancel()
    await late
    assert (a.state, a.num_open, b.state, model.num_unloads) == (State.READY, 2, State.UNLOADED, 0)


async def test_one_that_becomes_idle_first_gives_its_place_though_another_was_asked() -> None:
    house = House(2)
    (_, a), (_, b), (_, c) = (house.add(name) for name in "abc")
    await entered(a)
    house.clock.advance(1)
    await entered(b)
    for_c = await waiting(c)
    assert (a.state, b.state) == (State.DRAINING, State.READY)
    b.leave()
    await for_c
    assert (a.state, b.state, c.state) == (State.READY, State.UNLOADED, State.READY)


async def test_many_requests_to_more_models_than_places_all_have_their_turn() -> None:
    house = House(1)
    rows = [house.add(name) for name in "abc"]
    num_loaded = []

    async def ask(managed: ManagedModel) -> None:
        for _ in range(5):
            await managed.enter()
            num_loaded.append(sum(model.is_loaded for model, _ in rows))
            await settle(3)
            managed.leave()

    await asyncio.wait_for(asyncio.gather(*(ask(managed) for _, managed in rows for _ in range(4))), 20)
    assert num_loaded == [1] * 60


async def test_idle_models_go_after_a_time_and_pinned_and_busy_ones_do_not() -> None:
    house = House()
    (_, a), (_, pinned) = house.add("a", idle=60), house.add("p", pinned=True, idle=60)
    await entered(a)
    await entered(pinned)
    pinned.leave()
    house.clock.advance(100)
    a.leave()
    house.clock.advance(59)
    await entered(a)
    house.clock.advance(59)
    a.leave()
    house.clock.advance(59)
    await settle()
    assert a.state is State.READY
    assert a.status().idle_s == 59
    house.clock.advance(1)
    await settle()
    assert (a.state, pinned.state) == (State.UNLOADED, State.READY)
    await a.load()
    house.clock.advance(60)
    await settle()
    assert a.state is State.UNLOADED


async def test_a_model_that_memory_does_not_suffice_for_takes_another_ones_place() -> None:
    free = 100 * MiB
    house = House(None, lambda: free - sum(60 * MiB for model, _ in rows if model.is_loaded))
    rows: list[tuple[Model, ManagedModel]] = []
    rows += [house.add(name, needed=60 * MiB) for name in "ab"]
    (_, a), (_, b) = rows
    await entered(a)
    a.leave()
    await entered(b)
    assert (a.state, b.state) == (State.UNLOADED, State.READY)
    for_a = await waiting(a)
    assert b.state is State.DRAINING
    b.leave()
    await for_a


async def test_a_load_that_ran_out_of_memory_is_tried_again_when_another_has_gone() -> None:
    house = House()
    (_, a), (model, b) = house.add("a"), house.add("b")
    await entered(a)
    model.error = OutOfMemory("the cache does not fit")
    for_b = await waiting(b)
    assert (a.state, b.state) == (State.DRAINING, State.WAITING)
    a.leave()
    await for_b
    assert (a.state, b.state) == (State.UNLOADED, State.READY)
    model.error = OutOfMemory("the cache does not fit")
    b.leave()
    b.unload()
    await settle()
    with pytest.raises(Unavailable, match="the cache does not fit"):
        await b.enter()  # nobody is there who could make room


async def test_the_operator_loads_and_unloads() -> None:
    model, managed = House().add("a", pinned=True)
    await managed.load()
    status = managed.status()
    assert (status.state, status.memory_bytes, status.num_requests, status.is_pinned) == ("ready", 7, 0, True)
    await entered(managed)
    managed.unload()
    managed.unload()
    assert managed.status().state == "draining"
    late = await waiting(managed)
    managed.leave()
    await late
    assert (model.num_unloads, managed.num_loads) == (1, 2)
    managed.unload()
    await managed.load()
    assert (managed.state, managed.num_open, managed.num_loads) == (State.READY, 1, 2)
    model.loading.clear()
    managed.leave()
    managed.unload()
    again = await waiting(managed)
    managed.unload()
    model.loading.set()
    await again
    assert managed.state is State.DRAINING
    managed.leave()
    await settle()
    assert managed.state is State.UNLOADED


async def test_a_stopping_server_refuses_those_who_wait_and_lets_others_run() -> None:
    house = House(1)
    (_, a), (_, b) = house.add("a"), house.add("b")
    await entered(a)
    for_b = await waiting(b)
    await house.manager.stop()
    with pytest.raises(Unavailable, match="stopping"):
        await for_b
    with pytest.raises(Unavailable, match="stopping"):
        await b.enter()
    a.leave()
    await settle()
    assert a.model.memory_bytes()


async def test_a_load_that_is_cut_off_by_the_stop_ends() -> None:
    house = House()
    model, managed = house.add("a")
    model.loading.clear()
    request = await waiting(managed)
    await house.manager.stop()
    with pytest.raises(Unavailable, match="stopping"):
        await request


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def test_an_answer_has_its_body_though_the_client_was_watched_meanwhile() -> None:
    model, managed = House().add("a")
    model.loading.clear()
    client = AsgiClient(lambda *call: managed.answer(echo, *call))
    asking = asyncio.create_task(client.post("/v1/completions", {"prompt": "x"}))
    await settle()
    assert managed.status().num_waiting == 1
    model.loading.set()
    assert (await asking).json == {"prompt": "x"}
    assert managed.num_open == 0
    assert (await client.post("/v1/completions", {"prompt": "y"})).json == {"prompt": "y"}


async def test_a_client_that_leaves_does_not_wait_for_the_model() -> None:
    house = House(1)
    (_, a), (_, b) = house.add("a"), house.add("b")
    await entered(a)
    client = AsgiClient(lambda *call: b.answer(echo, *call))
    asking = asyncio.create_task(client.post("/v1/completions", {}))
    await settle()
    assert (a.state, b.state) == (State.DRAINING, State.WAITING)
    client.left.set()
    with pytest.raises(ClientGone):
        await asking
    await settle()
    assert (a.state, b.state, b.num_open) == (State.READY, State.UNLOADED, 0)


async def test_work_that_outlives_its_answer_keeps_the_model() -> None:
    house = House(1)
    (_, a), (_, b) = house.add("a"), house.add("b")
    work: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    told = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"]["langport"]["meter"](lambda: TokenUsage(1), work)
        await echo(scope, receive, send)

    client = AsgiClient(lambda *call: a.answer(app, *call))
    await client.post("/v1/responses", {}, extension={"meter": lambda count, work: told.append(work)})
    assert told == [work]
    for_b = await waiting(b)
    assert (a.state, a.num_open) == (State.DRAINING, 1)
    work.set_result(None)
    await for_b
    assert a.state is State.UNLOADED
