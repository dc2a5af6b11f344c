"""Keys and their use as SQL, beside `store.sql` and under the same rules: on the store's thread, a transaction each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, Row, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from langport.store.base import KeyRecord, UsageGroup, UsageQuery, UsageRecord, UsageSum
from langport.store.schema import KEY_COUNTER, counters, keys, requests, usage_days

MS_PER_DAY = 24 * 3600 * 1000

_GROUPS: dict[UsageGroup, str] = {"day": "day", "key": "key_id", "model": "model", "upstream": "upstream"}
_KEY_COLUMNS = [column.name for column in keys.columns]
_REQUEST_COLUMNS = [column.name for column in requests.columns if column.name != "number"]
_DAY = ("day", "key_id", "model", "upstream")
_SUMS = ("num_requests", "num_failed", "num_estimated", "prompt_tokens", "completion_tokens", "cost_nano")
_INSERTS: dict[str, Callable[..., Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
"""SQLAlchemy Core has no INSERT ... ON CONFLICT for both."""


class AccountTables:
    """The synchronous side of `base.Accounts`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def keys(self, after_version: int) -> list[KeyRecord]:
        wanted = select(keys).where(keys.c.version > after_version).order_by(keys.c.version)
        with self._engine.begin() as connection:
            return [_key(row) for row in connection.execute(wanted)]

    def put_key(self, record: KeyRecord) -> KeyRecord | None:
        with self._engine.begin() as connection:
            # The counter's row is locked until the end, so versions become visible in their order.
            counter = counters.c.name == KEY_COUNTER
            connection.execute(update(counters).where(counter).values(value=counters.c.value + 1))
            version = connection.execute(select(counters.c.value).where(counter)).scalar_one()
            known = connection.execute(select(keys.c.version).where(keys.c.id == record.id)).scalar()
            if (known or 0) != record.version:
                return None  # the counter has gone up for nothing, which hurts nobody
            record = msgspec.structs.replace(record, version=version)
            connection.execute(delete(keys).where(keys.c.id == record.id))
            connection.execute(insert(keys).values({name: getattr(record, name) for name in _KEY_COLUMNS}))
        return record

    def add_usage(self, records: Sequence[UsageRecord]) -> None:
        if not records:
            return
        with self._engine.begin() as connection:
            rows = [{name: getattr(record, name) for name in _REQUEST_COLUMNS} for record in records]
            connection.execute(insert(requests), rows)
            self._add_sums(connection, records)

    def _add_sums(self, connection: Connection, records: Sequence[UsageRecord]) -> None:
        sums: dict[tuple[Any, ...], list[int]] = {}
        for record in records:
            day = (record.at // MS_PER_DAY, record.key_id, record.model, record.upstream)
            took = (1, record.status >= 400, record.is_estimated)
            tokens = (record.prompt_tokens, record.completion_tokens, record.cost_nano)
            known = sums.setdefault(day, [0] * len(_SUMS))
            sums[day] = [old + new for old, new in zip(known, (*took, *tokens), strict=True)]
        # In one order everywhere, so that two processes never wait for each other's rows.
        rows = [dict(zip((*_DAY, *_SUMS), (*day, *sums[day]), strict=True)) for day in sorted(sums)]
        add = _INSERTS[self._engine.dialect.name](usage_days)
        new = add.excluded
        more = {name: usage_days.c[name] + new[name] for name in _SUMS}
        connection.execute(add.on_conflict_do_update(index_elements=list(_DAY), set_=more), rows)

    def usage(self, query: UsageQuery) -> list[UsageSum]:
        groups = [usage_days.c[_GROUPS[group]] for group in query.groups]
        sums = [func.coalesce(func.sum(usage_days.c[name]), 0).label(name) for name in _SUMS]
        wanted = select(*groups, *sums).where(usage_days.c.day.between(query.first_day, query.last_day))
        if query.key_id is not None:
            wanted = wanted.where(usage_days.c.key_id == query.key_id)
        if query.model is not None:
            wanted = wanted.where(usage_days.c.model == query.model)
        if groups:
            wanted = wanted.group_by(*groups).order_by(*groups)
        with self._engine.begin() as connection:
            found = [dict(row._mapping) for row in connection.execute(wanted)]
        # PostgreSQL's sums of big integers are decimals.
        return [UsageSum(**{**row, **{name: int(row[name]) for name in _SUMS}}) for row in found]

    def requests(self, limit: int, key_id: str | None) -> list[UsageRecord]:
        wanted = select(requests).order_by(requests.c.number.desc()).limit(limit)
        if key_id is not None:
            wanted = wanted.where(requests.c.key_id == key_id)
        with self._engine.begin() as connection:
            rows = connection.execute(wanted).all()
        return [UsageRecord(**{name: getattr(row, name) for name in _REQUEST_COLUMNS}) for row in rows]

    def purge(self, before_ms: int) -> None:
        """Forget single requests that ended before; their sums stay."""
        with self._engine.begin() as connection:
            connection.execute(delete(requests).where(requests.c.at < before_ms))


def _key(row: Row[Any]) -> KeyRecord:
    return KeyRecord(**{name: getattr(row, name) for name in _KEY_COLUMNS})
