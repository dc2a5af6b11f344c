"""The process that has workers: it starts them, starts them again, and is asked for what is one for all of them.

It answers no HTTP, so whatever a request can do to a worker it cannot do to the others. Its own work per request is a
claim and a message each way.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec

from langport.assembly import Models, Parts
from langport.errors import ApiError, ConfigError, LangPortError, Unavailable
from langport.gateway.bookkeeping import Bookkeeping, keep_books
from langport.gateway.cache import MemoryAnswers
from langport.gateway.cache_answer import KeptAnswer
from langport.gateway.clock import LoopClock
from langport.gateway.metrics import CACHE_BYTES, Block, process_blocks, queue_blocks
from langport.gateway.summing import Packed, add, lasting, pack
from langport.gateway.turnstile import LocalTurnstile
from langport.http_server import (
    DRAIN_S,
    announce_access,
    limit_store,
    local_url,
    reload_on_signal,
    run,
    stop_on_signals,
    until,
)
from langport.reload import Reloader
from langport.settings.tree import Settings
from langport.stored import store_of
from langport.workers.forker import WorkerForker
from langport.workers.link import Link
from langport.workers.messages import (
    AddUsage,
    Admit,
    Apply,
    AskRequests,
    AskUsage,
    CancelRun,
    CheckBudgets,
    Collect,
    Done,
    Failure,
    Figures,
    FlushUsage,
    FollowRun,
    GetAnswer,
    GiveUp,
    Kept,
    Keys,
    KeysAfter,
    Listening,
    Look,
    Message,
    PurgeRequests,
    PutAnswer,
    PutKey,
    PutResult,
    Reload,
    Reloaded,
    Report,
    Requests,
    RunEvents,
    Settle,
    StartFailed,
    Stop,
    StoreExists,
    Sums,
    TellKey,
    Told,
    Truth,
    Undo,
    Used,
    Welcome,
    decode_to_supervisor,
)
from langport.workers.port import Port
from langport.workers.turnstile import Desk
from langport.workers.worker import REPORT_S, Seat, work

logger = logging.getLogger("langport")

RESTART_DELAY_S = 0.5
"""Pause before a worker that died is replaced; doubled each time that one dies before it has lived for LIFE_S."""
MAX_RESTART_DELAY_S = 30.0
LIFE_S = 30.0
PATIENCE_S = 2.0
"""How long a worker is waited for that does not answer. What it does not hear of now it finds out itself."""
APPLY_S = 30.0
"""The same for settings, without which a worker cannot go on."""
MAX_SILENT_S = 60
"""After so long without a report a worker hangs."""
GRACE_S = 10.0
"""How much longer than its requests a worker may take to end."""


class Backend(Protocol):
    """What the supervisor has beside its workers: engines, or nothing."""

    async def load(self, is_stop_wanted: asyncio.Event) -> bool: ...

    def announce(self, url: str) -> None: ...

    async def stop(self) -> None: ...

    async def close(self) -> None: ...

    def welcome(self, worker: Worker) -> None:
        """A worker has come: tell it what it must know before it answers."""
        ...

    async def answer(self, worker: Worker, message: Message) -> Message:
        """Of a message that the supervisor itself does not know. Raises: LangPortError."""
        ...

    def part(self, worker: Worker) -> None:
        """A worker has ended, with whatever it was doing."""
        ...


class NoEngines:
    """Where there are no models of this machine; see `Backend`."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def load(self, is_stop_wanted: asyncio.Event) -> bool:
        return await self._models.load(is_stop_wanted)

    def announce(self, url: str) -> None:
        self._models.announce(url)

    async def stop(self) -> None:
        await self._models.stop()

    async def close(self) -> None:
        await self._models.close()

    def welcome(self, worker: Worker) -> None:
        pass

    async def answer(self, worker: Worker, message: Message) -> Message:
        raise AssertionError(f"{message} came to the supervisor: our bug, please report it")

    def part(self, worker: Worker) -> None:
        pass


