"""The engine as the API sees it: an async stream whose work happens in another process.

One Unix socket per engine, on which `calls` asks. When the process dies, every open request ends with an error and a
new process is started.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec

from langport.engine.calls import EngineCalls
from langport.engine.host_memory import process_bytes
from langport.engine.messages import (
    AdapterFailed,
    AdapterLoaded,
    Embedded,
    FromEngine,
    Load,
    LoadAdapter,
    LoadFailed,
    Loading,
    Ready,
    RequestFailed,
    UnloadAdapter,
    decode_from_engine,
)
from langport.engine.spawner import Spawner
from langport.errors import CheckpointError, OutOfMemory, Unavailable
from langport.frames import Frames
from langport.settings.tree import EngineSettings
from langport.types import Delta, EmbedRequest, Engine, EngineHealth, GenerateRequest, ModelInfo

log = logging.getLogger("langport.engine")

RESTART_DELAY_S = 1.0
"""Pause before a process that died is replaced; doubled each time it dies before it was ready."""
MAX_RESTART_DELAY_S = 60.0
CLOSE_TIMEOUT_S = 5.0


class _Link(asyncio.Protocol):
    """The socket to the engine's process."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._frames = Frames()

    def data_received(self, data: bytes) -> None:
        for body in self._frames.feed(data):
            self._client._receive(decode_from_engine(body))

    def connection_lost(self, error: Exception | None) -> None:
        self._client._lost()


