"""Both ends of the turnstile that all workers have in common: who may go on is decided in the supervisor alone.

One call per request, which claims its limits and its places at once, and one message without an answer when it has
ended. The supervisor answers most calls in the turn of its event loop in which they come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from langport.errors import ApiError, Unavailable
from langport.gateway.limits import Claim, Refusal, Standing
from langport.gateway.queue import Lane, Places, Waiter
from langport.gateway.turnstile import Entry, LocalTurnstile
from langport.settings.tree import OverloadSettings
from langport.workers.link import Link
from langport.workers.messages import Admit, Admitted, Failure, Look, Settle, Turn, Undo


class RemoteTurnstile:
    """A worker's end; see `gateway.turnstile.Turnstile`."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._open: dict[int, Entry] = {}
        """Those that have not left, by ticket."""

    @property
    def lanes(self) -> Sequence[Lane]:
        return ()

    async def enter(self, entry: Entry) -> bool:
        waiter, places = entry.waiter, entry.places
        message = Admit(
            list(entry.claim.shares),
            waiter.who,
            waiter.num_tokens,
            waiter.num_places,
            waiter.is_background,
            entry.max_wait_s,
            None if places is None else (places.name, places.num_places),
        )
        entry.ticket, answer = self._link.call(message)
        self._open[entry.ticket] = entry
        try:
            admitted: Admitted = await answer
            _read(admitted, entry.claim)
        except asyncio.CancelledError:
            self.undo(entry)
            raise
        except ApiError:
            self._open.pop(entry.ticket, None)
            raise
        if entry.claim.refusal is not None:
            del self._open[entry.ticket]
        elif not admitted.runs:
            _start_of(waiter)
        return admitted.runs

    async def look(self, claim: Claim) -> None:
        _read(await self._link.ask(Look(list(claim.shares)), Admitted), claim)

    def undo(self, entry: Entry) -> None:
        if self._open.pop(entry.ticket, None) is not None:
            self._link.send(Undo(entry.ticket))
            start = entry.waiter.start
            if start is not None and not start.cancel() and not start.cancelled():
                start.exception()  # nobody may have waited for it any more

    def settle(self, entry: Entry, num_tokens: int) -> None:
        if self._open.pop(entry.ticket, None) is not None:
            self._link.send(Settle(entry.ticket, num_tokens))

    def turn(self, message: Turn) -> None:
        """The supervisor says that a request may go on, or why not."""
        entry = self._open.get(message.ticket)
        if entry is None:
            return
        start = _start_of(entry.waiter)
        if start.done():
            return
        if message.failure is None:
            start.set_result(None)
        else:
            start.set_exception(message.failure.error())

    def update(self, settings: OverloadSettings) -> None:
        """The supervisor has them, too."""

    def drain(self) -> None:
        """This worker ends: who still waits here is refused."""
        for entry in list(self._open.values()):
            start = entry.waiter.start
            if start is not None and not start.done():
                start.set_exception(Unavailable("The server is stopping. Send the request again."))

    async def close(self) -> None:
        pass


def _start_of(waiter: Waiter) -> asyncio.Future[None]:
    if waiter.start is None:
        waiter.start = asyncio.get_running_loop().create_future()
    return waiter.start


def _read(admitted: Admitted, claim: Claim) -> None:
    """Into the claim. Raises: ApiError."""
    claim.standings = [
        Standing(limit, remaining, reset_s)
        for (limit, _), (remaining, reset_s) in zip(claim.shares, admitted.standings, strict=False)
    ]
    if admitted.failure is not None:
        raise admitted.failure.error()
    if admitted.refused_by is not None:
        claim.refusal = Refusal(claim.shares[admitted.refused_by].limit, admitted.retry_after_s)