class Worker:
    """A worker as the supervisor sees it."""

    def __init__(self, number: int, pid: int, turnstile: LocalTurnstile, receive: Callable[[Worker, int, Any], None]):
        self.number = number
        self.pid = pid
        self.link = Link(decode_to_supervisor, partial(receive, self), self._lose)
        self.desk = Desk(turnstile, self.link)
        self.is_listening = asyncio.Event()
        self.is_gone = asyncio.Event()
        """It can be asked nothing more."""
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """How it has ended, as `os.waitpid` says."""
        self.settings: Settings
        """Those that it goes by."""
        self.packed: Packed = {}
        """Its figures as last reported."""
        self.num_silent_s = 0
        """Seconds since then in which the supervisor was awake."""
        self.failure: LangPortError | None = None
        """Why it could not start."""
        self.calls: dict[int, asyncio.Task[None]] = {}
        """Those that are being worked on."""

    def _lose(self) -> None:
        self.is_gone.set()
        self.desk.close()


class Supervisor:
    """Starts workers and answers them."""

    def __init__(
        self,
        settings: Settings,
        read_again: Callable[[], Settings],
        port: Port,
        forker: WorkerForker,
        backend: Backend,
        folder: Path,
    ) -> None:
        """`folder`: private, and removed at the end. Raises: ConfigError."""
        self._settings = settings
        self._folder = folder
        self._port = port
        self._forker = forker
        self._backend = backend
        self._reloader = Reloader(settings, read_again, self._apply)
        self._turnstile = LocalTurnstile(settings.overload, limit_store(settings.overload), LoopClock())
        self._store = store_of(self._shared(settings))
        self._books: Bookkeeping | None = keep_books(settings, self._store)
        self._answers = MemoryAnswers(settings.gateway.response_cache_bytes or 0)
        self._workers: dict[int, Worker] = {}
        """Those that live, by number."""
        self._keeping: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self._past: Packed = {}
        """Figures of workers that have ended."""
        self._problem: asyncio.Future[LangPortError] = asyncio.get_running_loop().create_future()
        """Why the server cannot start."""

    @property
    def workers(self) -> list[Worker]:
        """Those that answer HTTP, or are about to."""
        return [worker for worker in self._workers.values() if not worker.is_gone.is_set()]

    async def serve(self) -> int:
        """Until Ctrl-C or SIGTERM; the exit code. Raises: LangPortError when the server cannot start."""
        settings, stop = self._settings, stop_on_signals()
        reload_on_signal(self._reloader, stop)
        self._forker.start(self._note_end)
        url = local_url(settings.host, self._port.number)
        numbers = range(1, settings.workers + 1)
        self._keeping = [asyncio.create_task(self._keep(number)) for number in numbers]
        self._spawn(self._watch())
        try:
            await announce_access(settings, self._books, url)
            if await self._start(stop.is_wanted):
                self._backend.announce(url)
                ends = asyncio.ensure_future(asyncio.wait(self._keeping))
                await until(ends, stop.is_wanted)
                ends.cancel()
                logger.info("Stopping. Open requests may take up to %d s; Ctrl-C ends them.", DRAIN_S)
        finally:
            await self._end(stop.is_forced)
        if not stop.is_wanted.is_set():
            raise LangPortError("No worker is left, and none can be started any more. Start the server again.")
        return 0

    async def _start(self, is_stop_wanted: asyncio.Event) -> bool:
        """Until all workers listen and all models are loaded; False when the stop came first. Raises: LangPortError."""
        starting = asyncio.ensure_future(self._wait_listening(is_stop_wanted))
        problem = asyncio.ensure_future(asyncio.wait([self._problem]))
        try:
            await asyncio.wait([starting, problem], return_when=asyncio.FIRST_COMPLETED)
            if self._problem.done():
                raise self._problem.result()
            return starting.result()
        finally:
            starting.cancel()
            problem.cancel()
            await asyncio.wait([starting, problem])

    async def _wait_listening(self, is_stop_wanted: asyncio.Event) -> bool:
        loading = asyncio.ensure_future(self._backend.load(is_stop_wanted))
        try:
            while len(self._workers) < self._settings.workers:
                await asyncio.sleep(0.005)
            listening = asyncio.gather(*(worker.is_listening.wait() for worker in self._workers.values()))
            await until(listening, is_stop_wanted)
            if not listening.done():
                listening.cancel()
            return await loading and not is_stop_wanted.is_set()
        finally:
            loading.cancel()
            await asyncio.wait([loading])

    async def _keep(self, number: int) -> None:
        """Have a worker of this number, always."""
        loop = asyncio.get_running_loop()
        delay_s = RESTART_DELAY_S
        is_first = True
        while True:
            try:
                worker = await self._begin(number)
            except OSError as error:
                logger.error("Worker %d cannot be started: %s.", number, error)
                if is_first:
                    self._fail(LangPortError(f"Worker {number} cannot be started: {error}."))
                return
            began_s = loop.time()
            await worker.is_gone.wait()
            status = await self._end_of(worker)
            self._forget(worker)
            if self._is_stopping:
                return
            if is_first and not worker.is_listening.is_set():
                problem = f"Worker {number} ended while it started ({_describe(status)}); the log may say why."
                self._fail(worker.failure or LangPortError(problem))
                return
            is_first = False
            if status == 0:
                logger.info("Worker %d (process %d) has ended; another one takes its place.", number, worker.pid)
                continue
            delay_s = RESTART_DELAY_S if loop.time() - began_s >= LIFE_S else delay_s
            why = f": {worker.failure}" if worker.failure is not None else ""
            logger.error(
                "Worker %d (process %d) died (%s%s), with the requests that it was answering; it is started again in "
                "%.1f s.",
                number,
                worker.pid,
                _describe(status),
                why,
                delay_s,
            )
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, MAX_RESTART_DELAY_S)

    async def _begin(self, number: int) -> Worker:
        """Raises: OSError when no process can be had."""
        connection, pid = await self._forker.fork()
        worker = Worker(number, pid, self._turnstile, self._receive)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: worker.link, connection)
        self._workers[number] = worker
        worker.settings = self._settings
        worker.link.send(Welcome(self._shared(self._settings)))
        self._backend.welcome(worker)
        return worker

    def _fail(self, problem: LangPortError) -> None:
        if not self._problem.done():
            self._problem.set_result(problem)

    async def _watch(self) -> None:
        """End workers that do not answer any more, whatever they do: what is asked of them would never end."""
        while True:
            await asyncio.sleep(REPORT_S)
            for worker in self.workers:
                worker.num_silent_s += worker.is_listening.is_set()
                if worker.num_silent_s == MAX_SILENT_S:
                    logger.error("Worker %d has not answered for %d s, and is killed.", worker.number, MAX_SILENT_S)
                    _kill(worker)

    async def _end_of(self, worker: Worker) -> int | None:
        """The status of a worker that has hung up; None where nobody knows."""
        if self._forker.is_gone.is_set():
            return None
        done, _ = await asyncio.wait([worker.status], timeout=PATIENCE_S)
        if not done:
            _kill(worker)
            done, _ = await asyncio.wait([worker.status], timeout=PATIENCE_S)
        return worker.status.result() if done else None

    def _forget(self, worker: Worker) -> None:
        """Its figures stay."""
        del self._workers[worker.number]
        self._past = add([self._past, lasting(worker.packed)])
        for call in worker.calls.values():
            call.cancel()
        self._backend.part(worker)

    def _note_end(self, pid: int, status: int) -> None:
        for worker in self._workers.values():
            if worker.pid == pid and not worker.status.done():
                worker.status.set_result(status)

    async def _end(self, is_forced: asyncio.Event) -> None:
        """Let requests end, and end in order."""
        self._is_stopping = True
        self._turnstile.drain()
        self._port.close()
        self._forker.close()
        for worker in self.workers:
            worker.link.send(Stop())
        await self._backend.stop()
        ending = asyncio.ensure_future(self._wait_gone(DRAIN_S + GRACE_S))
        await until(ending, is_forced)
        if not ending.done():
            for worker in self.workers:
                worker.link.send(Stop(is_forced=True))
        await self._wait_gone(GRACE_S)
        for worker in self.workers:
            logger.error("Worker %d does not end, and is killed.", worker.number)
            _kill(worker)
        await self._wait_gone(PATIENCE_S)
        ending.cancel()
        for task in (*self._keeping, *self._tasks):
            task.cancel()
        await asyncio.wait([ending, *self._keeping, *self._tasks])
        await self._turnstile.close()
        await self._backend.close()
        if self._books is not None:
            await self._books.close()
        if self._store is not None:
            await self._store.close()

    async def _wait_gone(self, timeout_s: float) -> None:
        """Until all workers have hung up."""
        if waits := [asyncio.ensure_future(worker.is_gone.wait()) for worker in self.workers]:
            await asyncio.wait(waits, timeout=timeout_s)
            for wait in waits:
                wait.cancel()

    # What workers say.

    def _receive(self, worker: Worker, id: int, message: Message) -> None:
        match message:
            case Admit():
                worker.desk.admit(id, message)
            case Settle():
                worker.desk.settle(message)
            case Undo():
                worker.desk.undo(message)
            case Used(record):
                if self._books is not None:
                    self._books.ledger.put(record)
            case Figures(packed):
                worker.packed = packed
                worker.num_silent_s = 0
            case Look():
                self._spawn(worker.desk.look(id, message))
            case Listening():
                worker.is_listening.set()
                if worker.settings is not self._settings:  # they were read again while it started
                    self._spawn(self._have_applied([worker]))
            case StartFailed(failure):
                worker.failure = failure.error()
            case PutAnswer(key, answer):
                self._answers.put(key, msgspec.msgpack.decode(answer, type=KeptAnswer))
            case GiveUp(call):
                if call in worker.calls:
                    worker.calls[call].cancel()
            case _:
                task = self._spawn(self._answer(worker, id, message))
                if id:
                    worker.calls[id] = task
                    task.add_done_callback(lambda _: worker.calls.pop(id))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answer(self, worker: Worker, id: int, message: Message) -> None:
        try:
            answer = await self._do(worker, message)
        except LangPortError as error:
            answer = Failure.of(error)
        except asyncio.CancelledError:
            if id:
                worker.link.answer(id, Failure.of(Unavailable("The server is stopping. Send the request again.")))
            raise
        except Exception:  # the edge of the process: the worker must not wait for ever
            logger.exception("a worker's %s failed in the supervisor", type(message).__name__)
            answer = Failure.of(ApiError("The server failed on this request; the cause is in its log."))
        if id:
            worker.link.answer(id, answer)

    async def _do(self, worker: Worker, message: Message) -> Message:
        """What a call asks for. Raises: LangPortError."""
        match message:
            case Collect(packed):
                worker.packed = packed
                return Figures(await self._collect(worker))
            case Reload():
                return Reloaded(*await self._reloader.reload_names())
            case GetAnswer(key):
                answer = self._answers.get(key)
                return Kept(None if answer is None else msgspec.msgpack.encode(answer))
            case TellKey(record):
                assert self._books is not None
                self._books.keys.apply(record)
                await ask_all(self._others(worker), Told(record))
                return Done()
            case CancelRun():
                found = await ask_all(self._others(worker), message)
                return Truth(any(isinstance(each, Truth) and each.value for each in found))
            case FollowRun():
                found = await ask_all(self._others(worker), message, None)  # whoever has it answers soon
                having = (each for each in found if isinstance(each, RunEvents) and each.events is not None)
                return next(having, RunEvents(None, True))
            case (
                CheckBudgets()
                | FlushUsage()
                | StoreExists()
                | KeysAfter()
                | PutKey()
                | AddUsage()
                | AskUsage()
                | PurgeRequests()
                | AskRequests()
            ):
                assert self._books is not None
                return await _from_books(self._books, message)
            case _:
                return await self._backend.answer(worker, message)

    def _others(self, worker: Worker) -> list[Worker]:
        """Those that could answer in its place."""
        return [other for other in self.workers if other is not worker and other.is_listening.is_set()]

    async def _collect(self, asking: Worker) -> Packed:
        """The figures of all, as they are now."""
        others = self._others(asking)
        for worker, found in zip(others, await ask_all(others, Report()), strict=True):
            if isinstance(found, Figures):
                worker.packed = found.packed
        own = [*queue_blocks(self._turnstile.lanes), *process_blocks()]
        if self._settings.gateway.response_cache_bytes is not None:
            own.append(Block(CACHE_BYTES, [((), self._answers.num_bytes)]))
        return add([*(worker.packed for worker in self._workers.values()), self._past, pack(own)])

    # Settings.

    def _shared(self, settings: Settings) -> Settings:
        """As workers are told them: what was to be in memory is in one place that all of them see."""
        if settings.store.place != "memory":
            return settings
        store = msgspec.structs.replace(settings.store, place=str(self._folder / "store.db"))
        return msgspec.structs.replace(settings, store=store)

    async def _apply(self, settings: Settings) -> None:
        """Have all workers go on with these. Raises: ConfigError; nothing has changed then.

        One worker tries them first. What it can do all can, since what they serve is the same.
        """
        workers = [worker for worker in self.workers if worker.is_listening.is_set()]
        for worker in workers:
            found = (await ask_all([worker], Apply(self._shared(settings)), APPLY_S))[0]
            if isinstance(found, ConfigError):
                raise found
            if isinstance(found, Done):
                worker.settings = settings
                break
        self._settings = settings  # for workers that come from now on
        self._turnstile.update(settings.overload)
        logger.setLevel(settings.log_level.upper())
        await self._have_applied(workers)

    async def _have_applied(self, workers: Sequence[Worker]) -> None:
        """Have workers go by the settings that hold; one that cannot is replaced, since a new one can."""
        settings = self._settings
        late = [worker for worker in workers if worker.settings is not settings]
        for worker, found in zip(late, await ask_all(late, Apply(self._shared(settings)), APPLY_S), strict=True):
            if isinstance(found, Done):
                worker.settings = settings
            elif not worker.is_gone.is_set():
                logger.error("Worker %d did not take the settings, and is replaced: %s", worker.number, found)
                _kill(worker)


