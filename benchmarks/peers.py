"""Several servers under the same load in turns (A B A B ...): medians and ratios as a table in Markdown.

    python benchmarks/peers.py peers.yaml
    python benchmarks/peers.py peers.yaml --reports DIR       # keeps every turn's JSON and every server's output

    # peers.yaml
    rounds: 3                                                  # turns of each server
    bench: --endpoint completions --concurrency 1,8,32         # options of `langport bench`, for all
    servers:                                                   # the first is the one that the others are compared with
      - name: LangPort
        url: http://127.0.0.1:8101
        command: langport serve bench=./m06 --port 8101        # started for each turn and ended after it
      - name: llama.cpp
        url: http://127.0.0.1:8102
        command: ./llama-server -m m06-bf16.gguf -a bench --port 8102 -t 2 -np 32 -c 16384
        environment: {OMP_NUM_THREADS: "2"}                    # beside that of this process
        bench: --model bench                                   # further options, for this server
        ready_s: 300                                           # how long its start may take
      - name: another machine's
        url: http://10.0.0.7:8000                              # no command: it runs already

A server is ready when it answers a request of one token. A ratio is the median of the rounds' ratios, since what a busy
machine does to one turn it often does to the next. Run nothing beside it. The commands run as they stand here, without
a shell.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec
import yaml

from langport.bench.command import ENDPOINTS
from langport.bench.figures import Level, Report, Spread
from langport.bench.table import LEVEL_NAMES, milliseconds
from langport.check.command import first_that_answers, model_names
from langport.check.server import Failed, Server, base_url
from langport.errors import ConfigError

END_S = 30.0
"""How long a server may take to end before it is killed."""


class Peer(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    url: str
    command: str | None = None
    environment: dict[str, str] = {}
    bench: str = ""
    ready_s: float = 300.0


class Peers(msgspec.Struct, forbid_unknown_fields=True):
    servers: list[Peer]
    rounds: int = 3
    bench: str = ""


class Turn(msgspec.Struct):
    """One server's figures in one round."""

    report: Report
    ready_s: float | None
    """From its command to its first answer; None of a server that ran already."""


def read_peers(path: Path) -> Peers:
    """Raises: SystemExit with what is wrong in the file."""
    try:
        peers = msgspec.convert(yaml.safe_load(path.read_text()), Peers)
        for peer in peers.servers:
            base_url(peer.url)
    except (OSError, yaml.YAMLError, msgspec.ValidationError, ConfigError) as error:
        raise SystemExit(f"{path}: {error}") from None
    names = [peer.name for peer in peers.servers]
    if not names or len(set(names)) < len(names) or peers.rounds < 1:
        raise SystemExit(f"{path}: there must be a server and a round at least, and every server needs its own name.")
    return peers


def measure(peers: Peers, folder: Path) -> dict[str, list[Turn]]:
    """All rounds of all servers, in turns. Raises: SystemExit when one fails."""
    turns: dict[str, list[Turn]] = {peer.name: [] for peer in peers.servers}
    for number in range(peers.rounds):
        for index, peer in enumerate(peers.servers):
            print(f"\nround {number + 1} of {peers.rounds}: {peer.name}", file=sys.stderr, flush=True)
            options = [*shlex.split(peers.bench), *shlex.split(peer.bench)]
            with serving(peer, folder / f"{index}-{number + 1}.log", options) as ready_s:
                report = bench(peer, options, folder / f"{index}-{number + 1}.json")
            turns[peer.name].append(Turn(report, ready_s))
    return turns


def bench(peer: Peer, options: Sequence[str], file: Path) -> Report:
    command = [sys.executable, "-m", "langport", "bench", peer.url, *options, "--json", str(file)]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(f"{peer.name} was not measured as asked (above); nothing is compared.")
    return msgspec.json.decode(file.read_bytes(), type=Report)


