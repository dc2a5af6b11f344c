"""What the gateway costs per request and per streamed chunk, beside nginx, LiteLLM and the least that Python can do.

    python benchmarks/gateway.py --nginx nginx --litellm venv/bin/litellm --json figures.json
    python benchmarks/gateway.py --only chunk,request --turns 1

A pretended server answers at once, so all that is seen is what stands in front of it. CPU time is user and system time
of the gateway's processes as the scheduler counts it, in nanoseconds. Every figure is the median of some turns, in each
of which all gateways are asked one after the other; compare only within one run. Needs Linux. Run nothing beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httptools
from gateway_peers import FULL, KEY, MODEL, Peer, Peers

RATE = 50.0
"""Chunks per second of each stream."""
SECONDS = 4
STORE_S = 5.0
"""After requests, by which a store's library has been loaded and all that was used is written down."""
PARTS = ("request", "chunk", "latency", "memory")


class Client(asyncio.Protocol):
    """One kept connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's have no base class
        self._done: asyncio.Future[int] | None = None
        self.is_lost = False

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError("the gateway closed the connection"))

    def ask(self, request: bytes) -> asyncio.Future[int]:
        """The number of events in the answer, once it is complete."""
        self._parser = httptools.HttpResponseParser(self)
        self._num_events = 0
        self._body = b""
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._done

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self._num_events += data.count(b"data:")
        self._body = data

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        assert self._done is not None
        if status == 200:
            self._done.set_result(self._num_events)
        else:
            self._done.set_exception(ConnectionError(f"the gateway answered {status}: {self._body[:300]!r}"))

    def close(self) -> None:
        self._transport.abort()


@dataclass
class Load:
    """What came of some requests."""

    times_s: list[float] = field(default_factory=list)
    num_events: int = 0


def request_bytes(*, stream: bool) -> bytes:
    """About 1 KB of body."""
    content = "Tell me about the weather in Paris, please. " * (2 if stream else 18)
    messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": content}]
    asked = {
        "model": MODEL,
        "messages": messages,
        "max_tokens": int(RATE * SECONDS),
        "temperature": 0.7,
        "stream": stream,
    }
    body = json.dumps(asked).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAccept: */*\r\n"
    return f"{head}Authorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def load(port: int, num: int, concurrency: int, *, stream: bool = False, rate: float = 0.0) -> Load:
    """So many requests, back to back over so many connections, or so many a second."""
    found, request, loop = Load(), request_bytes(stream=stream), asyncio.get_running_loop()
    clients = [(await loop.create_connection(Client, "127.0.0.1", port))[1] for _ in range(concurrency)]
    began_s = loop.time()

    async def work(first: int) -> None:
        client = clients[first]
        for number in range(first, num, concurrency):
            if rate:
                await asyncio.sleep(began_s + number / rate - loop.time())
            start_s = time.perf_counter()
            num_events = await client.ask(request)
            found.num_events += num_events
            found.times_s.append(time.perf_counter() - start_s)

    await asyncio.gather(*(work(first) for first in range(concurrency)))
    for client in clients:
        client.close()
    return found


def processes(pid: int) -> Iterator[int]:
    """A process and all that it has started."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from processes(int(child))


def cpu_s(pid: int) -> float:
    stats = (each.read_text() for one in processes(pid) for each in Path(f"/proc/{one}/task").glob("*/schedstat"))
    return sum(int(stat.split()[0]) for stat in stats) / 1e9


def resident_mb(pid: int) -> float:
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in processes(pid))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def run(main: Any) -> Any:
    import uvloop

    return uvloop.run(main)


