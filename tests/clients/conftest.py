"""The busy server, and the record of what each client was seen to do."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.clients.busy import BusyServer, serving
from tests.clients.table import Shown, write_record

RECORD = "LANGPORT_COMPATIBILITY"
"""Names the file that the record is written to; without it none is."""
SHOWN = pytest.StashKey[Shown]()
ALL = pytest.StashKey[list[Shown]]()


@pytest.fixture(scope="session")
def busy_server() -> Iterator[BusyServer]:
    with serving() as server:
        yield server


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note which client each test with `shows` is about, and which features of it that test stands for."""
    for item in items:
        if isinstance(item, pytest.Function) and (mark := item.get_closest_marker("shows")):
            parameters = item.callspec.params if hasattr(item, "callspec") else {}
            shown = Shown(*item.module.client_of(parameters), features=mark.args)
            item.stash[SHOWN] = shown
            config.stash.setdefault(ALL, []).append(shown)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and SHOWN in item.stash:
        item.stash[SHOWN].has_passed = report.passed
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if path := os.environ.get(RECORD):
        write_record(Path(path), session.config.stash.get(ALL, []))
