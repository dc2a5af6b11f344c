"""The response cache: a request that was answered before gets the same bytes again, and no model is asked.

Off unless the settings ask for it. `cache_request.py` knows which requests qualify and which are the same,
`cache_answer.py` what of an answer is kept; here is where it is kept, and who waits for whom. Answers are in this
process's memory, in a store that several servers share (`shared_cache.py`), or in both, the memory before the store.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

from langport.errors import ConfigError
from langport.gateway.admission import MAX_WAIT
from langport.gateway.asgi import ClientGone, Header, Receive, Send
from langport.gateway.cache_answer import MAX_ANSWER_BYTES, KeptAnswer, Recording
from langport.gateway.cache_request import key_of, read_asked, read_control
from langport.gateway.exchange import Exchange
from langport.gateway.upstream import Upstream
from langport.settings.tree import GatewaySettings

Result = Literal["hit", "miss", "bypass"]
"""hit: a kept answer; miss: a new one, which is kept if it is whole; bypass: the cache has nothing to do with it."""

ANSWER_BYTES = 700
"""What one answer takes in memory beside its body: its key, headers and objects."""
MAX_PENDING = 64
"""Answers on their way to the shared store; while so many are, further ones are kept in memory only."""

Ask = Callable[[Send], Awaitable[None]]
"""Asks the upstream, which answers to that `send`."""


class SharedStore(Protocol):
    """Answers that several servers have in common. Nothing here raises: a store that is down has none."""

    async def get(self, key: bytes) -> KeptAnswer | None: ...

    async def put(self, key: bytes, answer: KeptAnswer) -> None: ...

    async def close(self) -> None: ...


class MemoryAnswers:
    """The answers that were used last, as many as there is room for."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._answers: OrderedDict[bytes, KeptAnswer] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: bytes) -> KeptAnswer | None:
        """Used now, so it stays longer than others."""
        answer = self._answers.get(key)
        if answer is not None:
            self._answers.move_to_end(key)
        return answer

    def put(self, key: bytes, answer: KeptAnswer) -> None:
        """In place of what has that key. One for which there is no room at all is not kept."""
        self.remove(key)
        num_bytes = ANSWER_BYTES + len(answer.body)
        if num_bytes > self._max_bytes:
            return
        self._answers[key] = answer
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes:
            _, oldest = self._answers.popitem(last=False)
            self.num_bytes -= ANSWER_BYTES + len(oldest.body)

    def remove(self, key: bytes) -> None:
        """Harmless where there is none."""
        answer = self._answers.pop(key, None)
        if answer is not None:
            self.num_bytes -= ANSWER_BYTES + len(answer.body)


