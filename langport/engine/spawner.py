"""Asks one forking process (`forker`) for the process of each engine, and replaces it should it die."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from langport.engine.forker import PID_BYTES, Forker
from langport.errors import Unavailable


class Spawner:
    """Where engine processes come from."""

    def __init__(self, forker: Forker | None = None) -> None:
        """`forker`: one that was started already, which now belongs to the spawner; else it is started on first use."""
        self._forker = forker
        self._lock = asyncio.Lock()

    async def spawn(self) -> tuple[socket.socket, int]:
        """A new engine process: the socket to it, and its process id.

        Raises: Unavailable when no process can be started.
        """
        async with self._lock:
            for _ in range(2):  # the second time with a new forking process
                if self._forker is None:
                    self._forker = Forker()
                with suppress(OSError):
                    return await self._ask(self._forker.socket)
                self._forker.close()
                self._forker = None
        raise Unavailable("no engine process can be started; the server's log may say why")

    async def close(self) -> None:
        """End the forking process; engine processes end when their own sockets close."""
        if self._forker is not None:
            self._forker.close()
            self._forker = None

    async def _ask(self, forker: socket.socket) -> tuple[socket.socket, int]:
        """Hand over one end of a new socket; the answer is the process id of who holds it."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(forker, [b"f"], [theirs.fileno()])
            answer = await asyncio.get_running_loop().sock_recv(forker, PID_BYTES)
            if not answer:
                raise ConnectionResetError("the forking process ended")
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        return ours, int.from_bytes(answer, "little")
