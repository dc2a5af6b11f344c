"""A worker's turnstile and the supervisor's desk, over a real socket in one event loop."""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import AsyncIterator

import pytest

from langport import errors
from langport.errors import ApiError, ConfigError, LangPortError, Overloaded, QuotaExceeded, Unavailable
from langport.gateway.clock import LoopClock
from langport.gateway.limits import Claim, Kind, Limit, LocalLimits, Share
from langport.gateway.queue import Places, Waiter
from langport.gateway.turnstile import Entry, LocalTurnstile
from langport.settings.tree import OverloadSettings
from langport.workers.link import Link
from langport.workers.messages import (
    Admit,
    Done,
    Failure,
    Message,
    Settle,
    Told,
    Turn,
    Undo,
    decode_to_supervisor,
    decode_to_worker,
)
from langport.workers.turnstile import Desk, RemoteTurnstile


class Office:
    """A supervisor's turnstile with two workers."""

    def __init__(self) -> None:
        self.turnstile = LocalTurnstile(OverloadSettings(), None, LoopClock())
        self.links: list[Link] = []
        self.desks: list[Desk] = []
        self.workers: list[RemoteTurnstile] = []

    async def hire(self) -> RemoteTurnstile:
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        number = len(self.desks)

        def receive(id: int, message: Message) -> None:
            desk = self.desks[number]
            match message:
                case Admit():
                    desk.admit(id, message)
                case Settle():
                    desk.settle(message)
                case Undo():
                    desk.undo(message)

        def turn(id: int, message: Message) -> None:
            assert isinstance(message, Turn)
            self.workers[number].turn(message)

        link = Link(decode_to_supervisor, receive, lambda: self.desks[number].close())
        self.desks.append(Desk(self.turnstile, link))
        far = Link(decode_to_worker, turn, lambda: None)
        self.workers.append(RemoteTurnstile(far))
        self.links += [link, far]
        for each, end in ((link, ours), (far, theirs)):
            end.setblocking(False)
            await loop.connect_accepted_socket(lambda each=each: each, end)  # type: ignore[misc]
        return self.workers[number]

    @property
    def num_taken(self) -> int:
        return sum(lane.num_taken for lane in self.turnstile.lanes)

    @property
    def num_waiting(self) -> int:
        return sum(lane.num_waiting for lane in self.turnstile.lanes)


@pytest.fixture
async def office() -> AsyncIterator[Office]:
    office = Office()
    yield office
    for link in office.links:
        link.close()
    await settle()


async def settle() -> None:
    """Until what was sent has come."""
    for _ in range(20):
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)


def entry(*limits: tuple[Kind, int, int], num_places: int | None = 1, max_wait_s: float = 60.0) -> Entry:
    shares = [Share(Limit.of("key a", kind, most), amount) for kind, most, amount in limits]
    places = None if num_places is None else Places("m", num_places)
    return Entry(Claim(shares), Waiter("a", 100), places, max_wait_s)


async def test_all_workers_have_the_same_limits(office: Office) -> None:
    one, other = await office.hire(), await office.hire()
    first = entry(("requests", 2, 1), num_places=None)
    assert await one.enter(first)
    assert [(each.remaining, each.reset_s > 59) for each in first.claim.standings] == [(1, True)]
    second, third = entry(("requests", 2, 1), num_places=None), entry(("requests", 2, 1), num_places=None)
    assert await other.enter(second)
    assert not await one.enter(third)
    assert third.claim.refusal is not None
    assert third.claim.refusal.limit == third.claim.shares[0].limit
    assert 59 < (third.claim.refusal.retry_after_s or 0) <= 60


async def test_more_than_there_will_ever_be_is_refused_and_counts_nothing(office: Office) -> None:
    one = await office.hire()
    large = entry(("tokens", 100, 101))
    assert not await one.enter(large)
    assert large.claim.refusal is not None
    assert await one.enter(entry(("tokens", 100, 100)))


async def test_tokens_are_settled_and_concurrency_is_given_back(office: Office) -> None:
    one, other = await office.hire(), await office.hire()
    first = entry(("tokens", 100, 90), ("concurrency", 1, 1), num_places=5)
    assert await one.enter(first)
    second = entry(("tokens", 100, 50), ("concurrency", 1, 1), num_places=5)
    assert not await other.enter(second)
    one.settle(first, 30)
    await settle()
    assert await other.enter(entry(("tokens", 100, 70), ("concurrency", 1, 1), num_places=5))
    assert office.num_taken == 1


async def test_a_turn_comes_from_the_other_workers_end(office: Office) -> None:
    one, other = await office.hire(), await office.hire()
    running, waiting = entry(), entry()
    assert await one.enter(running)
    assert not await other.enter(waiting)
    assert waiting.claim.refusal is None
    assert waiting.waiter.start is not None
    one.settle(running, 0)
    await asyncio.wait_for(waiting.waiter.start, 10)
    assert office.num_taken == 1
    other.settle(waiting, 0)
    await settle()
    assert office.num_taken == 0


async def test_who_waits_too_long_or_not_at_all_is_refused_as_in_one_process(office: Office) -> None:
    one, other = await office.hire(), await office.hire()
    assert await one.enter(entry())
    with pytest.raises(Overloaded, match="All places of m are taken"):
        await other.enter(entry(max_wait_s=0.0))
    late = entry(max_wait_s=0.02)
    assert not await other.enter(late)
    assert late.waiter.start is not None
    with pytest.raises(Overloaded, match=r"waited 0\.02 s in vain"):
        await asyncio.wait_for(late.waiter.start, 10)
    other.undo(late)
    await settle()
    assert (office.num_taken, office.num_waiting) == (1, 0)


