"""The store's calls as SQL, for any database that SQLAlchemy speaks. Runs on the store's own thread, never on the loop.

Importing this loads SQLAlchemy (0.17 s), so `store.threaded` does it at the first call. Alembic is loaded only when
the tables are not the newest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Row, Select, delete, exists, func, insert, inspect, or_, select, text, update
from sqlalchemy.exc import SQLAlchemyError

from langport.errors import StoreUnavailable
from langport.store.accounts import AccountTables
from langport.store.base import Item, Query, Record
from langport.store.schema import HEAD, items, object_metadata, objects

MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_LOCK = 0x6C616E67706F7274
"""The number of PostgreSQL's lock that one process holds while it changes the tables; any will do."""
MAX_CHAIN = 1000
"""Objects in one chain; a longer one ends early, as if its beginning had been deleted."""

MAX_VARIABLES = 500
"""In a statement; every database has a bound of its own, all above this."""


class Lead(Protocol):
    """The place of the one process that works on batches."""

    def take(self) -> bool:
        """Whether this process has it, now or since before."""
        ...

    def give_back(self) -> None:
        """Let another process have it."""
        ...


class Database:
    """The synchronous side of a store. Every method is one transaction."""

    def __init__(self, engine: Engine, clock: Callable[[], float], lead: Lead) -> None:
        """Raises: StoreUnavailable when the tables are those of a newer LangPort; SQLAlchemyError."""
        self._engine = engine
        self._clock = clock
        self._lead = lead
        self.accounts = AccountTables(engine)
        with engine.begin() as connection:
            _migrate(connection)

    def put(self, record: Record, new_items: Sequence[Item]) -> None:
        with self._engine.begin() as connection:
            holder = connection.execute(select(objects.c.owner).where(objects.c.id == record.id)).scalar()
            if holder not in (None, record.owner):
                raise StoreUnavailable(f"The id {record.id} is taken already.")
            _remove(connection, [record.id])
            connection.execute(insert(objects).values(_columns(record)))
            _put_metadata(connection, record)
            _put_items(connection, record.id, new_items)

    def get(self, kind: str, id: str, owner: str) -> Record | None:
        with self._engine.begin() as connection:
            return self._get(connection, kind, id, owner)

    def change(self, record: Record, if_status: Collection[str] | None) -> bool:
        statement = update(objects).where(objects.c.id == record.id, objects.c.owner == record.owner)
        if if_status is not None:
            statement = statement.where(objects.c.status.in_(if_status))
        values = {"body": record.body, "status": record.status, "expires_at": record.expires_at}
        with self._engine.begin() as connection:
            if not connection.execute(statement.values(values)).rowcount:
                return False
            connection.execute(delete(object_metadata).where(object_metadata.c.object_id == record.id))
            _put_metadata(connection, record)
            return True

    def delete(self, kind: str, id: str, owner: str) -> bool:
        with self._engine.begin() as connection:
            if self._get(connection, kind, id, owner) is None:
                return False
            _remove(connection, [id])
            return True

    def page(self, kind: str, owner: str, query: Query) -> tuple[list[Record], bool] | None:
        number = objects.c.number
        wanted = self._live().where(objects.c.kind == kind, objects.c.owner == owner)
        with self._engine.begin() as connection:
            if query.after is not None:
                known = wanted.where(objects.c.id == query.after)
                last = connection.execute(known.with_only_columns(number)).scalar()
                if last is None:
                    return None
                wanted = wanted.where(number < last if query.is_descending else number > last)
            if query.model is not None:
                wanted = wanted.where(objects.c.model == query.model)
            if query.tag is not None:
                wanted = wanted.where(objects.c.tag == query.tag)
            for key, value in query.metadata.items():
                pair = object_metadata.c
                wanted = wanted.where(
                    exists().where(pair.object_id == objects.c.id, pair.key == key, pair.value == value)
                )
            order = number.desc() if query.is_descending else number.asc()
            rows = connection.execute(wanted.order_by(order).limit(query.limit + 1)).all()
            return _records(connection, rows[: query.limit]), len(rows) > query.limit

    def chain(self, kind: str, id: str, owner: str) -> list[tuple[Record, list[Item]]]:
        found: list[tuple[Record, list[Item]]] = []
        with self._engine.begin() as connection:
            next_id: str | None = id
            while next_id is not None and len(found) < MAX_CHAIN:
                record = self._get(connection, kind, next_id, owner)
                if record is None:
                    break
                own = connection.execute(_items_of(record.id).order_by(items.c.position))
                found.append((record, [_item(row) for row in own]))
                next_id = record.parent
        return found[::-1]

    def with_status(self, kind: str, statuses: Collection[str]) -> list[Record]:
        wanted = self._live().where(objects.c.kind == kind, objects.c.status.in_(statuses))
        with self._engine.begin() as connection:
            return _records(connection, connection.execute(wanted.order_by(objects.c.number)).all())

    def items(
        self, id: str, limit: int, after: str | None, is_descending: bool, tag: str | None
    ) -> tuple[list[Item], bool] | None:
        position = items.c.position
        wanted = _items_of(id)
        with self._engine.begin() as connection:
            if after is not None:
                known = select(position).where(items.c.object_id == id, items.c.id == after)
                last = connection.execute(known).scalar()
                if last is None:
                    return None
                wanted = wanted.where(position < last if is_descending else position > last)
            if tag is not None:
                wanted = wanted.where(items.c.tag == tag)
            order = position.desc() if is_descending else position.asc()
            rows = connection.execute(wanted.order_by(order).limit(limit + 1)).all()
            return [_item(row) for row in rows[:limit]], len(rows) > limit

    def put_items(self, id: str, new_items: Sequence[Item]) -> None:
        with self._engine.begin() as connection:
            taken = [item.position for item in new_items]
            connection.execute(delete(items).where(items.c.object_id == id, items.c.position.in_(taken)))
            _put_items(connection, id, new_items)

    def positions(self, id: str) -> list[int]:
        wanted = select(items.c.position).where(items.c.object_id == id).order_by(items.c.position)
        with self._engine.begin() as connection:
            return list(connection.execute(wanted).scalars())

    def count_items(self, id: str) -> dict[str | None, int]:
        wanted = select(items.c.tag, func.count()).where(items.c.object_id == id).group_by(items.c.tag)
        with self._engine.begin() as connection:
            return {row[0]: row[1] for row in connection.execute(wanted)}

    def drop_items(self, id: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(delete(items).where(items.c.object_id == id))

    def purge(self) -> list[Record]:
        expired = select(objects).where(objects.c.expires_at <= int(self._clock()))
        with self._engine.begin() as connection:
            records = _records(connection, connection.execute(expired).all())
            _remove(connection, [record.id for record in records])
            return records

    def lead(self) -> bool:
        return self._lead.take()

    def close(self) -> None:
        self._lead.give_back()
        self._engine.dispose()

    def _live(self) -> Select[Any]:
        return select(objects).where(or_(objects.c.expires_at.is_(None), objects.c.expires_at > int(self._clock())))

    def _get(self, connection: Connection, kind: str, id: str, owner: str) -> Record | None:
        wanted = self._live().where(objects.c.id == id, objects.c.kind == kind, objects.c.owner == owner)
        found = _records(connection, connection.execute(wanted).all())
        return found[0] if found else None


def _columns(record: Record) -> dict[str, Any]:
    names = [column.name for column in objects.columns if column.name != "number"]
    return {name: getattr(record, name) for name in names}


def _records(connection: Connection, rows: Sequence[Row[Any]]) -> list[Record]:
    pairs: dict[str, dict[str, str]] = {row.id: {} for row in rows}
    for ids in _portions(list(pairs)):
        wanted = select(object_metadata).where(object_metadata.c.object_id.in_(ids))
        for object_id, key, value in connection.execute(wanted):
            pairs[object_id][key] = value
    return [
        Record(
            kind=row.kind,
            id=row.id,
            owner=row.owner,
            created_at=row.created_at,
            body=row.body,
            model=row.model,
            status=row.status,
            tag=row.tag,
            parent=row.parent,
            metadata=pairs[row.id],
            expires_at=row.expires_at,
        )
        for row in rows
    ]


def _portions(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[start : start + MAX_VARIABLES] for start in range(0, len(ids), MAX_VARIABLES))


def _items_of(id: str) -> Select[Any]:
    return select(items).where(items.c.object_id == id)


def _item(row: Row[Any]) -> Item:
    return Item(row.id, row.position, row.body, row.tag)


def _put_metadata(connection: Connection, record: Record) -> None:
    if record.metadata:
        rows = [{"object_id": record.id, "key": key, "value": value} for key, value in record.metadata.items()]
        connection.execute(insert(object_metadata), rows)


def _put_items(connection: Connection, id: str, new_items: Sequence[Item]) -> None:
    if new_items:
        rows = [
            {"object_id": id, "position": item.position, "id": item.id, "tag": item.tag, "body": item.body}
            for item in new_items
        ]
        connection.execute(insert(items), rows)


def _remove(connection: Connection, ids: Sequence[str]) -> None:
    for some in _portions(ids):
        connection.execute(delete(objects).where(objects.c.id.in_(some)))
        connection.execute(delete(object_metadata).where(object_metadata.c.object_id.in_(some)))
        connection.execute(delete(items).where(items.c.object_id.in_(some)))


def _migrate(connection: Connection) -> None:
    """Bring the tables up to HEAD. Raises: StoreUnavailable when they are past it."""
    if connection.dialect.name == "postgresql":  # SQLite's transactions exclude each other anyhow
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
    version = None
    if inspect(connection).has_table("alembic_version"):
        version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if version == HEAD:
        return
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StoreUnavailable(
            f"The store was made by another version of LangPort, whose tables ({version}) this one does not know; "
            "start that version, or give another file with --store."
        ) from error


def explain(error: SQLAlchemyError | OSError) -> str:
    """The database's own words, in one line."""
    cause = getattr(error, "orig", None) or error
    return " ".join(str(cause).split())
