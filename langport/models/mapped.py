"""Memory of mapped files. Linux only; elsewhere the pages stay until the system wants them."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from pathlib import Path

SMAPS = Path("/proc/self/smaps")
MADV_DONTNEED = 4
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ +(/[^\n]*)\n", re.MULTILINE)
_WRITTEN = re.compile(r"^(?:Anonymous|Swap): +(\d+) kB$", re.MULTILINE)


def release_pages(files: Iterable[Path]) -> None:
    """Give back what of the files is in this process's memory; what is read again comes from the system's cache.

    Mappings that something was written into are left alone.
    """
    if not SMAPS.is_file():
        return
    names = {str(file.resolve()) for file in files}
    library = ctypes.CDLL(None)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    # Between two mappings of files stand what is said of the first one, and mappings of no file.
    _, *parts = _MAPPING.split(SMAPS.read_text("utf-8", "replace"))
    for begin, end, name, said in zip(*(parts[i::4] for i in range(4)), strict=True):
        size = int(end, 16) - int(begin, 16)
        written, swapped = _WRITTEN.findall(said)[:2]
        if name in names and written == swapped == "0":
            library.madvise(int(begin, 16), size, MADV_DONTNEED)
