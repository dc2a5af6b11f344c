"""The supervisor's books and kept answers as a worker sees them: what is written down and added up in one process."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import msgspec

from langport.errors import ApiError
from langport.gateway.cache_answer import KeptAnswer
from langport.gateway.exchange import Exchange
from langport.gateway.keys import Key
from langport.gateway.ledger import record_of
from langport.settings.tree import Price
from langport.store.base import KeyRecord, UsageQuery, UsageRecord, UsageSum
from langport.workers.link import Link
from langport.workers.messages import (
    AddUsage,
    AskRequests,
    AskUsage,
    CheckBudgets,
    Done,
    FlushUsage,
    GetAnswer,
    Kept,
    Keys,
    KeysAfter,
    PurgeRequests,
    PutAnswer,
    PutKey,
    PutResult,
    Requests,
    StoreExists,
    Sums,
    Truth,
    Used,
)


class RemoteAccounts:
    """The supervisor's store of keys and usage; see `store.base.Accounts`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def exists(self) -> bool:
        return (await self._link.ask(StoreExists(), Truth)).value

    async def keys(self, after_version: int = 0) -> list[KeyRecord]:
        return (await self._link.ask(KeysAfter(after_version), Keys)).records

    async def put_key(self, record: KeyRecord) -> KeyRecord | None:
        return (await self._link.ask(PutKey(record), PutResult)).record

    async def add_usage(self, records: Sequence[UsageRecord]) -> None:
        await self._link.ask(AddUsage(list(records)), Done)

    async def usage(self, query: UsageQuery) -> list[UsageSum]:
        return (await self._link.ask(AskUsage(query), Sums)).sums

    async def purge_requests(self, before_ms: int) -> None:
        await self._link.ask(PurgeRequests(before_ms), Done)

    async def requests(self, *, limit: int, key_id: str | None = None) -> list[UsageRecord]:
        return (await self._link.ask(AskRequests(limit, key_id), Requests)).records


class RemoteLedger:
    """The supervisor's ledger; see `gateway.ledger.UsageLedger`. A record is on its way as soon as its request ends."""

    def __init__(self, link: Link, prices: Mapping[str, Price]) -> None:
        self._link = link
        self._prices = prices

    def add(self, exchange: Exchange) -> None:
        self.put(record_of(exchange, self._prices, time.time()))

    def put(self, record: UsageRecord) -> None:
        self._link.send(Used(record))

    async def check(self, key: Key) -> None:
        await self._link.ask(CheckBudgets(key), Done)

    async def flush(self) -> None:
        await self._link.ask(FlushUsage(), Done)

    async def close(self) -> None:
        pass


class RemoteAnswers:
    """The supervisor's response cache; see `gateway.cache.SharedStore`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def get(self, key: bytes) -> KeptAnswer | None:
        try:
            kept = await self._link.ask(GetAnswer(key), Kept)
        except ApiError:  # the server is stopping
            return None
        return None if kept.answer is None else _decode(kept.answer)

    async def put(self, key: bytes, answer: KeptAnswer) -> None:
        self._link.send(PutAnswer(key, _encode(answer)))

    async def close(self) -> None:
        pass


_decode = msgspec.msgpack.Decoder(KeptAnswer).decode
_encode = msgspec.msgpack.Encoder().encode