@contextmanager
def serving(peer: Peer, log: Path, options: Sequence[str]) -> Iterator[float | None]:
    """The server while the block lasts; yields how long its start took."""
    if peer.command is None:
        yield None
        return
    server = Server(base_url(peer.url), None, timeout_s=5.0)
    with suppress(Failed):
        server.get("/models")
        raise SystemExit(f"{peer.name}: something answers at {peer.url} already; end it, or leave out the command.")
    with ExitStack() as stack:
        began = time.perf_counter()
        try:
            process = subprocess.Popen(
                shlex.split(peer.command),
                env={**os.environ, **peer.environment},
                stdin=subprocess.DEVNULL,
                stdout=stack.enter_context(log.open("wb")),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise SystemExit(f"{peer.name}: {error}") from None
        stack.callback(end, process)
        wait_ready(peer, process, log, options)
        yield time.perf_counter() - began


def wait_ready(peer: Peer, process: subprocess.Popen[bytes], log: Path, options: Sequence[str]) -> None:
    """Raises: SystemExit with the end of what the server wrote."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for option in ("--endpoint", "--model", "--api-key"):
        parser.add_argument(option)
    given, _ = parser.parse_known_args(options)
    server = Server(base_url(peer.url), given.api_key, timeout_s=60.0)
    deadline = time.monotonic() + peer.ready_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        names = [given.model] if given.model else model_names(server)
        if first_that_answers(server, ENDPOINTS[given.endpoint or "chat"], names):
            return
        time.sleep(0.1)
    what = "has ended" if process.poll() is not None else f"answers nothing after {peer.ready_s:g} s"
    raise SystemExit(f"{peer.name} {what}. It wrote:\n{log.read_text(errors='replace')[-2000:]}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End the server and what it started: all that is in its process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S)


def table(turns: dict[str, list[Turn]]) -> list[str]:
    """Medians over the rounds, and how many times as fast the first server is as each."""
    first, *_ = turns.values()
    loop = first[0].report.levels[0].loop
    is_embedding = first[0].report.endpoint == "embeddings"
    rate = "texts/s" if is_embedding else "tokens/s"
    heads = ["server", "ready after", LEVEL_NAMES[loop], rate, "first token", "inter-token", "answer"]
    lines = [
        f"| {' | '.join(heads)} | {next(iter(turns))}'s {rate} / its |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for name, its in turns.items():
        starts = [turn.ready_s for turn in its if turn.ready_s is not None]
        start = f"{statistics.median(starts):.1f} s" if starts else "-"
        for index, level in enumerate(its[0].report.levels):
            levels = [turn.report.levels[index] for turn in its]
            rates = [_rate(level) for level in levels]
            others = [_rate(turn.report.levels[index]) for turn in first]
            ratio = statistics.median(mine / theirs for mine, theirs in zip(others, rates, strict=True))
            cells = [
                *(name, start, f"{level.level:g}", f"{statistics.median(rates):.1f}"),
                _median([level.first_token_ms for level in levels]),
                _median([level.inter_token_ms for level in levels]),
                _median([level.answer_ms for level in levels]),
                "" if its is first else f"{ratio:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _rate(level: Level) -> float:
    return level.inputs_per_s or level.output_tokens_per_s


def _median(spreads: Sequence[Spread | None]) -> str:
    found = [spread.p50 for spread in spreads if spread is not None]
    return f"{milliseconds(statistics.median(found))} ms" if found else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", type=Path, metavar="PEERS.yaml")
    parser.add_argument("--reports", type=Path, metavar="DIR", help="keep what was measured and written there")
    arguments = parser.parse_args()
    peers = read_peers(arguments.peers)
    with ExitStack() as stack:
        folder = arguments.reports or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        turns = measure(peers, folder)
    first = next(iter(turns.values()))[0].report
    print(f"\n{peers.rounds} rounds from {first.date}; `langport bench {peers.bench}`; medians, times in p50\n")
    print("\n".join(table(turns)))


if __name__ == "__main__":
    main()
