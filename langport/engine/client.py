"""The engine as the API sees it: an async stream whose work happens in another process.

One Unix socket per engine. A request is a mailbox that the socket's reader fills, so an engine step wakes each of its
readers once. When the process dies, every open request ends with an error and a new process is started.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from langport.config import EngineSettings
from langport.engine.host_memory import process_bytes
from langport.engine.messages import (
    Abort,
    AdapterFailed,
    AdapterLoaded,
    Embed,
    Embedded,
    FirstToken,
    FromEngine,
    Generate,
    Load,
    LoadAdapter,
    LoadFailed,
    Loading,
    Ready,
    RequestFailed,
    Step,
    ToEngine,
    UnloadAdapter,
    decode_from_engine,
    encode,
)
from langport.engine.spawner import Spawner
from langport.errors import ApiError, CheckpointError, EngineFailed, ModelNotFound, OutOfMemory, Unavailable
from langport.figures import Histogram, Phases, phases_watcher
from langport.frames import Frames
from langport.types import Delta, EmbedRequest, EngineHealth, GenerateRequest, ModelInfo

log = logging.getLogger("langport.engine")

RESTART_DELAY_S = 1.0
"""Pause before a process that died is replaced; doubled each time it dies before it was ready."""
MAX_RESTART_DELAY_S = 60.0
CLOSE_TIMEOUT_S = 5.0


class _Mailbox:
    """What has arrived for one generate request and is not yet read."""

    def __init__(self, num_sequences: int) -> None:
        self.deltas: list[Delta] = []
        self.asked_s = time.time()
        self.first: FirstToken | None = None
        self.first_s = 0.0
        """When the first token came, by `time.time`."""
        self.open = set(range(num_sequences))
        """Indices of the sequences that have not finished."""
        self.error: ApiError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, delta: Delta) -> None:
        if delta.index not in self.open:
            return  # aborted here; the engine had not yet heard of it
        self.deltas.append(delta)
        if delta.finish_reason is not None:
            self.open.discard(delta.index)
        self.wake()

    def drop(self, index: int | None) -> None:
        """Nothing more is wanted of one sequence, or of all."""
        if index is None:
            self.open.clear()
        self.open.discard(index if index is not None else -1)
        self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Until something was put, dropped or failed."""
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter


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


