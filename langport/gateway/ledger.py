"""What requests used, written down in batches beside them, and what keys may still use.

A record waits in memory for half a second at most before it is on its way to the store, so kill -9 loses less than a
second of them. A store that is down loses none until MAX_WAITING wait, and never a request.

A budget is compared with what was used before: requests that run are counted when they have ended, those of other
processes within about a second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol

from langport.errors import QuotaExceeded, StoreUnavailable
from langport.gateway.exchange import Exchange
from langport.gateway.keys import Budget, Key
from langport.settings.tree import MONEY, Price
from langport.store.base import Accounts, UsageQuery, UsageRecord, UsageSum

logger = logging.getLogger("langport.gateway")

WRITE_AFTER_S = 0.5
RETRY_AFTER_S = 2.0
MAX_AGE_S = 1.0
"""Of the sums that budgets are compared with."""
PATIENCE_S = 1.0
"""How long a request waits for a store that hangs."""
MAX_BATCH = 2000
MAX_WAITING = 100_000
"""Records in memory while the store is down; the oldest are lost beyond."""
MAX_NAME = 512
"""Characters that the store has room for."""
PURGE_S = 3600.0
LAST_DAY = 10**6
SECONDS_PER_DAY = 24 * 3600


class UsageLedger(Protocol):
    """What the gateway asks of a ledger."""

    def add(self, exchange: Exchange) -> None:
        """Write down, soon, what a request took that has ended."""
        ...

    def put(self, record: UsageRecord) -> None:
        """Write it down, soon."""
        ...

    async def check(self, key: Key) -> None:
        """Raises: QuotaExceeded naming the first budget that is used up; StoreUnavailable where that is wanted."""
        ...

    async def flush(self) -> None:
        """Write down all that waits. Raises: StoreUnavailable; what was not written waits on."""
        ...

    async def close(self) -> None:
        """Write down what is left, if the store takes it."""
        ...


class Ledger:
    """Writes down and adds up; see `UsageLedger`."""

    def __init__(
        self,
        accounts: Accounts,
        prices: Mapping[str, Price],
        *,
        retention_days: int = 0,
        refuses_on_failure: bool = False,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """`prices` by deployment or model. Single requests are forgotten after `retention_days`, 0 keeps them.

        `refuses_on_failure`: a key with a budget gets nothing while the store is down.
        """
        self._accounts = accounts
        self._prices = prices
        self._retention_days = retention_days
        self._purged_s = float("-inf")
        self._refuses = refuses_on_failure
        self._clock = clock
        self._timer = timer
        self._waiting: deque[UsageRecord] = deque()
        self._unwritten: dict[str, dict[int, list[int]]] = {}
        """By key and day: tokens and cost of what is not in the store's sums yet."""
        self._spent: dict[tuple[str, int], _Spent] = {}
        """By key and first day of a period."""
        self._store = asyncio.Lock()
        self._writing: asyncio.Task[None] | None = None
        self._is_failing = False
        self._is_losing = False

    def add(self, exchange: Exchange) -> None:
        """Write down, soon, what a request took that has ended."""
        self.put(record_of(exchange, self._prices, self._clock()))

    def put(self, record: UsageRecord) -> None:
        """Write it down, soon."""
        self._waiting.append(record)
        self._count(record, 1)
        if len(self._waiting) > MAX_WAITING:
            self._count(self._waiting.popleft(), -1)
            if not self._is_losing:
                logger.error("%d requests wait for the store to take their usage; the oldest are lost.", MAX_WAITING)
                self._is_losing = True
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_soon())

    async def check(self, key: Key) -> None:
        """Raises: QuotaExceeded naming the first budget that is used up; StoreUnavailable where that is wanted."""
        now = self._clock()
        for budget in key.budgets:
            begin, end = budget.begins(now), budget.ends(now)
            first_day = int(begin.timestamp()) // SECONDS_PER_DAY
            spent = await self._spent_since(key.id, first_day)
            waiting = [counts for day, counts in self._unwritten.get(key.id, {}).items() if day >= first_day]
            tokens = spent.tokens + sum(tokens for tokens, _ in waiting)
            cost_nano = spent.cost_nano + sum(cost for _, cost in waiting)
            _compare(budget, tokens, cost_nano, begin, end, now)

    async def flush(self) -> None:
        """Write down all that waits. Raises: StoreUnavailable; what was not written waits on."""
        async with self._store:
            if self._waiting:
                await self._purge()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
                try:
                    await self._accounts.add_usage(batch)
                except StoreUnavailable:
                    self._waiting.extendleft(reversed(batch))
                    raise
                for record in batch:
                    self._count(record, -1)
                    for (key_id, first_day), spent in self._spent.items():
                        if key_id == record.key_id and _day(record) >= first_day:
                            spent.tokens += record.prompt_tokens + record.completion_tokens
                            spent.cost_nano += record.cost_nano

    async def _purge(self) -> None:
        """Forget single requests that are too old, now and then."""
        now = self._clock()
        if self._retention_days and now - self._purged_s >= PURGE_S:
            await self._accounts.purge_requests(int((now - self._retention_days * SECONDS_PER_DAY) * 1000))
            self._purged_s = now

    async def close(self) -> None:
        """Write down what is left, if the store takes it."""
        writing = self._writing
        if writing is not None:
            async with self._store:  # now it writes nothing, of which nobody would know whether it was written
                writing.cancel()
            await asyncio.wait([writing])
        try:
            await self.flush()
        except StoreUnavailable as error:
            logger.error("The usage of %d requests is lost, because the store is down: %s", len(self._waiting), error)

    async def _write_soon(self) -> None:
        try:
            await asyncio.sleep(WRITE_AFTER_S)
            while self._waiting:
                try:
                    await self.flush()
                except StoreUnavailable as error:
                    if not self._is_failing:
                        logger.error("Usage waits in memory, because the store cannot be used: %s", error)
                    self._is_failing = True
                    await asyncio.sleep(RETRY_AFTER_S)
                else:
                    if self._is_failing:
                        logger.warning("Usage that waited is in the store again.")
                    self._is_failing = self._is_losing = False
        finally:
            self._writing = None

    async def _spent_since(self, key_id: str, first_day: int) -> _Spent:
        """What a key has used in the store's eyes, at most a second old while the store answers."""
        spent = self._spent.get((key_id, first_day))
        if spent is None:
            self._forget_before(key_id, first_day)
            spent = self._spent[key_id, first_day] = _Spent()
        now = self._timer()
        if now - spent.asked_s >= MAX_AGE_S:
            spent.asked_s = now
            spent.asking = asyncio.create_task(self._ask(key_id, first_day, spent))
        if spent.asking is not None and not spent.has_failed:
            _, late = await asyncio.wait([spent.asking], timeout=PATIENCE_S)
            spent.has_failed = spent.has_failed or bool(late)
        if spent.has_failed and self._refuses:
            raise StoreUnavailable("What this key has used cannot be read from the store now.")
        return spent

    async def _ask(self, key_id: str, first_day: int, spent: _Spent) -> None:
        query = UsageQuery(first_day=first_day, last_day=LAST_DAY, key_id=key_id)
        try:
            async with self._store:  # so that no batch is on its way, neither counted as unwritten nor in the sum
                found = await self._accounts.usage(query)
                total = found[0] if found else UsageSum()
                spent.tokens, spent.cost_nano = total.prompt_tokens + total.completion_tokens, total.cost_nano
            spent.has_failed = False
        except StoreUnavailable as error:
            if not spent.has_failed:
                logger.error("The usage of %s cannot be read, its budgets count as last known: %s", key_id, error)
            spent.has_failed = True
        finally:
            spent.asking = None

    def _forget_before(self, key_id: str, first_day: int) -> None:
        """Periods that are over: more than a month ago."""
        for known in [known for known in self._spent if known[0] == key_id and known[1] < first_day - 31]:
            del self._spent[known]

    def _count(self, record: UsageRecord, sign: int) -> None:
        days = self._unwritten.setdefault(record.key_id, {})
        counted = days.setdefault(_day(record), [0, 0])
        counted[0] += sign * (record.prompt_tokens + record.completion_tokens)
        counted[1] += sign * record.cost_nano
        if counted == [0, 0]:
            del days[_day(record)]
        if not days:
            del self._unwritten[record.key_id]


