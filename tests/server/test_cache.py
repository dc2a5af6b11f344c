"""A server with a response cache: what comes again is what the model would say again, and only to who asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.process import DONE, Server, parsed, running

CHAT = {"model": "langport-demo-chat", "messages": [{"role": "user", "content": "What is your name?"}]}
ASKED = {**CHAT, "temperature": 0, "max_tokens": 20}
ANN, BOB = {"authorization": "Bearer ann"}, {"authorization": "Bearer bob"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    options = ("--response-cache", "16MiB", "--api-key", "ann", "--api-key", "bob", "--metrics-without-key")
    with running("langport-demo-chat", "langport-demo-embed", *options) as server:
        yield server


def post(server: Server, body: dict[str, Any], path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    answer = server.http.post(path, json=body, headers={**ANN, **headers})
    assert answer.status_code == 200, answer.text
    return answer


def result(answer: httpx.Response) -> str:
    return str(answer.headers["x-langport-cache"])


def without_ids(value: Any) -> Any:
    return {name: part for name, part in value.items() if name not in ("id", "created")}


def test_an_answer_comes_again_as_the_model_would_give_it(server: Server) -> None:
    first, second = post(server, ASKED), post(server, ASKED)
    fresh = post(server, ASKED, **{"cache-control": "no-store"})
    assert [result(each) for each in (first, second, fresh)] == ["miss", "hit", "bypass"]
    assert second.content == first.content
    assert int(second.headers["age"]) >= 0
    assert without_ids(second.json()) == without_ids(fresh.json())
    assert fresh.json()["id"] != first.json()["id"]


def test_another_key_starts_anew(server: Server) -> None:
    body = {**ASKED, "max_tokens": 3}
    assert [result(post(server, body, **key)) for key in (ANN, BOB, ANN, BOB)] == ["miss", "miss", "hit", "hit"]


def test_a_stream_comes_again_whole(server: Server) -> None:
    body = {**ASKED, "stream": True, "stream_options": {"include_usage": True}}
    first, second = post(server, body), post(server, body)
    fresh = post(server, body, **{"cache-control": "no-store"})
    assert [result(each) for each in (first, second, fresh)] == ["miss", "hit", "bypass"]
    assert second.content == first.content
    events = [[*parsed(iter(each.text.splitlines()))] for each in (second, fresh)]
    assert [each.pop() for each in events] == [DONE, DONE]
    assert [without_ids(event) for event in events[0]] == [without_ids(event) for event in events[1]]
    assert len(events[0]) > 5


def test_embeddings_and_seeded_answers_come_again_and_others_do_not(server: Server) -> None:
    embed = {"model": "langport-demo-embed", "input": ["Hello", "there"]}
    seeded, free = {**ASKED, "temperature": 1, "seed": 7}, {**CHAT, "max_tokens": 3}
    assert [result(post(server, embed, "/v1/embeddings")) for _ in range(2)] == ["miss", "hit"]
    assert [result(post(server, seeded)) for _ in range(2)] == ["miss", "hit"]
    assert [result(post(server, free)) for _ in range(2)] == ["bypass", "bypass"]


def test_a_response_and_a_message_come_again(server: Server) -> None:
    response = {"model": "langport-demo-chat", "input": "Hi", "temperature": 0, "max_output_tokens": 16, "store": False}
    message = {**CHAT, "temperature": 0, "max_tokens": 5}
    for path, body in (("/v1/responses", response), ("/v1/messages", message)):
        for changes in ({}, {"stream": True}):
            answers = [post(server, {**body, **changes}, path) for _ in range(2)]
            assert [result(each) for each in answers] == ["miss", "hit"], (path, changes)
            assert answers[0].content == answers[1].content
    assert result(post(server, {**response, "store": True}, "/v1/responses")) == "bypass"


def test_a_hit_is_counted_and_takes_no_tokens(server: Server) -> None:
    body = {**ASKED, "max_tokens": 4}
    post(server, body)
    hits = server.metric("langport_cache_requests_total", result="hit")
    tokens = server.metric("langport_generation_tokens_total", model="langport-demo-chat")
    for order in (body, dict(reversed(body.items()))):
        assert result(post(server, json.loads(json.dumps(order)))) == "hit"
    assert server.metric("langport_cache_requests_total", result="hit") == hits + 2
    assert server.metric("langport_generation_tokens_total", model="langport-demo-chat") == tokens
    assert server.metric("langport_cache_bytes") > 0
