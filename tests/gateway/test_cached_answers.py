"""`langport gateway` with a response cache in front of a server on a real socket, which is asked once.

LANGPORT_TEST_REDIS names a store that the tests share with nobody; `.ci/run` starts one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.gateway.upstream import Upstream, upstream_server
from tests.server.process import Server, running

CHAT = "/v1/chat/completions"
REDIS = os.environ.get("LANGPORT_TEST_REDIS") or None


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with upstream_server() as server:
        yield server


def ask(server: Server, **body: object) -> tuple[str, bytes]:
    message = {"role": "user", "content": "Hello!"}
    found = server.http.post(CHAT, json={"model": "far", "messages": [message], "temperature": 0, **body})
    assert found.status_code == 200, found.text
    return found.headers["x-langport-cache"], found.content


def test_what_was_asked_before_is_not_asked_again(upstream: Upstream) -> None:
    options = ("--upstream", f"far={upstream.url}/v1#big", "--response-cache", "1MiB")
    with running(*options, command="gateway") as server:
        for body in ({}, {"stream": True}):
            result, content = ask(server, **body)
            assert result == "miss"
            assert ask(server, **body) == ("hit", content)
        assert len(upstream.requests) == 2
        assert ask(server, temperature=1)[0] == "bypass"
        assert len(upstream.requests) == 3


@pytest.mark.skipif(REDIS is None, reason="LANGPORT_TEST_REDIS names no Redis or Valkey server")
def test_gateways_with_one_store_ask_once_together(upstream: Upstream) -> None:
    assert REDIS is not None
    options = ("--upstream", f"far={upstream.url}/v1#big", "--response-cache-store", REDIS)
    user = secrets.token_hex(50)  # so that no earlier run has asked
    with ExitStack() as stack:
        servers = [stack.enter_context(running(*options, command="gateway")) for _ in range(2)]
        result, content = ask(servers[0], user=user)
        assert result == "miss"
        servers[0].process.terminate()
        servers[0].wait_end()  # it has told the store all
        assert ask(servers[1], user=user) == ("hit", content)
        assert len(upstream.requests) == 1
        assert servers[1].metric("langport_cache_requests_total", result="hit") == 1
