"""Whether a request may go to its upstream now, later or not at all.

Three questions in this order: whether it could start in time (`gateway.queue`; else 503), whether its key's and its
model's limits allow it (`gateway.limits`; else 429), and when its turn comes. Work in the background, such as the lines
of batches, is never refused but waits. What was claimed is settled when the answer has ended, whoever ended it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from langport.errors import InvalidRequest, LargerThanLimit, Overloaded, RateLimited
from langport.gateway.asgi import ClientGone, Header, Receive
from langport.gateway.clock import Clock, LoopClock
from langport.gateway.envelope import Envelope
from langport.gateway.estimate import MIN_TOKENS, Estimate, MeanAnswer
from langport.gateway.exchange import Exchange
from langport.gateway.keys import Key, KeyLimits
from langport.gateway.limits import (
    Claim,
    Kind,
    Limit,
    LimitStore,
    ModelLimits,
    Refusal,
    Share,
    Standing,
)
from langport.gateway.queue import Lane, Places, Waiter
from langport.gateway.turnstile import Entry, LocalTurnstile, Turnstile
from langport.gateway.upstream import Upstream
from langport.settings.tree import OverloadSettings

MAX_WAIT = b"x-langport-max-wait"
"""The header by which a client says how many seconds it would wait for its turn."""
NUM_PLACES = 4096
"""Of upstreams that do not say how much they work on at once."""
MAX_KNOWN_LIMITS = 10_000
"""Pairs of keys and models whose limits are kept at hand."""


_Limits = Sequence[tuple[Limit, Share | None]]
"""With what every request takes of them, where that is known before."""


@dataclass(slots=True)
class Admitted:
    """A request that may go on, until it leaves."""

    entry: Entry
    estimate: Estimate
    started_s: float


class Admission:
    """The limits and queues that the requests of one process have to pass."""

    def __init__(
        self,
        settings: OverloadSettings,
        *,
        store: LimitStore | None = None,
        clock: Clock | None = None,
        turnstile: Turnstile | None = None,
    ) -> None:
        """Without a `store` the limits are this process's own; another process's `turnstile` has its own store."""
        self._settings = settings
        self._clock = clock or LoopClock()
        self._turnstile = turnstile or LocalTurnstile(settings, store, self._clock)
        self._means: dict[str, MeanAnswer] = {}
        self._known_limits: dict[tuple[str, str], tuple[KeyLimits, ModelLimits, _Limits]] = {}
        """By key and model."""
        self._max_held_bytes = settings.max_held_bodies_bytes
        self.num_held_bytes = 0
        """Of the bodies of open requests."""

    @property
    def lanes(self) -> Sequence[Lane]:
        """Those of this process that have been asked for."""
        return self._turnstile.lanes

    async def enter(self, exchange: Exchange, upstream: Upstream, envelope: Envelope, body: bytes) -> Admitted:
        """Wait until the request may go on; whoever got an answer here must `leave`.

        Calls that the upstream answers without its model take no place and no tokens. Puts the headers about limits on
        the answer. Raises: RateLimited, Overloaded, Unavailable, InvalidRequest, ClientGone; nothing is claimed then.
        """
        is_background = exchange.is_background
        mean = self._means.get(upstream.name, _UNKNOWN)
        estimate = Estimate.of(exchange.route, envelope, body, mean.num_tokens)
        waiter = Waiter(_who(exchange), max(MIN_TOKENS, estimate.likely), estimate.num_sequences, is_background)
        places = (upstream.places or _unbounded(upstream.name)) if estimate.most else None
        limits = self._limits(exchange.key, upstream)
        claim = Claim([share or Share(limit, estimate.most) for limit, share in limits])
        entry = Entry(claim, waiter, places, self._max_wait_s(exchange))
        try:
            runs = await self._turnstile.enter(entry)
        finally:
            if claim.standings:
                exchange.replace_headers(rate_headers(claim.standings))
        if claim.refusal is not None:
            raise _refused(claim.refusal, claim, mean)
        admitted = Admitted(entry, estimate, self._clock.now())
        if not runs:
            await self._wait(admitted, exchange)
        return admitted

    async def _wait(self, admitted: Admitted, exchange: Exchange) -> None:
        """Until its turn has come. Raises: ClientGone, and what it is refused with; nothing is claimed then."""
        try:
            await _wait_for_turn(admitted.entry.waiter, exchange.receive)
        except BaseException:  # cancelled ones too
            self._turnstile.undo(admitted.entry)
            raise
        finally:
            exchange.queue_s = self._clock.now() - admitted.started_s
        admitted.started_s = self._clock.now()

    def leave(self, admitted: Admitted, exchange: Exchange) -> None:
        """The request has ended, however; what goes on behind it keeps its place and is settled at its own end."""
        work = exchange.late_work
        if work is not None and not work.done():
            work.add_done_callback(lambda _: self._settle(admitted, exchange))
        else:
            self._settle(admitted, exchange)

    def hold(self, exchange: Exchange, num_bytes: int) -> None:
        """Keep so many more bytes of a request's body in memory, until `let_go`. Work in the background always may.

        Raises: Overloaded when the bodies of all open requests would take too much.
        """
        if self.num_held_bytes + num_bytes > self._max_held_bytes and not exchange.is_background:
            raise Overloaded(
                f"The bodies of the open requests take {self.num_held_bytes:,} bytes of this server's memory, and more "
                f"than {self._max_held_bytes:,} are not kept. Try again later."
            )
        exchange.num_held_bytes += num_bytes
        self.num_held_bytes += num_bytes

    def let_go(self, exchange: Exchange) -> None:
        """The request has ended."""
        self.num_held_bytes -= exchange.num_held_bytes
        exchange.num_held_bytes = 0

    def update(self, settings: OverloadSettings) -> None:
        """Admit by these from now on; what is counted stays counted."""
        self._settings = settings
        self._max_held_bytes = settings.max_held_bodies_bytes
        self._known_limits.clear()
        self._turnstile.update(settings)

    def drain(self) -> None:
        """Refuse what waits; what runs goes on."""
        self._turnstile.drain()

    async def close(self) -> None:
        """Settle what is left."""
        await self._turnstile.close()

    def _settle(self, admitted: Admitted, exchange: Exchange) -> None:
        usage = exchange.usage
        self._turnstile.settle(admitted.entry, usage.total_tokens)
        if admitted.entry.places is not None and usage.completion_tokens:
            mean = self._means.setdefault(exchange.model, MeanAnswer())
            seconds = self._clock.now() - admitted.started_s
            mean.count(usage.completion_tokens / admitted.estimate.num_sequences, seconds)

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

    def _limits(self, key: Key, upstream: Upstream) -> _Limits:
        """Those of a key at a model, made anew when either's are others than before."""
        known = self._known_limits.get((key.id, upstream.name))
        if known is None or known[0] is not key.limits or known[1] is not upstream.limits:
            if len(self._known_limits) >= MAX_KNOWN_LIMITS:
                self._known_limits.clear()
            found = limits_of(key, upstream, self._settings)
            limits = [(limit, None if limit.kind == "tokens" else Share(limit, 1)) for limit in found]
            known = self._known_limits[key.id, upstream.name] = (key.limits, upstream.limits, limits)
        return known[2]