async def ask_all(
    workers: Iterable[Worker], message: Message, patience_s: float | None = PATIENCE_S
) -> list[Message | BaseException]:
    """The answer of each, or why there is none; those that take too long are not waited for."""
    asked = [asyncio.wait_for(worker.link.call(message)[1], patience_s) for worker in workers]
    found: list[Message | BaseException] = await asyncio.gather(*asked, return_exceptions=True)
    return found


async def _from_books(books: Bookkeeping, message: Message) -> Message:
    """What a call about keys and usage asks for. Raises: ApiError."""
    accounts = books.accounts
    match message:
        case CheckBudgets(key):
            await books.ledger.check(key)
        case FlushUsage():
            await books.ledger.flush()
        case AddUsage(records):
            await accounts.add_usage(records)
        case PurgeRequests(before_ms):
            await accounts.purge_requests(before_ms)
        case StoreExists():
            return Truth(await accounts.exists())
        case KeysAfter(version):
            return Keys(await accounts.keys(version))
        case PutKey(record):
            return PutResult(await accounts.put_key(record))
        case AskUsage(query):
            return Sums(await accounts.usage(query))
        case AskRequests(limit, key_id):
            return Requests(await accounts.requests(limit=limit, key_id=key_id))
    return Done()


def _kill(worker: Worker) -> None:
    with suppress(ProcessLookupError):
        os.kill(worker.pid, signal.SIGKILL)


def _describe(status: int | None) -> str:
    """How a process has ended, for people."""
    if status is None:
        return "nobody knows how"
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exit code {os.waitstatus_to_exitcode(status)}"


def supervise(
    settings: Settings,
    read_again: Callable[[], Settings],
    listener: socket.socket,
    make_backend: Callable[[Path], Backend],
    assemble: Callable[[Seat], Parts],
    foreign: Iterable[socket.socket] = (),
) -> int:
    """Serve with workers where `listener` listens, until Ctrl-C or SIGTERM; the process's exit code.

    `make_backend` is called in the supervisor's event loop with a private folder, `assemble` in each worker's;
    `foreign` sockets belong to the supervisor alone. Call it before there is any thread.
    Raises: LangPortError when the server cannot start.
    """
    port = Port(listener)
    folder = Path(tempfile.mkdtemp(prefix="langport-", dir=_memory()))
    forker = WorkerForker(partial(work, assemble, port, folder), foreign)
    try:

        async def main() -> int:
            return await Supervisor(settings, read_again, port, forker, make_backend(folder), folder).serve()

        return run(main())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _memory() -> str | None:
    """A folder whose files are in memory, where there is one; else where temporary files go."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and os.access(memory, os.W_OK) else None
