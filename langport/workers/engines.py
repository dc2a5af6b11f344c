"""The supervisor's models: engines, who of them is in memory, and what all workers must know of that."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from langport.assembly import Parts
from langport.engine.forker import Forker
from langport.engine.spawner import Spawner
from langport.errors import CheckpointError, Unavailable
from langport.gateway.remote_models import RemoteModels
from langport.gateway.residence import ModelStatus
from langport.openapi import openapi_document
from langport.server import EngineModel, ModelFiles, announce_ready, engines_of, load_at_start, manage
from langport.settings.tree import Settings
from langport.stored import store_of, stored_api
from langport.types import EngineNews
from langport.workers.messages import (
    AdapterGone,
    AdapterNumber,
    AdapterPut,
    AdapterUnused,
    AskResidence,
    CloseModel,
    Counted,
    CountRequests,
    DismissAdapter,
    Done,
    Entered,
    EnterModel,
    LeaveModel,
    LoadAdapter,
    LoadModel,
    LoadText,
    Message,
    News,
    Residing,
    TextLoaded,
    UnloadModel,
)
from langport.workers.models import WorkersModels
from langport.workers.supervisor import Worker, ask_all, supervise
from langport.workers.worker import Seat

logger = logging.getLogger("langport")


class _Model(EngineModel):
    """One model, and the workers that are in it."""

    num_closings = 0
    """How often new requests had to wait though it was in memory."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.held: Counter[Worker] = Counter()
        """How often each worker is in it."""
        self.put: dict[str, AdapterPut] = {}
        """Adapters that clients have added, by name."""
        self.gone: list[AdapterGone] = []
        """Adapters of the settings that clients have removed."""
        self.leaving: dict[int, set[Worker]] = {}
        """Who still uses adapters that are not served any more."""

    def news(self) -> News:
        """As workers are told."""
        engine, health = self.engine, self.engine.health()
        return News(
            self.name,
            EngineNews(
                health.is_ready,
                health.reason,
                engine.info,
                engine.door,
                health.num_running,
                health.num_waiting,
                health.kv_cache_usage,
                health.totals,
                list(engine.adapters),
                engine.adapter_problems,
            ),
            self.managed.answers_later,
            self.managed.num_loads,
        )


