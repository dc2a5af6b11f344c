"""One process that imports torch once and forks an engine's process for each model.

Importing torch takes over a second of CPU; three models on two cores would take it three times. Forking is safe here
because this process does nothing but import: no tensor, no thread, no GPU. It ends when its socket closes.

`langport serve` starts it before it imports anything large itself: this module imports little.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress

PID_BYTES = 8


class Forker:
    """The server's end of a forking process."""

    def __init__(self) -> None:
        """Start the process; returns at once. Raises: OSError."""
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "langport.engine.forker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """End the process; engine processes end when their own sockets close. A second call does nothing."""
        self.socket.close()
        self._process.kill()  # it may be importing still, and has nothing to lose
        self._process.wait()


def main() -> None:
    """Fork for every socket that arrives, until the server is gone."""
    # The server decides when to end. A Ctrl-C and the end of a terminal reach the whole process group, and systemd
    # sends SIGTERM to every process of a service.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children: the system removes them
    server = socket.socket(fileno=int(sys.argv[1]))
    _import()
    from langport.engine import worker

    with suppress(OSError):  # the server ended while it was being answered
        while (connection := _receive(server)) is not None:
            pid = os.fork()
            if pid == 0:
                gc.enable()
                server.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                worker.main(connection)
            os.close(connection)
            server.sendall(pid.to_bytes(PID_BYTES, "little"))
    os._exit(0)


def _import() -> None:
    """torch and all that an engine needs, before the first fork.

    What is imported lives for ever, so looking through it for garbage is a waste, here and in every engine, whose pages
    would no longer be shared.
    """
    gc.disable()
    import langport.engine.load  # noqa: F401

    gc.freeze()


def _receive(server: socket.socket) -> int | None:
    """The file descriptor of a socket that asks for an engine process; None when the server has ended."""
    _, connections, _, _ = socket.recv_fds(server, 1, 1)
    return connections[0] if connections else None


if __name__ == "__main__":
    main()