def request_us(peer: Peer, num: int) -> float:
    """CPU time per request of 1 KB, 16 connections back to back."""
    run(load(peer.port, num // 10, 16))
    before_s = cpu_s(peer.pid)
    run(load(peer.port, num, 16))
    return (cpu_s(peer.pid) - before_s) / num * 1e6


def chunk_us(peer: Peer, num_streams: int) -> float:
    """CPU time per chunk, with what it costs to begin the streams."""
    before_s = cpu_s(peer.pid)
    found = run(load(peer.port, num_streams, num_streams, stream=True))
    return (cpu_s(peer.pid) - before_s) / found.num_events * 1e6


def latency_ms(port: int) -> tuple[float, float]:
    """p50 and p99 at 100 requests a second."""
    run(load(port, 50, 10, rate=100))
    times_s = run(load(port, 500, 50, rate=100)).times_s
    cuts = statistics.quantiles(times_s, n=100)
    return cuts[49] * 1000, cuts[98] * 1000


class Run:
    """Everything that is measured, by gateway."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.figures: dict[str, dict[str, float]] = {}

    def measure(self) -> None:
        only = self._arguments.only.split(",")
        with ExitStack() as stack:
            peers = Peers(stack)
            server = peers.server(RATE)
            gateways = self._start(peers, server)
            if "request" in only:
                self._turns(
                    gateways,
                    "CPU us per request",
                    lambda name, peer: request_us(peer, 200 if name == "LiteLLM" else 4000),
                )
            few = {name: peer for name, peer in gateways.items() if name in ("LangPort", "nginx")}
            if "chunk" in only:
                without = {name: peer for name, peer in gateways.items() if name not in ("LiteLLM", "LangPort, open")}
                self._turns(without, "CPU us per chunk, 64 streams", lambda _, peer: chunk_us(peer, 64))
                small = {**few, **{name: peer for name, peer in gateways.items() if name == "LiteLLM"}}
                self._turns(small, "CPU us per chunk, 16 streams", lambda _, peer: chunk_us(peer, 16))
            if "latency" in only:
                self._latency({"direct": Peer(server, 0, 0.0), **few})
        if "memory" in only:
            self._memory()

    def _start(self, peers: Peers, server: int) -> dict[str, Peer]:
        found = {
            "LangPort": peers.langport(server, FULL),
            "LangPort, open": peers.langport(server, ["--access-log", "off"]),
        }
        found["two coupled sockets in Python"] = peers.relay(server)
        if self._arguments.nginx:
            found["nginx"] = peers.nginx(self._arguments.nginx, server)
        if self._arguments.litellm:
            found["LiteLLM"] = peers.litellm(self._arguments.litellm, server)
        for name, peer in found.items():
            self._note(name, "started s", peer.started_s)
            self._note(name, "resident MB", resident_mb(peer.pid))
        return found

    def _turns(self, gateways: dict[str, Peer], what: str, measure: Callable[[str, Peer], float]) -> None:
        values: dict[str, list[float]] = {name: [] for name in gateways}
        for turn in range(self._arguments.turns):
            for name, peer in gateways.items():
                values[name].append(measure(name, peer))
                print(f"turn {turn + 1}: {what}: {name} {values[name][-1]:.1f}", file=sys.stderr, flush=True)
        for name, found in values.items():
            self._note(name, what, statistics.median(found))

    def _latency(self, gateways: dict[str, Peer]) -> None:
        values: dict[str, list[tuple[float, float]]] = {name: [] for name in gateways}
        for _ in range(self._arguments.turns):
            for name, peer in gateways.items():
                values[name].append(latency_ms(peer.port))
        for name, found in values.items():
            for index, what in enumerate(("p50 ms at 100/s", "p99 ms at 100/s")):
                self._note(name, what, statistics.median(pair[index] for pair in found))

    def _memory(self) -> None:
        """Of fresh processes: what they take at the start, and what 20,000 requests add."""
        for name, store, options in (
            ("LangPort", "none", FULL),
            ("LangPort, SQLite", "sqlite", [*FULL, "--record-usage"]),
        ):
            with ExitStack() as stack:
                peers = Peers(stack)
                starts: list[float] = []
                for _ in range(self._arguments.turns):
                    with ExitStack() as inner:
                        others = Peers(inner)
                        starts.append(others.langport(others.server(RATE), options, store=store).started_s)
                peer = peers.langport(peers.server(RATE), options, store=store)
                self._note(name, "started s", statistics.median(starts))
                run(load(peer.port, 1000, 16))
                time.sleep(STORE_S)
                self._note(name, "resident MB", resident_mb(peer.pid))
                before_mb = resident_mb(peer.pid)
                run(load(peer.port, 20_000, 16))
                time.sleep(STORE_S)
                self._note(name, "MB more after 20,000 requests", resident_mb(peer.pid) - before_mb)

    def _note(self, name: str, what: str, value: float) -> None:
        self.figures.setdefault(name, {})[what] = round(value, 3)

    def table(self) -> list[str]:
        columns = list(dict.fromkeys(what for figures in self.figures.values() for what in figures))
        lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for name, figures in self.figures.items():
            cells = (f"{figures[what]:.4g}" if what in figures else "" for what in columns)
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return lines

    def ratios(self) -> list[str]:
        """LangPort's figures by the others'."""
        own = self.figures["LangPort"]
        lines = []
        for name in ("nginx", "LiteLLM", "two coupled sockets in Python"):
            for what, value in self.figures.get(name, {}).items():
                if what.startswith("CPU") and what in own:
                    ratio = own[what] / value
                    said = f"{ratio:.2f} times" if ratio >= 1 else f"{1 / ratio:.0f} times less than"
                    lines.append(f"{what}: LangPort {said} {name}")
        direct = self.figures.get("direct", {})
        lines += [
            f"{what}: LangPort adds {value - direct[what]:.2f} ms" for what, value in own.items() if what in direct
        ]
        return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nginx", metavar="PROGRAM")
    parser.add_argument("--litellm", metavar="PROGRAM", help="of an environment with litellm[proxy]")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", default=",".join(PARTS), metavar="PART,...", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    found = Run(arguments)
    found.measure()
    print("\n".join([*found.table(), "", *found.ratios()]))
    if arguments.json:
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        arguments.json.write_text(json.dumps({"date": date, "figures": found.figures}, indent=1))


if __name__ == "__main__":
    main()
