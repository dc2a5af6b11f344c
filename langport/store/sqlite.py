"""SQLite behind the store: one file that several processes may share."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.pool import StaticPool

from langport.store.sql import Database

BUSY_TIMEOUT_MS = 5000
"""How long a transaction waits for another process's."""


def open_sqlite(path: Path | None, clock: Callable[[], float]) -> Database:
    """The store in a file, made with its folder if need be, readable by its user alone; None is memory.

    Raises: OSError, SQLAlchemyError; StoreUnavailable for the file of a newer LangPort.
    """
    if path is None:
        return Database(_engine("sqlite://"), clock, _Alone())
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    return Database(_engine(f"sqlite:///{path}"), clock, _FileLock(path.with_name(path.name + ".lock")))


class _Alone:
    """The lead of a store that no other process sees."""

    def take(self) -> bool:
        return True

    def give_back(self) -> None:
        pass


class _FileLock:
    """A lock on a file, which the operating system frees when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def take(self) -> bool:
        if self._file is None:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def give_back(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _engine(url: str) -> Engine:
    # Only the store's thread uses the connection, so one is enough, and a file's survives as memory's must.
    engine = create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _: object) -> None:
    connection.isolation_level = None  # else Python's module commits before every DDL statement
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    _use_wal(connection)
    # With WAL this loses nothing when the process dies, only the last moments when the machine does.
    connection.execute("PRAGMA synchronous = NORMAL")
    # Pages that are written one after the other, and read by their numbers: 2 MB of them in memory bring nothing.
    connection.execute("PRAGMA cache_size = -256")


def _use_wal(connection: Any) -> None:
    """SQLite does not wait for this one: of two processes that open a new file, one is told that it is locked."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(0.01)


def _begin(connection: Any) -> None:
    # A transaction that reads first and then writes cannot wait for its turn any more.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
