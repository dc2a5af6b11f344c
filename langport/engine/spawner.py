"""One process that imports torch once and forks an engine's process for each model.

Importing torch takes over a second of CPU; three models on two cores would take it three times. Forking is safe here
because this process does nothing but import: no tensor, no thread, no GPU. It ends when its socket closes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import suppress

from langport.errors import Unavailable

PID_BYTES = 8


class Spawner:
    """The server's end: starts the process on first use, and again if it died."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def spawn(self) -> tuple[socket.socket, int]:
        """A new engine process: the socket to it, and its process id.

        Raises: Unavailable when no process can be started.
        """
        async with self._lock:
            for _ in range(2):  # the second time with a new forking process
                if self._socket is None:
                    self._socket = await self._start()
                with suppress(OSError):
                    return await self._ask(self._socket)
                self._socket.close()
                self._socket = None
        raise Unavailable("no engine process can be started; the server's log may say why")

    async def close(self) -> None:
        """End the forking process; engine processes end when their own sockets close."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            await self._process.wait()

    async def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "langport.engine.spawner", str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        return ours

    async def _ask(self, spawner: socket.socket) -> tuple[socket.socket, int]:
        """Hand over one end of a new socket; the answer is the process id of who holds it."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(spawner, [b"f"], [theirs.fileno()])
            answer = await asyncio.get_running_loop().sock_recv(spawner, PID_BYTES)
            if not answer:
                raise ConnectionResetError("the forking process ended")
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        return ours, int.from_bytes(answer, "little")


def main() -> None:
    """Fork for every socket that arrives, until the server is gone."""
    # The server decides when to end; a Ctrl-C in its terminal reaches the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the server's: it ends this process when it stops
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children: the system removes them
    server = socket.socket(fileno=int(sys.argv[1]))
    import langport.engine.load  # noqa: F401 - torch and all that an engine needs, before the first fork
    from langport.engine import worker

    with suppress(OSError):  # the server ended while it was being answered
        while (connection := _receive(server)) is not None:
            pid = os.fork()
            if pid == 0:
                server.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                worker.main(connection)
            os.close(connection)
            server.sendall(pid.to_bytes(PID_BYTES, "little"))
    os._exit(0)


def _receive(server: socket.socket) -> int | None:
    """The file descriptor of a socket that asks for an engine process; None when the server has ended."""
    _, connections, _, _ = socket.recv_fds(server, 1, 1)
    return connections[0] if connections else None


if __name__ == "__main__":
    main()
