"""The address that all workers listen on.

On Linux each has a socket of its own there (SO_REUSEPORT): the kernel spreads connections by their addresses, and the
socket of a worker that ends is out of the choice at once. A socket that all of them inherit would do as well
but for a burst, all of which the first worker takes that wakes up. Other systems do not spread, and there it is so.
"""

from __future__ import annotations

import socket
import sys

from langport.errors import LangPortError
from langport.http_server import BACKLOG


class Port:
    """Made by the supervisor before it forks."""

    def __init__(self, listener: socket.socket) -> None:
        """`listener` has shown that nobody else is there; it now belongs to the port. Raises: LangPortError."""
        self.number: int = listener.getsockname()[1]
        self._address = listener.getsockname()
        self._family = listener.family
        self._shares = sys.platform == "linux"
        self._held = listener
        """Listens where sockets cannot be spread; else it only keeps the address while no worker listens."""
        if self._shares:
            listener.close()
            self._held = self._bind()

    def listen(self) -> socket.socket:
        """A worker's own socket. Raises: LangPortError."""
        if not self._shares:
            return self._held
        listener = self._bind()
        listener.listen(BACKLOG)
        self._held.close()
        return listener

    def close(self) -> None:
        """The supervisor keeps it no longer. A second call does nothing."""
        self._held.close()

    def _bind(self) -> socket.socket:
        bound = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.bind(self._address)
        except OSError as error:
            bound.close()
            raise LangPortError(
                f"Port {self.number} cannot be shared by workers: {error.strerror}. Choose another with --port, or "
                "leave --workers out."
            ) from None
        return bound
