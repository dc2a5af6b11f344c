"""What goes wrong around an answer: clients that leave, engines that fail, long silences."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from langport.api import streaming
from langport.api.http import ClientWatch, read_body
from langport.errors import CheckpointError, EngineFailed, NotFound, Unavailable

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100}


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("steps", [0, 5])
@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_leaves_frees_the_engine(serve, stream, steps, n):
    fake = serve()
    if steps == 0:
        fake.engine.running.clear()
    call = asyncio.create_task(fake.client.post("/v1/chat/completions", {**CHAT, "stream": stream, "n": n}))
    while fake.engine.num_deltas < steps:
        await asyncio.sleep(0)
    fake.engine.running.clear()
    await settle()
    assert fake.engine.num_open == 1
    fake.client.left.set()
    reply = await asyncio.wait_for(call, 5)
    assert fake.engine.num_open == 0
    assert (fake.engine.requests[0].request_id, None) in fake.engine.aborted
    assert not reply.is_finished
    assert bool(reply.parts) == (stream and steps > 0)


async def test_a_client_that_leaves_frees_all_its_prompts(serve):
    fake = serve()
    body = {"prompt": ["a", "b", "c"], "max_tokens": 100}
    fake.engine.running.clear()
    call = asyncio.create_task(fake.client.post("/v1/completions", body))
    await settle()
    assert fake.engine.num_open == 3
    fake.client.left.set()
    await asyncio.wait_for(call, 5)
    assert fake.engine.num_open == 0
    assert len(fake.engine.aborted) == 3


async def test_a_client_that_leaves_ends_its_embedding(serve):
    fake = serve(kind="encoder")
    fake.engine.running.clear()
    call = asyncio.create_task(fake.client.post("/v1/embeddings", {"input": "a"}))
    await settle()
    fake.client.left.set()
    await asyncio.wait_for(call, 5)
    assert len(fake.engine.aborted) == 1


async def test_a_finished_answer_leaves_no_task_behind(serve, says):
    fake = serve(says("x"))
    await fake.chat(stream=True)
    await fake.complete(prompt=["a", "b"])
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_fails_at_once_is_a_plain_error(serve, stream):
    fake = serve(error=Unavailable("starting"))
    with pytest.raises(Unavailable):
        await fake.client.post("/v1/chat/completions", {**CHAT, "stream": stream})
    assert fake.client.received.status == 0


async def test_an_engine_that_fails_later_ends_the_stream_with_an_error(serve):
    fake = serve(error=EngineFailed("out of memory"), error_after=3)
    reply = await fake.client.post("/v1/chat/completions", {**CHAT, "stream": True})
    assert reply.events[-1] == {
        "error": {"message": "out of memory", "type": "server_error", "param": None, "code": None}
    }
    assert "[DONE]" not in reply.events
    assert all("error" not in chunk for chunk in reply.events[:-1])
    assert reply.is_finished


async def test_an_unexpected_error_is_logged_not_shown(serve, caplog):
    fake = serve(error=ZeroDivisionError("secret"), error_after=2)
    body = {**CHAT, "stream": True}
    reply = await fake.client.post("/v1/chat/completions", body, extension={"request_id": "req-7"})
    assert reply.events[-1]["error"]["type"] == "server_error"
    assert b"secret" not in reply.body
    assert "req-7" in caplog.text


async def test_silence_is_broken_by_comments(serve, monkeypatch):
    monkeypatch.setattr(streaming, "SILENCE_S", 0.01)
    fake = serve()
    fake.engine.running.clear()
    call = asyncio.create_task(fake.client.post("/v1/chat/completions", {**CHAT, "max_tokens": 2, "stream": True}))
    while len(fake.client.received.parts) < 3:
        await asyncio.sleep(0.005)
    assert set(fake.client.received.parts) == {b": ping\n\n"}
    assert fake.client.received.status == 200
    fake.engine.running.set()
    reply = await asyncio.wait_for(call, 5)
    assert reply.events[-1] == "[DONE]"


async def test_a_failure_after_a_comment_is_an_event(serve, monkeypatch):
    monkeypatch.setattr(streaming, "SILENCE_S", 0.01)
    fake = serve(error=EngineFailed("broken"))
    fake.engine.running.clear()
    call = asyncio.create_task(fake.client.post("/v1/chat/completions", {**CHAT, "stream": True}))
    while not fake.client.received.parts:
        await asyncio.sleep(0.005)
    fake.engine.running.set()
    reply = await asyncio.wait_for(call, 5)
    assert reply.events[-1]["error"]["message"] == "broken"


async def test_a_model_that_cannot_be_loaded_is_unavailable(serve, monkeypatch):
    fake = serve()

    async def fail() -> None:
        raise CheckpointError("model.safetensors is damaged")

    monkeypatch.setattr(fake.engine, "wait_ready", fail)
    with pytest.raises(Unavailable, match="damaged"):
        await fake.chat()


async def test_an_unknown_path_is_not_found(serve):
    with pytest.raises(NotFound):
        await serve().client.post("/v1/nothing", {})


async def test_a_body_may_come_in_parts_or_not_at_all():
    messages = [
        {"type": "http.request", "body": b'{"a":', "more_body": True},
        {"type": "http.request", "body": b"1}", "more_body": False},
    ]

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    assert await read_body(receive) == b'{"a":1}'
    assert await read_body(receive) is None


async def test_the_watch_takes_only_its_own_cancellation():
    left = asyncio.Event()

    async def receive():
        await left.wait()
        return {"type": "http.disconnect"}

    async def work() -> str:
        async with ClientWatch(receive):
            await asyncio.Event().wait()
        return "went on"

    task = asyncio.create_task(work())
    await settle()
    left.set()
    assert await task == "went on"

    left.clear()
    task = asyncio.create_task(work())
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("error", [None, EngineFailed("x")])
async def test_work_that_does_not_end_by_the_cancellation_leaves_none_behind(error):
    left = asyncio.Event()

    async def receive():
        await left.wait()
        return {"type": "http.disconnect"}

    async def work() -> str:
        async with ClientWatch(receive):
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            if error is not None:
                raise error
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        return "went on"

    task = asyncio.create_task(work())
    await settle()
    left.set()
    if error is None:
        assert await task == "went on"
    else:
        with pytest.raises(EngineFailed):
            await task
