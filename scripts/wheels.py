"""Builds LangPort's sdist and, from it, its wheels for Linux on x86-64 and aarch64, on any of the two.

    python scripts/wheels.py [--out DIR] [ARCHITECTURE ...]

The compiler is zig's clang (`pip install ziglang`), which compiles for either machine and links against the symbols
that glibc had in 2014, so the wheels run wherever manylinux_2_17 ones do. `auditwheel` then checks the tags.
`make wheels` does all this in an environment of its own.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GLIBC = (2, 17)
ARCHITECTURES = ("x86_64", "aarch64")
LIBRARY = "langport/ops/_kernels.so"
SYSTEM_LIBRARIES = ("libc.", "libm.", "libpthread.", "libdl.", "librt.", "ld-linux")
"""Beginnings of the names of what the kernels may link to."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Builds the sdist and the wheels.")
    parser.add_argument("architectures", nargs="*", choices=[*ARCHITECTURES, []], metavar="ARCHITECTURE")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="DIR", help="default: dist")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    sdist = build_sdist(out)
    print(sdist)
    for architecture in options.architectures or ARCHITECTURES:
        wheel = build_wheel(sdist, architecture, out)
        check(wheel, architecture)
        print(wheel)


def build_sdist(out: Path) -> Path:
    run([sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(out), str(ROOT)])
    return max(out.glob("langport-*.tar.gz"), key=lambda file: file.stat().st_mtime)


def build_wheel(sdist: Path, architecture: str, out: Path) -> Path:
    """From the sdist, so that nothing of an earlier build or of the working tree gets into it."""
    major, minor = GLIBC
    compiler = [sys.executable, "-m", "ziglang", "c++", "-target", f"{architecture}-linux-gnu.{major}.{minor}", "-s"]
    environment = {
        **os.environ,
        "CXX": shlex.join(compiler),
        "LANGPORT_WHEEL_PLATFORM": f"manylinux_{major}_{minor}_{architecture}",
    }
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
        run([*pip, str(sdist)], environment)
        (built,) = Path(folder).glob("*.whl")
        wheel = out / built.name
        wheel.write_bytes(built.read_bytes())
    return wheel


def check(wheel: Path, architecture: str) -> None:
    """Ends the program when the wheel is not what its name says."""
    if not wheel.name.endswith(f"-py3-none-manylinux_{GLIBC[0]}_{GLIBC[1]}_{architecture}.whl"):
        sys.exit(f"{wheel.name} has another tag than it should have")
    with zipfile.ZipFile(wheel) as archive:
        if LIBRARY not in archive.namelist():
            sys.exit(f"{wheel.name} lacks {LIBRARY}: it was not compiled (see the output above)")
        library = archive.read(LIBRARY)
    linked = [name for name in needed(library) if not name.startswith(SYSTEM_LIBRARIES)]
    if linked:
        sys.exit(f"{wheel.name}: {LIBRARY} links to {', '.join(linked)}")
    shown = run([sys.executable, "-m", "auditwheel", "show", str(wheel)])
    if f"manylinux_{GLIBC[0]}_{GLIBC[1]}_{architecture}" not in shown.replace("\n", " "):
        sys.exit(f"{wheel.name} does not run everywhere its name says:\n{shown}")


def needed(library: bytes) -> list[str]:
    """The libraries that a shared library links to."""
    import io

    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile

    sections = ELFFile(io.BytesIO(library)).iter_sections()
    tags = (tag for section in sections if isinstance(section, DynamicSection) for tag in section.iter_tags())
    return [tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"]


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
    """What the command prints. Ends the program when it fails."""
    done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{shlex.join(command)}\n{done.stdout}\nfailed with {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
