"""The levels for aarch64, compiled for it on another machine and run under an emulator, against the portable level.

On such a machine itself test_native.py compares them.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DRIVER = ROOT / "tests" / "csrc" / "levels.cpp"


def compiler() -> list[str] | None:
    """One for aarch64: Debian's g++-aarch64-linux-gnu, or zig's, of the package ziglang."""
    found = shutil.which("aarch64-linux-gnu-g++")
    if found is not None:
        return [found]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu.2.17"]
    return None


COMPILER = compiler()
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() == "aarch64", reason="test_native.py tests these levels here"),
    pytest.mark.skipif(
        COMPILER is None, reason="no compiler for aarch64 (Debian: g++-aarch64-linux-gnu; pip: ziglang)"
    ),
]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What setup.py compiles for aarch64, and in `lib` the library it links."""
    assert COMPILER is not None
    folder = tmp_path_factory.mktemp("aarch64")
    environment = {
        **os.environ,
        "CXX": shlex.join(COMPILER),
        "LANGPORT_WHEEL_PLATFORM": "manylinux_2_17_aarch64",
    }
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(folder / "lib"), "--build-temp", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert (folder / "lib" / "langport" / "ops" / "_kernels.so").is_file(), done.stderr
    return folder


def test_the_library_is_for_aarch64(objects: Path) -> None:
    header = (objects / "lib" / "langport" / "ops" / "_kernels.so").read_bytes()[:20]
    assert header[:6] == b"\x7fELF\x02\x01"
    assert int.from_bytes(header[18:20], "little") == 183  # EM_AARCH64


@pytest.mark.skipif(EMULATOR is None, reason="no emulator (Debian: qemu-user-static)")
def test_its_levels_compute_what_the_portable_one_does(objects: Path) -> None:
    assert COMPILER is not None
    assert EMULATOR is not None
    program = objects / "levels"
    flags = ["-O1", "-std=c++17", "-w", "-pthread", "-static", f"-I{ROOT / 'langport' / 'csrc'}"]
    if "ziglang" in COMPILER:
        flags[flags.index("-static") : flags.index("-static") + 1] = ["-target", "aarch64-linux-musl"]
    compiled = sorted(map(str, objects.glob("*.o")))
    command = [*COMPILER, *flags, str(DRIVER), *compiled, "-o", str(program)]
    subprocess.run(command, capture_output=True, text=True, check=True)
    done = subprocess.run([EMULATOR, str(program), "neon", "neon_dot"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("results compared") == 2
