"""Stored keys, their use and their budgets, through the gateway and over a real store."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from gateway_fakes import Client, FakeUpstream, answer, stream

from langport.errors import StoreUnavailable
from langport.gateway import stored_keys
from langport.gateway.app import Gateway
from langport.gateway.bookkeeping import Bookkeeping
from langport.gateway.upstream import Upstream
from langport.settings.tree import GatewaySettings, Price, StoreSettings
from langport.store.base import UsageQuery
from langport.store.threaded import ThreadedStore

ADMIN = {"authorization": "Bearer admin"}
CHAT = "/v1/chat/completions"
USAGE = {"prompt_tokens": 70, "completion_tokens": 30, "total_tokens": 100}
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()
DAY = 24 * 3600


class Clock:
    now = NOON

    def __call__(self) -> float:
        return self.now


class Site(Client):
    """A gateway with a store, its books and a client."""

    def __init__(self, place, clock, upstreams=None, *, books=True, store=None, on_failure="answer", **settings):
        self.store = store or ThreadedStore(place, clock)
        apps = upstreams or {"demo": FakeUpstream(answer({"usage": USAGE})), "other": FakeUpstream()}
        rows = [Upstream(name, app, card=dict, is_ready=lambda: (True, "")) for name, app in apps.items()]
        self.settings = GatewaySettings(**{"admin_key": "admin", "prices": {"demo": Price(10, 100)}, **settings})
        self.books = Bookkeeping(
            self.store,
            StoreSettings(keys_on_failure=on_failure),
            self.settings.prices,
            records_always=True,
            clock=clock,
        )
        super().__init__(Gateway(rows, self.settings, books=self.books if books else None))
        self.app._key_admin._clock = clock

    async def create(self, name="k", **fields):
        found = await self.post("/admin/keys", {"name": name, **fields}, headers=ADMIN)
        assert found.status == 200, found.body
        return found.json

    async def chat(self, secret=None, model="demo", **kwargs):
        headers = {"authorization": f"Bearer {secret}"} if secret else {}
        return await self.post(CHAT, {"model": model}, headers=headers, **kwargs)

    async def models(self, secret):
        found = await self.get("/v1/models", headers={"authorization": f"Bearer {secret}"})
        return found.status, [entry["id"] for entry in found.json.get("data", ())]

    async def usage(self, query=""):
        found = await self.get("/admin/usage" + query, headers=ADMIN)
        assert found.status == 200, found.body
        return found.json["data"]

    async def close(self):
        await self.books.close()
        await self.store.close()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def make(tmp_path, clock):
    sites = []

    def make(place=tmp_path / "store.db", **kwargs):
        sites.append(Site(place, clock, **kwargs))
        return sites[-1]

    yield make
    for site in sites:
        await site.close()


@pytest.fixture
def site(make):
    return make()


class TestAdminDoor:
    PATHS = (("GET", "/admin/keys"), ("POST", "/admin/keys"), ("DELETE", "/admin/keys/x"), ("GET", "/admin/usage"))

    @pytest.mark.parametrize(("method", "path"), PATHS)
    async def test_there_is_none_without_an_admin_key(self, make, method, path):
        found = await make(admin_key=None).request(method, path, headers=ADMIN)
        assert found.status == 404
        assert "--admin-key" in found.error["message"]

    @pytest.mark.parametrize(("method", "path"), [*PATHS, ("GET", "/admin/nothing")])
    async def test_no_other_key_opens_it(self, make, method, path):
        site = make(api_keys=("static",))
        made = (await site.create())["key"]
        assert (await site.request(method, path)).status == 401
        for key in ("static", made, "admin2"):
            found = await site.request(method, path, headers={"authorization": f"Bearer {key}"})
            assert found.status == 403
            assert key.encode() not in found.body

    async def test_the_admin_key_opens_nothing_else(self, make):
        assert (await make(api_keys=("static",)).get("/v1/models", headers=ADMIN)).status == 401

    async def test_without_a_store_it_says_so(self, make):
        found = await make(books=False).get("/admin/keys", headers=ADMIN)
        assert (found.status, "--store none" in found.error["message"]) == (404, True)


class TestKeys:
    async def test_a_secret_is_shown_once_and_kept_nowhere(self, site, tmp_path):
        made = await site.create(name="Anna", metadata={"team": "a"})
        assert made["key"].startswith("lp-")
        assert len(made["key"]) >= 46  # 256 bits
        assert made["hint"] == made["key"][:7]
        (listed,) = (await site.get("/admin/keys", headers=ADMIN)).json["data"]
        assert "key" not in listed
        assert listed == {key: value for key, value in made.items() if key != "key"}
        assert (await site.get("/admin/keys/" + made["id"], headers=ADMIN)).json == listed
        await site.close()
        kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert b"Anna" in kept
        assert made["key"][8:].encode() not in kept

    async def test_the_first_key_closes_the_server(self, site):
        assert (await site.chat()).status == 200
        made = await site.create()
        assert (await site.chat()).status == 401
        assert (await site.chat(made["key"])).status == 200
        assert (await site.chat(made["key"] + "x")).error["code"] == "invalid_api_key"

    async def test_the_last_one_revoked_does_not_open_it(self, site):
        made = await site.create()
        found = await site.request("DELETE", "/admin/keys/" + made["id"], headers=ADMIN)
        assert (found.status, found.json["status"]) == (200, "revoked")
        refused = await site.chat(made["key"])
        assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
        assert "revoked" in refused.error["message"]
        assert (await site.chat()).status == 401

    async def test_an_expired_one_says_when(self, site, clock):
        made = await site.create(expires_at=int(NOON) + 60)
        assert (await site.chat(made["key"])).status == 200
        clock.now += 60
        assert "expired on 2026-11-24 at 12:01 UTC" in (await site.chat(made["key"])).error["message"]

    async def test_static_and_stored_keys_work_side_by_side(self, make):
        site = make(api_keys=("static",))
        made = await site.create()
        for key in ("static", made["key"]):
            assert (await site.chat(key)).status == 200

    async def test_rotation_keeps_what_was_stored_and_may_leave_time(self, site, clock):
        made = await site.create(models=["demo"])
        demo = site.app._served.find("demo").app
        await site.chat(made["key"])
        owner = demo.scope["extensions"]["langport"]["owner"]
        path = f"/admin/keys/{made['id']}/rotate"
        new = (await site.post(path, {"grace_s": 60}, headers=ADMIN)).json
        assert new["id"] == made["id"]
        assert new["key"] != made["key"]
        for secret in (made["key"], new["key"]):
            assert (await site.chat(secret)).status == 200
            assert demo.scope["extensions"]["langport"]["owner"] == owner
        clock.now += 60
        assert "newer secret" in (await site.chat(made["key"])).error["message"]
        newest = (await site.post(path, headers=ADMIN)).json
        assert (await site.chat(new["key"])).status == 401
        assert (await site.chat(made["key"])).status == 401
        assert (await site.chat(newest["key"])).status == 200

    async def test_changes_count_at_once(self, site):
        made = await site.create(requests_per_minute=5, max_concurrency=2)
        path = "/admin/keys/" + made["id"]
        changed = await site.post(path, {"models": ["other"], "requests_per_minute": None}, headers=ADMIN)
        assert (changed.json["requests_per_minute"], changed.json["max_concurrency"]) == (None, 2)
        assert (await site.chat(made["key"])).status == 403
        await site.post(path, {"models": None, "name": "new"}, headers=ADMIN)
        assert (await site.chat(made["key"])).status == 200
        assert (await site.get(path, headers=ADMIN)).json["name"] == "new"

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "name"),
            ({"name": " "}, "name"),
            ({"name": "a\nb"}, "name"),
            ({"name": "k", "modles": ["a"]}, "modles"),
            ({"name": "k", "models": []}, "models"),
            ({"name": "k", "expires_at": 1}, "expires_at"),
            ({"name": "k", "requests_per_minute": 0}, "requests_per_minute"),
            ({"name": "k", "budgets": [{"per": "week", "tokens": 1}]}, "budgets[0].per"),
            ({"name": "k", "budgets": [{"per": "day"}]}, "budgets"),
            ({"name": "k", "budgets": [{"per": "day", "tokens": 1, "x": 1}]}, "budgets[0].x"),
            ({"name": "k", "metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ],
    )
    async def test_what_is_wrong_is_named(self, site, body, param):
        found = await site.post("/admin/keys", body, headers=ADMIN)
        assert found.status == 400, found.body
        assert found.error["param"] == param, found.error
        assert (await site.get("/admin/keys", headers=ADMIN)).json["data"] == []

    async def test_a_key_that_is_not_there(self, site):
        await site.create()
        for method, path in (("GET", "x"), ("DELETE", "x"), ("POST", "x/rotate")):
            found = await site.request(method, "/admin/keys/" + path, b"{}", headers=ADMIN)
            assert (found.status, found.error["param"]) == (404, "id")

    async def test_a_revoked_one_stays_revoked(self, site):
        made = await site.create()
        path = "/admin/keys/" + made["id"]
        first = (await site.request("DELETE", path, headers=ADMIN)).json
        assert (await site.request("DELETE", path, headers=ADMIN)).json == first
        assert (await site.post(path, {"name": "x"}, headers=ADMIN)).status == 400
        assert (await site.post(path + "/rotate", headers=ADMIN)).status == 400

    async def test_work_on_behalf_of_a_key_ends_with_it(self, site):
        made = await site.create()
        await site.chat(made["key"])
        owner = site.app._served.find("demo").app.scope["extensions"]["langport"]["owner"]

        async def on_behalf():
            sent = []

            async def receive():
                return {"type": "http.request", "body": b'{"model": "demo"}'}

            async def send(message):
                sent.append(message)

            extension = {"langport": {"owner": owner, "priority": 0}}
            scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "extensions": extension}
            await site.app(scope, receive, send)
            return sent[0]["status"]

        assert await on_behalf() == 200
        await site.books.ledger.flush()
        assert [one.key_id for one in await site.store.requests(limit=9)] == [made["id"]] * 2
        await site.request("DELETE", "/admin/keys/" + made["id"], headers=ADMIN)
        assert await on_behalf() == 401


class TestModels:
    @pytest.fixture
    def site(self, make):
        return make(aliases={"alias": "demo", "second": "demo"})

    @pytest.mark.parametrize(
        ("models", "seen"),
        [
            (None, ["demo", "other", "alias", "second"]),
            (["demo"], ["demo", "alias", "second"]),
            (["alias"], ["alias"]),
            (["other", "nobody"], ["other"]),
        ],
    )
    async def test_a_key_sees_and_uses_only_its_own(self, site, models, seen):
        secret = (await site.create(models=models))["key"]
        assert await site.models(secret) == (200, seen)
        for name in ("demo", "other", "alias", "second"):
            found = await site.chat(secret, model=name)
            assert found.status == (200 if name in seen else 403)
            retrieved = await site.get("/v1/models/" + name, headers={"authorization": f"Bearer {secret}"})
            assert retrieved.status == (200 if name in seen else 404)
            for refused in (one for one in (found, retrieved) if one.status >= 400):
                assert refused.error["code"] == "model_not_found"
                assert refused.error["param"] == "model"

    async def test_it_does_not_learn_which_others_there_are(self, site):
        secret = (await site.create(models=["alias"]))["key"]
        refused, unknown = await site.chat(secret, model="other"), await site.chat(secret, model="nobody")
        assert (refused.status, unknown.status) == (403, 403)
        assert refused.error["message"].replace("other", "nobody") == unknown.error["message"]
        assert "demo" not in unknown.error["message"]

    async def test_a_name_in_the_path_is_no_way_around(self, site):
        secret = (await site.create(models=["other"]))["key"]
        for path in ("/v1/engines/demo/completions", "/openai/deployments/alias/chat/completions"):
            found = await site.post(path, {"model": "other"}, headers={"api-key": secret})
            assert found.status == 403


class TestSeveralProcesses:
    async def test_a_key_made_or_revoked_elsewhere_counts_within_a_second(self, make):
        first, second = make(), make()
        now = 0.0
        second.books.keys._timer = lambda: now
        assert (await second.chat()).status == 200
        made = await first.create()
        now += stored_keys.MAX_AGE_S
        assert (await second.chat()).status == 401
        assert (await second.chat(made["key"])).status == 200
        await first.request("DELETE", "/admin/keys/" + made["id"], headers=ADMIN)
        now += stored_keys.MAX_AGE_S
        assert "revoked" in (await second.chat(made["key"])).error["message"]

    async def test_a_key_made_elsewhere_works_at_once_where_keys_are_asked_for(self, make):
        first, second = make(), make()
        now = 0.0
        second.books.keys._timer = lambda: now
        await first.create()
        assert (await second.chat()).status == 401
        made = await first.create("new")
        now += stored_keys.ASK_FOR_NEW_S
        assert (await second.chat(made["key"])).status == 200

    async def test_wrong_keys_do_not_ask_the_store_each_time(self, make, monkeypatch):
        site = make()
        now = 0.0
        site.books.keys._timer = lambda: now
        await site.create()
        asked = []
        keys = site.books.keys._accounts.keys

        async def counted(version=0):
            asked.append(version)
            return await keys(version)

        monkeypatch.setattr(site.books.keys._accounts, "keys", counted)
        found = await asyncio.gather(*(site.chat("lp-wrong") for _ in range(20)))
        assert {each.status for each in found} == {401}
        assert len(asked) == 1
        now += stored_keys.ASK_FOR_NEW_S / 2
        assert (await site.chat("lp-wrong")).status == 401
        assert len(asked) == 1

    async def test_a_busy_server_asks_beside_its_requests(self, make):
        site = make()
        now = 0.0
        site.books.keys._timer = lambda: now
        await site.chat()
        other = make()
        await other.create()
        now += stored_keys.ASK_AFTER_S
        assert (await site.chat()).status == 200  # not waited for
        while site.books.keys._asking is not None:
            await asyncio.sleep(0)
        assert (await site.chat()).status == 401

    async def test_two_that_change_a_key_lose_nothing(self, make):
        first, second = make(), make()
        made = await first.create()
        path = "/admin/keys/" + made["id"]
        await asyncio.gather(
            first.request("DELETE", path, headers=ADMIN),
            *(second.post(path, {"name": f"n{n}"}, headers=ADMIN) for n in range(3)),
        )
        assert (await second.get(path, headers=ADMIN)).json["status"] == "revoked"

    async def test_what_others_use_counts_for_a_budget(self, make):
        first, second = make(), make()
        made = await first.create(budgets=[{"per": "day", "tokens": 100}])
        second.books.keys._timer = first.books.keys._timer = lambda: 10.0**9
        now = 0.0
        second.books.ledger._timer = lambda: now
        await second.books.keys.refresh()
        second.books.keys.apply((await first.books.book.list())[0])
        assert (await first.chat(made["key"])).status == 200
        await first.books.ledger.flush()
        assert (await second.chat(made["key"])).status == 429


class FailingStore:
    """Down while it is told to be."""

    def __init__(self, store):
        self._store = store
        self.is_down = False
        self.hangs = None

    def __getattr__(self, name):
        async def call(*arguments, **named):
            if self.hangs is not None:
                await self.hangs.wait()
            if self.is_down and name != "close":
                raise StoreUnavailable("The store is down.")
            return await getattr(self._store, name)(*arguments, **named)

        return call


class TestStoreDown:
    @pytest.fixture
    def failing(self, tmp_path, clock):
        return FailingStore(ThreadedStore(tmp_path / "s", clock))

    def later(self, site):
        """No answer of the store is fresh any more."""
        site.books.keys._timer = lambda: 10.0**9
        site.books.ledger._timer = lambda: 10.0**9

    async def test_known_keys_go_on_and_usage_is_written_later(self, make, failing):
        site = make(store=failing)
        made = await site.create(budgets=[{"per": "day", "tokens": 250}])
        await site.models(made["key"])
        failing.is_down = True
        self.later(site)
        for status in (200, 200, 200, 429):  # budgets go on counting
            assert (await site.chat(made["key"])).status == status
        assert (await site.chat("lp-unknown")).status == 401
        failing.is_down = False
        await site.books.ledger.flush()
        assert (await site.usage())[0]["num_requests"] == 3

    async def test_or_all_is_refused(self, make, failing):
        site = make(store=failing, on_failure="refuse")
        made = await site.create()
        await site.chat(made["key"])
        failing.is_down = True
        self.later(site)
        found = await site.chat(made["key"])
        assert found.status == 503
        assert "Keys cannot be checked" in found.error["message"]
        assert int(found.headers["retry-after"]) >= 1
        assert (await site.get("/health")).status == 200

    @pytest.mark.parametrize("on_failure", ["answer", "refuse"])
    async def test_a_server_that_never_read_its_keys_is_not_open(self, make, failing, on_failure):
        failing.is_down = True
        site = make(store=failing, on_failure=on_failure)
        for _ in range(2):
            assert (await site.chat()).status == 503
        failing.is_down = False
        self.later(site)
        assert (await site.chat()).status == 200

    async def test_a_store_that_hangs_is_waited_for_once(self, make, failing, monkeypatch):
        monkeypatch.setattr(stored_keys, "PATIENCE_S", 0.01)
        site = make(store=failing)
        made = await site.create()
        await site.chat(made["key"])
        await site.books.ledger.flush()
        failing.hangs = asyncio.Event()
        self.later(site)
        for _ in range(3):
            assert (await site.chat(made["key"])).status == 200
        failing.hangs.set()

    async def test_static_keys_need_no_store(self, make, failing):
        failing.is_down = True
        site = make(store=failing, on_failure="refuse", api_keys=("static",))
        assert (await site.chat("static")).status == 200


class TestUsage:
    async def test_every_request_is_written_down_with_its_cost(self, site, clock):
        made = await site.create(name="Anna")
        await site.chat(made["key"])
        clock.now += DAY
        await site.chat(made["key"])
        await site.chat(made["key"], model="other")
        await site.chat(made["key"], model="nobody")
        total = {"object": "usage", "num_requests": 3, "num_failed": 0, "num_estimated": 1}
        (found,) = await site.usage("?group_by=key")
        assert found.items() >= {**total, "key_id": made["id"], "key_name": "Anna"}.items()
        assert found["prompt_tokens"] >= 140
        assert found["cost"] == pytest.approx(2 * (70 * 10 + 30 * 100) / 1e6)
        days = [(one["day"], one["model"], one["num_requests"]) for one in await site.usage("?group_by=day,model")]
        assert days == [("2026-11-24", "demo", 1), ("2026-11-25", "demo", 1), ("2026-11-25", "other", 1)]
        assert (await site.usage("?from=2026-11-24&to=2026-11-24"))[0]["num_requests"] == 1
        assert (await site.usage(f"?model=other&key_id={made['id']}"))[0]["num_requests"] == 1
        assert (await site.usage("?key_id=nobody"))[0]["num_requests"] == 0
        (last, *_) = await site.store.requests(limit=1)
        assert (last.model, last.upstream, last.path, last.status) == ("other", "other", CHAT, 200)

    async def test_an_upstream_has_a_price_of_its_own_behind_that_of_the_settings(self, make):
        site = make(upstreams={name: FakeUpstream(answer({"usage": USAGE})) for name in ("demo", "far")})
        models = [dataclasses.replace(each, price=Price(3, 4)) for each in site.app.models]
        site.app.reload(site.settings, models)
        for model in ("demo", "far"):
            await site.chat(model=model)
        costs = {one["model"]: one["cost"] for one in await site.usage("?group_by=model")}
        assert costs["demo"] == pytest.approx((70 * 10 + 30 * 100) / 1e6)
        assert costs["far"] == pytest.approx((70 * 3 + 30 * 4) / 1e6)

    async def test_broken_ones_too(self, make):
        async def wait(receive, send):
            await receive()

        events = (b'data: {"choices":[]}\n\n',) * 3
        apps = {
            "gone": FakeUpstream(wait),
            "cut": FakeUpstream(stream(*events, then=StoreUnavailable("x"))),
            "down": FakeUpstream(answer({"error": {}}, status=503)),
        }
        site = make(upstreams=apps)
        for name in apps:
            await site.chat(model=name, leave_after=0 if name == "gone" else None)
        await site.books.ledger.flush()
        found = {one.model: one for one in await site.store.requests(limit=9)}
        assert {name: one.status for name, one in found.items()} == {"gone": 499, "cut": 200, "down": 503}
        assert found["cut"].completion_tokens == 3
        assert (found["down"].prompt_tokens, found["down"].is_estimated) == (0, False)

    async def test_work_that_outlives_its_request_is_written_down_at_its_end(self, make):
        from langport.types import TokenUsage

        work = asyncio.get_running_loop().create_future()
        tokens = [0]

        class Background(FakeUpstream):
            async def __call__(self, scope, receive, send):
                scope["extensions"]["langport"]["meter"](lambda: TokenUsage(5, tokens[0]), work)
                await super().__call__(scope, receive, send)

        site = make(upstreams={"demo": Background()})
        await site.chat()
        assert (await site.usage())[0]["num_requests"] == 0
        tokens[0] = 7
        work.set_result(None)
        await asyncio.sleep(0)
        assert (await site.usage())[0]["completion_tokens"] == 7

    async def test_it_is_in_the_store_without_being_asked_for(self, site, monkeypatch):
        monkeypatch.setattr("langport.gateway.ledger.WRITE_AFTER_S", 0.0)
        await site.chat()
        await asyncio.wait_for(asyncio.shield(site.books.ledger._writing), 10)
        assert len(await site.store.requests(limit=9)) == 1

    async def test_the_end_of_the_server_writes_what_waits(self, site, tmp_path, clock):
        await site.chat()
        await site.close()
        again = ThreadedStore(tmp_path / "store.db", clock)
        (total,) = await again.usage(UsageQuery(first_day=0, last_day=10**6))
        assert total.num_requests == 1
        await again.close()

    async def test_the_oldest_are_lost_when_too_many_wait(self, make, tmp_path, clock, monkeypatch):
        monkeypatch.setattr("langport.gateway.ledger.MAX_WAITING", 2)
        failing = FailingStore(ThreadedStore(tmp_path / "s", clock))
        site = make(store=failing)
        made = await site.create(budgets=[{"per": "day", "tokens": 250}])
        await site.models(made["key"])
        failing.is_down = True
        for status in (200, 200, 200, 200):  # two hundred tokens of the latest two are all that is known
            assert (await site.chat(made["key"])).status == status
        failing.is_down = False
        await site.books.ledger.flush()
        assert (await site.usage())[0]["prompt_tokens"] == 140

    async def test_single_requests_are_forgotten_in_time(self, site, clock):
        await site.chat()
        await site.books.ledger.flush()
        clock.now += 31 * DAY
        await site.chat()
        await site.books.ledger.flush()
        assert len(await site.store.requests(limit=9)) == 1
        assert (await site.usage("?from=2026-01-01"))[0]["num_requests"] == 2

    @pytest.mark.parametrize(
        ("query", "param"), [("?from=yesterday", "from"), ("?group_by=colour", "group_by"), ("?modle=x", "modle")]
    )
    async def test_what_is_wrong_is_named(self, site, query, param):
        found = await site.get("/admin/usage" + query, headers=ADMIN)
        assert (found.status, found.error["param"]) == (400, param)

    async def test_nothing_is_opened_while_no_key_was_made(self, make, tmp_path):
        site = make(tmp_path / "none.db")
        site.books._records_always = False
        await site.chat()
        await site.books.close()
        assert not (tmp_path / "none.db").exists()


class TestBudgets:
    @pytest.mark.parametrize(
        ("budget", "said", "end"),
        [
            ({"per": "day", "tokens": 150}, "200 of 150 tokens for this day", "2026-11-25"),
            ({"per": "month", "tokens": 101}, "200 of 101 tokens for this month", "2026-12-01"),
            ({"per": "day", "money": 0.005}, "0.01 of 0.01 of money for this day", "2026-11-25"),
        ],
    )
    async def test_one_that_is_used_up(self, site, clock, budget, said, end):
        secret = (await site.create(budgets=[{"per": "month", "tokens": 10**9}, budget]))["key"]
        for _ in range(2):
            assert (await site.chat(secret)).status == 200
        found = await site.chat(secret)
        assert found.status == 429
        assert (found.error["type"], found.error["code"]) == ("insufficient_quota", "insufficient_quota")
        assert said in found.error["message"]
        assert f"ends on {end} at 00:00 UTC" in found.error["message"]
        seconds = datetime.fromisoformat(end + "T00:00+00:00").timestamp() - NOON
        assert int(found.headers["retry-after"]) == seconds
        assert found.headers["x-should-retry"] == "false"
        assert (await site.models(secret))[0] == 200
        clock.now += seconds
        assert (await site.chat(secret)).status == 200

    async def test_the_store_remembers_what_was_used(self, make):
        first = make()
        secret = (await first.create(budgets=[{"per": "day", "tokens": 100}]))["key"]
        await first.chat(secret)
        await first.close()
        assert (await make().chat(secret)).status == 429

    async def test_other_keys_are_not_concerned(self, site):
        first, second = [(await site.create(budgets=[{"per": "day", "tokens": 50}]))["key"] for _ in range(2)]
        assert [(await site.chat(secret)).status for secret in (first, first, second)] == [200, 429, 200]


async def test_metrics_may_be_open(make):
    assert (await make(api_keys=("static",)).get("/metrics")).status == 401
    assert (await make(api_keys=("static",), metrics_without_key=True).get("/metrics")).status == 200


def test_static_keys_load_no_database_library(tmp_path):
    code = f"""
import asyncio, pathlib, sys
from langport.settings.tree import GatewaySettings, StoreSettings
from langport.gateway.app import Gateway
from langport.gateway.bookkeeping import Bookkeeping
from langport.store.threaded import ThreadedStore

async def main():
    statuses = []
    async def receive():
        return {{"type": "http.request", "body": b""}}
    async def send(message):
        statuses.append(message.get("status"))
    books = Bookkeeping(ThreadedStore(pathlib.Path({str(tmp_path / "none.db")!r})), StoreSettings(), {{}})
    gateway = Gateway([], GatewaySettings(api_keys=("static",)), books=books)
    for key in (b"Bearer static", b"Bearer other"):
        scope = {{"type": "http", "method": "GET", "path": "/v1/models", "headers": [(b"authorization", key)]}}
        await gateway(scope, receive, send)
    await books.close()
    print([status for status in statuses if status], sorted({{"sqlalchemy", "sqlite3", "alembic"}} & set(sys.modules)))

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[200, 401] []\n"
    assert not (tmp_path / "none.db").exists()
