"""Servers that many tests share; each is started when the first test asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.process import Server, running

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
