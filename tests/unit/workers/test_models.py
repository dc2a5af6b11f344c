"""A worker in a model that the supervisor's manager may want empty."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from langport.errors import Unavailable
from langport.workers.messages import Entered, EnterModel, GiveUp, LeaveModel, LoadModel, Message
from langport.workers.models import Residency


class FakeLink:
    """Notes what is sent; the test answers."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.calls: list[asyncio.Future[Any]] = []

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def call(self, message: Message) -> tuple[int, asyncio.Future[Any]]:
        self.sent.append(message)
        self.calls.append(asyncio.get_running_loop().create_future())
        return len(self.calls), self.calls[-1]

    async def ask(self, message: Message, kind: type[Message]) -> Any:
        self.sent.append(message)
        return kind()

    def take(self) -> list[Message]:
        sent, self.sent = self.sent, []
        return sent


def house() -> tuple[FakeLink, Residency]:
    link = FakeLink()
    return link, Residency("m", link)  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def enter(link: FakeLink, residency: Residency, num_closings: int = 0) -> None:
    entering = asyncio.create_task(residency.enter())
    await settle()
    link.calls[-1].set_result(Entered(num_closings))
    await entering


async def test_only_the_first_request_asks_and_only_the_last_one_tells() -> None:
    link, residency = house()
    assert not residency.enter_at_once()
    await enter(link, residency)
    assert link.take() == [EnterModel("m")]
    assert residency.enter_at_once()
    assert residency.num_open == 2
    residency.leave()
    assert link.take() == []
    residency.leave()
    assert link.take() == [LeaveModel("m", 1)]
    assert not residency.enter_at_once()


async def test_of_several_that_were_let_in_at_once_all_but_one_are_given_back_early() -> None:
    link, residency = house()
    entering = [asyncio.create_task(residency.enter()) for _ in range(3)]
    await settle()
    assert residency.num_waiting == 3
    for call in link.calls:
        call.set_result(Entered(0))
    await asyncio.gather(*entering)
    assert residency.num_waiting == 0
    link.take()
    for _ in range(3):
        residency.leave()
    assert sum(message.number for message in link.take() if isinstance(message, LeaveModel)) == 3


async def test_while_it_is_to_be_empty_each_request_asks_and_those_inside_go_on() -> None:
    link, residency = house()
    await enter(link, residency)
    residency.close(1)
    assert not residency.enter_at_once()
    link.take()
    waiting = asyncio.create_task(residency.enter())
    await settle()
    assert link.take() == [EnterModel("m")]
    residency.leave()
    assert link.take() == [LeaveModel("m", 1)], "so that it can be emptied"
    link.calls[-1].set_result(Entered(1))
    await waiting
    assert residency.enter_at_once()


async def test_an_answer_from_before_it_was_closed_does_not_open_it() -> None:
    link, residency = house()
    entering = asyncio.create_task(residency.enter())
    await settle()
    link.calls[-1].set_result(Entered(1))
    residency.close(2)  # came with it
    await entering
    assert not residency.enter_at_once()


async def test_who_waits_no_longer_has_not_entered() -> None:
    link, residency = house()
    entering = asyncio.create_task(residency.enter())
    await settle()
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert link.take() == [EnterModel("m"), GiveUp(1)]
    link.calls[-1].set_result(Entered(0))  # the supervisor was faster
    await settle()
    assert link.take() == [LeaveModel("m", 1)]
    assert (residency.num_open, residency.num_waiting) == (0, 0)


async def test_a_worker_that_ends_lets_nobody_wait() -> None:
    link, residency = house()
    entering = asyncio.create_task(residency.enter())
    await settle()
    residency.give_up()
    assert link.take() == [EnterModel("m"), GiveUp(1)]
    link.calls[-1].set_exception(Unavailable("stopping"))
    with pytest.raises(Unavailable):
        await entering
    await residency.load()
    assert link.take() == [LoadModel("m")]
