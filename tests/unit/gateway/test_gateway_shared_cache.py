"""Kept answers in a real Redis or Valkey, and what becomes of requests while it is down.

LANGPORT_TEST_REDIS names the server, which the tests share with nobody; `.ci/run` starts one.
"""

from __future__ import annotations

import logging
import os
import secrets

import pytest
from fake_clock import FakeClock
from gateway_fakes import Client, FakeUpstream

from langport.gateway.app import Gateway
from langport.gateway.cache import ResponseCache
from langport.gateway.cache_answer import KeptAnswer
from langport.gateway.upstream import Upstream
from langport.settings.tree import GatewaySettings

REDIS = os.environ.get("LANGPORT_TEST_REDIS") or None
shared_cache = pytest.importorskip("langport.gateway.shared_cache", exc_type=ImportError)

KEY = bytes(range(32))
ANSWER = KeptAnswer(((b"content-type", b"application/json"),), b'{"text": "\xc3\xa9"}' * 1000, 1234.5)
NOWHERE = "unix:///nowhere/redis.sock"
ASKED = {"model": "demo", "messages": [], "temperature": 0}


class Stores:
    """Several servers' views of one store."""

    def __init__(self):
        self.prefix = f"test:{secrets.token_hex(8)}:"
        self.clock = FakeClock()
        self.all = []

    def make(self, url=REDIS, ttl_s=60):
        if url is None:
            pytest.skip("LANGPORT_TEST_REDIS names no Redis or Valkey server, e.g. unix:///tmp/redis.sock")
        store = shared_cache.SharedAnswers(url, ttl_s, clock=self.clock, prefix=self.prefix)
        self.all.append(store)
        return store


@pytest.fixture
async def stores():
    stores = Stores()
    yield stores
    for store in stores.all:
        await store.close()


async def test_what_one_server_keeps_another_finds_until_its_time(stores):
    one, other = stores.make(), stores.make()
    assert await other.get(KEY) is None
    await one.put(KEY, ANSWER)
    assert await other.get(KEY) == ANSWER
    assert await other.get(KEY[::-1]) is None
    left_s = await one._redis.ttl(stores.prefix + KEY.hex())
    assert 0 < left_s <= 60


async def test_a_value_that_is_no_answer_is_none(stores):
    store = stores.make()
    for value in (b"", b"\xc1", b"\x93\x01\x02\x03"):
        await store._redis.set(stores.prefix + KEY.hex(), value, ex=60)
        assert await store.get(KEY) is None


async def test_two_gateways_give_each_others_answers(stores):
    apps, clients, caches = [], [], []
    for _ in range(2):
        apps.append(FakeUpstream())
        caches.append(ResponseCache(ttl_s=60, store=stores.make()))
        upstream = Upstream("demo", apps[-1], card=dict, is_ready=lambda: (True, ""), generation=lambda: "1")
        clients.append(Client(Gateway([upstream], GatewaySettings(), cache=caches[-1])))
    first = await clients[0].post("/v1/chat/completions", ASKED)
    await caches[0].close()
    second = await clients[1].post("/v1/chat/completions", ASKED)
    assert (second.body, second.headers["x-langport-cache"]) == (first.body, "hit")
    assert [app.num_calls for app in apps] == [1, 0]


async def test_while_the_store_is_down_models_are_asked_and_it_is_left_alone_for_a_second(stores, caplog):
    caplog.set_level(logging.INFO, "langport.cache")
    store = stores.make(NOWHERE)
    app = FakeUpstream()
    upstream = Upstream("demo", app, card=dict, is_ready=lambda: (True, ""))
    cache = ResponseCache(max_bytes=100_000, ttl_s=60, store=store)
    client = Client(Gateway([upstream], GatewaySettings(), cache=cache))
    for seed in range(3):
        found = await client.post("/v1/chat/completions", {**ASKED, "seed": seed})
        assert (found.status, found.headers["x-langport-cache"]) == (200, "miss")
    assert (await client.post("/v1/chat/completions", {**ASKED, "seed": 0})).headers["x-langport-cache"] == "hit"
    stores.clock.advance(shared_cache.RETRY_S)
    assert await store.get(KEY) is None
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "models are asked" in caplog.text
    await cache.close()