class EngineClient(EngineCalls):
    """Owns one engine process; implements `types.Engine`."""

    def __init__(
        self,
        name: str,
        checkpoint: Path,
        settings: EngineSettings,
        *,
        kv_cache_share: float = 1.0,
        adapters: Sequence[Path] = (),
        spawner: Spawner | None = None,
        doors: Iterator[str] | None = None,
    ) -> None:
        """`kv_cache_share` is this model's part of the memory for KV caches, 0 to 1; `spawner` may be shared.

        `doors`: a new path for each process, at which guests come to it; none comes without.
        `adapters` are the folders of LoRA adapters, which requests call by their place here.
        """
        super().__init__(name)
        self._load = Load(name, str(checkpoint), settings, kv_cache_share)
        self._doors = doors
        self.door = ""
        """Where guests come to the process that there is now."""
        self.on_news: Callable[[], None] | None = None
        """Called when something has become different: what is loaded, what `health` says, where guests come."""
        self._adapters = {number: str(path) for number, path in enumerate(adapters)}
        """Those that are loaded, and are loaded again into a process that replaces a dead one."""
        self._num_adapters = len(self._adapters)
        """Numbers given so far; none is given twice."""
        self._adapter_problems: dict[int, str] = {}
        """Why adapters could not be loaded again."""
        self._adapter_loads: dict[int, asyncio.Future[None]] = {}
        self._spawner = spawner or Spawner()
        self._owns_spawner = spawner is None
        self._pid = 0
        self._is_gone = asyncio.Event()
        """Set while there is no process."""
        self._has_loaded = False
        self._was_ready = False
        self._ready = asyncio.Event()
        """Set when there is an answer to `wait_ready`: an info, or an error."""
        self._load_error: CheckpointError | None = None
        self._is_closed = False
        self._is_stopped = False
        """The process is not wanted now."""
        self._restart_delay_s = RESTART_DELAY_S
        self._restart: asyncio.Task[None] | None = None
        self._loaded_share = 0.0

    async def start(self) -> None:
        """Start the process; returns before the model is loaded. It may have been stopped, or have failed, before."""
        self._is_stopped = False
        self._load_error = None
        self._loaded_share = 0.0
        self._ready.clear()
        connection, self._pid = await self._spawner.spawn()
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.connect_accepted_socket(lambda: _Link(self), connection)
        self._is_gone.clear()
        self.door = next(self._doors) if self._doors is not None else ""
        self._send(msgspec.structs.replace(self._load, adapters=dict(self._adapters), door=self.door))

    async def wait_ready(self) -> ModelInfo:
        """See `types.Engine`."""
        await self._ready.wait()
        if self._has_loaded:
            assert self.info is not None
            return self.info
        if self._load_error is not None:
            raise self._load_error
        raise Unavailable(f"the engine of {self.name} was stopped")

    async def load_adapter(self, path: Path) -> int:
        """Load a LoRA adapter between two steps; the number by which requests name it.

        Raises: CheckpointError naming the file and what does not fit; Unavailable when there is no engine to ask.
        """
        self._check_running()
        number = self._num_adapters
        self._num_adapters += 1
        future = self._adapter_loads[number] = asyncio.get_running_loop().create_future()
        self._send(LoadAdapter(number, str(path)))
        try:
            await future
        except asyncio.CancelledError:
            self._send(UnloadAdapter(number))
            raise
        finally:
            del self._adapter_loads[number]
        self._adapters[number] = str(path)
        return number

    def unload_adapter(self, number: int) -> None:
        """Requests that run go on with it; then it is freed. New ones may not name it. Harmless when called twice."""
        self._adapters.pop(number, None)
        self._adapter_problems.pop(number, None)
        self._send(UnloadAdapter(number))

    def adapter_problem(self, number: int) -> str:
        """Why an adapter cannot be used, though its model can; empty: it can."""
        return self._adapter_problems.get(number, "")

    @property
    def adapters(self) -> dict[int, str]:
        """Those that are loaded: number to directory."""
        return dict(self._adapters)

    @property
    def adapter_problems(self) -> dict[int, str]:
        """Why some of them cannot be used."""
        return dict(self._adapter_problems)

    def health(self) -> EngineHealth:
        """See `types.Engine`."""
        step = self._last_step
        return EngineHealth(
            is_ready=self._transport is not None and self._has_loaded,
            reason=self._reason(),
            num_running=step.num_running,
            num_waiting=step.num_waiting,
            kv_cache_usage=step.kv_cache_usage,
            totals=step.totals,
        )

    def memory_bytes(self) -> int:
        """Memory of the machine that the process takes; 0 without one, or where that cannot be told."""
        return process_bytes(self._pid) if self._transport is not None else 0

    async def stop(self) -> None:
        """End the process, and what still runs in it; `start` makes another. Adapters and figures are kept."""
        self._is_stopped = True
        self._has_loaded = False
        await self._end_process()

    async def close(self) -> None:
        """See `types.Engine`."""
        self._is_closed = True
        await self._end_process()
        if self._owns_spawner:
            await self._spawner.close()

    async def _end_process(self) -> None:
        if self._restart is not None:
            self._restart.cancel()
        if self._transport is not None:
            self._transport.write_eof()
            try:
                await asyncio.wait_for(self._is_gone.wait(), CLOSE_TIMEOUT_S)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)  # in the middle of a long step
                await self._is_gone.wait()

    def _reason(self) -> str:
        if self._is_closed:
            return "stopped"
        if self._is_stopped:
            return "it is not loaded"
        if self._load_error is not None:
            return str(self._load_error)
        if self._transport is None:
            return "the engine's process died and is being restarted"
        return "" if self._has_loaded else f"loading, {self._loaded_share:.0%} of the weights read"

    def _is_ready(self) -> bool:
        return self._has_loaded

    def _has_adapter(self, number: int) -> bool:
        return number in self._adapters

    def _receive(self, message: FromEngine) -> None:
        if not self._take_answer(message):
            self._take_news(message)
        if not isinstance(message, Embedded | RequestFailed):
            self._tell()

    def _take_news(self, message: FromEngine) -> None:
        """What the process says of itself."""
        match message:
            case Loading(share):
                self._loaded_share = share
            case Ready(info, problems):
                self._become_ready(info, problems)
            case LoadFailed(reason, lacks_memory):
                self._load_error = OutOfMemory(reason) if lacks_memory else CheckpointError(reason)
                self._ready.set()
            case AdapterLoaded(number):
                if (load := self._adapter_loads.get(number)) is not None and not load.done():
                    load.set_result(None)
            case AdapterFailed(number, reason):
                if (load := self._adapter_loads.get(number)) is not None and not load.done():
                    load.set_exception(CheckpointError(reason))

    def _become_ready(self, info: ModelInfo, problems: dict[int, str]) -> None:
        """A model does not start without its adapters, but it goes on without one whose files are gone since."""
        if problems and not self._was_ready:
            self._load_error = CheckpointError("\n".join(problems.values()))
        else:
            self.info = info
            self._has_loaded = True
            self._was_ready = True
            self._restart_delay_s = RESTART_DELAY_S
            self._adapter_problems = {n: problem for n, problem in problems.items() if n in self._adapters}
        for problem in problems.values():
            log.error("%s: an adapter cannot be loaded: %s", self.name, problem)
        self._ready.set()

    def _lost(self) -> None:
        """The process ended, by our wish or not: nobody may wait for it any longer."""
        self._is_gone.set()
        self.door = ""
        reason = (
            "is shutting down"
            if self._is_closed or self._is_stopped
            else "stopped unexpectedly; the request was not completed"
        )
        self._fail_all(reason)
        for load in self._adapter_loads.values():
            if not load.done():
                load.set_exception(Unavailable(f"the engine of {self.name} {reason}"))
        if self._is_closed or self._is_stopped or self._load_error is not None:
            self._ready.set()
            self._tell()
            return
        if not self._has_loaded:
            self._restart_delay_s = min(2 * self._restart_delay_s, MAX_RESTART_DELAY_S)
        self._has_loaded = False
        self._ready.clear()
        self._tell()
        log.error("the engine of %s died; it is started again in %.0f s", self.name, self._restart_delay_s)
        self._restart = asyncio.get_running_loop().create_task(self._start_again())

    def _tell(self) -> None:
        if self.on_news is not None:
            self.on_news()

    async def _start_again(self) -> None:
        await asyncio.sleep(self._restart_delay_s)
        await self.start()


class AskedEngine(Engine, Protocol):
    """An engine with adapters, whoever owns it."""

    def adapter_problem(self, number: int) -> str:
        """Why an adapter cannot be used, though its model can; empty: it can."""


class AdapterEngine:
    """An engine as the clients of one of its LoRA adapters see it; implements `types.Engine`."""

    def __init__(self, engine: AskedEngine, number: int) -> None:
        self._engine = engine
        self._number = number

    def generate(self, request: GenerateRequest) -> AsyncIterator[Delta]:
        """See `types.Engine`."""
        return self._engine.generate(msgspec.structs.replace(request, lora=self._number))

    async def wait_ready(self) -> ModelInfo:
        return await self._engine.wait_ready()

    def abort(self, request_id: str, index: int | None = None) -> None:
        self._engine.abort(request_id, index)

    async def embed(self, request: EmbedRequest) -> list[bytes]:
        return await self._engine.embed(request)

    def health(self) -> EngineHealth:
        health = self._engine.health()
        problem = self._engine.adapter_problem(self._number)
        return msgspec.structs.replace(health, is_ready=False, reason=problem) if problem else health

    async def close(self) -> None:
        """The engine is its model's to close."""
