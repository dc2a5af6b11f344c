"""Responses that outlive their request: continued, fetched, listed, worked on in the background, found again."""

from __future__ import annotations

import asyncio
from urllib.parse import urlencode

import pytest

from langport.api import response_runs
from langport.api.response_runs import STOPPED, Runs
from langport.api.response_store import PROMISE_S, ResponseStore
from langport.api.stored_call import StoredCall
from langport.api.stored_responses import StoredResponses
from langport.errors import EngineFailed, InvalidRequest, NotFound, StoreUnavailable
from langport.store.threaded import ThreadedStore
from langport.testing import Reply


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Failing(ThreadedStore):
    """A store that goes down when it is told to."""

    is_down = False

    async def _run(self, job):
        if self.is_down:
            raise StoreUnavailable("The disk is full.")
        return await super()._run(job)


class Server:
    """A server process: a fake model and the endpoints over one store."""

    def __init__(self, serve, script, store, clock, **options):
        self.runs = Runs(ResponseStore(store, clock=clock, refuses_unstored=options.pop("refuses", False)))
        self.model = serve(script, runs=self.runs, **options)
        self.engine = self.model.engine
        self.endpoints = StoredResponses(self.runs)

    async def create(self, input="Hi", **fields):
        return (await self.model.respond(input, **fields)).json

    async def call(self, name, id, *, owner="", **query):
        reply = Reply()

        async def send(message):
            if message["type"] == "http.response.start":
                reply.status = message["status"]
            else:
                reply.parts.append(message["body"])

        asked = urlencode(query).encode()
        await getattr(self.endpoints, name)(StoredCall("req", owner, {"response_id": id}, asked, {}, None, send))
        return reply

    async def get(self, id, **options):
        return (await self.call("retrieve", id, **options)).json

    async def status(self, id, status):
        """Wait for it."""
        while (found := await self.get(id))["status"] != status:
            assert found["status"] in ("queued", "in_progress")
            await asyncio.sleep(0.001)
        return found


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def store(tmp_path, clock):
    made = Failing(tmp_path / "store.db", clock)
    yield made
    await made.close()


@pytest.fixture
def server(serve, says, store, clock):
    return Server(serve, says("one", "two", "three"), store, clock)


# Kept, fetched, continued.


async def test_a_response_is_kept(server):
    made = await server.create(metadata={"a": "b"})
    assert made["store"] is True
    assert await server.get(made["id"]) == made


async def test_nobody_else_finds_it(server):
    made = await server.create(owner="me")
    for name in ("retrieve", "cancel", "delete", "input_items"):
        with pytest.raises(NotFound, match="not found"):
            await server.call(name, made["id"], owner="you")
    with pytest.raises(InvalidRequest) as refused:
        await server.create(previous_response_id=made["id"], owner="you")
    assert refused.value.code == "previous_response_not_found"
    assert (await server.get(made["id"], owner="me"))["id"] == made["id"]


async def test_one_that_is_not_to_be_kept_is_not(server):
    made = await server.create(store=False)
    with pytest.raises(NotFound):
        await server.get(made["id"])


async def test_the_end_of_a_stream_comes_after_the_response_is_kept(server):
    reply = await server.model.respond(stream=True)
    last = reply.events[-1]["response"]
    assert await server.get(last["id"]) == last


