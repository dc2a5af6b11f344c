"""Further connections to an engine: of the server's workers, each of which asks it without a process in between.

The server's own connection stays what it was: it loads the model, and with it the engine ends. A guest asks for
answers only, under ids that begin with its name, and gets those; what it was being answered is freed when it leaves.
A guest that reads too slowly is dropped, so that it never holds up the others.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Sequence

from langport.engine.messages import (
    Abort,
    Embed,
    Embedded,
    FromEngine,
    Generate,
    Join,
    RequestFailed,
    Step,
    ToEngine,
    decode_to_engine,
    encode,
)
from langport.frames import Frames

READ_SIZE = 1 << 18
MAX_UNSENT_BYTES = 64 * 1024 * 1024
REPORT_S = 0.1
"""Between two reports of steps to the server, which needs their figures only."""
BACKLOG = 64


def guest_id(guest: str, request_id: str) -> str:
    """The id under which a guest's request is known."""
    return f"{guest}:{request_id}"


class _Guest:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.name: str | None = None
        self.frames = Frames()
        self.unsent = bytearray()

    def send(self, message: FromEngine) -> None:
        """Raises: OSError when it is gone, or has not read for too long."""
        self.unsent += encode(message)
        self.flush()

    def flush(self) -> None:
        """Raises: OSError."""
        try:
            while self.unsent:
                del self.unsent[: self.socket.send(self.unsent)]
        except BlockingIOError:
            if len(self.unsent) > MAX_UNSENT_BYTES:
                raise ConnectionAbortedError("it does not read") from None


class Guests:
    """All of them, and the socket at which they come."""

    def __init__(self, path: str, open_requests: Callable[[], Iterable[str]]) -> None:
        """`open_requests`: ids of those that the engine has not ended. Raises: OSError."""
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(path)
        os.chmod(path, 0o600)
        self._door.listen(BACKLOG)
        self._door.setblocking(False)
        self._open_requests = open_requests
        self._guests: list[_Guest] = []
        self._by_name: dict[str, _Guest] = {}
        self._readable: Sequence[socket.socket] = ()
        """As of the last `wait`."""
        self._left: list[str] = []
        """Names of guests that have gone, whose requests are still to be ended."""
        self._reported_s = float("-inf")

    def wait(self, server: socket.socket, *, forever: bool) -> bool:
        """Until somebody has something to say, or without `forever` not at all; whether the server has."""
        readers = [server, self._door, *(guest.socket for guest in self._guests)]
        writers = [guest.socket for guest in self._guests if guest.unsent]
        readable, writable, _ = select.select(readers, writers, [], None if forever else 0)
        for guest in [guest for guest in self._guests if guest.socket in writable]:
            self._try(guest, guest.flush)
        self._readable = readable
        return server in readable

    def receive(self) -> list[ToEngine]:
        """What guests have said by the last `wait`, and the end of what those wanted who have left."""
        found: list[ToEngine] = []
        if self._door in self._readable:
            self._let_in()
        for guest in [guest for guest in self._guests if guest.socket in self._readable]:
            try:
                data = guest.socket.recv(READ_SIZE)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if data:
                found += self._read(guest, data)
            else:
                self._drop(guest)
        for name in self._left:
            found += [Abort(id) for id in self._open_requests() if _guest_of(id) == name]
            # What it has just asked for has not come to the engine yet.
            found = [message for message in found if not _is_asked_by(name, message)]
        self._left.clear()
        return found

    def take(self, message: FromEngine) -> FromEngine | None:
        """Send on what is for guests; what remains is the server's."""
        match message:
            case Step():
                return self._share(message)
            case Embedded(request_id=id) | RequestFailed(request_id=id):
                guest = self._by_name.get(_guest_of(id))
                if guest is not None:
                    self._try(guest, lambda: guest.send(message))
                return None
            case _:
                return message

    def _share(self, step: Step) -> Step | None:
        parts: dict[str, Step] = {}
        for delta in step.deltas:
            self._part(parts, step, delta.request_id).deltas.append(delta)
        for first in step.first_tokens:
            self._part(parts, step, first.request_id).first_tokens.append(first)
        for name, part in parts.items():
            guest = self._by_name.get(name)
            if guest is not None:
                self._try(guest, lambda guest=guest, part=part: guest.send(part))  # type: ignore[misc]
        now = time.monotonic()
        if now - self._reported_s < REPORT_S and (step.num_running or step.num_waiting):
            return None
        self._reported_s = now
        return _empty(step)

    def _part(self, parts: dict[str, Step], step: Step, request_id: str) -> Step:
        name = _guest_of(request_id)
        if name not in parts:
            parts[name] = _empty(step)
        return parts[name]

    def _let_in(self) -> None:
        try:
            connection, _ = self._door.accept()
        except OSError:
            return
        connection.setblocking(False)
        self._guests.append(_Guest(connection))

    def _read(self, guest: _Guest, data: bytes) -> list[ToEngine]:
        found: list[ToEngine] = []
        for body in guest.frames.feed(data):
            message = decode_to_engine(body)
            match message:
                case Join(name):
                    guest.name = name
                    self._by_name[name] = guest
                case Generate() | Embed() | Abort():
                    found.append(message)
                case _:
                    raise AssertionError(f"a guest sends {message}: our bug, please report it")
        return found

    def _try(self, guest: _Guest, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError:
            self._drop(guest)

    def _drop(self, guest: _Guest) -> None:
        if guest in self._guests:
            self._guests.remove(guest)
            guest.socket.close()
            if guest.name is not None:
                del self._by_name[guest.name]
                self._left.append(guest.name)


def _guest_of(request_id: str) -> str:
    return request_id.partition(":")[0]


def _is_asked_by(name: str, message: ToEngine) -> bool:
    return isinstance(message, Generate | Embed) and _guest_of(message.request.request_id) == name


def _empty(step: Step) -> Step:
    return Step([], step.num_running, step.num_waiting, step.kv_cache_usage, step.totals, [])
