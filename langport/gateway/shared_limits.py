"""The counts of several gateways together, in Redis or Valkey; implements `limits.LimitStore`.

Each claim is one script, so it counts wholly or not at all, and all gateways together admit exactly the limit. The time
is the store's own, so clocks of gateways that differ do no harm. A window is a sorted set of slots, each a quarter of a
second with the time of its newest claim, beside a hash of their amounts and the total: as in `limits.SlidingWindow`,
what was admitted counts for 60 seconds and nothing is admitted too much. What runs holds a lease, renewed while it
runs, so a gateway that is killed takes nothing with it for long.

One connection carries everything; what comes while an answer is awaited goes together with the next question. While the
store is down each gateway counts for itself, or refuses, as the settings say; no running request notices.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from langport.errors import ConfigError, LimitsUnavailable
from langport.gateway.clock import Clock, LoopClock, sleep
from langport.gateway.limits import GRAIN_S, WINDOW_S, Claim, Limit, LocalLimits, Refusal, Standing

logger = logging.getLogger("langport.limits")

TIMEOUT_S = 0.5
"""Longest that a request waits for the store before it counts as down."""
RETRY_S = 1.0
"""After a failure the store is left alone so long."""
LEASE_S = 30.0
"""How long a gateway that was killed goes on to count."""
RENEW_S = 10.0
NO_LEASE = ""
PREFIX = "{langport}:limits:"
"""In braces, so that a cluster keeps all counts of a claim in one place."""

_TIME = """
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local window, grain, lease = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]

local function add(times, amounts, amount)
  local slot = math.floor(now / grain)
  redis.call('ZADD', times, now, slot)
  redis.call('HINCRBY', amounts, slot, amount)
  redis.call('HINCRBY', amounts, 'total', amount)
  redis.call('PEXPIRE', times, window + 1000)
  redis.call('PEXPIRE', amounts, window + 1000)
  return slot
end
"""
TAKE = (
    _TIME
    + """
local lease_ms = tonumber(ARGV[5])
local totals, refused, retry = {}, 0, 0
for i = 1, #KEYS / 2 do
  local times, amounts = KEYS[2 * i - 1], KEYS[2 * i]
  local kind, most, amount = ARGV[3 * i + 3], tonumber(ARGV[3 * i + 4]), tonumber(ARGV[3 * i + 5])
  if kind == 'concurrency' then
    redis.call('ZREMRANGEBYSCORE', times, '-inf', now)
    totals[i] = redis.call('ZCARD', times)
    if totals[i] + amount > most then
      refused, retry = i, -1
    end
  else
    local old = redis.call('ZRANGEBYSCORE', times, '-inf', now - window)
    for _, slot in ipairs(old) do
      redis.call('HINCRBY', amounts, 'total', 0 - (redis.call('HGET', amounts, slot) or 0))
      redis.call('HDEL', amounts, slot)
    end
    redis.call('ZREMRANGEBYSCORE', times, '-inf', now - window)
    totals[i] = tonumber(redis.call('HGET', amounts, 'total') or '0')
    local slots = {}
    if totals[i] + amount > most then
      slots = redis.call('ZRANGE', times, 0, -1, 'WITHSCORES')
      if #slots == 0 then  -- the store has forgotten one of the two
        redis.call('DEL', amounts)
        totals[i] = 0
      end
    end
    local excess = totals[i] + amount - most
    if excess > 0 and retry >= 0 then
      local place = -1
      while excess > 0 and place + 2 < #slots do
        place = place + 2
        excess = excess - (redis.call('HGET', amounts, slots[place]) or 0)
      end
      local wait = slots[place + 1] + window - now
      if refused == 0 or wait > retry then
        refused, retry = i, wait
      end
    end
  end
end
local is_taken = refused == 0 and lease ~= ''
local answer = {refused, retry, 0}
for i = 1, #KEYS / 2 do
  local times, amounts = KEYS[2 * i - 1], KEYS[2 * i]
  local kind, amount = ARGV[3 * i + 3], tonumber(ARGV[3 * i + 5])
  local reset = 0
  if is_taken then
    totals[i] = totals[i] + amount
    if kind == 'concurrency' then
      redis.call('ZADD', times, now + lease_ms, lease)
      redis.call('PEXPIRE', times, lease_ms)
    else
      answer[3] = add(times, amounts, amount)
    end
  end
  if kind ~= 'concurrency' and totals[i] > 0 then
    reset = redis.call('ZREVRANGE', times, 0, 0, 'WITHSCORES')[2] + window - now
  end
  answer[2 * i + 2] = totals[i]
  answer[2 * i + 3] = reset
end
return answer
"""
)
"""ARGV: time or '', window, grain, lease ('' only looks), its milliseconds, then kind, most and amount of each share.

