"""The counts of several gateways in one store: the same promises as in one process, exactly, and none when it is down.

LANGPORT_TEST_REDIS names the server, which the tests share with nobody; `.ci/run` starts one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets

import pytest
from fake_clock import FakeClock, settle
from gateway_fakes import FakeUpstream, answer, make_client
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from langport.errors import ConfigError, LimitsUnavailable
from langport.gateway.admission import Admission
from langport.gateway.limits import WINDOW_S, Claim, Limit, LocalLimits, Share
from langport.settings.tree import OverloadSettings

REDIS = os.environ.get("LANGPORT_TEST_REDIS") or None
SharedLimits = pytest.importorskip("langport.gateway.shared_limits", exc_type=ImportError).SharedLimits

REQUESTS = Limit.of("key a", "requests", 10)
TOKENS = Limit.of("key a", "tokens", 100)
RUNNING = Limit.of("key a", "concurrency", 2)
CHAT = "/v1/chat/completions"
NOWHERE = "unix:///nowhere/redis.sock"


class Stores:
    """Several processes' views of one store."""

    def __init__(self):
        self.clock = FakeClock()
        self.prefix = f"{{test}}:{secrets.token_hex(8)}:"
        self.all = []
        self.connections = []

    def make(self, url=REDIS, **options):
        if url is None:
            pytest.skip("LANGPORT_TEST_REDIS names no Redis or Valkey server, e.g. unix:///tmp/redis.sock")
        store = SharedLimits(url, clock=self.clock, prefix=self.prefix, **{"store_time": self.clock.now, **options})
        self.all.append(store)
        return store

    async def close(self):
        for store in self.all:
            await store.close()
        for connection in self.connections:
            await connection.aclose()


@pytest.fixture
async def stores():
    stores = Stores()
    yield stores
    await stores.close()


async def take(limits, *shares):
    claim = Claim([Share(limit, amount) for limit, amount in shares])
    await limits.take(claim)
    return claim


async def test_two_gateways_admit_exactly_the_limit_together(stores):
    servers = [stores.make(), stores.make()]
    claims = await asyncio.gather(*(take(servers[number % 2], (REQUESTS, 1)) for number in range(60)))
    admitted = [claim for claim in claims if claim.refusal is None]
    assert len(admitted) == REQUESTS.most
    assert {claim.refusal for claim in claims if claim.refusal} == {(REQUESTS, WINDOW_S)}
    assert sorted(claim.standings[0].remaining for claim in admitted) == list(range(10))


async def test_two_gateways_admit_exactly_the_tokens_of_a_limit(stores):
    servers = [stores.make(), stores.make()]
    claims = await asyncio.gather(*(take(servers[number % 2], (REQUESTS, 1), (TOKENS, 30)) for number in range(20)))
    assert sum(claim.refusal is None for claim in claims) == 3
    assert (await take(servers[0], (TOKENS, 10))).refusal is None
    assert (await take(servers[1], (TOKENS, 1))).refusal.limit == TOKENS
    assert (await take(servers[1], (REQUESTS, 7))).refusal is None


async def test_looking_counts_nothing(stores):
    store = stores.make()
    claim = Claim([Share(RUNNING, 1), Share(REQUESTS, 1), Share(TOKENS, 30)])
    for _ in range(2):
        await store.look(claim)
        assert [standing.remaining for standing in claim.standings] == [2, 10, 100]
    await take(store, (RUNNING, 1), (TOKENS, 30))
    await store.look(claim)
    assert [standing.remaining for standing in claim.standings] == [1, 10, 70]


async def test_what_one_settles_the_other_may_use(stores):
    one, other = stores.make(), stores.make()
    claim = await take(one, (RUNNING, 1), (TOKENS, 90))
    assert (await take(other, (TOKENS, 20))).refusal is not None
    one.settle(claim, 40)
    await one.settled()
    assert (await take(other, (TOKENS, 60))).standings[0].remaining == 0
    claim = await take(one, (RUNNING, 1))
    one.settle(claim, 1000)
    await one.settled()


async def test_concurrency_is_shared_and_a_killed_gateways_ends_with_its_lease(stores):
    one, other = stores.make(), stores.make()
    claims = [await take(one, (RUNNING, 1)), await take(other, (RUNNING, 1))]
    assert (await take(one, (RUNNING, 1))).refusal == (RUNNING, None)
    one.settle(claims[0], 0)
    await one.settled()
    assert (await take(other, (RUNNING, 1))).refusal is None
    assert (await take(other, (RUNNING, 1))).refusal == (RUNNING, None)
    await other.renew()
    stores.clock.advance(29)
    await other.renew()
    stores.clock.advance(29)
    assert (await take(one, (RUNNING, 1))).refusal == (RUNNING, None)
    stores.clock.advance(2)  # and nobody renews them
    assert (await take(one, (RUNNING, 1))).refusal is None


