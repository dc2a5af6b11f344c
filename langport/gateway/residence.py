"""What the gateway knows of a model that comes and goes."""

from __future__ import annotations

from typing import Protocol

import msgspec


class ModelStatus(msgspec.Struct, kw_only=True):
    """A model at one moment, as /admin/models shows it."""

    state: str
    """unloaded, waiting, loading, ready, draining or unloading."""
    is_pinned: bool
    num_requests: int
    """That are in it."""
    num_waiting: int
    """Requests that wait for it to be loaded."""
    num_loads: int
    """Since the server was started."""
    memory_bytes: int
    """Memory of the machine that its engine takes; a GPU's is not counted."""
    idle_s: float | None
    """Seconds since its last request ended, or since it was loaded; null while it works, and before it was loaded."""
    problem: str | None
    """Why its last load failed."""


class Residence(Protocol):
    """A model's place in memory."""

    async def load(self) -> None:
        """Have it in memory. Raises: CheckpointError, Unavailable."""
        ...

    def unload(self) -> None:
        """Let it go when the requests in it have ended."""
        ...

    async def report(self) -> ModelStatus:
        """How it stands. Raises: Unavailable when the server is stopping."""
        ...
