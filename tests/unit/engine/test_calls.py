"""What a request's reader sees of what an engine's process says, without a process."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from langport.engine.calls import EngineCalls
from langport.engine.messages import Abort, Generate, Step, ToEngine
from langport.types import Delta, GenerateRequest, SamplingParams


class Calls(EngineCalls):
    """Always ready; what it sends is kept."""

    def __init__(self) -> None:
        super().__init__("model")
        self.sent: list[ToEngine] = []
        self._transport = cast(Any, object())

    def _is_ready(self) -> bool:
        return True

    def _send(self, message: ToEngine) -> None:
        self.sent.append(message)


@pytest.mark.parametrize(
    ("index", "expected"),
    [(0, [(0, 1), (1, 2), (1, 4), (1, 6), (1, 7)]), (None, [(0, 1)])],
)
async def test_nothing_comes_of_what_was_aborted_though_it_had_arrived(
    index: int | None, expected: list[tuple[int, int]]
) -> None:
    calls = Calls()
    steps = [(0, 1), (1, 2), (0, 3), (1, 4), (0, 5), (1, 6)]

    async def read() -> list[tuple[int, int]]:
        seen = []
        async for delta in calls.generate(GenerateRequest("r", [1], SamplingParams(max_tokens=9), n=2)):
            if not seen:
                calls.abort("r", index)
            seen.append((delta.index, delta.token_ids[0]))
        return seen

    reader = asyncio.create_task(read())
    await asyncio.sleep(0)
    deltas = [Delta("r", index, [token]) for index, token in steps]
    calls._take_answer(Step(deltas, 2, 0, 0.0))  # all at once, as when the reader was late
    await asyncio.sleep(0)
    calls._take_answer(Step([Delta("r", 1, [7], finish_reason="stop")], 1, 0, 0.0))
    assert await asyncio.wait_for(reader, 10) == expected
    assert isinstance(calls.sent[0], Generate)
    assert calls.sent[1:] == [Abort("r", index)]
    assert calls._mailboxes == {}
