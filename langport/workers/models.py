"""A worker's models: their text side is here, their engines and the decision who is in memory are the supervisor's.

A worker holds a model while a request of its is in it: the first one asks the supervisor, those that come meanwhile do
not, and when the last one has left the supervisor is told. While the supervisor wants the model empty each new request
asks, and waits there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from langport.api.response_runs import Events, Runs
from langport.engine.guest import EngineGuest
from langport.errors import CheckpointError
from langport.gateway.residence import ModelStatus
from langport.gateway.upstream import Upstream
from langport.manager import Entrance
from langport.server import LocalAdapter, LocalModel, ModelFiles
from langport.workers.link import Link
from langport.workers.messages import (
    AdapterGone,
    AdapterNumber,
    AdapterPut,
    AdapterUnused,
    AskResidence,
    CancelRun,
    CloseModel,
    Counted,
    CountRequests,
    DismissAdapter,
    Done,
    Entered,
    EnterModel,
    Failure,
    FollowRun,
    GiveUp,
    LeaveModel,
    LoadAdapter,
    LoadModel,
    LoadText,
    Message,
    News,
    Residing,
    RunEvents,
    TextLoaded,
    Truth,
    UnloadModel,
)
from langport.workers.worker import Seat


class Residency(Entrance):
    """A model's place in the memory that the supervisor watches; see `server.Managed`."""

    def __init__(self, name: str, link: Link) -> None:
        self.name = name
        self.num_open = 0
        """Requests of this worker that are in it."""
        self.answers_later = False
        self.num_loads = 0
        self._link = link
        self._num_held = 0
        """How often the supervisor counts this worker as being in it."""
        self._num_closings = 0
        self._num_closings_over = 0
        self._entering: dict[int, asyncio.Future[Any]] = {}

    @property
    def num_waiting(self) -> int:
        """Requests of this worker that wait for it."""
        return len(self._entering)

    def enter_at_once(self) -> bool:
        if not self._num_held or self._num_closings > self._num_closings_over:
            return False
        self.num_open += 1
        return True

    async def enter(self) -> None:
        if self.enter_at_once():
            return
        id, answer = self._link.call(EnterModel(self.name))
        self._entering[id] = answer
        try:
            entered = await asyncio.shield(answer)
        except asyncio.CancelledError:
            if not answer.done():
                self._link.send(GiveUp(id))
            answer.add_done_callback(self._leave_late)
            raise
        finally:
            del self._entering[id]
        assert isinstance(entered, Entered)
        self._num_closings_over = max(self._num_closings_over, entered.num_closings)
        self._num_held += 1
        self.num_open += 1

    def leave(self) -> None:
        self.num_open -= 1
        number = self._num_held - (1 if self.num_open else 0)
        if number > 0:
            self._num_held -= number
            self._link.send(LeaveModel(self.name, number))

    def close(self, num_closings: int) -> None:
        """The supervisor wants it empty; those that are in go on."""
        self._num_closings = num_closings

    def give_up(self) -> None:
        """This worker ends: let nobody wait for it any more."""
        for id in self._entering:
            self._link.send(GiveUp(id))

    async def load(self) -> None:
        await self._link.ask(LoadModel(self.name), Done)

    def unload(self) -> None:
        self._link.send(UnloadModel(self.name))

    async def report(self) -> ModelStatus:
        return (await self._link.ask(AskResidence(self.name), Residing)).status

    def _leave_late(self, answer: asyncio.Future[Any]) -> None:
        """It was let in when it waited no longer."""
        if not answer.cancelled() and answer.exception() is None:
            self._link.send(LeaveModel(self.name, 1))


class SupervisorsAdapters:
    """Loads adapters into the supervisor's engines; see `server.Adapters`."""

    def __init__(self, model: str, link: Link) -> None:
        self._model = model
        self._link = link

    async def load(self, name: str, path: Path) -> int:
        return (await self._link.ask(LoadAdapter(self._model, name, str(path)), AdapterNumber)).number

    def dismiss(self, name: str, number: int) -> None:
        self._link.send(DismissAdapter(self._model, name, number))

    def unload(self, number: int) -> None:
        self._link.send(AdapterUnused(self._model, number))


