"""Builds the native CPU kernels beside the Python package; what else there is to say about it is in pyproject.toml.

The kernels are one shared library that links neither to Python nor to torch, so one build serves every version of
both. Each instruction-set level is one file, compiled with its own flags and chosen at run time. Without a working
C++ compiler the installation goes on, and LangPort runs on torch's own operators.

`LANGPORT_WHEEL_PLATFORM`, e.g. manylinux_2_17_aarch64, is the tag of a wheel that CXX compiles for another machine; see
scripts/wheels.py.
"""

import os
import platform
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCES = Path("langport/csrc")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
PORTABLE = {"api": [], "pool": [], "step": [], "sample": [], "sample_portable": [], "level_portable": []}
X86 = {
    "sample_avx2": AVX2,
    "sample_avx512": AVX512,
    "level_avx2": AVX2,
    "level_avx512": AVX512,
    "level_avx512_vnni": [*AVX512, "-mavx512vnni"],
    "level_avx512_bf16": [*AVX512, "-mavx512vnni", "-mavx512bf16"],
    "level_amx": [*AVX512, "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
}
ARM = {"sample_neon": [], "level_neon": [], "level_neon_dot": ["-mcpu=generic+dotprod"]}
MACHINES = {
    "x86_64": (X86, "-DLANGPORT_X86"),
    "amd64": (X86, "-DLANGPORT_X86"),
    "aarch64": (ARM, "-DLANGPORT_ARM"),
    "arm64": (ARM, "-DLANGPORT_ARM"),
}
WHEEL_PLATFORM = os.environ.get("LANGPORT_WHEEL_PLATFORM", "")
# No contraction: an element is computed by the same operations in every variant of a loop.
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread", "-w"]


class BuildKernels(build_ext):
    """Calls the C++ compiler once per file, with the flags of that file."""

    def get_ext_filename(self, fullname: str) -> str:
        """The same name for every Python: the library does not depend on it."""
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext: Extension) -> None:
        """Raises: CompileError, which setuptools makes a warning because the extension is optional."""
        compiler = shlex.split(os.environ.get("CXX", "")) or [find_compiler()]
        levels, *define = MACHINES.get(machine(), ({},))
        files = PORTABLE | levels
        flags = [*FLAGS, *define]
        objects = Path(self.build_temp)
        objects.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)

        def compile_one(name: str) -> str:
            out = str(objects / f"{name}.o")
            run([*compiler, *flags, *files[name], "-c", str(SOURCES / f"{name}.cpp"), "-o", out])
            return out

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = list(pool.map(compile_one, files))
        static = ["-static-libstdc++", "-static-libgcc"] if platform.system() == "Linux" else []
        # Replaced in one go: a running engine may have the old one mapped.
        fresh = target.with_suffix(".new")
        run([*compiler, "-shared", "-pthread", *static, *compiled, "-o", str(fresh)])
        fresh.replace(target)


class PlatformWheel(bdist_wheel):
    """One wheel per platform serves every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", WHEEL_PLATFORM or super().get_tag()[2]


def machine() -> str:
    """What is compiled for."""
    other = next((name for name in MACHINES if WHEEL_PLATFORM.endswith(f"_{name}")), None)
    return other or platform.machine().lower()


def find_compiler() -> str:
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if found is None:
        raise CompileError(
            "no C++ compiler (c++, g++ or clang++) for LangPort's native CPU kernels; it will run on torch's own "
            "operators, more slowly"
        )
    return found


def run(command: list[str]) -> None:
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except OSError as error:
        raise CompileError(f"{command[0]}: {error}") from error
    except subprocess.CalledProcessError as error:
        raise CompileError(f"{shlex.join(command)}\n{error.stderr}") from error


sources = [str(SOURCES / f"{name}.cpp") for name in PORTABLE | X86 | ARM]
headers = [str(path) for pattern in ("*.h", "*.inl") for path in SOURCES.glob(pattern)]
kernels = Extension("langport.ops._kernels", sources=sources, depends=headers, optional=True)

setup(ext_modules=[kernels], cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel})
