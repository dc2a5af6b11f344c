"""Responses in the background: worked on whether or not a client listens, told of to those who do, cancellable."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

from langport.api.response_store import OPEN, PROMISE_S, ResponseStore, StoredResponse, fail
from langport.api.response_writer import ResponseWriter
from langport.errors import StoreUnavailable, Unavailable
from langport.wire.response_events import (
    ResponseCompleted,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    encode_event,
)
from langport.wire.response_items import Item
from langport.wire.responses import Response

if TYPE_CHECKING:
    from langport.api.turn import ChatTurn

logger = logging.getLogger(__name__)

FOLLOW_S = 10.0
"""How long another process is let wait for an event."""
EVENTS_KEPT_S = 300.0
"""How long the events of an ended response can still be read."""
STATES = (ResponseInProgress, ResponseCompleted, ResponseIncomplete, ResponseFailed)
STOPPED = "The server was stopped before this response was complete. Send the request again."


class Events(NamedTuple):
    """What has happened to a response since."""

    events: list[bytes]
    is_ended: bool
    """Nothing more will come."""


class Elsewhere(Protocol):
    """Other processes of this server, one of which may work on a response that none works on here."""

    async def cancel(self, id: str, owner: str) -> bool:
        """Have it cancelled; whether there was one."""
        ...

    async def next_events(self, id: str, owner: str, after: int) -> Events | None:
        """See `Run.next_events`; None where nobody has it any more."""
        ...


class Run:
    """One response that is worked on."""

    def __init__(
        self, writer: ResponseWriter, turn: ChatTurn, store: ResponseStore, owner: str, request_id: str
    ) -> None:
        self.owner = owner
        self.events: list[bytes] = []
        """In the order of their sequence numbers, where they are wanted."""
        self.is_ended = False
        self._writer = writer
        self._turn = turn
        self._store = store
        self._request_id = request_id
        self._stored = StoredResponse(writer.response)
        self._news = asyncio.Event()
        self._is_stopping = False
        self.task: asyncio.Task[None]

    @property
    def response(self) -> Response:
        return self._writer.response

    async def start(self, items: Sequence[Item], *, is_streamed: bool) -> asyncio.Task[None]:
        """Raises: StoreUnavailable; then nothing has begun."""
        self._stored.is_streamed = is_streamed
        self._stored.promised_until = self._store.promise()
        await self._store.put(self._stored, items, self.owner)
        self.task = asyncio.create_task(self._work())
        return self.task

    async def follow(self, after: int = -1) -> AsyncGenerator[bytes, None]:
        """The events behind the one with this number, those that are still to come too."""
        position = after + 1
        while True:
            while position < len(self.events):
                yield self.events[position]
                position += 1
            if self.is_ended:
                return
            await self._news.wait()

    async def next_events(self, after: int) -> Events:
        """Those behind the one with this number, as soon as there are some, or after FOLLOW_S none."""
        if len(self.events) <= after + 1 and not self.is_ended:
            news = asyncio.ensure_future(self._news.wait())
            await asyncio.wait([news], timeout=FOLLOW_S)
            news.cancel()
        return Events(self.events[after + 1 :], self.is_ended)

    async def cancel(self) -> None:
        """Nobody wants the rest. Returns when the response is cancelled, or has ended before."""
        await self._end()

    async def stop(self) -> None:
        """The server ends: the response fails."""
        self._is_stopping = True
        await self._end()

    async def _end(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])

    async def _work(self) -> None:
        promising = asyncio.create_task(self._promise())
        try:
            await self._write()
        except asyncio.CancelledError:
            if self.response.status in OPEN:
                self._writer.cancel()
                if self._is_stopping:
                    fail(self.response, STOPPED)
        finally:
            promising.cancel()
            with suppress(asyncio.CancelledError):
                await promising
            await self._save()
            self.is_ended = True
            self._tell()

    async def _write(self) -> None:
        async with aclosing(self._writer.events(self._turn, self._request_id)) as events:
            async for event in events:
                encoded = encode_event(event)
                if isinstance(event, STATES):
                    await self._save()  # who has read of the end finds the response ended
                if self._stored.is_streamed:
                    self.events.append(encoded)
                    self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _promise(self) -> None:
        """Say from time to time that somebody works on this; stop when somebody else has ended it."""
        while True:
            await asyncio.sleep(PROMISE_S / 3)
            if not await self._save():
                self.task.cancel()
                return

    async def _save(self) -> bool:
        """Write the state down; False when the response is not open any more in the store."""
        self._stored.promised_until = self._store.promise()
        try:
            return await self._store.update(self._stored, self.owner)
        except StoreUnavailable as error:
            logger.error("The response %s could not be saved: %s", self.response.id, error)
            return True


class Runs:
    """All that are worked on in this process, or were a moment ago."""

    def __init__(self, store: ResponseStore) -> None:
        self.store = store
        self.elsewhere: Elsewhere | None = None
        self._runs: dict[str, Run] = {}

    async def start(
        self,
        writer: ResponseWriter,
        turn: ChatTurn,
        items: Sequence[Item],
        *,
        owner: str,
        request_id: str,
        is_streamed: bool,
    ) -> Run:
        """Begin to work on a response. Raises: StoreUnavailable; then nothing has begun."""
        run = Run(writer, turn, self.store, owner, request_id)
        task = await run.start(items, is_streamed=is_streamed)
        self._runs[run.response.id] = run
        task.add_done_callback(lambda _: self._forget(run))
        return run

    def find(self, id: str, owner: str) -> Run | None:
        """One of this owner's."""
        run = self._runs.get(id)
        return run if run is not None and run.owner == owner else None

    async def follow(self, id: str, owner: str, after: int) -> AsyncGenerator[bytes, None] | None:
        """The events behind the one with this number, wherever they are; None where they are not kept any more."""
        run = self.find(id, owner)
        if run is not None:
            return run.follow(after)
        found = await self.elsewhere.next_events(id, owner, after) if self.elsewhere is not None else None
        return None if found is None else self._follow_elsewhere(id, owner, after, found)

    async def cancel(self, id: str, owner: str) -> bool:
        """Stop working on a response, at whatever process; whether one did."""
        run = self.find(id, owner)
        if run is not None:
            await run.cancel()
            return True
        return self.elsewhere is not None and await self.elsewhere.cancel(id, owner)

    async def _follow_elsewhere(self, id: str, owner: str, after: int, found: Events) -> AsyncGenerator[bytes, None]:
        assert self.elsewhere is not None
        while True:
            for event in found.events:
                yield event
            after += len(found.events)
            if found.is_ended:
                return
            more = await self.elsewhere.next_events(id, owner, after)
            if more is None:
                raise Unavailable("The process of the server that worked on this response has ended.")
            found = more

    async def drain(self, timeout_s: float) -> None:
        """Wait until all have ended, for so long at most, then end the others: they fail, and say why."""
        if tasks := [run.task for run in self._runs.values() if not run.is_ended]:
            await asyncio.wait(tasks, timeout=timeout_s)
        await asyncio.gather(*(run.stop() for run in list(self._runs.values()) if not run.is_ended))

    def _forget(self, run: Run) -> None:
        wait_s = EVENTS_KEPT_S if run.events else 0.0
        asyncio.get_running_loop().call_later(wait_s, self._runs.pop, run.response.id, None)