@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "take", "settle", "undo"]),
            st.integers(0, 60),
            st.sampled_from([0.0, 0.25, 1.0, 9.0, 29.75, 60.0]),
        ),
        max_size=25,
    )
)
async def test_it_counts_as_one_process_does(events):
    stores = Stores()
    # At a quarter of a second the slots of both begin at the same moments.
    shared, local = stores.make(), LocalLimits(stores.clock)
    running = []
    try:
        for what, amount, pause in events:
            stores.clock.advance(pause)
            if what == "take":
                shares = ((REQUESTS, 1), (TOKENS, amount))
                claim, expected = await take(shared, *shares), await take(local, *shares)
                assert claim.refusal == expected.refusal
                assert claim.standings == expected.standings
                if claim.refusal is None:
                    running.append((claim, expected))
            elif running:
                claim, expected = running.pop(amount % len(running))
                if what == "settle":
                    shared.settle(claim, amount)
                    local.settle(expected, amount)
                else:
                    shared.undo(claim)
                    local.undo(expected)
                await shared.settled()
    finally:
        await stores.close()


async def test_by_the_stores_own_time_a_minute_is_a_minute(stores):
    store = stores.make(store_time=None)
    claims = [await take(store, (REQUESTS, 1)) for _ in range(11)]
    assert [claim.refusal is None for claim in claims] == [True] * 10 + [False]
    assert WINDOW_S - 10 < claims[-1].refusal.retry_after_s <= WINDOW_S
    claim = await take(store, (RUNNING, 1))
    store.undo(claim)
    await store.settled()
    assert (await take(store, (RUNNING, 2))).refusal is None


async def test_nothing_stays_in_the_store_for_longer_than_it_counts(stores):
    store = stores.make()
    claim = await take(store, (RUNNING, 1), (REQUESTS, 1), (TOKENS, 10))
    store.settle(claim, 50)
    await store.settled()
    await take(store, (RUNNING, 1))
    keys = [key async for key in store._redis.scan_iter(stores.prefix + "*")]
    assert len(keys) == 5
    for key in keys:
        assert 0 < await store._redis.pttl(key) <= (WINDOW_S + 1) * 1000


async def test_two_servers_with_one_store_refuse_what_is_above_the_limit(stores):
    settings = OverloadSettings(key_requests_per_minute=5)
    clients = []
    for _ in range(2):
        admission = Admission(settings, store=stores.make(), clock=stores.clock)
        clients.append(make_client({"demo": FakeUpstream(answer({}))}, admission=admission, api_keys=["one"]))
    found = await asyncio.gather(
        *(
            clients[number % 2].post(CHAT, {"model": "demo"}, headers={"authorization": "Bearer one"})
            for number in range(20)
        )
    )
    assert sorted(each.status for each in found) == [200] * 5 + [429] * 15


async def cut_off(stores, store):
    """Let a gateway's store be gone; its way back."""
    there, store._redis = store._redis, stores.make(NOWHERE)._redis
    stores.connections.append(there)
    return there


class TestStoreThatIsDown:
    async def test_requests_go_on_and_each_process_counts_for_itself(self, stores, caplog):
        store = stores.make(NOWHERE)
        claims = [await take(store, (REQUESTS, 1), (RUNNING, 1)) for _ in range(3)]
        assert [claim.refusal and claim.refusal.limit for claim in claims] == [None, None, RUNNING]
        store.settle(claims[0], 0)
        store.undo(claims[1])
        assert (await take(store, (RUNNING, 2))).refusal is None
        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == 1
        assert "this process counts for itself" in errors[0].getMessage()

    async def test_or_they_are_refused(self, stores):
        store = stores.make(NOWHERE, on_failure="refuse")
        with pytest.raises(LimitsUnavailable):
            await take(store, (REQUESTS, 1))
        with pytest.raises(LimitsUnavailable):
            await take(store, (REQUESTS, 1))

    async def test_what_runs_when_it_goes_down_ends_as_it_would(self, stores):
        store = stores.make()
        claim = await take(store, (TOKENS, 50), (RUNNING, 1))
        await cut_off(stores, store)
        store.settle(claim, 10)
        await store.settled()
        assert store._is_down
        assert (await take(store, (TOKENS, 90))).refusal is None

    async def test_it_is_tried_again_and_used_again(self, stores, caplog):
        caplog.set_level(logging.INFO)
        store = stores.make()
        redis = await cut_off(stores, store)
        await take(store, (REQUESTS, 10))
        store._redis = redis
        assert (await take(store, (REQUESTS, 1))).refusal is not None  # it is left alone for a while
        stores.clock.advance(1.1)
        assert (await take(store, (REQUESTS, 1))).refusal is None
        assert "used again" in caplog.text

    def test_an_address_that_is_none_is_a_wrong_setting(self, stores):
        with pytest.raises(ConfigError, match="--limits-store"):
            stores.make("http://localhost:6379")


async def test_a_request_that_is_cut_while_the_store_is_asked_holds_nothing(stores):
    store = stores.make()
    for num_turns in range(12):
        task = asyncio.ensure_future(take(store, (RUNNING, 1)))
        for _ in range(num_turns):
            await asyncio.sleep(0)
        task.cancel()
        result = (await asyncio.gather(task, return_exceptions=True))[0]
        if isinstance(result, Claim):
            store.undo(result)
        await settle()
    await store.settled()
    assert (await take(store, (RUNNING, 2))).refusal is None
