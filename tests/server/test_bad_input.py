"""What a client gets for a bad request: status, type, param and code; and that the server goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.process import Server, error_of
from tests.server.test_models import CHAT, EMBED, TEXT2TEXT

CHATS, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
GOOD: dict[str, dict[str, Any]] = {
    CHATS: {"model": CHAT, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 2},
    COMPLETIONS: {"model": CHAT, "prompt": "Hello", "max_tokens": 2},
    EMBEDDINGS: {"model": EMBED, "input": "Hello"},
}
INVALID = "invalid_request_error"
LONG_TEXT = "zebra 7 quartz, " * 4000

NO_JSON = ["", "{", '{"model": }', "null", "[]", '"text"', '{"model": "langport-demo-chat"} x', "[" * 5000, "\x00"]
GENERATION_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 2.01}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_p": -1}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 1.5}, "n"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"min_tokens": 3}, "min_tokens"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop": ""}, "stop"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"9999999": 1}}, "logit_bias"),
    ({"seed": "x"}, "seed"),
    ({"bad_words": 5}, "bad_words"),
]
TABLE: list[tuple[str, dict[str, Any], str]] = [
    *((path, change, param) for path in (CHATS, COMPLETIONS) for change, param in GENERATION_FIELDS),
    *((path, {"model": change}, "model") for path in GOOD for change in (None, "", 7, ["a"])),
    (CHATS, {"messages": None}, "messages"),
    (CHATS, {"messages": []}, "messages"),
    (CHATS, {"messages": "Hello"}, "messages"),
    (CHATS, {"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    (CHATS, {"messages": [{"content": "x"}]}, "messages[0].role"),
    (CHATS, {"max_completion_tokens": 0}, "max_completion_tokens"),
    (CHATS, {"top_logprobs": 2}, "top_logprobs"),
    (CHATS, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (CHATS, {"logprobs": 3}, "logprobs"),
    (CHATS, {"response_format": {"type": "xml"}}, "response_format.type"),
    (CHATS, {"tools": "hammer"}, "tools"),
    (COMPLETIONS, {"prompt": []}, "prompt"),
    (COMPLETIONS, {"prompt": {"a": 1}}, "prompt"),
    (COMPLETIONS, {"prompt": [-1]}, "prompt[0]"),
    (COMPLETIONS, {"prompt": [1_000_000]}, "prompt"),
    (COMPLETIONS, {"prompt": ["a", 1]}, "prompt[1]"),
    (COMPLETIONS, {"logprobs": 6}, "logprobs"),
    (COMPLETIONS, {"best_of": 2, "n": 3}, "best_of"),
    (COMPLETIONS, {"best_of": 2, "stream": True}, "best_of"),
    (COMPLETIONS, {"suffix": "the end"}, "suffix"),
    (COMPLETIONS, {"echo": "yes"}, "echo"),
    (EMBEDDINGS, {"input": None}, "input"),
    (EMBEDDINGS, {"input": ""}, "input"),
    (EMBEDDINGS, {"input": []}, "input"),
    (EMBEDDINGS, {"input": ["a", ""]}, "input"),
    (EMBEDDINGS, {"input": [1_000_000]}, "input"),
    (EMBEDDINGS, {"input": ["a"] * 2049}, "input"),
    (EMBEDDINGS, {"dimensions": 0}, "dimensions"),
    (EMBEDDINGS, {"dimensions": 129}, "dimensions"),
    (EMBEDDINGS, {"encoding_format": "hex"}, "encoding_format"),
    (EMBEDDINGS, {"model": CHAT}, "model"),
    (CHATS, {"model": EMBED}, "model"),
    (COMPLETIONS, {"model": EMBED}, "model"),
]
TOO_LONG: list[tuple[str, dict[str, Any], str]] = [
    (CHATS, {"messages": [{"role": "user", "content": LONG_TEXT}]}, "messages"),
    (COMPLETIONS, {"prompt": LONG_TEXT}, "prompt"),
    (COMPLETIONS, {"prompt": [300] * 4097}, "prompt"),
    (COMPLETIONS, {"prompt": "say 1 " * 600, "model": TEXT2TEXT}, "prompt"),
    (EMBEDDINGS, {"input": ["Hello", LONG_TEXT]}, "input"),
]


def named(change: object) -> str:
    return json.dumps(change)[:60] if isinstance(change, dict) else str(change)


@pytest.fixture(autouse=True)
def the_server_goes_on(demo_server: Server) -> Iterator[None]:
    yield
    answer = demo_server.post(COMPLETIONS, **GOOD[COMPLETIONS])
    assert answer["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("path", GOOD)
def test_a_body_that_is_no_json_object(demo_server: Server, path: str) -> None:
    for body in NO_JSON:
        response = demo_server.http.post(path, content=body, headers={"Content-Type": "application/json"})
        assert error_of(response) == (400, INVALID, None, None), body[:40]
    response = demo_server.http.post(path, content=b'{"model": "\xff"}')
    assert error_of(response)[:2] == (400, INVALID)


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(("path", "change", "param"), TABLE, ids=named)
def test_a_field_at_fault_is_named(
    demo_server: Server, path: str, change: dict[str, Any], param: str, is_stream: bool
) -> None:
    streamed = {"stream": True} if is_stream and path != EMBEDDINGS and "stream" not in param else {}
    response = demo_server.http.post(path, json={**GOOD[path], **streamed, **change})
    assert error_of(response) == (400, INVALID, param, None)
    assert param in response.json()["error"]["message"]


@pytest.mark.parametrize("path", GOOD)
def test_an_unknown_model(demo_server: Server, path: str) -> None:
    response = demo_server.http.post(path, json={**GOOD[path], "model": "gpt-4"})
    assert error_of(response) == (404, INVALID, "model", "model_not_found")
    assert "gpt-4" in response.json()["error"]["message"]
    assert CHAT in response.json()["error"]["message"]


@pytest.mark.parametrize(("path", "change", "param"), TOO_LONG, ids=named)
def test_a_prompt_that_is_too_long(demo_server: Server, path: str, change: dict[str, Any], param: str) -> None:
    response = demo_server.http.post(path, json={**GOOD[path], **change})
    assert error_of(response) == (400, INVALID, param, "context_length_exceeded")
    assert "maximum context length" in response.json()["error"]["message"]


def test_a_body_that_is_too_large(demo_server: Server) -> None:
    size = 33 * 2**20
    declared = demo_server.http.post(COMPLETIONS, content=b" " * size)
    assert error_of(declared) == (413, INVALID, None, None)
    assert "--max-body-size" in declared.json()["error"]["message"]
    in_chunks = demo_server.http.post(COMPLETIONS, content=(b" " * 2**16 for _ in range(size // 2**16)))
    assert error_of(in_chunks) == (413, INVALID, None, None)


@pytest.mark.parametrize("path", ["/v1/nowhere", "/v1", "/v2/models", "/v1/chat", "/v1/completions/x", "/%2e%2e/x"])
def test_a_path_that_is_not_there(demo_server: Server, path: str) -> None:
    for method in ("GET", "POST"):
        assert error_of(demo_server.http.request(method, path)) == (404, INVALID, None, None)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", COMPLETIONS, "POST"),
        ("PUT", CHATS, "GET, HEAD, POST"),
        ("PUT", EMBEDDINGS, "POST"),
        ("DELETE", COMPLETIONS, "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", f"/v1/models/{CHAT}", "GET, HEAD"),
    ],
)
def test_a_method_that_is_not_possible(demo_server: Server, method: str, path: str, allowed: str) -> None:
    response = demo_server.http.request(method, path)
    assert error_of(response) == (405, INVALID, None, None)
    assert response.headers["allow"] == allowed


def test_what_nobody_documents_is_ignored_and_listed(demo_server: Server) -> None:
    for path, good in GOOD.items():
        response = demo_server.http.post(path, json={**good, "colour": "blue"})
        assert response.status_code == 200
        assert response.headers["x-langport-ignored"] == "colour"


def test_null_means_the_default(demo_server: Server) -> None:
    nulls = dict.fromkeys(("temperature", "top_p", "n", "stop", "stream", "seed", "logit_bias", "user", "logprobs"))
    for path in (CHATS, COMPLETIONS):
        demo_server.post(path, **GOOD[path], **nulls)
    demo_server.post(EMBEDDINGS, **GOOD[EMBEDDINGS], dimensions=None, encoding_format=None, user=None)
