"""`pip install .` with and without a C++ compiler, and the wheels of scripts/wheels.py."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = """
from langport.ops import native
print(native.LIBRARY.exists(), native.describe())
"""


def pip(*arguments: str, **environment: str) -> str:
    """What it prints."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def kernels_in(folder: Path) -> str:
    """Whether the library is in an installation, and what it says of itself."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    environment.pop("LANGPORT_CPU_KERNELS", None)
    command = [sys.executable, "-c", HERE]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The repository's files, without what was built there."""
    names = subprocess.run(
        ["git", "ls-files", "langport", "setup.py", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if names.returncode:
        pytest.skip("this is no git checkout")
    folder = tmp_path / "source"
    for name in names.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def test_without_a_compiler_the_installation_works_and_says_so(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    said = pip(
        *("install", "--verbose", "--no-deps", "--no-build-isolation", "--target", str(target), str(source)),
        CXX="/nowhere/c++",
    )
    assert "/nowhere/c++" in said
    assert kernels_in(target).startswith("False not built: no C++ compiler when LangPort was installed; get one")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed (`make wheels` does)")
def test_a_wheel_for_this_machine_holds_the_kernels(tmp_path: Path) -> None:
    architecture = platform.machine()
    command = [sys.executable, "scripts/wheels.py", "--out", str(tmp_path), architecture]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith(f"-py3-none-manylinux_2_17_{architecture}.whl")
    target = tmp_path / "installed"
    pip("install", "--no-deps", "--target", str(target), str(wheel))
    assert kernels_in(target).startswith("True ")