def record_of(exchange: Exchange, prices: Mapping[str, Price], now_s: float) -> UsageRecord:
    """What a request took that has ended. `prices` by deployment or model go before the upstream's own."""
    usage = exchange.usage
    price = prices.get(exchange.deployment) or prices.get(exchange.model) or exchange.price
    cost = 0
    if price is not None:
        cost = round((usage.prompt_tokens * price.input + usage.completion_tokens * price.output) * MONEY / 1e6)
    return UsageRecord(
        at=int(now_s * 1000),
        request_id=exchange.request_id,
        key_id=exchange.key.id,
        model=exchange.model[:MAX_NAME],
        upstream=(exchange.deployment or exchange.model)[:MAX_NAME],
        path=exchange.route,
        status=exchange.status,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        is_estimated=usage.is_estimated,
        cost_nano=cost,
        duration_ms=int((time.perf_counter() - exchange.started_s) * 1000),
    )


def _day(record: UsageRecord) -> int:
    return record.at // (1000 * SECONDS_PER_DAY)


class _Spent:
    """What a key has used since a day, as the store says."""

    def __init__(self) -> None:
        self.tokens = 0
        self.cost_nano = 0
        self.asked_s = float("-inf")
        self.asking: asyncio.Task[None] | None = None
        self.has_failed = False


def _compare(budget: Budget, tokens: int, cost_nano: int, begin: datetime, end: datetime, now: float) -> None:
    """Raises: QuotaExceeded."""
    used = []
    if budget.tokens is not None and tokens >= budget.tokens:
        used.append(f"{tokens:,} of {budget.tokens:,} tokens")
    if budget.money is not None and cost_nano >= budget.money * MONEY:
        used.append(f"{cost_nano / MONEY:,.2f} of {budget.money:,.2f} of money")
    if used:
        raise QuotaExceeded(
            f"You exceeded your current quota: this API key has used {' and '.join(used)} for this {budget.per}, which "
            f"began on {begin:%Y-%m-%d} and ends on {end:%Y-%m-%d} at 00:00 UTC.",
            retry_after_s=end.timestamp() - now,
        )
