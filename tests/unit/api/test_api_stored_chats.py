"""Chat completions that are kept: plain and streamed, of any upstream, seen by their owner alone."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import jsonschema
import pytest
from stored_fakes import CHATS, KEYS, Clock, Site, chunks, completion, until

from langport.api import stored_chats
from langport.api.stored import NothingStored
from langport.api.stored_chats import say_not_stored
from langport.store.threaded import ThreadedStore
from langport.wire.stored_chats import StreamedAnswer

SCHEMAS = json.loads((Path(__file__).parents[2] / "conformance" / "schemas.json").read_text())


def check_schema(document):
    jsonschema.Draft202012Validator({**SCHEMAS, "$ref": "#/$defs/CreateChatCompletionResponse"}).validate(document)


@pytest.fixture
async def site():
    made = Site()
    yield made
    await made.close()


async def test_a_plain_one(site):
    answer = (await site.chat("Hello", metadata={"k": "v"}, temperature=0.5, user="u", seed=3)).json()
    found = await site.get(f"{CHATS}/{answer['id']}")
    assert found.items() >= answer.items()
    assert (found["metadata"], found["temperature"], found["input_user"], found["seed"]) == ({"k": "v"}, 0.5, "u", 3)
    assert found["request_id"].startswith("req_")
    check_schema(found)


async def test_a_streamed_one_is_stored_as_if_it_were_plain(site):
    plain = (await site.chat("Hello")).json()
    streamed = await site.chat("Hello", stream=True)
    assert streamed.text.endswith("data: [DONE]\n\n")
    _, found = (await site.get(CHATS))["data"]
    assert found["choices"] == plain["choices"]
    assert found["object"] == "chat.completion"
    check_schema(found)


@pytest.mark.parametrize("fields", [{"store": False}, {"store": None}, {"store": "yes"}])
async def test_others_are_not_stored(site, fields):
    await site.chat(**fields)
    assert (await site.get(CHATS))["data"] == []


async def test_what_failed_is_not_stored(site):
    site.model.statuses = [400, 500]
    assert [(await site.chat()).status_code for _ in range(2)] == [400, 500]
    assert (await site.get(CHATS))["data"] == []


async def test_the_list(site):
    ids = [(await site.chat(f"{n}", metadata={"n": str(n % 2)})).json()["id"] for n in range(5)]
    found = await site.get(CHATS, limit=2)
    assert [one["id"] for one in found["data"]] == ids[:2]
    assert (found["object"], found["first_id"], found["last_id"], found["has_more"]) == ("list", ids[0], ids[1], True)
    rest = await site.get(CHATS, after=ids[1])
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (ids[2:], False)
    newest = await site.get(CHATS, order="desc", limit=1)
    assert newest["first_id"] == ids[4]
    odd = await site.get(CHATS, **{"metadata[n]": "1"})
    assert [one["id"] for one in odd["data"]] == [ids[1], ids[3]]
    assert (await site.get(CHATS, model="other")) == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    assert len((await site.get(CHATS, model="demo"))["data"]) == 5


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"order": "up"}, "order"),
        ({"after": "chatcmpl-unknown"}, "after"),
    ],
)
async def test_a_wrong_query_is_named(site, query, param):
    answer = await site.http.get(CHATS, params=query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_its_messages(site):
    parts = [{"type": "text", "text": "Hi"}]
    fields = {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": parts}]}
    id = (await site.chat(**fields)).json()["id"]
    found = await site.get(f"{CHATS}/{id}/messages")
    assert found["data"] == [
        {"id": f"{id}-0", "role": "system", "content": "Be kind.", "content_parts": None},
        {"id": f"{id}-1", "role": "user", "content": None, "content_parts": parts},
    ]
    second = await site.get(f"{CHATS}/{id}/messages", after=f"{id}-0", limit=1)
    assert (second["first_id"], second["has_more"]) == (f"{id}-1", False)
    assert (await site.get(f"{CHATS}/{id}/messages", order="desc"))["first_id"] == f"{id}-1"


async def test_its_metadata_is_replaced(site):
    id = (await site.chat(metadata={"a": "b"})).json()["id"]
    answer = await site.http.post(f"{CHATS}/{id}", json={"metadata": {"c": "d"}})
    assert answer.json()["metadata"] == {"c": "d"}
    assert (await site.get(f"{CHATS}/{id}"))["metadata"] == {"c": "d"}
    assert (await site.get(CHATS, **{"metadata[a]": "b"}))["data"] == []
    assert len((await site.get(CHATS, **{"metadata[c]": "d"}))["data"]) == 1


@pytest.mark.parametrize(
    "metadata",
    [{f"k{n}": "" for n in range(17)}, {"k" * 65: ""}, {"k": "v" * 513}, {"k": 1}, "text", [1]],
)
async def test_metadata_has_limits(site, metadata):
    id = (await site.chat()).json()["id"]
    answer = await site.http.post(f"{CHATS}/{id}", json={"metadata": metadata})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("metadata")
    fits = {f"{n:064}": "v" * 512 for n in range(16)}
    assert (await site.http.post(f"{CHATS}/{id}", json={"metadata": fits})).status_code == 200


async def test_it_is_deleted(site):
    id = (await site.chat()).json()["id"]
    answer = await site.http.delete(f"{CHATS}/{id}")
    assert answer.json() == {"id": id, "object": "chat.completion.deleted", "deleted": True}
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", ""), ("GET", "/messages")):
        answer = await site.http.request(method, f"{CHATS}/{id}{path}", json={"metadata": {}})
        assert answer.status_code == 404


async def test_another_key_does_not_see_it():
    site = Site(keys=KEYS)
    id = (await site.chat()).json()["id"]
    other = {"authorization": f"Bearer {KEYS[1]}"}
    assert (await site.http.get(CHATS, headers=other)).json()["data"] == []
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", ""), ("GET", "/messages")):
        answer = await site.http.request(method, f"{CHATS}/{id}{path}", json={"metadata": {}}, headers=other)
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")
    assert (await site.http.get(CHATS, headers={"authorization": "Bearer wrong"})).status_code == 401
    assert (await site.get(f"{CHATS}/{id}"))["id"] == id
    await site.close()


async def test_no_key_is_written_down(tmp_path):
    site = Site(tmp_path, keys=("sk-very-secret", "two"))
    await site.chat()
    await site.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    assert b"chatcmpl-1" in stored
    assert b"sk-very-secret" not in stored


async def test_it_outlives_the_server_and_not_its_retention(tmp_path):
    site = Site(tmp_path)
    id = (await site.chat()).json()["id"]
    await site.close()
    site = Site(tmp_path, retention_days=30)
    assert (await site.get(f"{CHATS}/{id}"))["id"] == id
    site.clock.now += 30 * 24 * 3600
    assert (await site.http.get(f"{CHATS}/{id}")).status_code == 404
    await site.close()


async def test_retention_0_keeps_it():
    site = Site(retention_days=0)
    await site.chat()
    site.clock.now = 1e10
    assert len((await site.get(CHATS))["data"]) == 1
    await site.close()


class TestWithoutTheStore:
    @pytest.fixture
    def broken(self, tmp_path):
        (tmp_path / "store.db").mkdir()
        return tmp_path

    async def test_the_answer_comes_all_the_same_and_the_log_says_it_once(self, broken, caplog):
        site = Site(broken)
        for _ in range(3):
            assert (await site.chat("Hello")).json()["choices"][0]["message"]["content"] == "echo: Hello"
        assert (await site.chat(stream=True)).text.endswith("data: [DONE]\n\n")
        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == 1
        assert "not stored" in errors[0].getMessage()
        answer = await site.http.get(CHATS)
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
        assert answer.headers["retry-after"]
        (broken / "store.db").rmdir()
        id = (await site.chat()).json()["id"]
        assert (await site.get(f"{CHATS}/{id}"))["id"] == id
        await site.close()

    async def test_a_strict_server_refuses_before_the_model_is_asked(self, broken):
        site = Site(broken, on_failure="refuse")
        assert (await site.chat()).status_code == 503
        assert site.model.calls == []
        assert (await site.chat(store=False)).status_code == 200
        await site.close()

    async def test_a_slow_store_delays_no_answer_for_long(self, monkeypatch):
        class Slow(ThreadedStore):
            async def put(self, record, items=()):
                await asyncio.sleep(0.3)
                await super().put(record, items)

        monkeypatch.setattr(stored_chats, "PATIENCE_S", 0.01)
        site = Site(store=Slow(None, Clock()))
        assert (await site.chat()).status_code == 200
        assert (await site.get(CHATS))["data"] == []
        await until(lambda: not site.stored.chats._writing)
        assert len((await site.get(CHATS))["data"]) == 1
        await site.close()

    async def test_what_is_being_written_at_the_end_is_written(self, monkeypatch, tmp_path):
        class Slow(ThreadedStore):
            async def put(self, record, items=()):
                await asyncio.sleep(0.1)
                await super().put(record, items)

        monkeypatch.setattr(stored_chats, "PATIENCE_S", 0.0)
        site = Site(store=Slow(tmp_path / "s", Clock()))
        await site.chat()
        await site.close()
        site = Site(store=ThreadedStore(tmp_path / "s", Clock()))
        assert len((await site.get(CHATS))["data"]) == 1
        await site.close()

    async def test_a_server_that_keeps_nothing_says_so(self):
        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x-langport-ignored", b"odd")]})

        sent = []

        async def send(message):
            sent.append(message)

        await say_not_stored(app, {}, receive, send)
        assert sent[0]["headers"] == [(b"x-langport-ignored", b"odd, store")]
        with pytest.raises(Exception, match="--store none"):
            await NothingStored()({}, receive, send)


@pytest.mark.parametrize("answer", [b"{", b"[]", b"{}", b'{"id": 5}', b'{"id": "x", "created": 1, "model": "m"}'])
async def test_an_upstreams_odd_answer_is_relayed_and_not_stored(answer):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer})

    site = Site(app=app)
    assert (await site.chat()).content == answer
    assert (await site.get(CHATS))["data"] == []
    await site.close()


async def test_a_compressed_answer_is_not_asked_for():
    seen = []

    async def app(scope, receive, send):
        seen.extend(name for name, _ in scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    site = Site(app=app)
    await site.chat()
    assert b"content-type" in seen
    assert b"accept-encoding" not in seen
    await site.close()


async def test_an_answer_with_somebody_elses_id_is_not_stored():
    async def app(scope, receive, send):
        body = json.dumps(completion({"model": "demo", "messages": [{"content": "x"}]}, "always-this")).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    site = Site(app=app, keys=KEYS)
    await site.chat(metadata={"mine": "yes"})
    other = {"authorization": f"Bearer {KEYS[1]}"}
    body = {"model": "demo", "messages": [], "store": True}
    assert (await site.http.post(CHATS, json=body, headers=other)).status_code == 200
    assert (await site.get(f"{CHATS}/always-this"))["metadata"] == {"mine": "yes"}
    await site.close()


BODY = {"model": "demo", "messages": [{"content": "Grüße\n\ndata: x"}]}


class TestFold:
    @pytest.mark.parametrize("size", [1, 7, 97, 100_000])
    def test_however_it_is_cut(self, size):
        data = b"".join(chunks(BODY, "a"))
        answer = StreamedAnswer()
        found = [
            answer.feed(data[start : start + size], is_last=start + size >= len(data))
            for start in range(0, len(data), size)
        ]
        (whole,) = [one for one in found if one is not None]
        assert whole["choices"] == completion(BODY, "a")["choices"]

    def test_crlf_comments_and_usage(self):
        usage = b'data: {"id":"a","choices":[],"usage":{"total_tokens":3}}\n\n'
        data = b": ping\n\n" + b"".join(chunks(BODY, "a")[:-1]) + usage + b"data: [DONE]\n\n"
        whole = StreamedAnswer().feed(data.replace(b"\n", b"\r\n"), is_last=True)
        assert whole["usage"] == {"total_tokens": 3}

    def test_one_that_breaks_off_is_none(self):
        *events, done = chunks(BODY, "a")
        error = b'data: {"error":{"message":"gone"}}\n\n'
        assert StreamedAnswer().feed(b"".join(events), is_last=True) is None
        assert StreamedAnswer().feed(b"".join(events[:-1]) + done, is_last=True) is None
        assert StreamedAnswer().feed(b"".join([*events, error, done]), is_last=True) is None

    def test_tool_calls_reasoning_and_log_probabilities_are_put_together(self):
        def event(delta, choice=0, reason=None, logprobs=None):
            choices = [{"index": choice, "delta": delta, "finish_reason": reason, "logprobs": logprobs}]
            return b"data: " + json.dumps({"id": "a", "choices": choices}).encode() + b"\n\n"

        def call(index, **fields):
            return {"tool_calls": [{"index": index, **fields}]}

        data = [
            event({"role": "assistant", "content": None}),
            event({"role": "assistant", "content": "b"}, 1, logprobs={"content": [{"token": "b"}]}),
            event({"reasoning": "I "}),
            event({"reasoning": "see"}),
            event(call(0, id="c0", type="function", function={"name": "f", "arguments": ""})),
            event(call(0, id="c0", type="function", function={"name": "f", "arguments": '{"a"'})),
            event(call(0, function={"arguments": ":1}"})),
            event(call(1, id="c1", type="function", function={"name": "g", "arguments": "{}"})),
            event({"content": "!"}, 1, logprobs={"content": [{"token": "!"}]}),
            event({}, 1, "stop"),
            event({}, 0, "tool_calls"),
            b"data: [DONE]\n\n",
        ]
        first, second = StreamedAnswer().feed(b"".join(data), is_last=True)["choices"]
        assert first["finish_reason"] == "tool_calls"
        assert first["message"] == {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "reasoning": "I see",
            "tool_calls": [
                {"id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                {"id": "c1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ],
        }
        assert second["message"]["content"] == "b!"
        assert second["logprobs"] == {"content": [{"token": "b"}, {"token": "!"}]}
