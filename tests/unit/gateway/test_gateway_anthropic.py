"""Anthropic's paths: its key header, its errors for whatever goes wrong, its request-id."""

from __future__ import annotations

import pytest
from gateway_fakes import FakeUpstream, make_client, refuse, stream

from langport.errors import ApiError, EngineFailed, InvalidRequest, RateLimited, Unavailable

PATH = "/v1/messages"
GOOD = {"model": "demo", "max_tokens": 5, "messages": []}


def check_error(found, status, kind):
    assert found.status == status
    assert set(found.json) == {"type", "error", "request_id"}
    assert found.json["type"] == "error"
    assert found.json["error"]["type"] == kind
    assert found.json["error"]["message"]
    assert found.json["request_id"] == found.headers["request-id"] == found.headers["x-request-id"]


@pytest.mark.parametrize("operation", ["/messages", "/messages/count_tokens"])
@pytest.mark.parametrize("prefix", ["/v1", "", "/anthropic/v1", "/anthropic"])
@pytest.mark.parametrize("end", ["", "/", "?beta=true"])
async def test_every_spelling(client, demo, prefix, operation, end):
    found = await client.post(prefix + operation + end, GOOD)
    assert found.status == 200
    assert demo.scope["path"] == "/v1" + operation
    assert found.headers["request-id"] == found.headers["x-request-id"]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("x", param="messages"), 400, "invalid_request_error"),
        (RateLimited("x"), 429, "rate_limit_error"),
        (Unavailable("x"), 503, "overloaded_error"),
        (EngineFailed("x"), 500, "api_error"),
        (ApiError("x"), 500, "api_error"),
        (RuntimeError("x"), 500, "api_error"),
    ],
)
async def test_errors_of_the_model(error, status, kind):
    found = await make_client({"demo": refuse(error)}).post(PATH, GOOD)
    check_error(found, status, kind)
    assert ("retry-after" in found.headers) == (status in (429, 503))


async def test_errors_before_there_is_a_model(client):
    check_error(await client.post(PATH, {**GOOD, "model": "gpt-5"}), 404, "not_found_error")
    check_error(await client.post(PATH, b"{"), 400, "invalid_request_error")
    check_error(await client.post(PATH, {}), 400, "invalid_request_error")
    check_error(await client.get(PATH), 405, "invalid_request_error")
    check_error(await client.post("/v1/messages/batches", GOOD), 404, "not_found_error")
    check_error(await make_client(max_body_bytes=10).post(PATH, GOOD), 413, "request_too_large")


async def test_other_paths_have_openais_errors(client):
    for path in ("/v1/chat/completions", "/v1/messages2", "/v1/models/messages", "/v1/nothing/messages"):
        found = await client.post(path, {"model": "gpt-5"})
        assert found.error["message"]
        assert "request-id" not in found.headers


async def test_an_error_after_the_start_ends_the_stream():
    client = make_client({"demo": stream(b"event: ping\ndata: {}\n\n", then=EngineFailed("Broken."))})
    found = await client.post(PATH, GOOD)
    assert found.finished
    name, data = found.chunks[-1].removesuffix(b"\n\n").split(b"\n")
    assert name == b"event: error"
    assert data == (
        b'data: {"type":"error","error":{"type":"api_error","message":"Broken."},"request_id":"%b"}'
        % found.headers["request-id"].encode()
    )


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": "sk-1"}, 200),
        ({"authorization": "Bearer sk-1"}, 200),
        ({"api-key": "sk-1"}, 200),
        ({"x-api-key": "sk-2"}, 401),
        ({"x-api-key": " "}, 401),
        ({}, 401),
    ],
)
async def test_keys(headers, status):
    client = make_client({"demo": FakeUpstream()}, api_keys=["sk-1"])
    found = await client.post(PATH, GOOD, headers=headers)
    assert found.status == status
    if status == 401:
        check_error(found, 401, "authentication_error")
        assert "x-api-key" in found.json["error"]["message"]
    chat = await client.post("/v1/chat/completions", GOOD, headers=headers)
    assert chat.status == status
