"""PostgreSQL behind the store: one database that servers on several machines share."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from langport.errors import StoreUnavailable
from langport.store.sql import Database

LEAD_LOCK = 0x6C616E67706F7275
"""The number of the lock of the process that works on batches."""
CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 10_000


def open_postgres(url: str, clock: Callable[[], float]) -> Database:
    """The store in a database, which exists already; its tables are made if need be.

    Raises: SQLAlchemyError, StoreUnavailable.
    """
    options = f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={STATEMENT_TIMEOUT_MS}"
    try:
        # The store's thread and the lead have a connection each; one that broke is noticed when it is taken.
        engine = create_engine(
            url,
            pool_size=2,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "options": options},
        )
    except ImportError as error:
        raise StoreUnavailable(
            f"PostgreSQL needs a driver that is not installed ({error.name}); pip install 'langport[postgres]'."
        ) from error
    return Database(engine, clock, _AdvisoryLock(engine))


class _AdvisoryLock:
    """A lock that lives as long as its connection: the server frees it when the process or the network dies."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None

    def take(self) -> bool:
        if self._connection is not None and self._is_alive(self._connection):
            return True
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if connection.execute(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": LEAD_LOCK}).scalar():
            self._connection = connection
            return True
        connection.close()
        return False

    def give_back(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()  # a connection that goes back to the pool would keep the lock
            self._connection.close()
            self._connection = None

    def _is_alive(self, connection: Connection) -> bool:
        try:
            connection.execute(text("SELECT 1"))
        except SQLAlchemyError:
            self.give_back()
            return False
        return True
