"""What a server does when twice as much is asked of it as it can do.

    langport serve --port 8123 &
    python benchmarks/overload.py --url http://127.0.0.1:8123 --model langport-demo-chat
    python benchmarks/overload.py --mock                # the gateway alone, over a pretended engine

A closed loop finds the peak, before and after: tokens per second of answers that are whole. Between, requests arrive
at random, at `--factor` times the rate of the peak, whether or not others are answered, and nobody tries again.
Meanwhile /health and /metrics are asked ten times a second. It passes when the goodput is within 10 % of the mean of
both peaks, every error is a 429 or 503 with Retry-After, and 99 % of the admitted are answered within the longest wait
and the time that the slowest of the closed loops took. These have as many clients as there are places, or an answer
would take longer in the overload than in them. The client is a bare one: httpx' pool takes longer than the server.

Run it on a quiet machine: what others take of it is missing in one phase more than in another. With --pid the server's
CPU time in each phase is shown, too, and goodput and peak are compared per second of that; only a server whose engine
runs on the CPU can be measured so, and the times of answers are still those of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

RAMP_S = 5.0
"""Left out at the beginning of each phase."""
PROBE_S = 0.1
MOCK_PLACES = 16
MOCK_TOKENS_PER_S = 50.0
"""Of one sequence, however many there are."""


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One connection per request."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80

    async def request(self, method: str, path: str, body: bytes = b"") -> Answer:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            found, _, content = (await reader.read(-1)).partition(b"\r\n\r\n")
        finally:
            writer.close()
        first, *lines = found.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        assert "content-length" in headers, f"no plain answer: {first}"
        return Answer(int(first.split()[1]), headers, content)


@dataclass
class Phase:
    """What was answered within one phase."""

    begin: float
    statuses: Counter[int] = field(default_factory=Counter)
    num_tokens: int = 0
    num_answers: int = 0
    answered_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    num_without_retry_after: int = 0
    """Refusals that do not say when to come again."""
    end: float = 0.0
    cpu_s: float = 0.0
    """That the server took between the ramp and the end; 0 where its processes are not known."""

    def count(self, answer: Answer, began: float) -> None:
        now = time.perf_counter()
        self.statuses[answer.status] += 1
        if answer.status != 200:
            self.refused_s.append(now - began)
            self.num_without_retry_after += "retry-after" not in answer.headers
            return
        self.answered_s.append(now - began)
        if self.begin + RAMP_S <= now < (self.end or now + 1):
            self.num_answers += 1
            self.num_tokens += json.loads(answer.body)["usage"]["completion_tokens"]

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / (self.end - self.begin - RAMP_S)

    @property
    def tokens_per_cpu_s(self) -> float:
        return self.num_tokens / self.cpu_s if self.cpu_s else 0.0

    async def watch_cpu(self, pid: int) -> None:
        """Note what the server takes from the ramp to the end."""
        await asyncio.sleep(self.begin + RAMP_S - time.perf_counter())
        before = cpu_s(pid)
        await asyncio.sleep(self.end - time.perf_counter())
        self.cpu_s = cpu_s(pid) - before


class Load:
    """Requests of random lengths to one model."""

    def __init__(self, client: Client, arguments: argparse.Namespace) -> None:
        self._client = client
        self._model: str = arguments.model
        self._max_tokens: int = arguments.max_tokens
        self._pid: int | None = arguments.pid
        self._random = random.Random(0)

    async def one(self, phase: Phase) -> None:
        body = {
            "model": self._model,
            "prompt": " ".join(["word"] * self._random.randint(1, 40)),
            "max_tokens": self._random.randint(self._max_tokens // 8, self._max_tokens),
            "ignore_eos": True,
        }
        began = time.perf_counter()
        phase.count(await self._client.request("POST", "/v1/completions", json.dumps(body).encode()), began)

    async def closed(self, num_clients: int, seconds: float) -> Phase:
        """So many clients, each with one request after the other."""
        phase = Phase(time.perf_counter())
        end = phase.begin + seconds

        async def client() -> None:
            while time.perf_counter() < end:
                await self.one(phase)

        phase.end = end
        watching = [phase.watch_cpu(self._pid)] if self._pid else []
        await asyncio.gather(*watching, *(client() for _ in range(num_clients)))
        return phase

    async def open(self, rate: float, seconds: float) -> Phase:
        """So many requests a second on the average, at random moments."""
        phase = Phase(time.perf_counter())
        phase.end = phase.begin + seconds
        arrival = phase.begin
        async with asyncio.TaskGroup() as group:
            if self._pid:
                group.create_task(phase.watch_cpu(self._pid))
            while (arrival := arrival + self._random.expovariate(rate)) < phase.end:
                await asyncio.sleep(arrival - time.perf_counter())
                group.create_task(self.one(phase))
        return phase


async def probe(client: Client, path: str, delays_s: list[float]) -> None:
    """Ask for it until cancelled."""
    while True:
        began = time.perf_counter()
        answer = await client.request("GET", path)
        assert answer.status == 200, f"{path} does not answer"
        delays_s.append(time.perf_counter() - began)
        await asyncio.sleep(PROBE_S)


def cpu_s(pid: int) -> float:
    """CPU time of a process and its descendants."""
    parents: dict[int, int] = {}
    times: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
            times[int(path.parent.name)] = int(fields[11]) + int(fields[12])

    def is_below(process: int | None) -> bool:
        return process == pid or (process is not None and is_below(parents.get(process)))

    return sum(time for process, time in times.items() if is_below(process)) / os.sysconf("SC_CLK_TCK")


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1] if len(values) > 1 else sum(values)


async def measure(arguments: argparse.Namespace, url: str) -> bool:
    client = Client(url)
    load = Load(client, arguments)
    before = await load.closed(arguments.clients, arguments.peak_seconds)
    peak_rate = before.num_answers / (arguments.peak_seconds - RAMP_S)
    delays_s: dict[str, list[float]] = {"/health": [], "/metrics": []}
    probing = [asyncio.create_task(probe(client, path, delays)) for path, delays in delays_s.items()]
    flood = await load.open(arguments.factor * peak_rate, arguments.seconds)
    for task in probing:
        task.cancel()
    after = await load.closed(arguments.clients, arguments.peak_seconds)
    for peak in (before, after):
        assert set(peak.statuses) == {200}, f"the closed loop is refused: {dict(peak.statuses)}; take fewer --clients"
    phases = {"peak before": before, "overload": flood, "peak after": after}
    by_cpu = bool(arguments.pid)
    before_s, goodput, after_s = (each.tokens_per_cpu_s if by_cpu else each.tokens_per_s for each in phases.values())
    share = goodput / ((before_s + after_s) / 2)
    bound_s = arguments.max_wait + max(before.answered_s + after.answered_s)
    found: dict[str, Any] = {
        "tokens/s": {name: round(phase.tokens_per_s, 1) for name, phase in phases.items()},
        "tokens per second of CPU time": {name: round(phase.tokens_per_cpu_s, 1) for name, phase in phases.items()},
        "cores that the server had": {
            name: round(phase.cpu_s / (phase.end - phase.begin - RAMP_S), 2) for name, phase in phases.items()
        },
        "peak requests/s": round(peak_rate, 2),
        "arrivals/s": round(arguments.factor * peak_rate, 2),
        "goodput / peak": round(share, 3),
        "statuses": dict(flood.statuses),
        "refusals without Retry-After": flood.num_without_retry_after,
        "admitted p50 s": round(percentile(flood.answered_s, 50), 2),
        "admitted p99 s": round(percentile(flood.answered_s, 99), 2),
        "bound s": round(bound_s, 2),
        "refused p50 s": round(percentile(flood.refused_s, 50), 3),
        "refused p99 s": round(percentile(flood.refused_s, 99), 3),
        **{f"{path} p99 ms": round(1000 * percentile(delays, 99), 1) for path, delays in delays_s.items()},
    }
    checks = {
        "goodput within 10 % of the peak": share >= 0.9,
        "no error but 429 and 503": set(flood.statuses) <= {200, 429, 503},
        "every refusal says when to come again": not flood.num_without_retry_after,
        "p99 of the admitted is bounded": percentile(flood.answered_s, 99) <= bound_s,
    }
    print(json.dumps({**found, "checks": checks}, indent=1))
    return all(checks.values())


# The pretended engine.


def serve_mock() -> None:
    """A gateway over an upstream that sleeps; its URL is the first line that it prints."""
    import uvicorn

    from langport.gateway.app import Gateway
    from langport.gateway.asgi import Receive, Scope, Send
    from langport.gateway.queue import Places
    from langport.gateway.upstream import Upstream
    from langport.settings.tree import GatewaySettings

    async def sleep(scope: Scope, receive: Receive, send: Send) -> None:
        num_tokens = json.loads((await receive())["body"])["max_tokens"]
        await asyncio.sleep(num_tokens / MOCK_TOKENS_PER_S)
        usage = {"prompt_tokens": 10, "completion_tokens": num_tokens, "total_tokens": 10 + num_tokens}
        body = json.dumps({"usage": usage}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    upstream = Upstream("mock", sleep, card=dict, is_ready=lambda: (True, ""), places=Places("mock", MOCK_PLACES))
    config = uvicorn.Config(Gateway([upstream], GatewaySettings()), port=0, log_level="warning", lifespan="off")
    listener = config.bind_socket()
    listener.listen(2048)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run([listener])


@contextmanager
def mocking() -> Iterator[str]:
    server = subprocess.Popen([sys.executable, __file__, "--serve-mock"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="langport-demo-chat")
    parser.add_argument("--pid", type=int, help="of the server: count its CPU time, on a machine that others use")
    parser.add_argument("--mock", action="store_true", help="start a gateway over a pretended engine and load that")
    parser.add_argument("--serve-mock", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--clients", type=int, default=72, help="of the closed loop; as many as the model has places")
    parser.add_argument("--peak-seconds", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--factor", type=float, default=2.0, help="arrivals as a multiple of the peak")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--max-wait", type=float, default=30.0, help="the server's --max-queue-wait")
    arguments = parser.parse_args()
    if arguments.serve_mock:
        serve_mock()
        return 0
    if not arguments.mock:
        return 0 if asyncio.run(measure(arguments, arguments.url)) else 1
    arguments.model, arguments.clients = "mock", MOCK_PLACES
    with mocking() as url:
        return 0 if asyncio.run(measure(arguments, url)) else 1


if __name__ == "__main__":
    sys.exit(main())