async def test_whose_client_leaves_waits_no_longer_and_counts_for_nothing(office: Office) -> None:
    one, other = await office.hire(), await office.hire()
    assert await one.enter(entry())
    waiting = entry(("requests", 1, 1))
    assert not await other.enter(waiting)
    other.undo(waiting)
    await settle()
    assert office.num_waiting == 0
    cut_off = asyncio.ensure_future(other.enter(entry(("requests", 1, 1))))
    await asyncio.sleep(0)
    cut_off.cancel()
    await settle()
    assert (office.num_taken, office.num_waiting) == (1, 0)
    assert not await other.enter(entry(("requests", 1, 1)))


async def test_a_worker_that_dies_leaves_nothing_behind(office: Office) -> None:
    one, other = await office.hire(), await office.hire()
    running = entry(("tokens", 100, 60), ("concurrency", 1, 1))
    assert await one.enter(running)
    mine, its = entry(), entry()
    assert not await one.enter(its)
    assert not await other.enter(mine)
    office.links[1].close()
    assert mine.waiter.start is not None
    await asyncio.wait_for(mine.waiter.start, 10)
    assert (office.num_taken, office.num_waiting) == (1, 0)
    other.settle(mine, 0)
    await settle()
    too_many = entry(("tokens", 100, 50), ("concurrency", 1, 1))
    assert not await other.enter(too_many), "its tokens count as they were estimated, for their minute"
    assert await other.enter(entry(("tokens", 100, 40), ("concurrency", 1, 1)))


async def test_without_a_supervisor_requests_are_refused_and_none_waits_for_ever(office: Office) -> None:
    one = await office.hire()
    assert await one.enter(entry())
    asking = asyncio.ensure_future(one.enter(entry()))
    await asyncio.sleep(0)
    office.links[0].close()
    await settle()
    with pytest.raises(Unavailable, match="server is stopping"):
        await one.enter(entry())
    asking.cancel()
    with pytest.raises((asyncio.CancelledError, Unavailable)):
        await asking


async def test_what_waits_is_refused_when_all_end_and_when_its_worker_ends(office: Office) -> None:
    one, other = await office.hire(), await office.hire()
    assert await one.enter(entry())
    here, there = entry(), entry()
    assert not await one.enter(here)
    assert not await other.enter(there)
    one.drain()
    assert here.waiter.start is not None
    with pytest.raises(Unavailable):
        await here.waiter.start
    one.undo(here)
    office.turnstile.drain()
    assert there.waiter.start is not None
    with pytest.raises(Unavailable, match="stopping"):
        await asyncio.wait_for(there.waiter.start, 10)


def _errors() -> list[LangPortError]:
    found: list[LangPortError] = [ConfigError("one.", "two."), QuotaExceeded("used up", retry_after_s=7.0)]
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, ApiError) and kind is not QuotaExceeded:
            found.append(kind("what is wrong", param="model", code="odd", retry_after_s=3.0))
    return found


@pytest.mark.parametrize("error", _errors(), ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_in_the_other_process(error: LangPortError) -> None:
    found = Failure.of(error).error()
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) | {"type": getattr(found, "type", None)} == vars(error) | {"type": getattr(error, "type", None)}


async def test_a_call_is_answered_with_what_it_raises() -> None:
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    far = Link(decode_to_worker, lambda id, message: far.answer(id, Failure.of(Overloaded("full"))), lambda: None)
    near = Link(decode_to_supervisor, lambda id, message: None, lambda: None)
    for link, end in ((near, ours), (far, theirs)):
        end.setblocking(False)
        await loop.connect_accepted_socket(lambda link=link: link, end)  # type: ignore[misc]
    from langport.workers.messages import Report

    with pytest.raises(Overloaded, match="full"):
        await near.ask(Report(), Done)
    near.close()
    far.close()
    await settle()
    with pytest.raises(Unavailable):
        await near.ask(Report(), Told)


class SlowLimits(LocalLimits):
    """A store of limits that has to be asked, as Redis has."""

    def __init__(self) -> None:
        super().__init__(LoopClock())
        self.may_answer = asyncio.Event()

    async def take(self, claim: Claim) -> None:
        await self.may_answer.wait()
        await super().take(claim)


async def test_a_store_that_takes_its_time_is_waited_for_and_left_with_its_client() -> None:
    office, limits = Office(), SlowLimits()
    office.turnstile = LocalTurnstile(OverloadSettings(), limits, LoopClock())
    one = await office.hire()
    first, second = entry(("requests", 1, 1)), entry(("requests", 1, 1))
    gone = asyncio.ensure_future(one.enter(first))
    await settle()
    gone.cancel()
    await settle()
    limits.may_answer.set()
    await settle()
    assert await one.enter(second), "who left while the store was asked counts for nothing"
    third = entry(("requests", 1, 1))
    assert not await one.enter(third)
    assert third.claim.refusal is not None
    one.settle(second, 0)
    await settle()
    assert (office.num_taken, office.num_waiting) == (0, 0)
    for link in office.links:
        link.close()
    await settle()
