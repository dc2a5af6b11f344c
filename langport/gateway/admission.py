"""Whether a request may go to its upstream now, later or not at all.

Three questions in this order: whether it could start in time (`gateway.queue`; else 503), whether its key's and its
model's limits allow it (`gateway.limits`; else 429), and when its turn comes. Work in the background, such as the lines
of batches, is never refused but waits. What was claimed is settled when the answer has ended, whoever ended it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from langport.config import OverloadSettings
from langport.errors import InvalidRequest, LargerThanLimit, RateLimited
from langport.gateway.asgi import ClientGone, Header, Receive
from langport.gateway.clock import Clock, LoopClock, sleep
from langport.gateway.envelope import Envelope
from langport.gateway.estimate import MIN_TOKENS, Estimate, MeanCompletion
from langport.gateway.exchange import Exchange
from langport.gateway.keys import Key
from langport.gateway.limits import Claim, Limit, LimitStore, LocalLimits, Refusal, Share, Standing
from langport.gateway.queue import Lane, Places, Waiter
from langport.gateway.upstream import Upstream

MAX_WAIT = b"x-langport-max-wait"
"""The header by which a client says how many seconds it would wait for its turn."""
NUM_PLACES = 4096
"""Of upstreams that do not say how much they work on at once."""
MIN_RETRY_S = 0.05
"""Between two tries of work in the background."""


@dataclass(slots=True)
class Admitted:
    """A request that may go on, until it leaves."""

    claim: Claim
    estimate: Estimate
    lane: Lane | None
    waiter: Waiter
    started_s: float


class Admission:
    """The limits and queues of one process."""

    def __init__(
        self, settings: OverloadSettings, *, store: LimitStore | None = None, clock: Clock | None = None
    ) -> None:
        """Without a `store` the limits are this process's own."""
        self._settings = settings
        self._clock = clock or LoopClock()
        self._store = store or LocalLimits(self._clock)
        self._lanes: dict[str, Lane] = {}
        self._completions: dict[str, MeanCompletion] = {}
        self._is_draining = False

    @property
    def lanes(self) -> Sequence[Lane]:
        """Those that have been asked for."""
        return tuple(self._lanes.values())

    async def enter(self, exchange: Exchange, upstream: Upstream, envelope: Envelope, body: bytes) -> Admitted:
        """Wait until the request may go on; whoever got an answer here must `leave`.

        Calls that the upstream answers without its model take no place and no tokens. Puts the headers about limits on
        the answer. Raises: RateLimited, Overloaded, Unavailable, InvalidRequest, ClientGone; nothing is claimed then.
        """
        is_background = _is_background(exchange)
        mean = self._completions.get(upstream.name, _UNKNOWN)
        estimate = Estimate.of(exchange.route, envelope, body, mean.num_tokens)
        waiter = Waiter(_who(exchange), max(MIN_TOKENS, estimate.likely), estimate.num_sequences, is_background)
        lane = self._lane(upstream) if estimate.most else None
        max_wait_s = self._max_wait_s(exchange)
        if lane is not None:
            lane.check(waiter, max_wait_s)
        claim = Claim(tuple(self._shares(exchange.key, upstream, estimate)))
        await self._take(claim, exchange, is_background)
        admitted = Admitted(claim, estimate, lane, waiter, self._clock.now())
        if lane is not None:
            try:
                if not lane.enter(waiter, max_wait_s):
                    await _wait_for_turn(waiter, exchange.receive)
                    exchange.queue_s = self._clock.now() - admitted.started_s
                    admitted.started_s = self._clock.now()
            except BaseException:  # cancelled ones too
                lane.leave(waiter)
                self._store.undo(claim)
                raise
        return admitted

    def leave(self, admitted: Admitted, exchange: Exchange) -> None:
        """The request has ended, however; what goes on behind it keeps its place and is settled at its own end."""
        work = exchange.late_work
        if work is not None and not work.done():
            work.add_done_callback(lambda _: self._settle(admitted, exchange))
        else:
            self._settle(admitted, exchange)

    def drain(self) -> None:
        """Refuse what waits; what runs goes on."""
        self._is_draining = True
        for lane in self._lanes.values():
            lane.drain()

    async def close(self) -> None:
        """Settle what is left."""
        await self._store.close()

    def _settle(self, admitted: Admitted, exchange: Exchange) -> None:
        usage = exchange.usage
        self._store.settle(admitted.claim, usage.total_tokens)
        if admitted.lane is not None:
            admitted.lane.leave(admitted.waiter)
            if usage.completion_tokens:
                mean = self._completions.setdefault(exchange.model, MeanCompletion())
                mean.count(usage.completion_tokens / admitted.estimate.num_sequences)

    def _lane(self, upstream: Upstream) -> Lane:
        places = upstream.places or Places(upstream.name, NUM_PLACES)
        lane = self._lanes.get(places.name)
        if lane is None:
            lane = self._lanes[places.name] = Lane(places, self._settings.max_queued_tokens, self._clock)
            if self._is_draining:
                lane.drain()
        elif lane.num_places != places.num_places:
            lane.resize(places.num_places)
        return lane

    def _max_wait_s(self, exchange: Exchange) -> float:
        """Raises: InvalidRequest."""
        given = exchange.headers.get(MAX_WAIT)
        if given is None:
            return self._settings.max_queue_s
        try:
            seconds = float(given)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < float("inf"):
            raise InvalidRequest(f"The header {MAX_WAIT.decode()} must be a number of seconds, 0 or more.")
        return min(seconds, self._settings.max_queue_s)

    def _shares(self, key: Key, upstream: Upstream, estimate: Estimate) -> Iterator[Share]:
        settings = self._settings
        own, model = key.limits, upstream.limits
        who = f"key {key.id}"
        if key.id:
            requests = _first(own.requests_per_minute, settings.key_requests_per_minute)
            tokens = _first(own.tokens_per_minute, settings.key_tokens_per_minute)
            running = _first(own.max_concurrency, settings.key_max_concurrency)
            if running is not None:
                yield Share(Limit(who, "concurrency", running), 1)
            if requests is not None:
                yield Share(Limit(who, "requests", requests), 1)
            if tokens is not None and estimate.most:
                yield Share(Limit(who, "tokens", tokens), estimate.most)
        who = f"model {upstream.name}"
        requests = _first(model.requests_per_minute, settings.model_requests_per_minute)
        tokens = _first(model.tokens_per_minute, settings.model_tokens_per_minute)
        if requests is not None:
            yield Share(Limit(who, "requests", requests), 1)
        if tokens is not None and estimate.most:
            yield Share(Limit(who, "tokens", tokens), estimate.most)

    async def _take(self, claim: Claim, exchange: Exchange, is_background: bool) -> None:
        """Raises: RateLimited; background work tries again until it may."""
        if not claim.shares:
            return
        for limit, amount in claim.shares:
            if amount > limit.most:
                raise _larger_than_limit(limit, amount)
        await self._store.take(claim)
        while is_background and claim.refusal is not None:
            await sleep(self._clock, max(MIN_RETRY_S, claim.refusal.retry_after_s or 0.0))
            await self._store.take(claim)
        exchange.replace_headers(rate_headers(claim.standings))
        if claim.refusal is not None:
            raise _rate_limited(claim.refusal, claim)