class EngineRoom:
    """Owns the engines; see `supervisor.Backend`."""

    def __init__(
        self, settings: Settings, files: Sequence[ModelFiles], remote: RemoteModels, forker: Forker | None, folder: Path
    ) -> None:
        """`folder`: private, where workers find the engines' sockets."""
        self._settings = settings
        self._remote = remote
        self._spawner = Spawner(forker)
        self._workers: list[Worker] = []
        self._has_workers = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changing = asyncio.Lock()
        doors = (str(folder / f"engine-{number}") for number in itertools.count())
        self._models: dict[str, _Model] = {}
        for model, each, engine in zip(
            settings.models, files, engines_of(settings, files, self._spawner, doors), strict=True
        ):
            owned = self._models[model.name] = _Model(model, each, engine, partial(self._load_text, model.name))
            engine.on_news = partial(self._tell, owned)
        self._manager = manage(settings, list(self._models.values()))
        for owned in self._models.values():
            owned.managed.on_drain = partial(self._close, owned)

    async def load(self, is_stop_wanted: asyncio.Event) -> bool:
        return await load_at_start(self._manager, is_stop_wanted)

    def announce(self, url: str) -> None:
        announce_ready(self._settings, list(self._models.values()), self._remote, url)

    async def stop(self) -> None:
        await self._manager.stop()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(model.engine.close() for model in self._models.values()))
        await self._spawner.close()

    def welcome(self, worker: Worker) -> None:
        for model in self._models.values():
            worker.link.send(model.news())
            if model.num_closings:
                worker.link.send(CloseModel(model.name, model.num_closings))
            for change in (*model.gone, *model.put.values()):
                worker.link.send(change)
            if model.engine.info is not None:  # others have loaded it already
                self._spawn(ask_all([worker], LoadText(model.name), None))
        self._workers.append(worker)
        self._has_workers.set()

    def part(self, worker: Worker) -> None:
        self._workers.remove(worker)
        for model in self._models.values():
            for _ in range(model.held.pop(worker, 0)):
                model.managed.leave()
            for number in list(model.leaving):
                self._leave_adapter(model, number, worker)

    async def answer(self, worker: Worker, message: Message) -> Message:
        match message:
            case EnterModel(name):
                return await self._enter(worker, self._models[name])
            case LeaveModel(name, number):
                self._leave(worker, self._models[name], number)
            case LoadModel(name):
                await self._models[name].managed.load()
            case UnloadModel(name):
                self._models[name].managed.unload()
            case AskResidence(name):
                return Residing(await self._report(self._models[name]))
            case LoadAdapter(name):
                return await self._load_adapter(worker, self._models[name], message)
            case DismissAdapter(name):
                self._dismiss_adapter(worker, self._models[name], message)
            case AdapterUnused(name, number):
                self._leave_adapter(self._models[name], number, worker)
            case _:
                raise AssertionError(f"{message} came to the supervisor: our bug, please report it")
        return Done()

    # Models.

    async def _enter(self, worker: Worker, model: _Model) -> Entered:
        """Raises: Unavailable."""
        await model.managed.enter()
        if worker not in self._workers:
            model.managed.leave()
            raise Unavailable("The worker has ended.")
        model.held[worker] += 1
        return Entered(model.num_closings)

    def _leave(self, worker: Worker, model: _Model, number: int) -> None:
        if worker in self._workers:  # else it has left with all that it was in
            model.held[worker] -= number
            for _ in range(number):
                model.managed.leave()

    def _close(self, model: _Model) -> None:
        model.num_closings += 1
        self._send_all(CloseModel(model.name, model.num_closings))

    def _tell(self, model: _Model) -> None:
        self._send_all(model.news())

    async def _report(self, model: _Model) -> ModelStatus:
        """With the requests that are in it in all workers, of which the manager sees the workers only."""
        counts = [each for each in await ask_all(self._workers, CountRequests(model.name)) if isinstance(each, Counted)]
        status = model.managed.status()
        num_waiting = sum(count.num_waiting for count in counts)
        return msgspec.structs.replace(
            status, num_requests=sum(count.num_open for count in counts), num_waiting=num_waiting
        )

    async def _load_text(self, name: str) -> str | None:
        """Have all workers load it; where the chat template comes from. Raises: CheckpointError."""
        await self._has_workers.wait()
        found = await ask_all(self._workers, LoadText(name), None)
        for each in found:
            if isinstance(each, CheckpointError):
                raise each
        return next((each.template for each in found if isinstance(each, TextLoaded)), None)

    # Adapters.

    async def _load_adapter(self, worker: Worker, model: _Model, message: LoadAdapter) -> AdapterNumber:
        """Raises: CheckpointError, Unavailable; nothing has changed then."""
        async with self._changing:
            await model.managed.enter()
            try:
                number = await model.engine.load_adapter(Path(message.path))
            finally:
                model.managed.leave()
            self._tell(model)  # before anybody names it
            put = model.put[message.name] = AdapterPut(model.name, message.name, message.path, number)
            self._send_all(put, but=worker)
            return AdapterNumber(number)

    def _dismiss_adapter(self, worker: Worker, model: _Model, message: DismissAdapter) -> None:
        gone = AdapterGone(model.name, message.name, message.number)
        put = model.put.get(message.name)
        if put is not None and put.number == message.number:
            del model.put[message.name]
        elif message.number < len(model.adapters):
            model.gone.append(gone)
        model.leaving[message.number] = set(self._workers)
        self._send_all(gone, but=worker)

    def _leave_adapter(self, model: _Model, number: int, worker: Worker) -> None:
        users = model.leaving.get(number)
        if users is not None:
            users.discard(worker)
            if not users:
                del model.leaving[number]
                model.engine.unload_adapter(number)
                self._tell(model)

    def _send_all(self, message: Message, but: Worker | None = None) -> None:
        for worker in self._workers:
            if worker is not but:
                worker.link.send(message)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def serve_with_workers(
    settings: Settings,
    read_again: Callable[[], Settings],
    files: Sequence[ModelFiles],
    remote: RemoteModels,
    listener: socket.socket,
    forker: Forker | None,
) -> int:
    """See `server.serve`."""
    foreign = [forker.socket] if forker is not None else []
    make_room = partial(EngineRoom, settings, files, remote, forker)
    return supervise(settings, read_again, listener, make_room, partial(_worker_parts, files), foreign)


def _worker_parts(files: Sequence[ModelFiles], seat: Seat) -> Parts:
    settings = seat.settings
    stored = stored_api(settings, store_of(settings))
    models = WorkersModels(seat, files, stored.runs)
    remote = RemoteModels(settings.upstreams)
    return Parts(settings, remote, models, stored, seat.books, seat.admission, seat.cache, openapi_document)