class ResponseCache:
    """The answers that one process can give again."""

    def __init__(
        self,
        *,
        max_bytes: int = 0,
        ttl_s: float,
        store: SharedStore | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`max_bytes`: of memory, 0 for none; `ttl_s`: for how many seconds an answer may be given again."""
        self.memory = MemoryAnswers(max_bytes)
        self._ttl_s = ttl_s
        self._max_answer_bytes = MAX_ANSWER_BYTES if store is not None else min(max_bytes, MAX_ANSWER_BYTES)
        self._store = store
        self._clock = clock
        self._flights: dict[bytes, asyncio.Future[KeptAnswer | None]] = {}
        """Plain answers that are being made, for those who ask the same meanwhile; None where they cannot have them."""
        self._writing: set[asyncio.Task[None]] = set()

    async def answer(self, exchange: Exchange, upstream: Upstream, body: bytes, ask: Ask, *, is_strict: bool) -> None:
        """Answer from the cache or by `ask`, and say which in the answer's `x-langport-cache`.

        Raises: what `ask` raises; ClientGone.
        """
        control = read_control(exchange.headers)
        asked = read_asked(body)
        if control.is_no_store or exchange.is_background or not asked.is_repeatable(exchange.route):
            _say(exchange, "bypass")
            await ask(exchange.outlet)
            return
        key = key_of(exchange, upstream, body, is_strict=is_strict)
        answer = None
        if control.max_age_s >= 0:
            answer = await self._find(key, control.max_age_s)
            if answer is None and not asked.stream:
                answer = await self._wait_for_another(key, exchange)
        if answer is not None:
            await self._give(exchange, answer)
        else:
            _say(exchange, "miss")
            await self._ask(key, exchange, upstream, ask, may_lead=not asked.stream)

    async def close(self) -> None:
        """Write what is still to be written to the shared store, and leave it."""
        if self._writing:
            await asyncio.wait(self._writing)
        if self._store is not None:
            await self._store.close()

    async def _find(self, key: bytes, max_age_s: float) -> KeptAnswer | None:
        """One that is not too old for this server or this client."""
        answer = self.memory.get(key)
        if answer is not None and self._age_s(answer) > self._ttl_s:
            self.memory.remove(key)
            answer = None
        if (answer is None or self._age_s(answer) > max_age_s) and self._store is not None:
            found = await self._store.get(key)
            if found is not None and self._age_s(found) <= self._ttl_s:
                self.memory.put(key, found)
                answer = found
        return answer if answer is not None and self._age_s(answer) <= max_age_s else None

    async def _wait_for_another(self, key: bytes, exchange: Exchange) -> KeptAnswer | None:
        """The answer to the same request of somebody else, if it is being made now. Raises: ClientGone.

        Who wants to wait for a limited time does not.
        """
        flight = self._flights.get(key)
        if flight is None or MAX_WAIT in exchange.headers:
            return None
        began_s = time.perf_counter()
        await _until_done(flight, exchange.receive)
        exchange.queue_s += time.perf_counter() - began_s
        return flight.result()

    async def _ask(self, key: bytes, exchange: Exchange, upstream: Upstream, ask: Ask, *, may_lead: bool) -> None:
        """Ask the upstream, and keep what it answers."""
        flight: asyncio.Future[KeptAnswer | None] | None = None
        if may_lead and key not in self._flights:
            flight = self._flights[key] = asyncio.get_running_loop().create_future()

        def keep(headers: tuple[Header, ...], body: bytes) -> None:
            if not _is_own(exchange, upstream):
                return
            answer = KeptAnswer(headers, body, self._clock())
            self._keep(key, answer)
            if flight is not None:
                flight.set_result(answer)

        try:
            await ask(Recording(exchange.route, exchange.send, keep, self._max_answer_bytes))
        finally:
            if flight is not None:
                del self._flights[key]
                if not flight.done():
                    flight.set_result(None)

    def _keep(self, key: bytes, answer: KeptAnswer) -> None:
        self.memory.put(key, answer)
        if self._store is not None and len(self._writing) < MAX_PENDING:
            writing = asyncio.create_task(self._store.put(key, answer))
            self._writing.add(writing)
            writing.add_done_callback(self._writing.discard)

    async def _give(self, exchange: Exchange, answer: KeptAnswer) -> None:
        _say(exchange, "hit", (b"age", b"%d" % self._age_s(answer)))
        exchange.find_gaps = None  # all comes at once, which says nothing about the model's pace
        await exchange.send({"type": "http.response.start", "status": 200, "headers": list(answer.headers)})
        await exchange.send({"type": "http.response.body", "body": answer.body})

    def _age_s(self, answer: KeptAnswer) -> float:
        return max(0.0, self._clock() - answer.kept_at_s)


def _say(exchange: Exchange, result: Result, *more: Header) -> None:
    exchange.cache = result
    exchange.replace_headers([(b"x-langport-cache", result.encode()), *more])


def _is_own(exchange: Exchange, upstream: Upstream) -> bool:
    """Whether the model itself answers, or one of its deployments. A fallback answers for as long as it must."""
    if upstream.deployments is None:
        return True
    return exchange.extension.get("deployment") in upstream.deployments()


async def _until_done(flight: asyncio.Future[KeptAnswer | None], receive: Receive) -> None:
    """Raises: ClientGone when the client leaves first."""
    leaving = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait((flight, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
    if not flight.done():
        raise ClientGone


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def response_cache(settings: GatewaySettings) -> ResponseCache | None:
    """The cache that the settings ask for. Raises: ConfigError for a wrong address, or without the library."""
    if settings.response_cache_bytes is None and settings.response_cache_store is None:
        return None
    store: SharedStore | None = None
    if settings.response_cache_store is not None:
        try:
            from langport.gateway.shared_cache import SharedAnswers
        except ImportError:
            raise ConfigError("--response-cache-store needs the redis package: pip install 'langport[redis]'") from None
        store = SharedAnswers(settings.response_cache_store, settings.response_cache_ttl_s)
    return ResponseCache(max_bytes=settings.response_cache_bytes or 0, ttl_s=settings.response_cache_ttl_s, store=store)
