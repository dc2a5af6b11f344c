"""The process that owns the device: reads requests from a socket, steps the engine, sends what each step brought.

Forked by `forker`. It ends when the socket closes, so it never outlives the server, whatever happens to that.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from langport.engine.guests import Guests
from langport.engine.messages import (
    Abort,
    AdapterFailed,
    AdapterLoaded,
    Embed,
    FromEngine,
    Generate,
    Join,
    Load,
    LoadAdapter,
    LoadFailed,
    Loading,
    Ready,
    ToEngine,
    UnloadAdapter,
    decode_to_engine,
    encode,
)
from langport.errors import CheckpointError, OutOfMemory
from langport.frames import Frames

if TYPE_CHECKING:
    from langport.engine.engine import EngineCore

log = logging.getLogger("langport.engine")

READ_SIZE = 1 << 18
PROGRESS_STEP = 0.05
"""Share of the weights between two progress messages."""


class ServerGone(Exception):
    """The other end of the socket is closed: nobody waits for anything any more."""


class Connection:
    """Frames on a blocking socket, read without waiting while there is work."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frames = Frames()
        self.guests: Guests | None = None
        """Who else is connected, where the server has workers."""

    def send(self, message: FromEngine) -> None:
        """Raises: ServerGone."""
        rest = message if self.guests is None else self.guests.take(message)
        if rest is None:
            return
        try:
            self._sock.sendall(encode(rest))
        except OSError as error:
            raise ServerGone from error

    def receive(self, *, wait: bool) -> list[ToEngine]:
        """Messages that have arrived; with `wait`, at least one. Raises: ServerGone."""
        if self.guests is not None:
            return self._receive_from_all(self.guests, wait=wait)
        bodies: list[bytes] = []
        while (wait and not bodies) or select.select([self._sock], [], [], 0)[0]:
            data = self._read()
            if not data:
                raise ServerGone
            bodies += self._frames.feed(data)
        return [decode_to_engine(body) for body in bodies]

    def _receive_from_all(self, guests: Guests, *, wait: bool) -> list[ToEngine]:
        """The same with guests, after whose coming and going there may be none. Raises: ServerGone."""
        found: list[ToEngine] = []
        if guests.wait(self._sock, forever=wait):
            data = self._read()
            if not data:
                raise ServerGone
            found = [decode_to_engine(body) for body in self._frames.feed(data)]
        return found + guests.receive()

    def _read(self) -> bytes:
        try:
            return self._sock.recv(READ_SIZE)
        except OSError as error:
            raise ServerGone from error


def serve(connection: Connection) -> None:
    """Load the model, then step for ever. Raises: ServerGone when the server has ended."""
    first, *early = connection.receive(wait=True)
    assert isinstance(first, Load), "the first message tells what to load"
    try:
        from langport.engine.load import load_engine
        from langport.engine.memory import HeapTrimmer
        from langport.models.checkpoint import read_checkpoint

        reported = 0.0

        def report(share: float) -> None:
            nonlocal reported
            if share - reported >= PROGRESS_STEP:
                reported = share
                connection.send(Loading(share))

        core, info = load_engine(read_checkpoint(Path(first.checkpoint)), first, report)
    except CheckpointError as error:
        connection.send(LoadFailed(str(error), lacks_memory=isinstance(error, OutOfMemory)))
        return
    except ServerGone:
        raise
    except Exception as error:  # the edge of the process: another try would end in the same way
        log.exception("the checkpoint cannot be loaded")
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        lacks_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's own
        reason = f"{first.checkpoint}: the engine failed while loading it ({reason})"
        connection.send(LoadFailed(reason, lacks_memory=lacks_memory))
        return
    answers = [_load_adapter(core, number, path) for number, path in first.adapters.items()]
    problems = {answer.number: answer.message for answer in answers if isinstance(answer, AdapterFailed)}
    if first.door:
        connection.guests = Guests(first.door, core.open_requests)
    connection.send(Ready(info, problems))
    inbox = early
    heap = HeapTrimmer()
    while True:
        had_work = core.has_work
        for message in inbox:
            match message:
                case Generate(request) | Embed(request):
                    if (refusal := core.add(request)) is not None:
                        connection.send(refusal)
                case Abort(request_id, index):
                    core.abort(request_id, index)
                case LoadAdapter(number, path):
                    connection.send(_load_adapter(core, number, path))
                case UnloadAdapter(number):
                    core.unload_adapter(number)
                case Load() | Join():
                    raise AssertionError(f"the server sends {message}: our bug, please report it")
        if core.has_work:
            for answer in _step(core):
                connection.send(answer)
            heap.trim()
        elif had_work:
            connection.send(core.report())  # all clients have left, and no step will tell that it is idle
        inbox = connection.receive(wait=not core.has_work)


def _step(core: EngineCore) -> list[FromEngine]:
    """One step; when it fails, every request ends with an error and the engine goes on."""
    try:
        return core.step()
    except Exception as error:  # the edge of the process: whatever a model or a kernel may raise
        log.exception("a step failed; its requests are given up")
        return core.fail_all(f"the engine failed while computing: {type(error).__name__}")


def _load_adapter(core: EngineCore, number: int, path: str) -> AdapterLoaded | AdapterFailed:
    """Whatever an adapter's files hold, the engine goes on as it was."""
    try:
        core.load_adapter(number, Path(path))
    except CheckpointError as error:
        return AdapterFailed(number, str(error))
    except Exception as error:  # the edge of the process: what torch makes of strange numbers, or of too little memory
        log.exception("the adapter in %s cannot be loaded", path)
        return AdapterFailed(number, f"{path}: the engine failed while loading it: {type(error).__name__}")
    return AdapterLoaded(number)


def main(fd: int) -> NoReturn:
    """Serve on the socket `fd` until the server is gone; never returns."""
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(message)s", level=logging.INFO, force=True)
    exit_code = 0
    try:
        serve(Connection(socket.socket(fileno=fd)))
    except ServerGone:
        pass
    except BaseException:
        log.exception("the engine's process fails")
        exit_code = 1
    sys.stderr.flush()
    os._exit(exit_code)  # torch's thread pools need no farewell, and a slow one would hold up the server
