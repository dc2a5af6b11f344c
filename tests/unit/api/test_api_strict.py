"""Fields that nobody documents: listed in a header, or refused where that is wanted."""

from __future__ import annotations

from typing import Any

import pytest
from stored_fakes import Site

from langport.errors import InvalidRequest

STRICT = {"is_strict": True}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi", "mood": "good"}], "colour": 1},
    "/v1/completions": {"prompt": "Hi", "stream": True, "stream_options": {"x": 1}, "colour": 1},
    "/v1/embeddings": {"input": "Hi", "colour": 1},
    "/v1/rerank": {"query": "Hi", "documents": [{"text": "Ho", "title": "No"}], "colour": 1},
    "/v1/score": {"text_1": "Hi", "text_2": "Ho", "colour": 1},
    "/v1/responses": {"input": [{"role": "user", "content": "Hi", "mood": "good"}], "colour": 1},
    "/v1/responses/input_tokens": {"input": "Hi", "colour": 1},
    "/v1/decisions": {"input": "Hi", "questions": [{"type": "predicate", "instructions": "Sure?"}], "colour": 1},
    "/tokenize": {"prompt": "Hi", "colour": 1},
    "/detokenize": {"tokens": [65], "colour": 1},
}
LISTED = {
    "/v1/chat/completions": "messages[0].mood, colour",
    "/v1/completions": "stream_options.x, colour",
    "/v1/rerank": "documents[0].title, colour",
    "/v1/responses": "input[0].mood, colour",
}


@pytest.fixture
def fakes(serve, says):
    """A fake model for each path; the arguments are those of the model."""

    def make(path: str, **options: Any) -> Any:
        is_encoder = path in ("/v1/embeddings", "/v1/rerank", "/v1/score")
        return serve(says("ok"), kind="encoder" if is_encoder else "decoder", **options)

    return make


@pytest.mark.parametrize("path", BODIES)
async def test_they_are_listed_with_their_places(fakes, path):
    reply = await fakes(path).client.post(path, {"model": "fake", **BODIES[path]})
    assert (reply.status, reply.headers["x-langport-ignored"]) == (200, LISTED.get(path, "colour"))


@pytest.mark.parametrize("path", BODIES)
async def test_a_strict_request_is_refused(fakes, path):
    fake = fakes(path)
    with pytest.raises(InvalidRequest, match="'colour'") as error:
        await fake.client.post(path, {"model": "fake", **BODIES[path]}, extension=STRICT)
    assert error.value.param == LISTED.get(path, "colour").partition(",")[0]
    assert error.value.code == "unknown_parameter"
    assert not fake.engine.requests
    assert not fake.engine.embed_requests


@pytest.mark.parametrize("path", BODIES)
async def test_what_is_documented_passes_a_strict_request(fakes, path):
    known = {name: value for name, value in BODIES[path].items() if name not in ("colour", "stream_options")}
    if "messages" in known:
        known["messages"] = [{"role": "user", "content": "Hi", "name": "Ann"}]
    if path == "/v1/rerank":
        known["documents"] = [{"text": "Ho"}]
    if path == "/v1/responses":
        part = {"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []}
        known["input"] = [{"role": "assistant", "id": "msg_1", "status": "completed", "content": [part]}]
    reply = await fakes(path).client.post(path, {"model": "fake", **known}, extension=STRICT)
    assert reply.status == 200
    assert "x-langport-ignored" not in reply.headers


async def test_a_message_names_some_of_many(serve, says):
    fake = serve(says("ok"))
    body = {"model": "fake", "prompt": "Hi", **{f"f{number}": 1 for number in range(500)}}
    with pytest.raises(InvalidRequest, match=r"'f0', 'f1'.* and 490 more"):
        await fake.client.post("/v1/completions", body, extension=STRICT)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]},
        {"input": [{"type": "code_interpreter_call", "id": "ci_1", "container_id": "c", "code": "1"}]},
    ],
)
async def test_what_is_documented_and_not_supported_is_refused_as_such(serve, wrong):
    with pytest.raises(InvalidRequest) as error:
        await serve().client.post("/v1/responses", {"model": "fake", "input": "Hi", **wrong}, extension=STRICT)
    assert error.value.code != "unknown_parameter"


async def test_stored_objects():
    site = Site()
    chat = (await site.chat()).json()["id"]
    file = (await site.upload("{}"))["id"]
    batch = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    calls: dict[str, dict[str, Any]] = {
        f"/v1/chat/completions/{chat}": {"json": {"metadata": {"a": "b"}, "colour": 1}},
        "/v1/batches": {"json": {**batch, "colour": 1}},
        "/v1/files": {"data": {"purpose": "batch", "colour": "1"}, "files": {"file": ("a.jsonl", b"{}")}},
    }
    for path, content in calls.items():
        listed = await site.http.post(path, **content)
        assert (listed.status_code, listed.headers["x-langport-ignored"]) == (200, "colour")
    kept = [await site.get(path) for path in ("/v1/batches", "/v1/files")]
    for path, content in calls.items():
        refused = await site.http.post(path, **content, headers={"x-langport-strict": "true"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "colour")
    assert [await site.get(path) for path in ("/v1/batches", "/v1/files")] == kept
    await site.close()
