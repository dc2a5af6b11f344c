"""Two sides of a comparison that run the same work in turns: a LangPort server, and a library in a process of its own.

Imports nothing but the standard library: benchmarks/embed.py and benchmarks/text2text.py run themselves once more in
the library's own environment.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from urllib.parse import urlsplit

READY = re.compile(rb"Ready on (http://\S+)")
READY_S = 300.0
"""How long a server's start may take."""


@dataclass
class Side:
    """One side: how it does the work, and what was measured."""

    name: str
    work: Callable[[Sequence[Any]], list[Any]]
    """Does all of the work given, and returns an answer for each piece."""
    memory_mib: Callable[[], float]
    seconds: list[float] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    used_mib: float = 0.0


def take_turns(sides: Sequence[Side], work: Sequence[Any], rounds: int, num_warmup: int) -> None:
    """A B A B ..., after each side has done a little to warm up."""
    for side in sides:
        side.work(work[:num_warmup])
    for _ in range(rounds):
        for side in sides:
            begin = time.perf_counter()
            side.answers = side.work(work)
            side.seconds.append(time.perf_counter() - begin)
            print(f"{side.name}: {side.seconds[-1]:.2f} s", file=sys.stderr, flush=True)
            side.used_mib = max(side.used_mib, side.memory_mib())


def table(sides: Sequence[Side], amount: float, unit: str) -> str:
    """Markdown: medians of the rates, and the median of the rounds' ratios with the first side."""
    first = sides[0]
    lines = [f"| | {unit}, median (all rounds) | memory | {first.name}'s {unit} / its |", "|---|---|---|---|"]
    for side in sides:
        rates = [amount / seconds for seconds in side.seconds]
        ratio = statistics.median(its / mine for its, mine in zip(side.seconds, first.seconds, strict=True))
        cells = [
            side.name,
            f"{statistics.median(rates):.1f} ({', '.join(f'{rate:.1f}' for rate in rates)})",
            f"{side.used_mib:.0f} MiB",
            "" if side is first else f"{ratio:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# ---- LangPort ----


@contextmanager
def serving(options: Sequence[str]) -> Iterator[tuple[str, int]]:
    """`langport serve` with these options while the block lasts: its URL, and the process's id.

    Ctrl-C and SIGTERM end it, too.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with TemporaryFile() as log:
        command = [sys.executable, "-m", "langport", "serve", *options, "--port", "0"]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield _wait_ready(process, log.fileno()), process.pid
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _wait_ready(process: subprocess.Popen[bytes], log: int) -> str:
    """Raises: SystemExit with what the server wrote."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        written = os.pread(log, 1 << 20, 0)
        if found := READY.search(written):
            return found[1].decode()
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise SystemExit(f"the server does not start. It wrote:\n{os.pread(log, 1 << 20, 0).decode(errors='replace')}")


def post_all(url: str, path: str, bodies: Sequence[dict[str, Any]], num_clients: int) -> list[Any]:
    """Answers in order. Each client sends one request after the other over a connection of its own.

    Raises: SystemExit with an answer that is no success.
    """
    answers: list[Any] = [None] * len(bodies)
    waiting = iter(range(len(bodies)))  # next() on it is one operation, so clients share it

    def client() -> None:
        connection = HTTPConnection(urlsplit(url).netloc)
        for number in waiting:
            body = json.dumps(bodies[number])
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            if response.status != 200:
                raise SystemExit(f"{path} answered {response.status}: {text.decode(errors='replace')[:500]}")
            answers[number] = json.loads(text)
        connection.close()

    with ThreadPoolExecutor(num_clients) as pool:
        for task in [pool.submit(client) for _ in range(num_clients)]:
            task.result()
    return answers


# ---- The library ----


def comparison_parser(doc: str, library: str, python: Path | None = None) -> argparse.ArgumentParser:
    """What every comparison is asked with. `python`: where the library is, unless --python says it."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--python", type=Path, default=python, help=f"the Python that has {library}")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--as-library", action="store_true", help=argparse.SUPPRESS)
    return parser


class Library:
    """This script's function `as_library` in another Python environment: a line of JSON in, a line out."""

    def __init__(self, python: Path, script: str, arguments: Sequence[str]) -> None:
        command = [str(python), script, "--as-library", *arguments]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def __call__(self, work: Sequence[Any]) -> list[Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(work).encode() + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the library's process ended with {self.process.wait()}")
        answers: list[Any] = json.loads(line)
        return answers

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def forget_this_folder() -> None:
    """Before transformers is imported, which would take kernels.py here for a package of that name."""
    sys.path.remove(str(Path(__file__).parent))


def answer_lines(work: Callable[[Any], list[Any]]) -> None:
    """The library's end of it. What the library prints goes to the error stream."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        out.write(json.dumps(work(json.loads(line))) + "\n")
        out.flush()


# ---- Memory ----


def memory_mib(pid: int) -> float:
    """Memory of a process and its descendants, shared pages counted once among those that share them (Linux)."""
    total = 0.0
    for process in _family(pid):
        with suppress(OSError):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) / 1024
    return total


def _family(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    family = [pid]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return family
