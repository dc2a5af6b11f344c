"""What a request took in tokens: told by an upstream of this process, read from anybody else's answer, or estimated."""

from __future__ import annotations

import json

import pytest
from gateway_fakes import FakeUpstream, answer, make_client, refuse, stream

from langport.errors import Unavailable
from langport.gateway.upstream import Upstream
from langport.gateway.usage import TAIL_BYTES, UsageReader, estimate_prompt
from langport.types import TokenUsage

BODY = b'{"model": "demo", "messages": []}'
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
NOT_ASKED_FOR = TokenUsage(len(BODY) // 4, 3, is_estimated=True)


def read(data: bytes, size: int = 10**9) -> TokenUsage:
    reader = UsageReader(estimate_prompt(BODY))
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])
    return reader.usage()


def sse(*events: object) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


CHUNK = {"choices": [{"delta": {"content": "x"}}]}
CHUNK_WITHOUT_USAGE = {**CHUNK, "usage": None}
ANTHROPIC_START = {"type": "message_start", "message": {"usage": {"input_tokens": 5, "cache_read_input_tokens": 2}}}
ANTHROPIC_END = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 3}}
TOOL_NAMED_USAGE = {"parameters": {"properties": {"usage": {"type": "object"}}}}


@pytest.mark.parametrize("size", [1, 97, 100_000])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (json.dumps({"choices": [], "usage": USAGE}).encode(), TokenUsage(7, 3)),
        (json.dumps({"usage": USAGE, "choices": [], "id": "x"}, indent=1).encode(), TokenUsage(7, 3)),
        (sse(CHUNK_WITHOUT_USAGE, CHUNK, {"choices": [], "usage": USAGE}), TokenUsage(7, 3)),
        (sse({**CHUNK, "usage": {**USAGE, "completion_tokens": 1}}, {**CHUNK, "usage": USAGE}), TokenUsage(7, 3)),
        (json.dumps({"data": [0.5] * 9000, "usage": {"prompt_tokens": 7, "total_tokens": 7}}).encode(), TokenUsage(7)),
        (sse({"response": {"usage": {"input_tokens": 7, "output_tokens": 3}, "metadata": {}}}), TokenUsage(7, 3)),
        (json.dumps({"usage": USAGE, "tools": [TOOL_NAMED_USAGE]}).encode(), TokenUsage(7, 3)),
        (json.dumps({"usage": USAGE, "text": json.dumps({"usage": {"prompt_tokens": 1}})}).encode(), TokenUsage(7, 3)),
        (json.dumps({"usage": {**USAGE, "prompt_tokens": True}, "x": {"usage": USAGE}}).encode(), TokenUsage(7, 3)),
    ],
)
def test_usage_is_found_however_the_answer_is_cut(data, expected, size):
    assert read(data, size) == expected


def test_anthropics_usage_is_in_two_places():
    assert read(sse(ANTHROPIC_START, *[CHUNK] * 500, ANTHROPIC_END), 150) == TokenUsage(7, 3)


@pytest.mark.parametrize(
    "data",
    [
        sse(CHUNK, CHUNK, CHUNK),
        sse(*[CHUNK_WITHOUT_USAGE] * 3),
        sse(CHUNK, CHUNK, CHUNK) + b'data: {"usage": {"prompt_tok',
        sse({"delta": json.dumps({"usage": USAGE})}, {"delta": '"usage":{"prompt_tokens":1}'}, {"usage": "usage"}),
    ],
)
def test_a_stream_without_usage_is_estimated_by_its_events(data):
    found = read(data, 97)
    assert found.is_estimated
    assert found.prompt_tokens == NOT_ASKED_FOR.prompt_tokens
    assert found.completion_tokens in (3, 4)


