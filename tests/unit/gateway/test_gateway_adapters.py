"""Adapters that come and go: the table of names, and the two paths that change it."""

from __future__ import annotations

import asyncio

import pytest
from gateway_fakes import FakeUpstream, answer, make_client

from langport.errors import ConfigError, InvalidRequest, Unavailable
from langport.gateway.models import Served
from langport.gateway.upstream import Upstream

LOAD, UNLOAD, CHAT = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/chat/completions"


class Base:
    """A model that takes adapters, and remembers those it was given and freed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.loaded: list[tuple[str, str]] = []
        self.freed: list[str] = []
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def load_adapter(self, name: str, path: str) -> Upstream:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.loaded.append((name, path))
        script = FakeUpstream(answer({"from": path}))
        return Upstream(
            name, script, card=lambda: {"parent": self.name}, is_ready=lambda: (True, ""),
            unload=lambda: self.freed.append(path),
        )  # fmt: skip

    def upstream(self) -> Upstream:
        return Upstream(
            self.name, FakeUpstream(), card=dict, is_ready=lambda: (True, ""), load_adapter=self.load_adapter
        )


@pytest.fixture
def base() -> Base:
    return Base("base")


@pytest.fixture
def client(base):
    upstreams = {"base": base.upstream(), "embedder": FakeUpstream()}
    return make_client(upstreams, aliases={"alias": "base"}, allow_adapter_updates=True)


async def load(client, name="polite", path="/p", **more):
    return await client.post(LOAD, {"lora_name": name, "lora_path": path, **more})


async def names(client):
    return [entry["id"] for entry in (await client.get("/v1/models")).json["data"]]


async def ask(client, name):
    return await client.post(CHAT, {"model": name})


async def test_one_is_added_served_listed_and_removed(client, base):
    found = await load(client)
    assert (found.status, found.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert found.body == b"Success: LoRA adapter 'polite' added successfully."
    assert base.loaded == [("polite", "/p")]
    assert await names(client) == ["base", "embedder", "polite", "alias"]
    entry = (await client.get("/v1/models/polite")).json
    assert (entry["parent"], entry["root"], entry["object"]) == ("base", "polite", "model")
    assert (await ask(client, "polite")).json == {"from": "/p"}
    assert b'langport_model_ready{model="polite"} 1.0' in (await client.get("/metrics")).body
    gone = await client.post(UNLOAD, {"lora_name": "polite"})
    assert gone.body == b"Success: LoRA adapter 'polite' removed successfully."
    assert base.freed == ["/p"]
    assert await names(client) == ["base", "embedder", "alias"]
    assert (await ask(client, "polite")).error["code"] == "model_not_found"
    assert b'langport_model_ready{model="polite"}' not in (await client.get("/metrics")).body
    assert (await client.get("/ready")).status == 200


@pytest.mark.parametrize("prefix", ["", "/v1", "/openai/v1"])
async def test_the_paths_have_the_spellings_of_the_others(client, prefix):
    body = {"lora_name": "a", "lora_path": "/a"}
    assert (await client.post(f"{prefix}/load_lora_adapter/", body)).status == 200
    assert (await client.get(f"{prefix}/load_lora_adapter")).status == 405


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
async def test_without_the_setting_they_say_how_to_allow_them(path, base):
    found = await make_client({"base": base.upstream()}).post(path, {"lora_name": "a", "lora_path": "/a"})
    assert found.status == 403
    assert "--allow-adapter-updates" in found.error["message"]
    assert "LANGPORT_ALLOW_ADAPTER_UPDATES" in found.error["message"]
    assert base.loaded == []


async def test_a_key_is_needed_where_the_server_has_one(base):
    client = make_client({"base": base.upstream()}, allow_adapter_updates=True, api_keys=["sk-1"])
    assert (await load(client)).status == 401


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"lora_path": "/p"}, "lora_name"),
            ({"lora_name": "", "lora_path": "/p"}, "lora_name"),
            ({"lora_name": "x" * 257, "lora_path": "/p"}, "lora_name"),
            ({"lora_name": "a\nb", "lora_path": "/p"}, "lora_name"),
            ({"lora_name": " a", "lora_path": "/p"}, "lora_name"),
            ({"lora_name": "a"}, "lora_path"),
            ({"lora_name": "a", "lora_path": 5}, "lora_path"),
            ({"lora_name": "a", "lora_path": "/p", "load_inplace": "yes"}, "load_inplace"),
            ({"lora_name": "base", "lora_path": "/p"}, "lora_name"),
            ({"lora_name": "base", "lora_path": "/p", "load_inplace": True}, "lora_name"),
            ({"lora_name": "alias", "lora_path": "/p", "load_inplace": True}, "lora_name"),
            ({"lora_name": "a", "lora_path": "/p", "base_model_name": "embedder"}, "base_model_name"),
            (b"{", None),
        ],
    )
    async def test_what_is_wrong_is_named(self, client, base, body, param):
        found = await client.post(LOAD, body)
        assert (found.status, found.error["param"]) == (400, param)
        assert base.loaded == []

    async def test_an_unknown_base(self, client):
        found = await load(client, base_model_name="nobody")
        assert (found.status, found.error["param"], found.error["code"]) == (404, "base_model_name", "model_not_found")

    async def test_an_adapter_is_no_base(self, client):
        await load(client)
        found = await load(client, "second", base_model_name="polite")
        assert found.status == 400
        assert "adapter of base" in found.error["message"]

    async def test_several_bases_and_none(self, base):
        other = Base("other")
        both = {"base": base.upstream(), "other": other.upstream()}
        client = make_client(both, allow_adapter_updates=True, aliases={"alias": "other"})
        found = await load(client)
        assert (found.status, found.error["param"]) == (400, "base_model_name")
        assert "base, other" in found.error["message"]
        assert (await load(client, base_model_name="alias")).status == 200
        assert other.loaded == [("polite", "/p")]
        assert (await load(client, path="/2", load_inplace=True)).status == 200  # the base of the one that it replaces
        assert other.loaded == [("polite", "/p"), ("polite", "/2")]
        none = make_client({"embedder": FakeUpstream()}, allow_adapter_updates=True)
        assert "only decoder-only models" in (await load(none)).error["message"]

    @pytest.mark.parametrize("error", [InvalidRequest("no adapter", param="lora_path"), Unavailable("restarting")])
    async def test_a_load_that_fails_changes_nothing(self, client, base, error):
        await load(client)
        base.error = error
        for found in (await load(client, path="/2", load_inplace=True), await load(client, "second")):
            assert (found.status, found.error["param"]) == (error.status, error.param)
        assert await names(client) == ["base", "embedder", "polite", "alias"]
        assert (await ask(client, "polite")).json == {"from": "/p"}
        assert base.freed == []

    @pytest.mark.parametrize(("name", "status"), [("nobody", 404), ("base", 400), ("alias", 404)])
    async def test_only_adapters_are_unloaded(self, client, name, status):
        found = await client.post(UNLOAD, {"lora_name": name})
        assert (found.status, found.error["param"]) == (status, "lora_name")


async def test_a_name_that_is_taken_needs_load_inplace(client, base):
    await load(client)
    found = await load(client, path="/2")
    assert (found.status, found.error["param"]) == (400, "lora_name")
    assert "load_inplace" in found.error["message"]
    assert (await load(client, path="/2", load_inplace=True)).status == 200
    assert base.freed == ["/p"]
    assert (await ask(client, "polite")).json == {"from": "/2"}
    assert (await names(client)).count("polite") == 1


async def test_two_loads_of_one_name_at_once_do_not_both_win(client, base):
    base.gate.clear()
    loads = [asyncio.create_task(load(client, path=path)) for path in ("/1", "/2")]
    await asyncio.sleep(0)
    base.gate.set()
    assert [found.status for found in await asyncio.gather(*loads)] == [200, 400]
    assert base.loaded == [("polite", "/1")]


async def test_an_alias_waits_for_the_adapter_it_leads_to(base):
    adapter = await base.load_adapter("polite", "/p")
    client = make_client(
        {"base": base.upstream(), "polite": adapter}, aliases={"nice": "polite"}, allow_adapter_updates=True
    )
    assert (await ask(client, "nice")).json == {"from": "/p"}
    await client.post(UNLOAD, {"lora_name": "polite"})
    assert await names(client) == ["base"]
    assert (await ask(client, "nice")).status == 404
    assert (await load(client, "nice")).status == 400
    await load(client, path="/2")
    assert await names(client) == ["base", "polite", "nice"]
    assert (await ask(client, "nice")).json == {"from": "/2"}


def plain(name: str) -> Upstream:
    return Upstream(name, FakeUpstream(), card=dict, is_ready=lambda: (True, ""))


def test_the_whole_table_is_replaced_or_not_at_all():
    served = Served([plain("a"), plain("b")], {"x": "a"})
    served.update([plain("b"), plain("c")], {"x": "c"})
    assert [entry["id"] for entry in served.entries()] == ["b", "c", "x"]
    assert served.find("x").name == "c"
    with pytest.raises(ConfigError) as caught:
        served.update([plain("d"), plain("d")], {"d": "d", "y": "nobody"})
    assert len(caught.value.problems) == 3
    assert [entry["id"] for entry in served.entries()] == ["b", "c", "x"]


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
async def test_fields_that_nobody_documents_are_listed_or_refused(client, base, path):
    await load(client)
    body = {"lora_name": "polite", "lora_path": "/q", "load_inplace": True}
    if path == UNLOAD:
        body = {"lora_name": "polite"}
    refused = await client.post(path, {**body, "colour": 1}, headers={"x-langport-strict": "true"})
    assert (refused.status, refused.error["param"], refused.error["code"]) == (400, "colour", "unknown_parameter")
    assert base.freed == []
    listed = await client.post(path, {**body, "colour": 1})
    assert (listed.status, listed.headers["x-langport-ignored"]) == (200, "colour")
