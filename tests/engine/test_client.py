"""The engine's process: started, asked, left by its clients, killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from langport.engine.client import AdapterEngine, EngineClient
from langport.engine.spawner import Spawner
from langport.errors import CheckpointError, EngineFailed, ModelNotFound, Unavailable
from langport.settings.tree import EngineSettings
from langport.types import EmbedRequest, GenerateRequest, SamplingParams
from tests.lora import write_adapter

Checkpoints = Callable[[str], Path]


@asynccontextmanager
async def running(path: Path, adapters: Sequence[Path] = (), **settings: object) -> AsyncIterator[EngineClient]:
    client = EngineClient("tiny", path, EngineSettings(**settings), kv_cache_share=0.05, adapters=adapters)  # type: ignore[arg-type]
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


def adapters(checkpoint: Checkpoints, tmp_path: Path, *names: str) -> list[Path]:
    base = checkpoint("llama")
    return [write_adapter(tmp_path / name, base, ("q_proj", "down_proj"), seed=i) for i, name in enumerate(names)]


async def tokens_of(client: EngineClient, number: int | None) -> list[int]:
    sampling = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    one = GenerateRequest(f"r{number}", [5, 6, 7], sampling, lora=number)
    return [token async for delta in client.generate(one) for token in delta.token_ids]


async def test_adapters_come_and_go_beside_a_stream_and_come_back_after_a_crash(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    first, second = adapters(checkpoint, tmp_path, "first", "second")
    async with running(checkpoint("llama"), [first, second]) as client:
        await client.wait_ready()
        expected = {number: await tokens_of(client, number) for number in (None, 0, 1)}
    async with running(checkpoint("llama"), [first]) as client:
        with pytest.raises(Unavailable, match="loading"):
            await client.load_adapter(second)
        await client.wait_ready()
        stream = client.generate(request("long", 300))
        await anext(stream)
        assert await client.load_adapter(second) == 1
        client.unload_adapter(0)
        client.unload_adapter(0)
        with pytest.raises(ModelNotFound, match="not served any more"):
            await tokens_of(client, 0)
        assert [await tokens_of(client, number) for number in (None, 1)] == [expected[None], expected[1]]
        assert 1 + len([delta async for delta in stream]) == 300
        with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
            await client.load_adapter(tmp_path)
        assert await client.load_adapter(first) == 3  # 2 was that of the failed one
        os.kill(client._pid, signal.SIGKILL)
        await client._is_gone.wait()
        with pytest.raises(Unavailable, match="restarted"):
            await client.load_adapter(first)
        await client.wait_ready()
        assert [await tokens_of(client, number) for number in (1, 3)] == [expected[1], expected[0]]


async def test_an_adapter_that_is_gone_after_a_crash_answers_503_and_its_model_serves(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    first, second = adapters(checkpoint, tmp_path, "first", "second")
    async with running(checkpoint("llama"), [first, second]) as client:
        await client.wait_ready()
        (first / "adapter_config.json").unlink()
        os.kill(client._pid, signal.SIGKILL)
        await client._is_gone.wait()
        await client.wait_ready()
        with pytest.raises(Unavailable, match=str(first)):
            await tokens_of(client, 0)
        assert len(await tokens_of(client, 1)) == len(await tokens_of(client, None)) == 8
        assert client.health().is_ready
        assert AdapterEngine(client, 1).health().is_ready
        health = AdapterEngine(client, 0).health()
        assert (health.is_ready, str(first) in health.reason) == (False, True)
        client.unload_adapter(0)
        with pytest.raises(ModelNotFound):
            await tokens_of(client, 0)


async def test_the_first_start_needs_its_adapters(checkpoint: Checkpoints, tmp_path: Path) -> None:
    async with running(checkpoint("llama"), [tmp_path / "nowhere"]) as client:
        with pytest.raises(CheckpointError, match="nowhere"):
            await client.wait_ready()


async def test_a_load_that_nobody_waits_for_is_undone(checkpoint: Checkpoints, tmp_path: Path) -> None:
    [adapter] = adapters(checkpoint, tmp_path, "only")
    async with running(checkpoint("llama")) as client:
        await client.wait_ready()
        task = asyncio.create_task(client.load_adapter(adapter))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (client._adapter_loads, client._adapters) == ({}, {})
        sampling = SamplingParams(max_tokens=1)
        client._adapters[0] = "so that the engine is asked"
        with pytest.raises(EngineFailed, match="adapter number 0 is not loaded"):
            [delta async for delta in client.generate(GenerateRequest("r", [5], sampling, lora=0))]


async def test_a_process_that_dies_while_an_adapter_is_read_fails_the_load(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    [adapter] = adapters(checkpoint, tmp_path, "only")
    async with running(checkpoint("llama")) as client:
        await client.wait_ready()
        os.kill(client._pid, signal.SIGSTOP)
        task = asyncio.create_task(client.load_adapter(adapter))
        await asyncio.sleep(0)
        os.kill(client._pid, signal.SIGKILL)
        with pytest.raises(Unavailable, match="stopped unexpectedly"):
            await task
        await client.wait_ready()
        assert client._adapters == {}


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
        assert spawner._forker is not None
        first = spawner._forker.pid
        await clients[0].wait_ready()
        os.kill(first, signal.SIGKILL)
        await clients[2].start()
        assert spawner._forker.pid != first
        for client in clients:
            await client.wait_ready()
            assert len([delta async for delta in client.generate(request(client.name, 2))]) == 2
    finally:
        await asyncio.gather(*(client.close() for client in clients))
        await spawner.close()
