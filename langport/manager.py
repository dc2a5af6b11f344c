"""Which models are in memory: loaded when they are asked for, unloaded when they are idle or another needs the place.

Every request enters its model and leaves it. One function, `ModelManager._arrange`, decides after every change who is
loaded and who has to go; nothing here knows engines, checkpoints or HTTP beyond a client that leaves. A request that
runs is never ended: a model is unloaded only when nobody is in it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any, Protocol

from langport.errors import CheckpointError, LangPortError, OutOfMemory, Unavailable
from langport.gateway.asgi import ASGIApp, ClientGone, Receive, Scope, Send
from langport.gateway.clock import Clock, LoopClock, Timer
from langport.gateway.residence import ModelStatus
from langport.gateway.upstream import ReplayedBody
from langport.types import Meter, TokenUsage

logger = logging.getLogger("langport")

RETRY_S = 10.0
"""When a client may try again after a failed load."""


class State(Enum):
    """Where a model is between two loads."""

    UNLOADED = "unloaded"
    """Not in memory; the next request asks for it."""
    WAITING = "waiting"
    """Asked for; others still have its place."""
    LOADING = "loading"
    """On its way into memory; its requests wait."""
    READY = "ready"
    """In memory; its requests run."""
    DRAINING = "draining"
    """To be unloaded: requests that run go on to their end, new ones wait."""
    UNLOADING = "unloading"
    """On its way out of memory; nobody is in it."""


IN_MEMORY = (State.LOADING, State.READY, State.DRAINING, State.UNLOADING)
"""States that take a place."""


class Loadable(Protocol):
    """What the manager asks of a model."""

    @property
    def name(self) -> str: ...

    async def load(self) -> None:
        """Raises: CheckpointError; OutOfMemory where more memory would help."""
        ...

    async def unload(self) -> None:
        """Give its memory back, whatever state a load left it in."""
        ...

    def needed_bytes(self) -> int:
        """Host memory that loading it takes, as well as that is known; 0 where it cannot be told."""
        ...

    def memory_bytes(self) -> int:
        """Host memory that it takes now."""
        ...


class Entrance:
    """The door of a model, through which its requests come. Whether it is in memory, who derives from this knows."""

    def enter_at_once(self) -> bool:
        """As `enter`, where nothing has to be waited for; else False."""
        raise NotImplementedError

    async def enter(self) -> None:
        """Wait until the model is loaded, and keep it so until `leave`.

        Raises: Unavailable when it cannot be loaded, or the server is stopping. A cancelled call has not entered.
        """
        raise NotImplementedError

    def leave(self) -> None:
        """A request that entered has ended."""
        raise NotImplementedError

    async def answer(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """What `app` answers, inside the model; work that outlives the answer keeps the model loaded, too.

        Raises: Unavailable as `enter` does, ClientGone when the client left before the model was there.
        """
        if not self.enter_at_once():
            receive = await self._enter_with_client(receive)
        works: list[asyncio.Future[Any]] = []
        try:
            await app(_noting_work(scope, works), receive, send)
        finally:
            work = next((work for work in reversed(works) if not work.done()), None)
            if work is None:
                self.leave()
            else:
                work.add_done_callback(lambda _: self.leave())

    async def _enter_with_client(self, receive: Receive) -> Receive:
        """Enter, unless the client leaves first; the `receive` that begins with the body again."""
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        entering = asyncio.ensure_future(self.enter())
        leaving = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait((entering, leaving), return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            if not entering.cancel() and entering.exception() is None:
                self.leave()
            raise
        finally:
            leaving.cancel()
            if not entering.done():
                entering.cancel()
            await asyncio.gather(entering, leaving, return_exceptions=True)
        if entering.cancelled():
            raise ClientGone
        entering.result()
        return ReplayedBody(message.get("body", b""), receive)


class ManagedModel(Entrance):
    """One model as the manager sees it, and the door through which its requests come."""

    def __init__(
        self,
        manager: ModelManager,
        model: Loadable,
        *,
        is_pinned: bool = False,
        starts: bool = False,
        idle_unload_s: float = 0.0,
    ) -> None:
        """`is_pinned`: once loaded it stays. `starts`: it is to be loaded at start. `idle_unload_s`: 0 is never."""
        self.model = model
        self.is_pinned = is_pinned
        self.starts = starts
        self.idle_unload_s = idle_unload_s
        self.state = State.UNLOADED
        self.num_open = 0
        """Requests that are in it."""
        self.num_loads = 0
        self.used_s = 0.0
        """When a request last came or went, by the manager's clock."""
        self.problem: LangPortError | None = None
        """Why the last load failed."""
        self.needs_room = False
        """It did not fit; another must go before it is tried again."""
        self.is_dismissed = False
        """The operator wants it unloaded."""
        self.turns: list[asyncio.Future[None]] = []
        """Of requests that wait for it."""
        self.on_drain: Callable[[], None] | None = None
        """Called when new requests have to wait though it is in memory."""
        self._manager = manager
        self._timer: Timer | None = None

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def answers_later(self) -> bool:
        """It is not in memory, and need not be: a request would load it. At start a model has to load first."""
        return self.state is not State.READY and self.was_started

    @property
    def was_started(self) -> bool:
        """It has been loaded at start, or need not be."""
        return self.num_loads > 0 or not self.starts

    def enter_at_once(self) -> bool:
        """See `Entrance`."""
        if self.state is not State.READY:
            return False
        self._take()
        return True

    async def enter(self) -> None:
        """See `Entrance`."""
        if self.enter_at_once():
            return
        turn = self._manager.ask(self)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled() or not turn.done():
                self._manager.give_up(self, turn)
            elif turn.exception() is None:
                self.leave()
            raise

    def leave(self) -> None:
        """A request that entered has ended."""
        self.num_open -= 1
        self.used_s = self._manager.clock.now()
        self.watch_idleness()
        self._manager.arrange()

    async def load(self) -> None:
        """Have it in memory. Raises: CheckpointError saying why it cannot be loaded, Unavailable."""
        self.is_dismissed = False
        self._manager.arrange()
        try:
            await self.enter()
        except Unavailable as error:
            if self.problem is not None:
                raise self.problem from error
            raise
        self.leave()

    def unload(self) -> None:
        """Let it go as soon as nobody is in it; the next request asks for it again."""
        if self.state in (State.LOADING, State.READY, State.DRAINING):
            self.is_dismissed = True
        if self.state is State.READY:
            self.drain()
            self._manager.arrange()

    def status(self) -> ModelStatus:
        """For the operator."""
        now = self._manager.clock.now()
        return ModelStatus(
            state=self.state.value,
            is_pinned=self.is_pinned,
            num_requests=self.num_open,
            num_waiting=len(self.turns),
            num_loads=self.num_loads,
            memory_bytes=self.model.memory_bytes() if self.state in IN_MEMORY else 0,
            idle_s=max(0.0, now - self.used_s) if self.num_loads and not self.num_open else None,
            problem=str(self.problem) if self.problem is not None else None,
        )

    async def report(self) -> ModelStatus:
        """See `Residence`."""
        return self.status()

    # For the manager.

    def drain(self) -> None:
        """READY to DRAINING."""
        self.state = State.DRAINING
        self._stop_watching()
        if self.on_drain is not None:
            self.on_drain()

    def become_ready(self) -> None:
        """Let in all who wait."""
        self.state = State.READY
        self.used_s = self._manager.clock.now()
        turns, self.turns = self.turns, []
        for turn in turns:
            if not turn.done():
                self._take()
                turn.set_result(None)
        self.watch_idleness()

    def refuse(self, error: Unavailable) -> None:
        """Nobody waits any longer."""
        turns, self.turns = self.turns, []
        for turn in turns:
            if not turn.done():
                turn.set_exception(error)

    def watch_idleness(self) -> None:
        """Unload it when nobody comes for long enough."""
        if self.idle_unload_s and not self.is_pinned and not self.num_open and self.state is State.READY:
            self._stop_watching()
            self._timer = self._manager.clock.call_later(self.idle_unload_s, self._expire)

    def _expire(self) -> None:
        if self.state is State.READY and not self.num_open:
            logger.info("%s: unloading it, nobody asked for it for %g s", self.name, self.idle_unload_s)
            self.drain()
            self.is_dismissed = True
            self._manager.arrange()

    def _take(self) -> None:
        self.num_open += 1
        self.used_s = self._manager.clock.now()
        self._stop_watching()

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class ModelManager:
    """Decides which models are in memory."""

    def __init__(self, max_loaded: int | None, free_bytes: Callable[[], int], *, clock: Clock | None = None) -> None:
        """`max_loaded`: most models in memory. `free_bytes`: host memory that can be taken now."""
        self.clock = clock or LoopClock()
        self.models: list[ManagedModel] = []
        self._max_loaded = max_loaded
        self._free_bytes = free_bytes
        self._asked: list[ManagedModel] = []
        """Those that are WAITING, in the order in which they were asked for."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    def add(self, model: Loadable, *, is_pinned: bool, starts: bool, idle_unload_s: float) -> ManagedModel:
        """Manage one more, which is not in memory."""
        managed = ManagedModel(self, model, is_pinned=is_pinned, starts=starts, idle_unload_s=idle_unload_s)
        self.models.append(managed)
        return managed

    async def start(self, model: ManagedModel) -> None:
        """Load a model whatever else there is. Raises: CheckpointError, Unavailable when the server stops first."""
        if model.state is State.WAITING:  # a request was faster
            self._asked.remove(model)
        if model.state in (State.UNLOADED, State.WAITING):
            self._begin(model)
        await model.load()

    def ask(self, model: ManagedModel) -> asyncio.Future[None]:
        """A turn that comes when the model is loaded. Raises: Unavailable when the server is stopping."""
        if self._is_stopping:
            raise _stopping(model)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        model.turns.append(turn)
        if model.state is State.UNLOADED:
            self._want(model)
        return turn

    def give_up(self, model: ManagedModel, turn: asyncio.Future[None]) -> None:
        """Somebody does not wait any longer; a model that nobody waits for is not loaded."""
        if turn in model.turns:
            model.turns.remove(turn)
        if model.state is State.WAITING and not model.turns:
            self._asked.remove(model)
            model.state = State.UNLOADED
            model.needs_room = False
        self.arrange()

    def arrange(self) -> None:
        """Do all that can be done now: unload who must go and is empty, load who was asked for and has a place."""
        if self._is_stopping:
            return
        for model in self.models:
            if model.state is State.DRAINING and not model.num_open:
                self._unload(model)
        while self._asked and self._has_place(self._asked[0]):
            self._begin(self._asked.pop(0))
        if not self._asked:
            for model in self.models:
                if model.state is State.DRAINING and not model.is_dismissed:
                    model.become_ready()  # nobody wants its place any more

    async def stop(self) -> None:
        """Load no more, and let nobody wait; requests that run go on."""
        self._is_stopping = True
        for model in self.models:
            model.refuse(_stopping(model))
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _want(self, model: ManagedModel) -> None:
        model.state = State.WAITING
        self._asked.append(model)
        self.arrange()

    def _has_place(self, model: ManagedModel) -> bool:
        """Whether it may load now; if not, somebody has been asked to make room, or is about to."""
        num_loaded = sum(other.state in IN_MEMORY for other in self.models)
        is_in_number = self._max_loaded is None or num_loaded < self._max_loaded
        if is_in_number and self._fits(model):
            return True
        return not self._make_room(model) and is_in_number  # then its engine says what is missing

    def _fits(self, model: ManagedModel) -> bool:
        if model.needs_room:
            return False
        needed = model.model.needed_bytes()
        if not needed or not any(other.state in IN_MEMORY for other in self.models):
            return True  # unknown, or there is nobody who could make room
        loading = sum(other.model.needed_bytes() for other in self.models if other.state is State.LOADING)
        return needed + loading <= self._free_bytes()

    def _make_room(self, wanting: ManagedModel) -> bool:
        """Ask the model to go that was not used for longest, an idle one if there is one; False: there is none."""
        if any(model.state is State.UNLOADING for model in self.models):
            return True
        victims = [model for model in self.models if model.state is State.READY and not model.is_pinned]
        idle = [model for model in victims if not model.num_open]
        if idle:
            victim = min(idle, key=_last_use)
            logger.info("%s: unloading it, %s needs its place", victim.name, wanting.name)
            self._unload(victim)
            return True
        if any(model.state in (State.DRAINING, State.LOADING) for model in self.models):
            return True
        if victims:
            victim = min(victims, key=_last_use)
            logger.info("%s: unloading it when its requests have ended, %s needs its place", victim.name, wanting.name)
            victim.drain()
            return True
        return False

    def _begin(self, model: ManagedModel) -> None:
        model.state = State.LOADING
        model.problem = None
        model.needs_room = False
        self._spawn(self._load(model))

    def _unload(self, model: ManagedModel) -> None:
        """Nobody is in it."""
        model.drain()
        model.state = State.UNLOADING
        self._spawn(self._do_unload(model))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, model: ManagedModel) -> None:
        try:
            await model.model.load()
        except LangPortError as error:
            await self._fail(model, error)
        except Exception as error:  # the edge of this task: whatever a checkpoint's files may cause
            logger.exception("%s cannot be loaded", model.name)
            await self._fail(model, CheckpointError(f"{model.name}: {type(error).__name__}: {error}"))
        else:
            model.num_loads += 1
            model.become_ready()
            if model.is_dismissed:
                model.drain()
        self.arrange()

    async def _fail(self, model: ManagedModel, error: LangPortError) -> None:
        """Those who wait are told, unless another model can make room for one that did not fit."""
        await model.model.unload()
        if isinstance(error, OutOfMemory) and model.was_started and self._others_may_go(model):
            logger.info("%s: it did not fit into memory; another model has to go first", model.name)
            model.needs_room = True
            model.state = State.WAITING
            self._asked.insert(0, model)  # before one that would take the room again
            return
        logger.error("The model %s cannot be loaded: %s", model.name, error)
        model.state = State.UNLOADED
        model.problem = error
        model.refuse(Unavailable(f"The model {model.name} could not be loaded: {error}", retry_after_s=RETRY_S))

    def _others_may_go(self, model: ManagedModel) -> bool:
        others = (other for other in self.models if other is not model and other.state in IN_MEMORY)
        return any(not other.is_pinned for other in others)

    async def _do_unload(self, model: ManagedModel) -> None:
        await model.model.unload()
        logger.info("%s: unloaded", model.name)
        model.state = State.UNLOADED
        model.is_dismissed = False
        for other in self.models:
            other.needs_room = False
        if model.turns:
            self._want(model)
        self.arrange()


def _last_use(model: ManagedModel) -> float:
    return model.used_s


def _stopping(model: ManagedModel) -> Unavailable:
    return Unavailable(f"The model {model.name} was not loaded: the server is stopping.")


def _noting_work(scope: Scope, works: list[asyncio.Future[Any]]) -> Scope:
    """The scope with a meter that also notes what work outlives the answer."""
    given = scope.get("extensions") or {}
    known = given.get("langport", {})
    meter: Meter | None = known.get("meter")

    def note(count: Callable[[], TokenUsage], work: asyncio.Future[Any] | None = None) -> None:
        if work is not None:
            works.append(work)
        if meter is not None:
            meter(count, work)

    return {**scope, "extensions": {**given, "langport": {**known, "meter": note}}}


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
