"""The same store over a file, over memory and over PostgreSQL."""

from __future__ import annotations

import os

import pytest

from langport.store.threaded import ThreadedStore

POSTGRES = os.environ.get("LANGPORT_TEST_POSTGRES")
"""A database of its own, as `.ci/postgres` makes one; the tests empty it."""


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def postgres() -> str:
    """The address of an empty database."""
    if POSTGRES is None:
        pytest.skip("LANGPORT_TEST_POSTGRES names no database; .ci/postgres runs a command with one")
    import sqlalchemy

    engine = sqlalchemy.create_engine(POSTGRES)
    with engine.begin() as connection:
        tables = [name for name in sqlalchemy.inspect(connection).get_table_names() if name != "alembic_version"]
        if tables:
            connection.execute(sqlalchemy.text(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY"))
            connection.execute(sqlalchemy.text("INSERT INTO counters VALUES ('keys', 0)"))
    engine.dispose()
    return POSTGRES


@pytest.fixture(params=["file", "memory", "postgres"])
async def store(request, tmp_path, clock):
    place = tmp_path / "folder" / "store.db" if request.param == "file" else None
    made = ThreadedStore(request.getfixturevalue("postgres") if request.param == "postgres" else place, clock)
    yield made
    await made.close()
