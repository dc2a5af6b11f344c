"""Memory of this machine, as the process that loads no torch can ask for it too."""

from __future__ import annotations

import os
from pathlib import Path


def free_host_bytes() -> int:
    """Memory that can be taken now, within the limits of the control group."""
    free = _available_bytes()
    limit, used = _read_number("/sys/fs/cgroup/memory.max"), _read_number("/sys/fs/cgroup/memory.current")
    return free if limit is None or used is None else min(free, limit - used)


def process_bytes(pid: int) -> int:
    """Memory that a process takes, its part of what it shares with others included; 0 where that cannot be told."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux, or it has ended
    return 0


def _available_bytes() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _read_number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # no control group, or "max"
        return None