async def test_a_conversation_goes_on(server):
    first = await server.create("First", instructions="Be kind.")
    second = await server.create("Second", previous_response_id=first["id"])
    await server.create("Third", previous_response_id=second["id"], instructions="Be rude.")
    assert server.model.prompt_text() == (
        "<|im_start|>system\nBe rude.<|im_end|>\n"
        "<|im_start|>user\nFirst<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n"
        "<|im_start|>user\nSecond<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n<|im_start|>user\nThird<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert second["previous_response_id"] == first["id"]


async def test_a_conversation_without_its_beginning(server):
    first = await server.create("First")
    second = await server.create("Second", previous_response_id=first["id"])
    deleted = await server.call("delete", first["id"])
    assert deleted.json == {"id": first["id"], "object": "response", "deleted": True}
    with pytest.raises(InvalidRequest, match="not stored any more") as refused:
        await server.create("Third", previous_response_id=second["id"])
    assert refused.value.param == "previous_response_id"
    await server.create("Third", previous_response_id=second["id"], truncation="auto")
    assert "First" not in server.model.prompt_text()
    assert "Second" in server.model.prompt_text()


async def test_references_to_items(server):
    first = await server.create("First")
    output = first["output"][0]["id"]
    (listed,) = (await server.call("input_items", first["id"])).json["data"]
    await server.create(
        [{"type": "item_reference", "id": listed["id"]}, {"id": output}, {"role": "user", "content": "x"}]
    )
    assert server.model.prompt_text().count("<|im_start|>user\nFirst<|im_end|>\n<|im_start|>assistant\none") == 1
    with pytest.raises(InvalidRequest) as refused:
        await server.create([{"role": "user", "content": "x"}, {"type": "item_reference", "id": output[:-1] + "9"}])
    assert refused.value.param == "input[1]"


async def test_the_output_of_a_call_of_an_earlier_response(server):
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    first = await server.create([{"role": "user", "content": "x"}, call, {"role": "user", "content": "y"}])
    output = {"type": "function_call_output", "call_id": "c1", "output": "4"}
    await server.create([output], previous_response_id=first["id"])
    assert "<|im_start|>tool\n4<|im_end|>" in server.model.prompt_text()


async def test_input_items(server):
    items = [{"role": "user", "content": str(number)} for number in range(5)]
    id = (await server.create(items))["id"]
    found = (await server.call("input_items", id)).json
    assert [item["content"][0]["text"] for item in found["data"]] == ["4", "3", "2", "1", "0"]
    assert found["data"][0] == {
        "type": "message",
        "id": found["first_id"],
        "status": "completed",
        "role": "user",
        "content": [{"type": "input_text", "text": "4"}],
    }
    page = (await server.call("input_items", id, order="asc", limit=2)).json
    assert ([item["content"][0]["text"] for item in page["data"]], page["has_more"]) == (["0", "1"], True)
    rest = (await server.call("input_items", id, order="asc", after=page["last_id"])).json
    assert ([item["content"][0]["text"] for item in rest["data"]], rest["has_more"]) == (["2", "3", "4"], False)
    for query, param in (({"after": "nothing"}, "after"), ({"limit": 0}, "limit"), ({"order": "up"}, "order")):
        with pytest.raises(InvalidRequest) as refused:
            await server.call("input_items", id, **query)
        assert refused.value.param == param


async def test_a_store_that_is_down_costs_no_answer(server, store, caplog):
    store.is_down = True
    made = await server.create()
    assert (made["status"], made["store"]) == ("completed", False)
    assert "not stored" in caplog.text
    for fields in ({"background": True}, {"previous_response_id": "resp_1"}):
        with pytest.raises(StoreUnavailable):
            await server.create(**fields)
    store.is_down = False
    assert (await server.create())["store"] is True


async def test_unless_the_settings_say_so(serve, says, store, clock):
    server = Server(serve, says("one"), store, clock, refuses=True)
    store.is_down = True
    with pytest.raises(StoreUnavailable):
        await server.create()
    assert not server.engine.requests
    assert (await server.create(store=False))["status"] == "completed"


async def test_compaction_is_refused_by_name(server):
    with pytest.raises(InvalidRequest, match="/v1/responses/compact"):
        await server.call("compact", "")


# In the background.


async def test_a_response_in_the_background(server):
    server.engine.running.clear()
    made = await server.create(background=True)
    assert (made["status"], made["output"], made["background"]) == ("queued", [], True)
    assert (await server.get(made["id"]))["status"] == "queued"
    server.engine.running.set()
    done = await server.status(made["id"], "completed")
    assert done["output"][0]["content"][0]["text"] == "one"
    assert done["usage"]["output_tokens"] == 4
    await server.create("go on", previous_response_id=made["id"])


async def test_it_is_in_progress_once_there_is_something(server):
    server.engine.running.clear()
    made = await server.create(background=True)
    server.engine.running.set()
    await asyncio.sleep(0)
    while not server.engine.num_deltas:
        await asyncio.sleep(0)
    server.engine.running.clear()
    await server.status(made["id"], "in_progress")
    with pytest.raises(InvalidRequest, match="in_progress"):
        await server.create(previous_response_id=made["id"])
    server.engine.running.set()
    await server.status(made["id"], "completed")


async def test_it_goes_on_when_the_client_leaves(server):
    server.engine.running.clear()
    asking = asyncio.create_task(server.model.respond(background=True, stream=True))
    while len(server.model.client.received.events) < 2:
        await asyncio.sleep(0.001)
    server.model.client.left.set()
    await asking
    id = server.model.client.received.events[0]["response"]["id"]
    server.engine.running.set()
    await server.status(id, "completed")
    reply = await server.call("retrieve", id, stream="true", starting_after=1)
    assert [event["sequence_number"] for event in reply.events] == list(range(2, 2 + len(reply.events)))
    assert reply.events[0]["type"] == "response.in_progress"
    assert reply.events[-1]["type"] == "response.completed"
    whole = await server.call("retrieve", id, stream="true")
    assert whole.events[2:] == reply.events
    assert [event["type"] for event in whole.events[:2]] == ["response.created", "response.queued"]


async def test_followers_hear_what_is_still_to_come(server):
    server.engine.running.clear()
    asking = asyncio.create_task(server.model.respond(background=True, stream=True))
    while len(server.model.client.received.events) < 2:
        await asyncio.sleep(0.001)
    id = server.model.client.received.events[0]["response"]["id"]
    following = asyncio.create_task(server.call("retrieve", id, stream="true"))
    await asyncio.sleep(0.01)
    server.engine.running.set()
    assert (await following).events == (await asking).events


async def test_what_cannot_be_streamed_again(server, monkeypatch):
    monkeypatch.setattr(response_runs, "EVENTS_KEPT_S", 0.0)
    plain = await server.create()
    quiet = await server.create(background=True)
    gone = (await server.model.respond(background=True, stream=True)).events[0]["response"]
    await server.status(quiet["id"], "completed")
    await asyncio.sleep(0.01)
    for made in (plain, quiet, gone):
        with pytest.raises(InvalidRequest, match="retrieve it without stream") as refused:
            await server.call("retrieve", made["id"], stream="true")
        assert refused.value.param == "stream"
    with pytest.raises(InvalidRequest, match="starting_after"):
        await server.call("retrieve", plain["id"], starting_after=3)


async def test_cancelling(server):
    server.engine.running.clear()
    made = await server.create(background=True)
    while not server.engine.num_open:
        await asyncio.sleep(0)
    cancelled = (await server.call("cancel", made["id"])).json
    assert (cancelled["status"], cancelled["id"]) == ("cancelled", made["id"])
    assert server.engine.num_open == 0
    assert server.engine.aborted
    assert (await server.call("cancel", made["id"])).json == cancelled
    assert await server.get(made["id"]) == cancelled


async def test_what_is_not_cancelled(server):
    plain = await server.create()
    with pytest.raises(InvalidRequest, match="background"):
        await server.call("cancel", plain["id"])
    done = await server.create(background=True)
    await server.status(done["id"], "completed")
    assert (await server.call("cancel", done["id"])).json["status"] == "completed"


async def test_deleting_one_that_is_worked_on_ends_the_work(server):
    server.engine.running.clear()
    made = await server.create(background=True)
    await server.call("delete", made["id"])
    assert server.engine.num_open == 0
    with pytest.raises(NotFound):
        await server.get(made["id"])


async def test_a_failure_is_kept(serve, says, store, clock):
    server = Server(serve, says("one"), store, clock, error=EngineFailed("broken"))
    made = await server.create(background=True)
    failed = await server.status(made["id"], "failed")
    assert failed["error"] == {"code": "server_error", "message": "broken"}


async def test_a_server_that_stops_says_so(server):
    server.engine.running.clear()
    made = await server.create(background=True)
    await server.runs.drain(0)
    failed = await server.get(made["id"])
    assert (failed["status"], failed["error"]["message"]) == ("failed", STOPPED)


async def test_a_server_that_stops_waits_a_while(server):
    made = await server.create(background=True)
    await server.runs.drain(5)
    assert (await server.get(made["id"]))["status"] == "completed"


async def test_after_a_restart_it_has_failed(serve, says, store, clock, server):
    """The process that worked on it has died without a word."""
    server.engine.running.clear()
    made = await server.create(background=True)
    (run,) = server.runs._runs.values()
    restarted = Server(serve, says("one"), store, clock)
    assert (await restarted.get(made["id"]))["status"] == "queued"
    clock.now += PROMISE_S + 1
    failed = await restarted.get(made["id"])
    assert failed["status"] == "failed"
    assert "stopped" in failed["error"]["message"]
    assert await restarted.get(made["id"]) == failed
    server.engine.running.set()
    await run.stop()
    assert await restarted.get(made["id"]) == failed


async def test_another_process_may_cancel_it(serve, says, store, clock, server, monkeypatch):
    monkeypatch.setattr(response_runs, "PROMISE_S", 0.03)
    server.engine.running.clear()
    made = await server.create(background=True)
    while not server.engine.num_open:
        await asyncio.sleep(0)
    other = Server(serve, says("one"), store, clock)
    assert (await other.call("cancel", made["id"])).json["status"] == "cancelled"
    while server.engine.num_open:
        await asyncio.sleep(0.001)
    assert (await server.get(made["id"]))["status"] == "cancelled"


async def test_promises_are_renewed(serve, says, store, clock, server, monkeypatch):
    monkeypatch.setattr(response_runs, "PROMISE_S", 0.03)
    server.engine.running.clear()
    made = await server.create(background=True)
    clock.now += PROMISE_S - 1
    await asyncio.sleep(0.05)
    clock.now += PROMISE_S - 1
    assert (await Server(serve, says("one"), store, clock).get(made["id"]))["status"] == "queued"
    await server.runs.drain(0)
