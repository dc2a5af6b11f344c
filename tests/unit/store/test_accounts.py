"""Keys and their use in any store: changes are found in their order, sums are those of what was added."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from langport.errors import StoreUnavailable
from langport.store.accounts import MS_PER_DAY
from langport.store.base import KeyRecord, UsageQuery, UsageRecord, UsageSum
from langport.store.threaded import ThreadedStore


def key(id: str, **fields: Any) -> KeyRecord:
    known = {"id": id, "name": id, "owner": f"owner-{id}", "digest": id.encode().ljust(32), "hint": "lp-x"}
    return KeyRecord(**{**known, "created_at": 1, "body": b"{}", **fields})


def used(**fields: Any) -> UsageRecord:
    known = {"at": 5, "request_id": "r", "key_id": "k", "model": "m", "upstream": "u", "path": "/v1", "status": 200}
    counts = {"prompt_tokens": 3, "completion_tokens": 2, "is_estimated": False, "cost_nano": 7, "duration_ms": 1}
    return UsageRecord(**{**known, **counts, **fields})


async def test_a_key_comes_back_whole(store):
    given = key("a", expires_at=5, revoked_at=6, previous_digest=b"x" * 32, previous_until=7, body=b"\x00{")
    put = await store.put_key(given)
    assert put.version == 1
    assert await store.keys() == [put]


async def test_only_changes_after_a_version_are_listed_in_their_order(store):
    first, second = await store.put_key(key("a")), await store.put_key(key("b"))
    changed = await store.put_key(key("a", name="new", version=first.version))
    assert [one.version for one in (first, second, changed)] == [1, 2, 3]
    assert await store.keys() == [second, changed]
    assert await store.keys(second.version) == [changed]
    assert await store.keys(changed.version) == []


async def test_a_change_of_what_somebody_else_has_changed_does_not_happen(store):
    first = await store.put_key(key("a"))
    assert await store.put_key(key("a", name="another")) is None
    assert await store.put_key(key("new", version=5)) is None
    second = await store.put_key(key("a", name="second", version=first.version))
    assert await store.put_key(key("a", name="late", version=first.version)) is None
    assert await store.keys() == [second]


async def test_two_keys_never_have_one_secret(store):
    await store.put_key(key("a"))
    with pytest.raises(StoreUnavailable):
        await store.put_key(key("b", digest=key("a").digest))
    assert [one.id for one in await store.keys()] == ["a"]
    assert (await store.put_key(key("b"))).version == 2


async def test_requests_are_kept_and_summed_by_day(store):
    await store.add_usage([])
    await store.add_usage([used(), used(status=502, is_estimated=True, request_id="s"), used(at=MS_PER_DAY)])
    await store.add_usage([used(key_id="other", model="n")])
    everything = UsageQuery(first_day=0, last_day=9)
    assert await store.usage(everything) == [
        UsageSum(num_requests=4, num_failed=1, num_estimated=1, prompt_tokens=12, completion_tokens=8, cost_nano=28)
    ]
    by_day = await store.usage(UsageQuery(first_day=0, last_day=9, groups=("day", "key")))
    assert [(one.day, one.key_id, one.num_requests) for one in by_day] == [(0, "k", 2), (0, "other", 1), (1, "k", 1)]
    (one,) = await store.usage(UsageQuery(first_day=0, last_day=0, key_id="k", groups=("model",)))
    assert (one.model, one.num_requests, one.num_failed, one.day) == ("m", 2, 1, None)
    (none,) = await store.usage(UsageQuery(first_day=7, last_day=7))
    assert none == UsageSum()
    assert await store.usage(UsageQuery(first_day=0, last_day=9, model="n", groups=("upstream",))) != []


async def test_the_latest_requests_come_first(store):
    await store.add_usage([used(request_id="a"), used(request_id="b", key_id="o"), used(request_id="c")])
    assert [one.request_id for one in await store.requests(limit=2)] == ["c", "b"]
    assert await store.requests(limit=9, key_id="o") == [used(request_id="b", key_id="o")]


async def test_single_requests_are_forgotten_and_their_sums_stay(store):
    await store.add_usage([used(at=5), used(at=50, request_id="young")])
    await store.purge_requests(50)
    assert [one.request_id for one in await store.requests(limit=9)] == ["young"]
    (total,) = await store.usage(UsageQuery(first_day=0, last_day=0))
    assert total.num_requests == 2


async def test_two_processes_add_to_the_same_sums(postgres):
    stores = [ThreadedStore(postgres) for _ in range(3)]
    batches = [[used(model=model) for model in order] for order in ("abc", "cba", "bca")]
    for _ in range(5):
        await asyncio.gather(*(one.add_usage(batch) for one, batch in zip(stores, batches, strict=True)))
    sums = await stores[0].usage(UsageQuery(first_day=0, last_day=0, groups=("model",)))
    assert [(one.model, one.num_requests) for one in sums] == [("a", 15), ("b", 15), ("c", 15)]
    await asyncio.gather(*(one.close() for one in stores))


async def test_two_processes_count_changes_of_keys_together(postgres):
    stores = [ThreadedStore(postgres) for _ in range(3)]
    put = await asyncio.gather(*(stores[n % 3].put_key(key(str(n))) for n in range(9)))
    assert sorted(one.version for one in put) == list(range(1, 10))
    await asyncio.gather(*(one.close() for one in stores))


async def test_the_lead_of_a_database_passes_on(postgres):
    first, second = ThreadedStore(postgres), ThreadedStore(postgres)
    assert await first.lead()
    assert await first.lead()
    assert not await second.lead()
    await first.close()
    assert await second.lead()
    await second.close()


async def test_a_database_that_is_not_there_is_named_without_its_password(tmp_path):
    pytest.importorskip("psycopg")
    store = ThreadedStore(f"postgresql+psycopg://me:geheim@/db?host={tmp_path}")
    with pytest.raises(StoreUnavailable, match=r"me:\(hidden\)@.*cannot be used") as told:
        await store.keys()
    assert "geheim" not in str(told.value)
    await store.close()
