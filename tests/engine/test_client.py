"""The engine's process: started, asked, left by its clients, killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from langport.config import EngineSettings
from langport.engine.client import EngineClient
from langport.engine.spawner import Spawner
from langport.errors import CheckpointError, EngineFailed, Unavailable
from langport.types import EmbedRequest, GenerateRequest, SamplingParams

Checkpoints = Callable[[str], Path]


@asynccontextmanager
async def running(path: Path, **settings: object) -> AsyncIterator[EngineClient]:
    client = EngineClient("tiny", path, EngineSettings(**settings), kv_cache_share=0.05)  # type: ignore[arg-type]
    await client.start()
    try:
        yield client
    finally:
        await client.close()


def request(request_id: str, max_tokens: int, n: int = 1) -> GenerateRequest:
    return GenerateRequest(request_id, [5, 6, 7], SamplingParams(max_tokens=max_tokens, seed=1, ignore_eos=True), n)


async def until_idle(client: EngineClient) -> None:
    """Until the engine has reported a step with nothing left to do."""
    while True:
        probe = [delta async for delta in client.generate(request("probe", 1))]
        assert len(probe) == 1
        if client.health().num_running == 0 and client.health().kv_cache_usage == 0:
            return


async def test_streams_of_several_requests_and_what_a_closed_one_frees(checkpoint: Checkpoints) -> None:
    async with running(checkpoint("llama")) as client:
        assert not client.health().is_ready
        assert "loading" in client.health().reason
        info = await client.wait_ready()
        assert (info.kind, info.vocab_size, info.max_model_len) == ("decoder", 384, 512)
        assert client.health().is_ready

        async def tokens(request_id: str, n: int) -> list[list[int]]:
            streams: list[list[int]] = [[] for _ in range(n)]
            async for delta in client.generate(request(request_id, 20, n)):
                streams[delta.index] += delta.token_ids
            return streams

        first, second = await asyncio.gather(tokens("a", 3), tokens("b", 1))
        assert [len(stream) for stream in first] == [20, 20, 20]
        assert second[0] == first[0]

        endless = client.generate(request("left", 500, 2))
        async for _ in endless:
            break
        await endless.aclose()  # type: ignore[attr-defined]
        await until_idle(client)
        assert client._mailboxes == {}

        aborted = [0, 0]
        async for delta in client.generate(request("half", 400, 2)):
            aborted[delta.index] += len(delta.token_ids)
            if delta.index == 0 and aborted[0] == 3:
                client.abort("half", 0)
        assert aborted[0] == 3
        assert aborted[1] == 400


async def test_vectors_come_back_and_a_cancelled_call_is_forgotten(checkpoint: Checkpoints) -> None:
    async with running(checkpoint("bert")) as client:
        info = await client.wait_ready()
        assert info.embedding_size == 64
        vectors = await client.embed(EmbedRequest("e", [[5, 6], [7]]))
        assert [np.frombuffer(vector, "<f4").shape for vector in vectors] == [(64,), (64,)]
        task = asyncio.create_task(client.embed(EmbedRequest("gone", [[5] * 200] * 50)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client._embeds == {}
        with pytest.raises(EngineFailed, match="generates no text"):
            [delta async for delta in client.generate(request("wrong", 1))]


async def test_a_killed_process_fails_its_requests_at_once_and_is_replaced(checkpoint: Checkpoints) -> None:
    async with running(checkpoint("llama")) as client:
        await client.wait_ready()
        stream = client.generate(request("r", 400))
        await anext(stream)
        os.kill(client._pid, signal.SIGKILL)
        with pytest.raises(Unavailable, match="stopped unexpectedly"):
            async for _ in stream:
                pass
        with pytest.raises(Unavailable, match="being restarted"):
            [delta async for delta in client.generate(request("early", 1))]
        await client.wait_ready()
        assert len([delta async for delta in client.generate(request("later", 3))]) == 3


async def test_a_checkpoint_that_cannot_be_loaded_says_why(checkpoint: Checkpoints) -> None:
    async with running(checkpoint("llama"), kv_cache_memory=1) as client:
        with pytest.raises(CheckpointError, match="one sequence of 512 tokens needs"):
            await client.wait_ready()
        assert "512 tokens" in client.health().reason


async def test_closing_ends_the_process_and_what_still_waits(checkpoint: Checkpoints) -> None:
    async with running(checkpoint("llama")) as client:
        await client.wait_ready()
        stream = client.generate(request("r", 500))
        await anext(stream)
        closing = asyncio.create_task(client.close())
        with pytest.raises(Unavailable, match="shutting down"):
            async for _ in stream:
                pass
        await closing
        while Path(f"/proc/{client._pid}").exists():
            await asyncio.sleep(0.01)


async def test_engines_share_one_forking_process_and_it_is_replaced_when_it_dies(checkpoint: Checkpoints) -> None:
    spawner = Spawner()
    clients = [EngineClient(n, checkpoint("llama"), EngineSettings(), spawner=spawner) for n in ("a", "b", "c")]
    try:
        await asyncio.gather(clients[0].start(), clients[1].start())
        assert spawner._process is not None
        first = spawner._process.pid
        await clients[0].wait_ready()
        os.kill(first, signal.SIGKILL)
        await clients[2].start()
        assert spawner._process.pid != first
        for client in clients:
            await client.wait_ready()
            assert len([delta async for delta in client.generate(request(client.name, 2))]) == 2
    finally:
        await asyncio.gather(*(client.close() for client in clients))
        await spawner.close()