_UNKNOWN = MeanCompletion()


async def _wait_for_turn(waiter: Waiter, receive: Receive) -> None:
    """Raises: ClientGone, and what the waiter is refused with."""
    assert waiter.start is not None
    leaving = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait((waiter.start, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
    if not waiter.start.done():
        raise ClientGone
    waiter.start.result()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _who(exchange: Exchange) -> str:
    """Whose share of the queue it is: the key's, or on an open server the address's."""
    if exchange.key.id:
        return exchange.key.id
    client = exchange.scope.get("client")
    return f"address {client[0]}" if client else exchange.owner


def _is_background(exchange: Exchange) -> bool:
    """Only code of this process can say so."""
    known = (exchange.scope.get("extensions") or {}).get("langport", {})
    return int(known.get("priority", 0)) > 0


def _first(own: int | None, default: int | None) -> int | None:
    return default if own is None else own


# What clients are told.

_UNITS = {"requests": "requests per minute", "tokens": "tokens per minute", "concurrency": "requests at once"}


def _rate_limited(refusal: Refusal, claim: Claim) -> RateLimited:
    limit = refusal.limit
    standing = next(each for each in claim.standings if each.limit == limit)
    amount = next(share.amount for share in claim.shares if share.limit == limit)
    seconds = refusal.retry_after_s
    again = "one of them has ended" if seconds is None else f"{duration(seconds)} have passed"
    error = RateLimited(
        f"The limit of {limit.most} {_UNITS[limit.kind]} {_whose(limit)} is reached: {standing.remaining} left, "
        f"{amount} asked for. Try again when {again}.",
        retry_after_s=seconds,
    )
    error.type = limit.kind
    return error


def _larger_than_limit(limit: Limit, amount: int) -> LargerThanLimit:
    error = LargerThanLimit(
        f"This request asks for about {amount} {limit.kind}, and the limit {_whose(limit)} is {limit.most} "
        f"{_UNITS[limit.kind]}, so it can never be answered. Send a shorter prompt, or ask for less with max_tokens."
    )
    error.type = limit.kind
    return error


def _whose(limit: Limit) -> str:
    kind, _, name = limit.who.partition(" ")
    return "of this key" if kind == "key" else f"of the model {name} for all keys together"


def rate_headers(standings: Sequence[Standing]) -> list[Header]:
    """OpenAI's `x-ratelimit-*`, of those limits that are nearest."""
    headers: list[Header] = []
    for kind in ("requests", "tokens"):
        limited = [standing for standing in standings if standing.limit.kind == kind]
        if limited:
            limit, remaining, reset_s = min(limited, key=_remaining)
            name = kind.encode()
            headers += (
                (b"x-ratelimit-limit-" + name, b"%d" % limit.most),
                (b"x-ratelimit-remaining-" + name, b"%d" % remaining),
                (b"x-ratelimit-reset-" + name, duration(reset_s).encode()),
            )
    return headers


def _remaining(standing: Standing) -> int:
    return standing.remaining


def duration(seconds: float) -> str:
    """As OpenAI writes it: 20ms, 1s, 8.64s, 6m0s."""
    milliseconds = round(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    rest = f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
