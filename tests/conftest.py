"""Servers that many tests share; each is started when the first test asks for it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from tests.server.process import Server, running

POSTGRES, WORKER = os.environ.get("LANGPORT_TEST_POSTGRES"), os.environ.get("PYTEST_XDIST_WORKER")


def _own_database(address: str, name: str) -> str:
    """The address of a database of this name in the same cluster, made if it is not there."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(address, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        known = sqlalchemy.text("SELECT 1 FROM pg_database WHERE datname = :name")
        if connection.scalar(known, {"name": name}) is None:
            connection.execute(sqlalchemy.text(f'CREATE DATABASE "{name}"'))
    engine.dispose()
    return engine.url.set(database=name).render_as_string(hide_password=False)


if POSTGRES and WORKER:  # tests that run side by side empty a database each, before any of them is imported
    os.environ["LANGPORT_TEST_POSTGRES"] = _own_database(POSTGRES, f"langport_{WORKER}")

KEYS = ("sk-test-one", "sk-test-two")


@pytest.fixture(scope="session")
def demo_server() -> Iterator[Server]:
    """`langport serve` with the bundled models, and the names that the founding document uses."""
    with running(
        *("--redirect", "openbuddy:langport-demo-chat"),
        *("--redirect", "vicuna-7b-v1.1:langport-demo-chat"),
        *("--allowed-origins", "https://app.example"),
    ) as server:
        yield server


@pytest.fixture(scope="session")
def key_server() -> Iterator[Server]:
    """Two of the bundled models behind two keys."""
    keys = [argument for key in KEYS for argument in ("--api-key", key)]
    with running("langport-demo-chat", "langport-demo-embed", *keys) as server:
        yield server


def pytest_collection_finish() -> None:
    """What has been imported stays, so the garbage collector need not go through it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