Answers the number of the share that refuses or 0, in how many milliseconds it could be met (-1: nobody knows), the
slot, and of each share its total and the milliseconds until it is 0.
"""
CHANGE = (
    _TIME
    + """
local slot = ARGV[5]
for i = 1, #KEYS / 2 do
  local times, amounts = KEYS[2 * i - 1], KEYS[2 * i]
  local kind, change = ARGV[2 * i + 4], tonumber(ARGV[2 * i + 5])
  if kind == 'concurrency' then
    redis.call('ZREM', times, lease)
  elseif change > 0 then
    add(times, amounts, change)
  elseif change < 0 and redis.call('HEXISTS', amounts, slot) == 1 then
    redis.call('HINCRBY', amounts, slot, change)
    redis.call('HINCRBY', amounts, 'total', change)
  end
end
"""
)
"""ARGV: time or '', window, grain, lease, slot, then kind and change of each share. A lease is always given back."""


class _Place(NamedTuple):
    """Where a share was counted."""

    lease: str
    slot: int


class _Question(NamedTuple):
    """A script that the store is to run."""

    script: AsyncScript
    keys: Sequence[str]
    arguments: Sequence[Any]
    answer: asyncio.Future[Any]


class SharedLimits:
    """Counts that all gateways with the same store and prefix have in common."""

    def __init__(
        self,
        url: str,
        *,
        on_failure: Literal["answer", "refuse"] = "answer",
        clock: Clock | None = None,
        store_time: Callable[[], float] | None = None,
        prefix: str = PREFIX,
    ) -> None:
        """`store_time`: seconds, in place of the store's own time.

        Raises: ConfigError for a URL that is none; nothing is contacted yet.
        """
        try:
            self._redis: Redis = Redis.from_url(
                url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, decode_responses=True, retry=None
            )
        except ValueError as error:
            raise ConfigError(f"--limits-store is no address of a Redis or Valkey server: {error}.") from None
        self._is_refusing = on_failure == "refuse"
        self._clock = clock or LoopClock()
        self._store_time = store_time
        self._prefix = prefix
        self._local = LocalLimits(self._clock)
        """Counts while the store is down."""
        self._take = self._redis.register_script(TAKE)
        self._change = self._redis.register_script(CHANGE)
        self._process = secrets.token_hex(8)
        self._num_leases = 0
        self._leases: dict[str, list[str]] = {}
        """Keys of the sorted sets that hold each open lease."""
        self._down_until = 0.0
        self._is_down = False
        self._pending: list[_Question] = []
        self._asking: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None

    async def take(self, claim: Claim) -> None:
        """See `LimitStore`."""
        if self._clock.now() < self._down_until:
            await self._local_limits().take(claim)
            return
        self._num_leases += 1
        lease = f"{self._process}-{self._num_leases}"
        answer = self._ask_to_take(claim, lease)
        try:
            await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(lambda answer: self._take_back(claim, lease, answer))
            raise
        except (RedisError, OSError):
            await self._local_limits().take(claim)
        else:
            self._read(claim, lease, answer.result())

    async def look(self, claim: Claim) -> None:
        """See `LimitStore`."""
        try:
            if self._clock.now() < self._down_until:
                await self._local_limits().look(claim)
            else:
                self._read_standings(claim, (await self._ask_to_take(claim, NO_LEASE))[3:])
        except (RedisError, OSError):
            await self._local_limits().look(claim)

    def _ask_to_take(self, claim: Claim, lease: str) -> asyncio.Future[Any]:
        shares = [value for limit, amount in claim.shares for value in (limit.kind, limit.most, amount)]
        keys = [key for limit, _ in claim.shares for key in self._keys(limit)]
        return self._ask(self._take, keys, [*self._times(), lease, _milliseconds(LEASE_S), *shares])

    def _read_standings(self, claim: Claim, states: Sequence[int]) -> None:
        claim.standings = [
            Standing(limit, max(0, limit.most - total), reset / 1000)
            for (limit, _), total, reset in zip(claim.shares, states[::2], states[1::2], strict=True)
        ]

    def _read(self, claim: Claim, lease: str, answer: Sequence[int]) -> None:
        """What the script has answered, into the claim."""
        refused, retry, slot, *states = answer
        self._read_standings(claim, states)
        if refused:
            claim.refusal = Refusal(claim.shares[refused - 1].limit, None if retry < 0 else retry / 1000)
            return
        claim.refusal = None
        claim.places = [_Place(lease, slot) for _ in claim.shares]
        held = [self._keys(limit)[0] for limit, _ in claim.shares if limit.kind == "concurrency"]
        if held:
            self._leases[lease] = held
            if self._renewing is None:
                self._renewing = asyncio.create_task(self._renew_often())

    def _take_back(self, claim: Claim, lease: str, answer: asyncio.Future[Any]) -> None:
        """Its request was cut off while the store was asked."""
        if not answer.cancelled() and answer.exception() is None:
            self._read(claim, lease, answer.result())
            self.undo(claim)

    def settle(self, claim: Claim, num_tokens: int) -> None:
        """See `LimitStore`."""
        if claim.places and not isinstance(claim.places[0], _Place):
            self._local.settle(claim, num_tokens)
            return
        self._give(claim, [num_tokens - amount if limit.kind == "tokens" else 0 for limit, amount in claim.shares])

    def undo(self, claim: Claim) -> None:
        """See `LimitStore`."""
        if claim.places and not isinstance(claim.places[0], _Place):
            self._local.undo(claim)
            return
        self._give(claim, [-amount for _, amount in claim.shares])

    async def close(self) -> None:
        """See `LimitStore`."""
        if self._renewing is not None:
            self._renewing.cancel()
            with suppress(asyncio.CancelledError):
                await self._renewing
        await self.settled()
        await self._redis.aclose()

    async def settled(self) -> None:
        """Wait until the store has been told all."""
        if self._asking is not None:
            await self._asking

    async def renew(self) -> None:
        """Hold the leases of what still runs for another `LEASE_S`. Raises nothing."""
        if not self._leases:
            return
        try:
            end = _milliseconds(await self._now() + LEASE_S)
            async with self._redis.pipeline(transaction=False) as pipeline:
                for lease, keys in self._leases.items():
                    for key in keys:
                        pipeline.zadd(key, {lease: end})
                        pipeline.pexpire(key, _milliseconds(LEASE_S))
                await pipeline.execute()
        except (RedisError, OSError) as error:
            self._fail(error)

    async def _now(self) -> float:
        if self._store_time is not None:
            return self._store_time()
        seconds, microseconds = await self._redis.time()
        return seconds + microseconds / 1e6

    def _local_limits(self) -> LocalLimits:
        """Who counts while the store is down. Raises: LimitsUnavailable."""
        if self._is_refusing:
            raise LimitsUnavailable(
                "The store of this server's limits does not answer, and without it nothing is admitted."
            )
        return self._local

    def _give(self, claim: Claim, changes: Sequence[int]) -> None:
        """Change what was counted, and give the lease back."""
        if not claim.places:
            return
        place: _Place = claim.places[0]
        claim.places.clear()
        self._leases.pop(place.lease, None)
        changed = [
            (limit, change)
            for (limit, _), change in zip(claim.shares, changes, strict=True)
            if change or limit.kind == "concurrency"
        ]
        if not changed:
            return
        keys = [key for limit, _ in changed for key in self._keys(limit)]
        shares = [value for limit, change in changed for value in (limit.kind, change)]
        answer = self._ask(self._change, keys, [*self._times(), place.lease, place.slot, *shares])
        answer.add_done_callback(_ignore)  # what a store that is down does not hear of is lost

    def _ask(self, script: AsyncScript, keys: Sequence[str], arguments: Sequence[Any]) -> asyncio.Future[Any]:
        """The answer to come: of the script, or why there is none."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending.append(_Question(script, keys, arguments, answer))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_all())
        return answer

    async def _ask_all(self) -> None:
        """Until nothing is pending."""
        questions: list[_Question] = []
        try:
            while self._pending:
                questions, self._pending = self._pending, []
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for question in questions:
                        await question.script(question.keys, question.arguments, client=pipeline)
                    answers = await pipeline.execute(raise_on_error=False)
                for question, answer in zip(questions, answers, strict=True):
                    if isinstance(answer, Exception):
                        self._fail(answer)
                        question.answer.set_exception(answer)
                    else:
                        self._recover()
                        question.answer.set_result(answer)
        except (RedisError, OSError) as error:
            self._fail(error)
            for question in [*questions, *self._pending]:
                if not question.answer.done():
                    question.answer.set_exception(error)
            self._pending.clear()
        finally:
            self._asking = None

    async def _renew_often(self) -> None:
        while True:
            await sleep(self._clock, RENEW_S)
            await self.renew()

    def _keys(self, limit: Limit) -> tuple[str, str]:
        """Of the times and of the amounts."""
        key = self._prefix + limit.name
        return key, key + ":amounts"

    def _times(self) -> list[int | str]:
        now = "" if self._store_time is None else _milliseconds(self._store_time())
        return [now, _milliseconds(WINDOW_S), _milliseconds(GRAIN_S)]

    def _fail(self, error: Exception) -> None:
        self._down_until = self._clock.now() + RETRY_S
        if not self._is_down:
            self._is_down = True
            then = "new requests get 503" if self._is_refusing else "this process counts for itself"
            logger.error("the store of limits cannot be used (%s); until it can, %s", error, then)

    def _recover(self) -> None:
        if self._is_down:
            self._is_down = False
            logger.info("the store of limits is used again")


def _ignore(answer: asyncio.Future[Any]) -> None:
    if not answer.cancelled():
        answer.exception()


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
