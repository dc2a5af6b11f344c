"""A client that hangs up, over a real connection: its work in the engine ends, streamed or not."""

from __future__ import annotations

import http.client
import json
import time

import pytest


@pytest.mark.parametrize("stream", [False, True])
def test_hanging_up_frees_the_engine(server, stream):
    engine = server.engines["chat"]
    num_aborted = len(engine.aborted)
    body = {"model": "chat", "prompt": "abc", "max_tokens": 2000, "ignore_eos": True, "stream": stream, "n": 8}
    connection = http.client.HTTPConnection(server.host, timeout=10)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Authorization": "Bearer secret"})
    if stream:
        response = connection.getresponse()
        assert response.status == 200
        response.readline()
        response.close()
    else:
        wait_until(lambda: engine.num_open == 1)
    connection.close()
    wait_until(lambda: engine.num_open == 0)
    assert len(engine.aborted) > num_aborted


def wait_until(is_true) -> None:
    """Poll; what never comes true fails after ten seconds."""
    deadline_s = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