class EngineClient:
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
    ) -> None:
        """`kv_cache_share` is this model's part of the memory for KV caches, 0 to 1; `spawner` may be shared.

        `adapters` are the folders of LoRA adapters, which requests call by their place here.
        """
        self.name = name
        self._load = Load(name, str(checkpoint), settings, kv_cache_share)
        self._adapters = {number: str(path) for number, path in enumerate(adapters)}
        """Those that are loaded, and are loaded again into a process that replaces a dead one."""
        self._num_adapters = len(self._adapters)
        """Numbers given so far; none is given twice."""
        self._adapter_problems: dict[int, str] = {}
        """Why adapters could not be loaded again."""
        self._adapter_loads: dict[int, asyncio.Future[None]] = {}
        self._spawner = spawner or Spawner()
        self._owns_spawner = spawner is None
        self._mailboxes: dict[str, _Mailbox] = {}
        self._embeds: dict[str, asyncio.Future[list[bytes]]] = {}
        self._transport: asyncio.WriteTransport | None = None
        self._pid = 0
        self._is_gone = asyncio.Event()
        """Set while there is no process."""
        self._info: ModelInfo | None = None
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
        self._last_step = Step([], 0, 0, 0.0)
        self.queue_time = Histogram()
        """Seconds from requests' arrivals to their first steps, over all processes that this engine has had."""
        self.prefill_time = Histogram()
        """Seconds from there to their first tokens."""
        self.first_token_time = Histogram()
        """The sum of both."""

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
        self._send(msgspec.structs.replace(self._load, adapters=dict(self._adapters)))

    async def wait_ready(self) -> ModelInfo:
        """See `types.Engine`."""
        await self._ready.wait()
        if self._info is not None:
            return self._info
        if self._load_error is not None:
            raise self._load_error
        raise Unavailable(f"the engine of {self.name} was stopped")

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Delta]:
        """See `types.Engine`."""
        self._check_running()
        self._check_adapter(request.lora)
        mailbox = self._mailboxes[request.request_id] = _Mailbox(request.n)
        watch = phases_watcher.get()
        self._send(Generate(request))
        try:
            while True:
                deltas, mailbox.deltas = mailbox.deltas, []
                for delta in deltas:
                    yield delta
                if mailbox.deltas:
                    continue
                if mailbox.error is not None:
                    raise mailbox.error
                if not mailbox.open:
                    return
                await mailbox.wait()
        finally:
            del self._mailboxes[request.request_id]
            if mailbox.open and mailbox.error is None:
                self._send(Abort(request.request_id))
            if watch is not None and mailbox.first is not None:
                decode_s = time.time() - mailbox.first_s
                watch(Phases(mailbox.asked_s, mailbox.first.queue_s, mailbox.first.prefill_s, decode_s))

    def abort(self, request_id: str, index: int | None = None) -> None:
        """See `types.Engine`."""
        mailbox = self._mailboxes.get(request_id)
        if mailbox is not None:
            mailbox.drop(index)
            self._send(Abort(request_id, index))

    async def embed(self, request: EmbedRequest) -> list[bytes]:
        """See `types.Engine`."""
        self._check_running()
        future = self._embeds[request.request_id] = asyncio.get_running_loop().create_future()
        self._send(Embed(request))
        try:
            return await future
        finally:
            del self._embeds[request.request_id]
            if future.cancelled():
                self._send(Abort(request.request_id))

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

    def health(self) -> EngineHealth:
        """See `types.Engine`."""
        step = self._last_step
        return EngineHealth(
            is_ready=self._transport is not None and self._info is not None,
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
        self._info = None
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
        return "" if self._info is not None else f"loading, {self._loaded_share:.0%} of the weights read"

    def _check_running(self) -> None:
        """Raises: Unavailable while there is no loaded engine to ask."""
        if self._transport is None or self._info is None:
            raise Unavailable(f"the model {self.name} is not available: {self._reason()}")

    def _check_adapter(self, number: int | None) -> None:
        """Raises: ModelNotFound for one that was unloaded; Unavailable for one that could not be loaded again."""
        if number is not None and number not in self._adapters:
            raise ModelNotFound("this LoRA adapter is not served any more; GET /v1/models lists what is", param="model")
        if number in self._adapter_problems:
            problem = self._adapter_problems[number]
            raise Unavailable(f"the adapter could not be loaded again after a failure: {problem}")

    def _send(self, message: ToEngine) -> None:
        if self._transport is not None:
            self._transport.write(encode(message))

    def _receive(self, message: FromEngine) -> None:
        match message:
            case Step():
                self._last_step = message
                for first in message.first_tokens:
                    self._note(first)
                for delta in message.deltas:
                    if (mailbox := self._mailboxes.get(delta.request_id)) is not None:
                        mailbox.put(delta)
                message.deltas.clear()
            case Embedded(request_id, vectors):
                if (future := self._embeds.get(request_id)) is not None and not future.done():
                    future.set_result(vectors)
            case RequestFailed(request_id, reason):
                self._fail(request_id, EngineFailed(reason))
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

    def _note(self, first: FirstToken) -> None:
        self.queue_time.observe(first.queue_s)
        self.prefill_time.observe(first.prefill_s)
        self.first_token_time.observe(first.queue_s + first.prefill_s)
        if (mailbox := self._mailboxes.get(first.request_id)) is not None:
            mailbox.first, mailbox.first_s = first, time.time()

    def _become_ready(self, info: ModelInfo, problems: dict[int, str]) -> None:
        """A model does not start without its adapters, but it goes on without one whose files are gone since."""
        if problems and not self._was_ready:
            self._load_error = CheckpointError("\n".join(problems.values()))
        else:
            self._info = info
            self._was_ready = True
            self._restart_delay_s = RESTART_DELAY_S
            self._adapter_problems = {n: problem for n, problem in problems.items() if n in self._adapters}
        for problem in problems.values():
            log.error("%s: an adapter cannot be loaded: %s", self.name, problem)
        self._ready.set()

    def _fail(self, request_id: str, error: ApiError) -> None:
        if (mailbox := self._mailboxes.get(request_id)) is not None:
            mailbox.error = error
            mailbox.wake()
        if (future := self._embeds.get(request_id)) is not None and not future.done():
            future.set_exception(error)

    def _lost(self) -> None:
        """The process ended, by our wish or not: nobody may wait for it any longer."""
        self._transport = None
        self._is_gone.set()
        self._last_step = Step([], 0, 0, 0.0)
        reason = (
            "is shutting down"
            if self._is_closed or self._is_stopped
            else "stopped unexpectedly; the request was not completed"
        )
        for request_id in [*self._mailboxes, *self._embeds]:
            self._fail(request_id, Unavailable(f"the engine of {self.name} {reason}"))
        for load in self._adapter_loads.values():
            if not load.done():
                load.set_exception(Unavailable(f"the engine of {self.name} {reason}"))
        if self._is_closed or self._is_stopped or self._load_error is not None:
            self._ready.set()
            return
        if self._info is None:
            self._restart_delay_s = min(2 * self._restart_delay_s, MAX_RESTART_DELAY_S)
        self._info = None
        self._ready.clear()
        log.error("the engine of %s died; it is started again in %.0f s", self.name, self._restart_delay_s)
        self._restart = asyncio.get_running_loop().create_task(self._start_again())

    async def _start_again(self) -> None:
        await asyncio.sleep(self._restart_delay_s)
        await self.start()


class AdapterEngine:
    """An engine as the clients of one of its LoRA adapters see it; implements `types.Engine`."""

    def __init__(self, engine: EngineClient, number: int) -> None:
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
