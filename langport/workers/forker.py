"""The process that workers are forked from: it has imported what they need, and does nothing else.

Started before the supervisor has an event loop or a thread, which makes forking safe; pages that nobody writes to are
shared by all. It ends when the supervisor does, and tells it of each worker that has ended.
"""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import NoReturn

_REPORT = struct.Struct("<cqi")
_FORKED, _ENDED = b"f", b"e"
"""Kinds of reports; of what, and of a worker that has ended its status as `os.waitpid` gives it."""
_IGNORED = (signal.SIGINT, signal.SIGHUP)
"""Signals that reach a terminal's whole process group. The supervisor decides what they mean."""


class WorkerForker:
    """The supervisor's end."""

    def __init__(self, work: Callable[[socket.socket], None], foreign: Iterable[socket.socket] = ()) -> None:
        """Fork the process. Each worker does `work` with its end of a socket; `foreign` sockets are closed there."""
        self.socket, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        gc.freeze()  # what is imported lives for ever; a collector that looks through it would copy the pages
        self.pid = os.fork()
        if self.pid == 0:
            self.socket.close()
            for each in foreign:
                each.close()
            _run(partial(_serve, theirs, work))
        theirs.close()
        self.socket.setblocking(False)
        self._forked: asyncio.Queue[int] = asyncio.Queue()
        self._on_end: Callable[[int, int], None] = lambda pid, status: None
        self._lock = asyncio.Lock()
        self.is_gone = asyncio.Event()
        """Set when no worker can be started any more."""

    def start(self, on_end: Callable[[int, int], None]) -> None:
        """Listen to reports in the running event loop; `on_end` is told process ids and statuses."""
        self._on_end = on_end
        asyncio.get_running_loop().add_reader(self.socket.fileno(), self._read)

    async def fork(self) -> tuple[socket.socket, int]:
        """A new worker: the socket to it, and its process id. Raises: OSError when the process is gone."""
        async with self._lock:
            if self.is_gone.is_set():
                raise ConnectionResetError("the process that workers are forked from has ended")
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            try:
                with theirs:
                    socket.send_fds(self.socket, [b"f"], [theirs.fileno()])
                pid = await self._forked.get()
                if not pid:
                    raise ConnectionResetError("the process that workers are forked from has ended")
            except BaseException:
                ours.close()
                raise
            return ours, pid

    def close(self) -> None:
        """End it; workers end by themselves. A second call does nothing."""
        if self.socket.fileno() >= 0:
            if not self.is_gone.is_set():
                self._give_up()
            self.socket.close()
            os.waitpid(self.pid, 0)

    def _read(self) -> None:
        data = self.socket.recv(_REPORT.size * 64)
        if not data:
            self._give_up()
        for kind, pid, status in _REPORT.iter_unpack(data):
            if kind == _FORKED:
                self._forked.put_nowait(pid)
            else:
                self._on_end(pid, status)

    def _give_up(self) -> None:
        asyncio.get_running_loop().remove_reader(self.socket.fileno())
        self.is_gone.set()
        self._forked.put_nowait(0)


def _serve(server: socket.socket, work: Callable[[socket.socket], None]) -> None:
    """Fork for every socket that arrives, until the supervisor is gone."""
    for number in (*_IGNORED, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    waking, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([server.fileno(), waking], [], [])
        if waking in ready:
            os.read(waking, 4096)
            _report_ended(server)
        if server.fileno() in ready:
            _, connections, _, _ = socket.recv_fds(server, 1, 1)
            if not connections:
                return
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGCHLD, signal.SIGTERM):
                    signal.signal(number, signal.SIG_DFL)
                os.close(waking)
                os.close(woken)
                server.close()
                _run(partial(work, socket.socket(fileno=connections[0])))
            os.close(connections[0])
            server.sendall(_REPORT.pack(_FORKED, pid, 0))


def _report_ended(server: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        server.sendall(_REPORT.pack(_ENDED, pid, status))


def _run(work: Callable[[], None]) -> NoReturn:
    """Never come back to what the parent was about to do."""
    code = 1
    try:
        work()
        code = 0
    except OSError:  # the supervisor is gone
        pass
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)
