"""Endpoints that belong to no model: how they are found, whose they are, and what their app is given."""

from __future__ import annotations

import pytest
from gateway_fakes import Client, FakeUpstream, answer

from langport.errors import InvalidRequest
from langport.gateway.app import Gateway
from langport.gateway.service import Endpoint, Service
from langport.gateway.upstream import Upstream
from langport.settings.tree import GatewaySettings

THINGS, THING = "/v1/things", "/v1/things/{thing_id}"


class FakeService:
    """Remembers its scope and the messages of the body, and answers."""

    def __init__(self):
        self.scope = {}
        self.messages = []
        self.error = None
        self.is_silent = False

    async def __call__(self, scope, receive, send):
        self.scope = scope
        self.messages.clear()
        while not self.messages or self.messages[-1].get("more_body"):
            self.messages.append(await receive())
        if self.error is not None:
            raise self.error
        if not self.is_silent:
            await answer({"ok": True})(receive, send)


class FakeRecorder:
    def __init__(self):
        self.num_calls = 0

    async def __call__(self, app, scope, receive, send):
        self.num_calls += 1
        await app(scope, receive, send)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def recorder() -> FakeRecorder:
    return FakeRecorder()


@pytest.fixture
def demo() -> FakeUpstream:
    return FakeUpstream()


def make(service, recorder, demo, **settings) -> Client:
    endpoints = [
        Endpoint("GET", THINGS),
        Endpoint("POST", THINGS, streams_body=True),
        Endpoint("GET", THING),
        Endpoint("POST", THING),
        Endpoint("GET", THING + "/parts/{part_id}"),
        Endpoint("GET", "/v1/chat/completions"),
    ]
    table = Service(service, endpoints, {"/v1/chat/completions": recorder})
    upstream = Upstream("demo", demo, card=dict, is_ready=lambda: (True, ""))
    return Client(Gateway([upstream], GatewaySettings(**settings), service=table))


@pytest.fixture
def client(service, recorder, demo) -> Client:
    return make(service, recorder, demo)


@pytest.mark.parametrize("prefix", ["/v1", "", "/openai/v1", "/openai"])
@pytest.mark.parametrize(
    ("path", "raw_path", "template", "ids"),
    [
        ("/things", None, "/v1/things", {}),
        ("/things/", None, "/v1/things", {}),
        ("/things/a-1", None, THING, {"thing_id": "a-1"}),
        ("/things/a b", "/things/a%20b", THING, {"thing_id": "a b"}),
        ("/things/a/b", "/things/a%2Fb", THING, {"thing_id": "a/b"}),
        ("/things/{thing_id}", None, THING, {"thing_id": "{thing_id}"}),
        ("/things/a/parts/7/", None, THING + "/parts/{part_id}", {"thing_id": "a", "part_id": "7"}),
    ],
)
async def test_paths(client, service, prefix, path, raw_path, template, ids):
    found = await client.get(prefix + path, raw_path=raw_path and prefix + raw_path)
    assert (found.status, service.scope["path"], service.scope["path_params"]) == (200, template, ids)


@pytest.mark.parametrize("path", ["/v1/things/a/b", "/v1/things/a/parts", "/v1/things//parts/1", "/v1/thing/a"])
async def test_unknown_paths(client, service, path):
    found = await client.get(path)
    assert (found.status, service.scope) == (404, {})


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/things/a", "GET, HEAD, POST"),
        ("POST", "/v1/things/a/parts/b", "GET, HEAD"),
        ("PUT", "/v1/chat/completions", "GET, HEAD, POST"),
    ],
)
async def test_wrong_methods(client, method, path, allowed):
    found = await client.request(method, path)
    assert (found.status, found.headers["allow"]) == (405, allowed)


async def test_metrics_hold_no_ids(client):
    await client.get("/v1/things/secret-id")
    text = (await client.get("/metrics")).body.decode()
    assert f'route="{THING}"' in text
    assert "secret-id" not in text


async def test_a_body_comes_whole_and_bounded(service, recorder, demo):
    client = make(service, recorder, demo, max_body_bytes=10)
    await client.post("/v1/things/a", chunks=[b"12345", b"678"])
    assert service.messages == [{"type": "http.request", "body": b"12345678", "more_body": False}]
    assert (await client.post("/v1/things/a", b"12345678901")).status == 413


async def test_or_as_it_is_sent_where_the_endpoint_says_so(service, recorder, demo):
    client = make(service, recorder, demo, max_body_bytes=10)
    await client.post("/v1/things", chunks=[b"12345678", b"9012345"])
    assert [message["body"] for message in service.messages] == [b"12345678", b"9012345"]


async def test_errors_are_told_as_everywhere(client, service):
    service.error = InvalidRequest("wrong", param="x")
    found = await client.get("/v1/things")
    assert (found.status, found.error["param"]) == (400, "x")
    service.error, service.is_silent = None, True
    assert (await client.get("/v1/things")).status == 500


class TestOwners:
    async def test_a_key_is_an_owner_and_not_told(self, service, recorder, demo):
        client = make(service, recorder, demo, api_keys=("one", "two"))
        owners = []
        for headers in ({"authorization": "Bearer one"}, {"api-key": "one"}, {"authorization": "Bearer two"}):
            await client.get("/v1/things", headers=headers)
            owners.append(service.scope["extensions"]["langport"]["owner"])
        assert owners[0] == owners[1] != owners[2]
        assert all(len(owner) == 64 for owner in owners)
        assert (await client.get("/v1/things", headers={"authorization": "Bearer x"})).status == 401

    async def test_an_open_server_has_one_owner(self, client, service):
        for headers in ({}, {"authorization": "Bearer whatever"}):
            await client.get("/v1/things", headers=headers)
            assert service.scope["extensions"]["langport"]["owner"] == ""

    async def test_upstreams_hear_of_it_too(self, service, recorder, demo):
        client = make(service, recorder, demo, api_keys=("one",))
        headers = {"authorization": "Bearer one"}
        await client.get("/v1/things", headers=headers)
        await client.post("/v1/chat/completions", {"model": "demo"}, headers=headers)
        owner = service.scope["extensions"]["langport"]["owner"]
        assert demo.scope["extensions"]["langport"]["owner"] == owner

    async def test_code_of_this_process_may_work_for_somebody(self, service, recorder, demo):
        client = make(service, recorder, demo, api_keys=("one",))

        async def as_owner(scope, receive, send):
            known = {"owner": "somebody", "priority": 7}
            await client.app({**scope, "extensions": {"langport": known, "other": {}}}, receive, send)

        found = await Client(as_owner).post("/v1/chat/completions", {"model": "demo"})
        assert found.status == 200
        extensions = demo.scope["extensions"]
        assert extensions["langport"].items() >= {"owner": "somebody", "priority": 7, "model": "demo"}.items()
        assert extensions["other"] == {}


@pytest.mark.parametrize(
    ("path", "body", "num_records"),
    [
        ("/v1/chat/completions", {"model": "demo", "store": True}, 1),
        ("/openai/deployments/demo/chat/completions", {"store": True}, 1),
        ("/v1/chat/completions", {"model": "demo", "store": False}, 0),
        ("/v1/chat/completions", {"model": "demo", "store": 1}, 0),
        ("/v1/chat/completions", {"model": "demo"}, 0),
        ("/v1/completions", {"model": "demo", "store": True}, 0),
    ],
)
async def test_what_is_recorded(client, recorder, demo, path, body, num_records):
    assert (await client.post(path, body)).status == 200
    assert (recorder.num_calls, demo.num_calls) == (num_records, 1)
