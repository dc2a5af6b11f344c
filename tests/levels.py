"""`make test-levels`: what computes, tested at each level of the native kernels and without them.

    python -m tests.levels [LEVEL ...] [-- PYTEST-ARGUMENTS]

The levels are those that this machine has (`native.levels_here`), then `torch`, which turns the kernels off, and
`absent`, where they were never built: the tests then run in a copy of the repository without the library. Each runs in
processes of its own. `tests/unit/ops` tests all levels in one go, so it runs once, and where the kernels are absent.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from langport.ops import native

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/unit/layers", "tests/engine", "tests/server/test_answers.py", "tests/server/test_parity.py")
OPS = "tests/unit/ops"
ABSENT = "absent"
NOT_COPIED = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "__pycache__", ".*_cache", native.LIBRARY.name)


def main(arguments: list[str]) -> int:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    wanted, further = arguments[:split], arguments[split + 1 :]
    known = [*levels(), "torch", ABSENT]
    if unknown := set(wanted) - set(known):
        print(f"There is no level {', '.join(sorted(unknown))} here; there are {', '.join(known)}.")
        return 2
    failed = [level for level in wanted or known if run(level, further) != 0]
    print(f"\nfailed at: {', '.join(failed)}" if failed else f"\npassed at: {', '.join(wanted or known)}")
    return 1 if failed else 0


def levels() -> list[str]:
    try:
        return native.levels_here()
    except native.NotBuilt as error:
        print(f"The native kernels are not built ({error}).")
        return []


def run(level: str, further: list[str]) -> int:
    """Pytest's exit code."""
    print(f"\n==== {level} ====", flush=True)
    first = next(iter(levels()), None)
    tests = further or [*TESTS, *([OPS] if level in (first, ABSENT) else [])]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *tests]
    if level != ABSENT:
        environment = {**os.environ, native.VARIABLE: level}
        return subprocess.run(command, cwd=ROOT, env=environment).returncode
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "langport"
        shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        environment.pop(native.VARIABLE, None)
        return subprocess.run(command, cwd=copy, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
