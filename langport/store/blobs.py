"""The contents of files: one file on disk each, written whole or not at all. Their descriptions are in the store."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from time import time
from typing import IO, Any, BinaryIO, ParamSpec, TypeVar

from langport.errors import PayloadTooLarge, StoreUnavailable

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F")

CHUNK_BYTES = 256 * 1024
KEPT_FREE_BYTES = 64 * 1024 * 1024
"""Of the disk, so that a large upload does not stop what else writes to it."""
ABANDONED_S = 24 * 3600
"""After so long an unfinished file is one of a process that has died."""
_PARTIAL = ".part"


class Blobs:
    """A folder of contents by id. Ids are made by the server, so they are safe names."""

    def __init__(self, folder: Path | None) -> None:
        """None: a temporary folder, gone when the store is closed."""
        self._folder = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    async def create(self, id: str) -> BlobWriter:
        """Begin a content; it is there when the writer commits. Raises: StoreUnavailable."""
        path = self._path(id)
        return await _opened(BlobWriter.give_up, _on_disk(_open_writer, path))

    async def exists(self, id: str) -> bool:
        return await asyncio.to_thread(self._path(id).exists)

    async def read(self, id: str) -> AsyncGenerator[bytes, None]:
        """The content in chunks. Raises: FileNotFoundError."""
        file = await _opened(_close, asyncio.to_thread(self._path(id).open, "rb"))
        try:
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield chunk
        finally:
            file.close()

    async def lines(self, id: str, max_bytes: int) -> AsyncGenerator[tuple[int, bytes | None], None]:
        """The lines that are not blank with their numbers from 1; None for one longer than `max_bytes`.

        Holds CHUNK_BYTES and one line at a time. Raises: FileNotFoundError.
        """
        file = await _opened(_close, asyncio.to_thread(self._path(id).open, "rb", CHUNK_BYTES))
        try:
            number = 0
            while lines := await asyncio.to_thread(_some_lines, file, max_bytes):
                for line in lines:
                    number += 1
                    if line is None or line.strip():
                        yield number, line
        finally:
            file.close()

    async def delete(self, id: str) -> None:
        """Remove a content; nothing happens when there is none."""
        await asyncio.to_thread(self._path(id).unlink, missing_ok=True)

    async def clean(self) -> None:
        """Remove what processes that died have left half written."""
        if self._folder is not None:
            await asyncio.to_thread(_clean, self._folder)

    def close(self) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

    def _path(self, id: str) -> Path:
        if self._folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="langport-")
            self._folder = Path(self._temporary.name)
        return self._folder / id


class BlobWriter:
    """Writes one content. Close it with `commit` or `discard`."""

    def __init__(self, path: Path, partial: Path, file: BinaryIO, free_bytes: int) -> None:
        self.num_bytes = 0
        self._path = path
        self._partial = partial
        self._file = file
        self._free_bytes = free_bytes
        """What the disk could still take when the writing began."""
        self._parts: list[bytes] = []
        self._num_waiting = 0

    async def write(self, data: bytes) -> None:
        """Raises: PayloadTooLarge when the disk has no room for more, StoreUnavailable."""
        self.num_bytes += len(data)
        if self.num_bytes > self._free_bytes:
            raise PayloadTooLarge("The server's disk has no room for a file of this size.", param="file")
        self._parts.append(data)
        self._num_waiting += len(data)
        if self._num_waiting >= CHUNK_BYTES:
            await self._flush()

    async def commit(self) -> None:
        """Make the content readable. Raises: StoreUnavailable."""
        await self._flush()
        await _on_disk(self._finish)

    async def discard(self) -> None:
        """Leave nothing behind; harmless after `commit`."""
        await asyncio.to_thread(self.give_up)

    async def _flush(self) -> None:
        data = b"".join(self._parts)
        self._parts.clear()
        self._num_waiting = 0
        await _on_disk(self._file.write, data)

    def _finish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.replace(self._path)

    def give_up(self) -> None:
        """The same without waiting for the disk in another thread."""
        if not self._file.closed:
            with suppress(OSError):  # the disk is full, and what was to be written is not wanted any more
                self._file.close()
            self._partial.unlink(missing_ok=True)


def _open_writer(path: Path) -> BlobWriter:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(suffix=_PARTIAL, prefix=path.name + ".", dir=path.parent)  # its mode is 0600
    free_bytes = shutil.disk_usage(path.parent).free - KEPT_FREE_BYTES
    return BlobWriter(path, Path(name), os.fdopen(descriptor, "wb"), free_bytes)


def _some_lines(file: BinaryIO, max_bytes: int) -> list[bytes | None]:
    """Lines of about CHUNK_BYTES together; empty at the end of the file."""
    lines: list[bytes | None] = []
    num_bytes = 0
    while num_bytes < CHUNK_BYTES:
        line = file.readline(max_bytes + 1)
        if not line:
            break
        num_bytes += len(line)
        if len(line) > max_bytes and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(CHUNK_BYTES)
            lines.append(None)
        else:
            lines.append(line)
    return lines


def _clean(folder: Path) -> None:
    for path in folder.glob("*" + _PARTIAL):
        try:
            if path.stat().st_mtime < time() - ABANDONED_S:
                path.unlink()
        except FileNotFoundError:
            continue  # another process was faster


def _close(file: IO[bytes]) -> None:
    file.close()


async def _opened(close: Callable[[F], None], opening: Coroutine[Any, Any, F]) -> F:
    """What is opened in a thread. Whoever is cancelled meanwhile leaves nothing open: it is closed once it is there."""
    task = asyncio.ensure_future(opening)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(lambda done: None if done.cancelled() or done.exception() else close(done.result()))
        raise


async def _on_disk(function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    try:
        return await asyncio.to_thread(function, *arguments, **named)
    except OSError as error:
        reason = "its disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise StoreUnavailable(f"The server cannot keep a file: {reason}.") from error
