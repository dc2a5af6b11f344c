"""Every endpoint that takes tokens tells a meter how they are counted: as its answer says, even a broken one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from langport.api.response_runs import Runs
from langport.api.response_store import ResponseStore
from langport.errors import EngineFailed
from langport.models.classification import Classification
from langport.store.threaded import ThreadedStore
from langport.types import TokenUsage

QUESTION = {"type": "predicate", "name": "q", "instructions": "Is it so?"}
MESSAGES = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 4, "n": 2},
    "/v1/completions": {"prompt": ["abc", "de"], "max_tokens": 4},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 16},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 4},
    "/v1/decisions": {"input": "x", "questions": [QUESTION]},
    "/v1/embeddings": {"input": ["abc", "de"]},
    "/v1/rerank": {"query": "abc", "documents": ["de", "f"]},
    "/v1/score": {"text_1": "abc", "text_2": ["de", "f"]},
    "/v1/classify": {"input": ["abc", "de"]},
}
OF_ENCODERS = ("/v1/embeddings", "/v1/rerank", "/v1/score", "/v1/classify")


class FakeMeter:
    def __init__(self) -> None:
        self.count: Callable[[], TokenUsage] = TokenUsage
        self.work: asyncio.Future[Any] | None = None

    def __call__(self, count: Callable[[], TokenUsage], work: asyncio.Future[Any] | None = None) -> None:
        self.count, self.work = count, work


def said(usage: dict[str, int]) -> TokenUsage:
    prompt = usage.get("prompt_tokens", usage.get("input_tokens", 0))
    return TokenUsage(prompt, usage.get("completion_tokens", usage.get("output_tokens", 0)))


@pytest.mark.parametrize("path", BODIES)
async def test_a_plain_answer(serve, path):
    classification = Classification(("no", "yes"), "softmax") if path == "/v1/classify" else None
    fake = serve(kind="encoder" if path in OF_ENCODERS else "decoder", classification=classification)
    meter = FakeMeter()
    reply = await fake.client.post(path, {"model": "fake", **BODIES[path]}, extension={"meter": meter})
    assert meter.count() == said(reply.json["usage"])
    assert meter.count().total_tokens > 0
    assert meter.work is None


@pytest.mark.parametrize("path", [path for path in BODIES if path not in (*OF_ENCODERS, "/v1/decisions")])
async def test_a_stream_without_usage_in_it(serve, path):
    fake = serve(lambda request, index: [ord("a")] * 20)
    meter = FakeMeter()
    body = {"model": "fake", **BODIES[path], "stream": True}
    await fake.client.post(path, body, extension={"meter": meter})
    num_sequences = sum(request.n for request in fake.engine.requests)
    num_prompt = sum(len(request.prompt_token_ids) for request in fake.engine.requests)
    assert meter.count() == TokenUsage(num_prompt, (16 if path == "/v1/responses" else 4) * num_sequences)


async def test_one_that_the_engine_breaks_off(serve):
    fake = serve(lambda request, index: [ord("a")] * 9, error=EngineFailed("broken"), error_after=3)
    meter = FakeMeter()
    body = {"model": "fake", "prompt": "abc", "max_tokens": 9, "stream": True}
    await fake.client.post("/v1/completions", body, extension={"meter": meter})
    assert meter.count() == TokenUsage(3, 3)


async def test_one_whose_client_leaves(serve):
    fake = serve(lambda request, index: [ord("a")] * 20)
    fake.engine.running.clear()
    meter = FakeMeter()
    body = {"model": "fake", "prompt": "abc", "stream": True}
    call = asyncio.create_task(fake.client.post("/v1/completions", body, extension={"meter": meter}))
    while not fake.engine.num_open:
        await asyncio.sleep(0)
    fake.client.left.set()
    await call
    assert meter.count() == TokenUsage(3, 0)


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens"])
async def test_counting_is_free(serve, path):
    meter = FakeMeter()
    await serve().client.post(path, {"model": "fake", "messages": MESSAGES}, extension={"meter": meter})
    assert meter.count() == TokenUsage()


async def test_a_response_in_the_background_is_counted_at_its_end(serve):
    store = ThreadedStore(None)
    fake = serve(lambda request, index: [ord("a")] * 20, runs=Runs(ResponseStore(store)))
    fake.engine.running.clear()
    meter = FakeMeter()
    body = {"model": "fake", **BODIES["/v1/responses"], "background": True}
    reply = await fake.client.post("/v1/responses", body, extension={"meter": meter, "owner": ""})
    assert reply.json["status"] == "queued"
    assert meter.count().completion_tokens == 0
    fake.engine.running.set()
    assert meter.work is not None
    await meter.work
    assert meter.count() == TokenUsage(len(fake.engine.requests[0].prompt_token_ids), 16)
    await store.close()