@pytest.mark.parametrize("count", [10**30, -1, 1.5, "7", True])
def test_a_count_that_is_none_is_estimated(count):
    data = json.dumps({"usage": {"prompt_tokens": count, "completion_tokens": count}}).encode()
    assert read(data) == TokenUsage(len(BODY) // 4, len(data) // 4, is_estimated=True)


def test_an_answer_that_says_nothing_is_estimated_by_its_size():
    assert read(b"x" * 400) == TokenUsage(len(BODY) // 4, 100, is_estimated=True)
    assert read(b"") == TokenUsage(len(BODY) // 4, 0, is_estimated=True)


def test_what_is_kept_of_an_answer_is_bounded():
    reader = UsageReader(estimate_prompt(BODY))
    for _ in range(1000):
        reader.feed(b"x" * 1000)
    assert sum(map(len, reader._chunks)) < 2 * TAIL_BYTES + 1000
    assert reader.usage().completion_tokens == 1000 * 1000 // 4


def test_images_in_a_request_are_no_text():
    url = "data:image/png;base64," + "A" * 40_000
    body = json.dumps({"messages": [{"content": [{"image_url": {"url": url}}, {"text": "t" * 400}]}]}).encode()
    assert 100 <= estimate_prompt(body) < 200


class TestExchange:
    """What is on the exchange when a request has ended, as limits and logs read it."""

    @pytest.fixture
    def usages(self, monkeypatch):
        found = []
        monkeypatch.setattr(
            "langport.gateway.app.Gateway._record",
            lambda self, exchange: found.append((exchange.status, exchange.usage)),
        )
        return found

    async def test_a_plain_answer(self, usages):
        await make_client({"demo": answer({"usage": USAGE})}).post("/v1/chat/completions", BODY)
        assert usages == [(200, TokenUsage(7, 3))]

    async def test_a_stream(self, usages):
        client = make_client({"demo": stream(*[sse(CHUNK)[:40], sse(CHUNK)[40:]], sse({"usage": USAGE}))})
        await client.post("/v1/chat/completions", BODY)
        assert usages == [(200, TokenUsage(7, 3))]

    async def test_a_stream_that_breaks_off(self, usages):
        script = stream(b"data: {}\n\n", b"data: {}\n\n", then=Unavailable("gone"))
        await make_client({"demo": script}).post("/v1/chat/completions", BODY)
        assert usages == [(200, TokenUsage(len(BODY) // 4, 2, is_estimated=True))]

    async def test_a_client_that_leaves_has_sent_its_prompt(self, usages):
        async def wait(receive, send):
            assert (await receive())["type"] == "http.disconnect"

        await make_client({"demo": wait}).post("/v1/chat/completions", BODY, leave_after=0)
        assert usages == [(499, TokenUsage(len(BODY) // 4, 0, is_estimated=True))]

    @pytest.mark.parametrize("script", [refuse(Unavailable("down")), answer({"error": {}, "usage": USAGE}, status=400)])
    async def test_what_was_refused_takes_nothing(self, usages, script):
        await make_client({"demo": script}).post("/v1/chat/completions", BODY)
        assert [usage for _, usage in usages] == [TokenUsage()]

    @pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens", "/v1/responses/input_tokens"])
    async def test_counting_takes_nothing(self, usages, path):
        await make_client({"demo": answer({"input_tokens": 9})}).post(path, BODY)
        assert usages == [(200, TokenUsage())]

    async def test_an_upstream_of_this_process_counts_itself(self, usages):
        class Metering(FakeUpstream):
            async def __call__(self, scope, receive, send):
                counted = TokenUsage(1, 1)
                scope["extensions"]["langport"]["meter"](lambda: counted)
                await super().__call__(scope, receive, send)
                counted = TokenUsage(4, 2)

        metering = Upstream("demo", Metering(stream(sse({"usage": USAGE}))), dict, lambda: (True, ""), is_metered=True)
        await make_client({"demo": metering}).post("/v1/chat/completions", BODY)
        assert usages == [(200, TokenUsage(4, 2))]

    async def test_a_request_that_no_model_answers_takes_nothing(self, usages, client):
        await client.get("/v1/models")
        await client.post("/v1/chat/completions", b'{"model": "nobody"}')
        assert usages == [(200, TokenUsage()), (404, TokenUsage())]
