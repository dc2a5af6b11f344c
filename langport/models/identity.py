"""Which weights, and with what settings: a name for what a model's answers depend on.

Files are told apart by name, size and time of change, or, in a hub's cache, by the blob that a name leads to, which is
named after its content. So a name is the same in every process of a machine and after every restart, and with a hub's
cache on every machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import msgspec

from langport import __version__
from langport.settings.tree import ModelSettings


def identity(settings: ModelSettings, *paths: Path) -> str:
    """`paths`: a checkpoint's folder or file, then its adapter's. Raises: nothing; what cannot be read is left out."""
    template = Path(settings.chat_template or "").expanduser()
    files = [sorted(_files(path)) for path in (*paths, template) if path != Path()]
    return sha256(msgspec.json.encode((__version__, settings, files))).hexdigest()[:32]


def _files(path: Path) -> Iterator[tuple[str, int, str]]:
    """(name, bytes, which content) of a file, or of those in a folder and the folders in it."""
    if path.is_file():
        yield _file(path, path.name)
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder, name)
            if file.is_file():
                yield _file(file, str(file.relative_to(path)))


def _file(path: Path, name: str) -> tuple[str, int, str]:
    stat = path.stat()
    return name, stat.st_size, path.resolve().name if path.is_symlink() else str(stat.st_mtime_ns)
