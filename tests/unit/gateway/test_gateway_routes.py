"""Every spelling of a path, and the models behind it."""

from __future__ import annotations

import pytest
from gateway_fakes import FakeUpstream, make_client

OPERATIONS = ["/chat/completions", "/completions", "/embeddings"]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("prefix", ["/v1", "", "/openai", "/openai/v1"])
@pytest.mark.parametrize("end", ["", "/", "//"])
async def test_prefixes_and_slashes_at_the_end(client, demo, prefix, operation, end):
    found = await client.post(prefix + operation + end, {"model": "demo"})
    assert found.status == 200
    assert demo.scope["path"] == "/v1" + operation


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank", "/openai/v1/rerank"])
async def test_rerank_as_jinas_and_coheres_clients_spell_it(client, demo, path):
    assert (await client.post(path, {"model": "demo"})).status == 200
    assert demo.scope["path"] == "/v1/rerank"


@pytest.mark.parametrize("path", ["/score", "/classify"])
async def test_score_and_classify_without_a_version(client, demo, path):
    assert (await client.post(path, {"model": "demo"})).status == 200
    assert demo.scope["path"] == "/v1" + path


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
async def test_paths_outside_v1(client, demo, path):
    assert (await client.post(path, {"model": "demo"})).status == 200
    assert demo.scope["path"] == path


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("prefix", ["/v1/engines/", "/engines/", "/openai/deployments/"])
@pytest.mark.parametrize(
    ("path_id", "raw_id"),
    [
        ("demo", "demo"),
        ("org/name", "org/name"),
        ("org/name", "org%2Fname"),
        ("org/name", "org%2fname"),
        ("gpt-4", "gpt-4"),
    ],
)
@pytest.mark.parametrize("body", [{}, {"model": "ignored"}, {"model": 5}])
async def test_the_model_of_the_path_goes_before_the_bodys(prefix, operation, path_id, raw_id, body):
    upstreams = {"demo": FakeUpstream(), "org/name": FakeUpstream()}
    client = make_client(upstreams, aliases={"gpt-4": "demo"})
    found = await client.post(
        f"{prefix}{path_id}{operation}?api-version=2024-06-01", body, raw_path=f"{prefix}{raw_id}{operation}"
    )
    assert found.status == 200
    asked = upstreams["org/name" if path_id == "org/name" else "demo"]
    assert asked.num_calls == 1
    assert asked.scope["path"] == asked.scope["raw_path"].decode() == "/v1" + operation


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("prefix", ["/v1/engines/", "/engines/", "/openai/deployments/"])
@pytest.mark.parametrize("end", ["", "/", "//", "/?api-version=2024-06-01", "?api-version=2024-06-01&x=/embeddings"])
async def test_azure_clients_and_slashes_at_the_end(prefix, operation, end):
    upstream = FakeUpstream()
    client = make_client({"demo": upstream}, api_keys=["sk-1"])
    path = prefix + "demo" + operation + end
    assert (await client.post(path, {})).error["code"] == "invalid_api_key"
    raw_path = path.partition("?")[0]
    found = await client.post(path, {}, headers={"api-key": "sk-1"}, raw_path=raw_path)
    assert found.status == 200
    assert upstream.scope["path"] == "/v1" + operation
    assert upstream.scope["extensions"]["langport"]["model"] == "demo"


async def test_an_encoded_slash_is_part_of_the_id():
    upstreams = {"a": FakeUpstream(), "a/chat": FakeUpstream()}
    client = make_client(upstreams)
    path = "/v1/engines/a/chat/completions"
    await client.post(path, {}, raw_path="/v1/engines/a%2Fchat/completions")
    assert (upstreams["a"].num_calls, upstreams["a/chat"].num_calls) == (0, 1)
    await client.post(path, {})
    assert upstreams["a"].num_calls == 1


async def test_an_unknown_model_in_the_path(client):
    found = await client.post("/v1/engines/ada/completions", {"prompt": "x"})
    assert (found.status, found.error["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    "path", ["/", "/v2/chat/completions", "/v1/models/demo/x", "/v1/engines//completions", "/v1/x"]
)
async def test_unknown_paths_are_named(client, path):
    found = await client.post(path, {})
    assert found.status in (404, 405)
    assert found.error["code"] is None
    assert path in found.error["message"]


async def test_an_unknown_path_is_not_found_by_any_method(client):
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
        assert (await client.request(method, "/no/such/route")).status == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/chat/completions", "POST"),
        ("GET", "/completions", "POST"),
        ("GET", "/v1/engines/demo/embeddings", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/org/name", "GET, HEAD"),
        ("POST", "/health", "GET, HEAD"),
        ("OPTIONS", "/v1/models", "GET, HEAD"),
    ],
)
async def test_a_wrong_method(client, demo, method, path, allowed):
    found = await client.request(method, path, {"model": "demo"})
    assert found.status == 405
    assert found.headers["allow"] == allowed
    assert found.error["type"] == "invalid_request_error"
    assert method in found.error["message"]
    assert demo.num_calls == 0


@pytest.mark.parametrize("raw_path", [None, False])
async def test_below_the_mount_point_of_another_app(client, demo, raw_path):
    found = await client.post("/llm/v1/chat/completions", {"model": "demo"}, root_path="/llm", raw_path=raw_path)
    assert found.status == 200
    assert demo.scope["path"] == "/v1/chat/completions"
    found = await client.get("/llm/v1/models/org/name", root_path="/llm", raw_path=raw_path)
    assert found.json["id"] == "org/name"


class TestModels:
    async def test_the_list_holds_models_and_aliases(self, client):
        found = (await client.get("/v1/models")).json
        assert found["object"] == "list"
        assert [entry["id"] for entry in found["data"]] == ["demo", "org/name", "gpt-4"]
        for entry in found["data"]:
            assert entry["object"] == "model"
            assert entry["owned_by"] == "langport"
            assert isinstance(entry["created"], int)
            assert entry["max_model_len"] == 4096
        assert [entry["root"] for entry in found["data"]] == ["demo", "org/name", "demo"]

    @pytest.mark.parametrize(
        ("path", "raw_path", "name"),
        [
            ("/v1/models/demo", None, "demo"),
            ("/models/demo/", None, "demo"),
            ("/v1/models/gpt-4", None, "gpt-4"),
            ("/v1/models/org/name", None, "org/name"),
            ("/v1/models/org/name", "/v1/models/org%2Fname", "org/name"),
            ("/v1/models/org/name", False, "org/name"),
            ("/openai/models/demo?api-version=1", None, "demo"),
        ],
    )
    async def test_retrieve_gives_the_same_object(self, client, path, raw_path, name):
        listed = {entry["id"]: entry for entry in (await client.get("/v1/models")).json["data"]}
        found = await client.get(path, raw_path=raw_path)
        assert (found.status, found.json) == (200, listed[name])

    @pytest.mark.parametrize("name", ["no-such-model", "{id}", "org", "demo/x"])
    async def test_an_unknown_one(self, client, name):
        found = await client.get(f"/v1/models/{name}")
        assert (found.status, found.error["code"], found.error["param"]) == (404, "model_not_found", "model")

    async def test_an_id_with_a_percent_sign(self):
        client = make_client({"50%": FakeUpstream()})
        assert (await client.get("/v1/models/50%", raw_path="/v1/models/50%25")).json["id"] == "50%"
