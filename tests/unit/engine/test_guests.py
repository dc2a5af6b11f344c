"""Workers' own connections to an engine: whose is what, and what becomes of it when one leaves."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from langport.engine import guests as module
from langport.engine.guests import Guests, guest_id
from langport.engine.messages import (
    Abort,
    Embedded,
    FirstToken,
    FromEngine,
    Generate,
    Join,
    Ready,
    RequestFailed,
    Step,
    ToEngine,
    decode_from_engine,
    encode,
)
from langport.frames import Frames
from langport.types import Delta, EngineTotals, GenerateRequest, SamplingParams


class Guest:
    """A worker's end."""

    def __init__(self, path: str, name: str) -> None:
        self.name = name
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.settimeout(10)
        self.frames = Frames()
        self.send(Join(name))

    def send(self, message: ToEngine) -> None:
        self.socket.sendall(encode(message))

    def ask(self, id: str) -> Generate:
        message = Generate(GenerateRequest(guest_id(self.name, id), [5], SamplingParams(max_tokens=1), 1))
        self.send(message)
        return message

    def hear(self) -> list[FromEngine]:
        return [decode_from_engine(body) for body in self.frames.feed(self.socket.recv(1 << 20))]


class House:
    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "door")
        self.open: list[str] = []
        self.guests = Guests(self.path, lambda: self.open)
        self.server, self.far = socket.socketpair()
        self.came: list[Guest] = []

    def come(self, name: str) -> Guest:
        guest = Guest(self.path, name)
        self.came.append(guest)
        self.receive()  # it is let in
        self.receive()  # and says who it is
        return guest

    def receive(self) -> list[ToEngine]:
        self.guests.wait(self.server, forever=False)
        return self.guests.receive()

    def close(self) -> None:
        for each in (self.server, self.far, self.guests._door, *(guest.socket for guest in self.came)):
            each.close()
        for guest in self.guests._guests:
            guest.socket.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.close()


def delta(guest: str, id: str, token: int) -> Delta:
    return Delta(guest_id(guest, id), 0, [token])


def test_each_guest_gets_what_it_asked_for_and_the_server_the_figures(house: House) -> None:
    one, other = house.come("1-0"), house.come("2-0")
    asked = one.ask("a"), other.ask("a")
    assert house.receive() == list(asked)
    totals = EngineTotals(3)
    first = FirstToken(guest_id("1-0", "a"), 0.5, 0.25)
    step = Step([delta("1-0", "a", 7), delta("2-0", "a", 8)], 2, 1, 0.5, totals, [first])
    assert house.guests.take(step) == Step([], 2, 1, 0.5, totals, [])
    assert one.hear() == [Step([delta("1-0", "a", 7)], 2, 1, 0.5, totals, [first])]
    assert other.hear() == [Step([delta("2-0", "a", 8)], 2, 1, 0.5, totals, [])]
    assert house.guests.take(Embedded(guest_id("2-0", "e"), [b"v"])) is None
    assert house.guests.take(RequestFailed(guest_id("1-0", "a"), "no")) is None
    assert other.hear() == [Embedded("2-0:e", [b"v"])]
    assert one.hear() == [RequestFailed("1-0:a", "no")]


def test_the_server_hears_of_steps_now_and_then_and_always_of_the_last(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REPORT_S", 3600.0)
    house.come("1-0")
    steps = [Step([delta("1-0", "a", 7)], 1, 0, 0.5) for _ in range(3)]
    assert [house.guests.take(step) is None for step in steps] == [False, True, True]
    assert house.guests.take(Step([], 0, 0, 0.0)) == Step([], 0, 0, 0.0)
    ready = Ready(None)  # type: ignore[arg-type]
    assert house.guests.take(ready) is ready


def test_a_guest_that_leaves_wants_nothing_any_more(house: House) -> None:
    one, other = house.come("1-0"), house.come("1-01")
    house.open = ["1-0:a", "1-01:a", "1-0:b"]
    one.ask("never comes to the engine")
    one.socket.close()
    found = house.receive() + house.receive()
    assert Abort("1-0:a") in found
    assert Abort("1-0:b") in found
    assert not [each for each in found if isinstance(each, Abort) and each.request_id.startswith("1-01")]
    assert house.guests.take(Step([delta("1-0", "a", 7), delta("1-01", "a", 8)], 2, 0, 0.0)) is not None
    assert other.hear() == [Step([delta("1-01", "a", 8)], 2, 0, 0.0)]


def test_a_guest_that_does_not_read_holds_nobody_up_and_is_dropped(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_UNSENT_BYTES", 1 << 20)
    slow, quick = house.come("1-0"), house.come("2-0")
    house.open = ["1-0:a"]
    heard = 0
    for _ in range(400):
        house.guests.take(Embedded("1-0:a", [b"x" * 10_000]))
        house.guests.take(Step([delta("2-0", "a", 1)], 2, 0, 0.0))
        heard += len(quick.hear())
    assert heard == 400
    assert house.receive() == [Abort("1-0:a")]
    while slow.socket.recv(1 << 20):
        pass  # what was on its way, to the end


def test_what_a_slow_guest_has_not_got_yet_comes_later(house: House) -> None:
    slow = house.come("1-0")
    for number in range(100):
        house.guests.take(Embedded(f"1-0:{number}", [b"x" * 10_000]))
    found: list[FromEngine] = []
    while len(found) < 100:
        found += slow.hear()
        house.receive()
    assert [each.request_id for each in found if isinstance(each, Embedded)] == [f"1-0:{n}" for n in range(100)]
