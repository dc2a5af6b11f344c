"""A store whose database runs on a thread of its own, so that a slow disk never stops the event loop."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, TypeVar

from langport.errors import StoreUnavailable
from langport.settings.fields import hide_password
from langport.store.base import Item, KeyRecord, Query, Record, UsageQuery, UsageRecord, UsageSum

if TYPE_CHECKING:
    from langport.store.sql import Database

logger = logging.getLogger(__name__)

T = TypeVar("T")

_DRIVERS = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}
"""By a URL's scheme, where it names no driver."""
MAX_WAITING = 1000
"""Calls that may wait for the thread; more are refused, so that a disk that hangs does not fill the memory."""


class ThreadedStore:
    """`Store` and `Accounts` over a file, a database by its URL, or memory when `place` is None.

    Nothing is opened or imported before the first call.
    """

    def __init__(self, place: Path | str | None, clock: Callable[[], float] = time) -> None:
        self.place = place
        self._clock = clock
        self._database: Database | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._num_waiting = 0

    async def put(self, record: Record, items: Sequence[Item] = ()) -> None:
        await self._run(lambda database: database.put(record, items))

    async def get(self, kind: str, id: str, owner: str) -> Record | None:
        return await self._run(lambda database: database.get(kind, id, owner))

    async def change(self, record: Record, *, if_status: Collection[str] | None = None) -> bool:
        return await self._run(lambda database: database.change(record, if_status))

    async def delete(self, kind: str, id: str, owner: str) -> bool:
        return await self._run(lambda database: database.delete(kind, id, owner))

    async def page(self, kind: str, owner: str, query: Query) -> tuple[list[Record], bool] | None:
        return await self._run(lambda database: database.page(kind, owner, query))

    async def chain(self, kind: str, id: str, owner: str) -> list[tuple[Record, list[Item]]]:
        return await self._run(lambda database: database.chain(kind, id, owner))

    async def with_status(self, kind: str, statuses: Collection[str]) -> list[Record]:
        return await self._run(lambda database: database.with_status(kind, statuses))

    async def items(
        self, id: str, *, limit: int, after: str | None = None, is_descending: bool = False, tag: str | None = None
    ) -> tuple[list[Item], bool] | None:
        return await self._run(lambda database: database.items(id, limit, after, is_descending, tag))

    async def put_items(self, id: str, items: Sequence[Item]) -> None:
        await self._run(lambda database: database.put_items(id, items))

    async def positions(self, id: str) -> list[int]:
        return await self._run(lambda database: database.positions(id))

    async def count_items(self, id: str) -> dict[str | None, int]:
        return await self._run(lambda database: database.count_items(id))

    async def drop_items(self, id: str) -> None:
        await self._run(lambda database: database.drop_items(id))

    async def purge(self) -> list[Record]:
        return await self._run(lambda database: database.purge())

    async def lead(self) -> bool:
        return await self._run(lambda database: database.lead())

    async def exists(self) -> bool:
        if self._database is not None or not isinstance(self.place, Path):
            return self._database is not None or self.place is not None
        return await asyncio.to_thread(self.place.exists)

    async def keys(self, after_version: int = 0) -> list[KeyRecord]:
        return await self._run(lambda database: database.accounts.keys(after_version))

    async def put_key(self, record: KeyRecord) -> KeyRecord | None:
        return await self._run(lambda database: database.accounts.put_key(record))

    async def add_usage(self, records: Sequence[UsageRecord]) -> None:
        await self._run(lambda database: database.accounts.add_usage(records))

    async def usage(self, query: UsageQuery) -> list[UsageSum]:
        return await self._run(lambda database: database.accounts.usage(query))

    async def requests(self, *, limit: int, key_id: str | None = None) -> list[UsageRecord]:
        return await self._run(lambda database: database.accounts.requests(limit, key_id))

    async def purge_requests(self, before_ms: int) -> None:
        await self._run(lambda database: database.accounts.purge(before_ms))

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.shutdown)
        if self._database is not None:
            await asyncio.to_thread(self._database.close)

    async def _run(self, job: Callable[[Database], T]) -> T:
        if self._num_waiting >= MAX_WAITING:
            raise StoreUnavailable("The store cannot keep up with what it is asked; try again later.")
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._do, job)
        finally:
            self._num_waiting -= 1

    def _do(self, job: Callable[[Database], T]) -> T:
        """On the thread."""
        from sqlalchemy.exc import SQLAlchemyError

        from langport.store.sql import explain

        try:
            if self._database is None:
                self._database = _open(self.place, self._clock)
                logger.info("Stored objects are kept %s", _where(self.place))
            return job(self._database)
        except (SQLAlchemyError, OSError) as error:
            raise StoreUnavailable(f"The store ({_where(self.place)}) cannot be used: {explain(error)}.") from error


def _open(place: Path | str | None, clock: Callable[[], float]) -> Database:
    """Imports only the database that is wanted."""
    if isinstance(place, str):
        from langport.store.postgres import open_postgres

        return open_postgres(place, clock)
    from langport.store.sqlite import open_sqlite

    return open_sqlite(place, clock)


def _where(place: Path | str | None) -> str:
    """For people; a URL without its password."""
    if place is None:
        return "in memory, until the server ends"
    return f"in {hide_password(place) if isinstance(place, str) else place}"


def default_store() -> Path:
    """Where the store is unless the settings say otherwise (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "langport" / "store.db"


def open_store(place: str | None, default: Path, clock: Callable[[], float] = time) -> ThreadedStore:
    """The store that a setting means: a path, `memory`, a database's URL, or the default."""
    if place is not None and "://" in place:
        scheme, _, rest = place.partition("://")
        return ThreadedStore(f"{_DRIVERS.get(scheme, scheme)}://{rest}", clock)
    return ThreadedStore(None if place == "memory" else Path(place or default).expanduser(), clock)