class Desk:
    """The supervisor's end for one worker: its requests that have not left, and who still waits."""

    def __init__(self, turnstile: LocalTurnstile, link: Link) -> None:
        self._turnstile = turnstile
        self._link = link
        self._entries: dict[int, Entry] = {}
        self._entering: dict[int, asyncio.Task[None]] = {}

    def admit(self, ticket: int, message: Admit) -> None:
        """Answer an `Admit`, at once if that can be."""
        waiter = Waiter(message.who, message.num_tokens, message.num_places, message.is_background)
        places = None if message.places is None else Places(*message.places)
        entry = self._entries[ticket] = Entry(Claim(message.shares), waiter, places, message.max_wait_s)
        if not self._turnstile.may_answer_at_once(entry):
            task = self._entering[ticket] = asyncio.create_task(self._enter(ticket, entry))
            task.add_done_callback(lambda _: self._entering.pop(ticket, None))
            return
        try:
            runs = self._turnstile.enter_now(entry)
        except ApiError as error:
            self._fail(ticket, entry, error)
        else:
            self._answer(ticket, entry, runs=runs)

    async def look(self, ticket: int, message: Look) -> None:
        """Answer a `Look`."""
        claim = Claim(message.shares)
        try:
            await self._turnstile.look(claim)
        except ApiError as error:
            self._link.answer(ticket, Failure.of(error))
        else:
            self._link.answer(ticket, Admitted(False, _standings(claim)))

    def settle(self, message: Settle) -> None:
        entry = self._entries.pop(message.ticket, None)
        if entry is not None:
            self._turnstile.settle(entry, message.num_tokens)

    def undo(self, message: Undo) -> None:
        task = self._entering.get(message.ticket)
        if task is not None:
            task.cancel()
            return
        entry = self._entries.pop(message.ticket, None)
        if entry is not None:
            self._turnstile.undo(entry)

    def close(self) -> None:
        """The worker has ended. Who waited does not any more; who ran took what it was thought to take."""
        for task in list(self._entering.values()):
            task.cancel()
        for entry in self._entries.values():
            if entry.waiter.num_taken or entry.places is None:
                tokens = (amount for limit, amount in entry.claim.shares if limit.kind == "tokens")
                self._turnstile.settle(entry, next(tokens, 0))
            else:
                self._turnstile.undo(entry)
        self._entries.clear()

    async def _enter(self, ticket: int, entry: Entry) -> None:
        try:
            runs = await self._turnstile.enter(entry)
        except ApiError as error:
            self._fail(ticket, entry, error)
        except asyncio.CancelledError:
            self._entries.pop(ticket, None)
            raise
        else:
            self._answer(ticket, entry, runs=runs)

    def _answer(self, ticket: int, entry: Entry, *, runs: bool) -> None:
        claim = entry.claim
        standings, refusal = _standings(claim), claim.refusal
        if refusal is not None:
            del self._entries[ticket]
            number = next(number for number, share in enumerate(claim.shares) if share.limit is refusal.limit)
            self._link.answer(ticket, Admitted(False, standings, number, refusal.retry_after_s))
            return
        self._link.answer(ticket, Admitted(runs, standings))
        if not runs:
            assert entry.waiter.start is not None
            entry.waiter.start.add_done_callback(lambda start: self._tell(ticket, start))

    def _fail(self, ticket: int, entry: Entry, error: ApiError) -> None:
        del self._entries[ticket]
        self._link.answer(ticket, Admitted(False, _standings(entry.claim), failure=Failure.of(error)))

    def _tell(self, ticket: int, start: asyncio.Future[None]) -> None:
        """A waiting request's turn has come, or it is refused."""
        if start.cancelled():
            return
        error = start.exception()
        assert error is None or isinstance(error, ApiError)
        if error is not None and (entry := self._entries.pop(ticket, None)) is not None:
            self._turnstile.undo(entry)
        self._link.send(Turn(ticket, None if error is None else Failure.of(error)))


def _standings(claim: Claim) -> list[tuple[int, float]]:
    return [(standing.remaining, standing.reset_s) for standing in claim.standings]
