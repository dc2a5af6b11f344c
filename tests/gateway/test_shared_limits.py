"""Real servers that name one Redis: requests per minute and concurrency are theirs together, exactly.

LANGPORT_TEST_REDIS names a store that the tests share with nobody; `.ci/run` starts one.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.gateway.upstream import Upstream, upstream_server
from tests.server.process import PATIENCE_S, running, until

REDIS = os.environ.get("LANGPORT_TEST_REDIS") or None
PER_MINUTE, AT_ONCE = 9, 4
NUM_CLIENTS = 24


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with upstream_server() as upstream:
        yield upstream


@pytest.fixture
def ask(upstream: Upstream) -> Iterator[Callable[[int], httpx.Response]]:
    """Ask a server of two processes (0), or one of one (1), for a model that nobody else counts."""
    if REDIS is None:
        pytest.skip("LANGPORT_TEST_REDIS names no Redis or Valkey server, e.g. unix:///tmp/redis.sock")
    model, key = secrets.token_hex(8), secrets.token_hex(16)
    options = [
        *("--upstream", f"{model}={upstream.url}#big", "--api-key", key, "--store", "none", "--limits-store", REDIS),
        *("--model-requests-per-minute", str(PER_MINUTE), "--key-max-concurrency", str(AT_ONCE)),
    ]
    with (
        running(*options, "--workers", "2", command="gateway") as several,
        running(*options, command="gateway") as single,
    ):
        urls = several.url, single.url

        def ask(server: int) -> httpx.Response:
            """On a connection of its own, so that the kernel spreads them over a server's processes."""
            return httpx.post(
                f"{urls[server]}/v1/chat/completions",
                json={"model": model, "messages": [{"role": "user", "content": "Hello!"}]},
                headers={"authorization": f"Bearer {key}"},
                timeout=PATIENCE_S,
                trust_env=False,
            )

        yield ask


def test_they_admit_exactly_the_limits_together(ask: Callable[[int], httpx.Response], upstream: Upstream) -> None:
    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        upstream.hold.clear()
        asked = [clients.submit(ask, number % 2) for number in range(NUM_CLIENTS)]
        until(lambda: sum(one.done() for one in asked) == NUM_CLIENTS - AT_ONCE, "that all but the running are refused")
        refused = [one.result() for one in asked if one.done()]
        assert {answer.status_code for answer in refused} == {429}
        assert {answer.json()["error"]["type"] for answer in refused} == {"concurrency"}
        upstream.hold.set()
        assert Counter(one.result().status_code for one in asked) == {200: AT_ONCE, 429: NUM_CLIENTS - AT_ONCE}
    for number in range(NUM_CLIENTS):
        answer = ask(number % 2)
        left = PER_MINUTE - AT_ONCE - number
        assert answer.status_code == (200 if left > 0 else 429)
        assert answer.headers["x-ratelimit-remaining-requests"] == str(max(0, left - 1))
        assert left > 0 or answer.json()["error"]["type"] == "requests"