_UNKNOWN = MeanAnswer()


@lru_cache(MAX_KNOWN_LIMITS)
def _unbounded(name: str) -> Places:
    """Those of an upstream that does not say how many it has."""
    return Places(name, NUM_PLACES)


def limits_of(key: Key, upstream: Upstream, settings: OverloadSettings) -> Iterator[Limit]:
    """What a key's requests to a model are counted against; its own limits go before the general ones."""
    own, model = key.limits, upstream.limits
    numbers: list[tuple[str, Kind, int | None, int | None]] = [
        (f"model {upstream.name}", "requests", model.requests_per_minute, settings.model_requests_per_minute),
        (f"model {upstream.name}", "tokens", model.tokens_per_minute, settings.model_tokens_per_minute),
    ]
    if key.id:
        who = f"key {key.id}"
        numbers += [
            (who, "requests", own.requests_per_minute, settings.key_requests_per_minute),
            (who, "tokens", own.tokens_per_minute, settings.key_tokens_per_minute),
            (who, "concurrency", own.max_concurrency, settings.key_max_concurrency),
        ]
    for who, kind, number, default in numbers:
        most = default if number is None else number
        if most is not None:
            yield Limit.of(who, kind, most)


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


# What clients are told.

_RATE_HEADERS: dict[Kind, tuple[bytes, bytes, bytes]] = {
    "requests": (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"),
    "tokens": (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"),
}

_UNITS = {"requests": "requests per minute", "tokens": "tokens per minute", "concurrency": "requests at once"}


def _refused(refusal: Refusal, claim: Claim, mean: MeanAnswer) -> RateLimited:
    """What a client is told whose claim was not met."""
    for limit, amount in claim.shares:
        if amount > limit.most:
            return _larger_than_limit(limit, amount)
    return _rate_limited(refusal, claim, mean)


def _rate_limited(refusal: Refusal, claim: Claim, mean: MeanAnswer) -> RateLimited:
    limit = refusal.limit
    standing = next(each for each in claim.standings if each.limit == limit)
    amount = next(share.amount for share in claim.shares if share.limit == limit)
    seconds = refusal.retry_after_s
    again = "one of them has ended" if seconds is None else f"{duration(seconds)} have passed"
    error = RateLimited(
        f"The limit of {limit.most} {_UNITS[limit.kind]} {_whose(limit)} is reached: {standing.remaining} left, "
        f"{amount} asked for. Try again when {again}.",
        # Of so many that run, one ends about that often.
        retry_after_s=mean.seconds / max(1, limit.most) if seconds is None else seconds,
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
    nearest: dict[Kind, Standing] = {}
    for standing in standings:
        kind = standing.limit.kind
        known = nearest.get(kind)
        if known is None or standing.remaining < known.remaining:
            nearest[kind] = standing
    headers: list[Header] = []
    for kind, (of_limit, of_remaining, of_reset) in _RATE_HEADERS.items():
        known = nearest.get(kind)
        if known is not None:
            headers += (
                (of_limit, b"%d" % known.limit.most),
                (of_remaining, b"%d" % known.remaining),
                (of_reset, duration(known.reset_s).encode()),
            )
    return headers


def duration(seconds: float) -> str:
    """As OpenAI writes it: 20ms, 1s, 8.64s, 6m0s."""
    return _duration(round(seconds * 1000))


@lru_cache(256)  # it is a minute again and again
def _duration(milliseconds: int) -> str:
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    rest = f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".") if milliseconds else "0"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