class OtherWorkers:
    """Responses in the background that other workers work on; see `api.response_runs.Elsewhere`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def cancel(self, id: str, owner: str) -> bool:
        return (await self._link.ask(CancelRun(id, owner), Truth)).value

    async def next_events(self, id: str, owner: str, after: int) -> Events | None:
        found = await self._link.ask(FollowRun(id, owner, after), RunEvents)
        return None if found.events is None else Events(found.events, found.is_ended)


class WorkersModels:
    """All models of this machine as a worker serves them; see `assembly.Models`."""

    def __init__(self, seat: Seat, files: Sequence[ModelFiles], runs: Runs) -> None:
        self._seat = seat
        self._runs = runs
        runs.elsewhere = OtherWorkers(seat.link)
        self._models: dict[str, LocalModel] = {}
        self._engines: dict[str, EngineGuest] = {}
        self._residencies: dict[str, Residency] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        for settings, each in zip(seat.settings.models, files, strict=True):
            name = settings.name
            engine = self._engines[name] = EngineGuest(name)
            model = self._models[name] = LocalModel(settings, each, engine, seat.settings.limits, runs)
            model.managed = self._residencies[name] = Residency(name, seat.link)
            model.adapter_loader = SupervisorsAdapters(name, seat.link)
        seat.hand_on(self._receive)

    def upstreams(self) -> Sequence[Upstream]:
        return [upstream for model in self._models.values() for upstream in model.upstreams()]

    async def load(self, is_stop_wanted: asyncio.Event) -> bool:
        return not is_stop_wanted.is_set()

    def announce(self, url: str) -> None:
        pass

    async def stop(self) -> None:
        for residency in self._residencies.values():
            residency.give_up()

    async def close(self) -> None:
        for engine in self._engines.values():
            await engine.close()

    def _receive(self, id: int, message: Message) -> None:
        match message:
            case News(name, engine, answers_later, num_loads):
                self._engines[name].hear(engine)
                self._residencies[name].answers_later = answers_later
                self._residencies[name].num_loads = num_loads
            case CloseModel(name, num_closings):
                self._residencies[name].close(num_closings)
            case CountRequests(name):
                residency = self._residencies[name]
                self._seat.link.answer(id, Counted(residency.num_open, residency.num_waiting))
            case LoadText(name):
                self._spawn(self._load_text(id, self._models[name]))
            case CancelRun():
                self._spawn(self._cancel_run(id, message))
            case FollowRun():
                self._spawn(self._follow_run(id, message))
            case AdapterPut():
                self._put_adapter(message)
            case AdapterGone():
                self._remove_adapter(message)
            case _:
                raise AssertionError(f"{message} came to a worker: our bug, please report it")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel_run(self, id: int, message: CancelRun) -> None:
        run = self._runs.find(message.id, message.owner)
        if run is not None:
            await run.cancel()
        self._seat.link.answer(id, Truth(run is not None))

    async def _follow_run(self, id: int, message: FollowRun) -> None:
        run = self._runs.find(message.id, message.owner)
        found = None if run is None else await run.next_events(message.after)
        self._seat.link.answer(id, RunEvents(None, True) if found is None else RunEvents(*found))

    async def _load_text(self, id: int, model: LocalModel) -> None:
        try:
            answer: Message = TextLoaded(await model.load_text())
        except CheckpointError as error:
            answer = Failure.of(error)
        self._seat.link.answer(id, answer)

    def _put_adapter(self, message: AdapterPut) -> None:
        adapter = LocalAdapter(self._models[message.model], message.name, Path(message.path), message.number)
        if self._seat.served is not None:
            self._seat.served.put(adapter.upstream)

    def _remove_adapter(self, message: AdapterGone) -> None:
        adapter = self._models[message.model].known_adapters.get(message.number)
        served = self._seat.served
        if adapter is not None:
            if served is not None and served.model(message.name) is adapter.upstream:
                served.remove(message.name)
            adapter.leave()
        else:
            self._seat.link.send(AdapterUnused(message.model, message.number))
