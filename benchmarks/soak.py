"""Load of every kind for half an hour, with clients that leave: does memory stay flat, is every block given back?

    python benchmarks/soak.py                            # starts a server with the bundled models and ends it
    python benchmarks/soak.py --minutes 3 --serve ./my-model --max-num-seqs 8
    python benchmarks/soak.py --url http://127.0.0.1:8000 --pid 4711

Requests arrive at random, of random lengths and with random parameters; some are wrong, and some clients leave before
the end. One greedy question is asked again and again: its answer must never change. A line of JSON per sample of
memory and cache, and one with the summary. The exit code is 1 when something was not as it should be: an error, an
answer that changed, work or blocks left over. Memory is the proportional set size of the server's processes together,
which needs Linux. Needs httpx.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

READY = re.compile(r"Ready on (http://\S+)")
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "seven", "dogs", "while", "it", "rains", "日本語", "🦊", "42")
SMALL = ["--kv-cache-memory", "24MiB", "--max-num-seqs", "16"]
"""Of the server that is started: a cache that is soon full, so that sequences are preempted and blocks given away."""
QUESTION = "What is the capital of Norway?"
IDLE = ("langport_engine_num_running", "langport_engine_num_waiting", "langport_engine_kv_cache_usage")


@dataclass
class Tally:
    """What happened."""

    ended: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    num_errors: int = 0

    def wrong(self, message: str) -> None:
        self.num_errors += 1
        if len(self.errors) < 20:
            self.errors.append(message[:400])


class Left(Exception):
    """The client hangs up."""


class Soak:
    """Clients of one server."""

    def __init__(self, client: httpx.AsyncClient, seed: int) -> None:
        self.client = client
        self.random = random.Random(seed)
        self.tally = Tally()
        self.writers: list[tuple[str, int]] = []
        """Models that generate text, and their contexts."""
        self.embedders: list[str] = []
        self.answers: dict[str, str] = {}
        """To the question that never changes, by model."""

    async def look(self) -> None:
        """Find out which models there are and what they do."""
        for card in (await self.client.get("/v1/models")).json()["data"]:
            body = {"model": card["id"], "input": "x"}
            if (await self.client.post("/v1/embeddings", json=body)).status_code == 200:
                self.embedders.append(card["id"])
            else:
                self.writers.append((card["id"], card.get("max_model_len", 2048)))

    async def run(self, seconds: float, rate: float, max_open: int) -> None:
        """Requests until the time is over, then until all have ended."""
        end = time.monotonic() + seconds
        tasks: set[asyncio.Task[None]] = set()
        while time.monotonic() < end:
            await asyncio.sleep(self.random.expovariate(rate))
            if len(tasks) < max_open:
                task = asyncio.create_task(self._one())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def _one(self) -> None:
        kinds = [self._text] * 12 + [self._wrong, self._question]
        if self.embedders:
            kinds += [self._embed] * 3
        kind = self.random.choice(kinds)
        try:
            await kind()
            self.tally.ended[kind.__name__.strip("_")] += 1
        except Left:
            self.tally.ended["left"] += 1
        except (httpx.HTTPError, ValueError, KeyError) as error:
            self.tally.wrong(f"{kind.__name__}: {error!r}")

    async def _text(self) -> None:
        model, context = self.random.choice(self.writers)
        length = int(min(self.random.expovariate(1 / 60), context // 8)) + 1
        body: dict[str, Any] = {"model": model, "max_tokens": self.random.randrange(1, 120), **self._parameters()}
        if self.random.random() < 0.5:
            path = "/v1/completions"
            body["prompt"] = self._words(length)
            if self.random.random() < 0.3:
                body |= {"logprobs": self.random.randrange(6)}
        else:
            path = "/v1/chat/completions"
            body["messages"] = [{"role": "user", "content": self._words(length)}]
            if self.random.random() < 0.3:
                body |= {"logprobs": True, "top_logprobs": self.random.randrange(21)}
        if "use_beam_search" not in body and self.random.random() < 0.6:
            await self._stream(path, body)
        else:
            await self._plain(path, body)

    def _parameters(self) -> dict[str, Any]:
        """A random choice of sampling parameters."""
        draw = self.random
        if draw.random() < 0.05:
            return {"use_beam_search": True, "n": 2, "best_of": 3, "max_tokens": draw.randrange(1, 30)}
        every: dict[str, Any] = {
            "temperature": draw.choice([0, 0.5, 1, 2]),
            "top_p": draw.random(),
            "top_k": draw.randrange(-1, 100),
            "min_p": draw.random() * 0.3,
            "typical_p": 0.1 + 0.9 * draw.random(),
            "presence_penalty": draw.uniform(-2, 2),
            "frequency_penalty": draw.uniform(-2, 2),
            "repetition_penalty": draw.uniform(0.7, 1.5),
            "logit_bias": {str(draw.randrange(300)): draw.uniform(-100, 20) for _ in range(3)},
            "bad_words": ["the", "fox"],
            "allowed_token_ids": list(range(draw.randrange(1, 300))),
            "min_tokens": 1,
            "stop": draw.choice([["fox"], [" "], ["\n", "。"]]),
            "stop_token_ids": [draw.randrange(300)],
            "ignore_eos": True,
            "seed": draw.randrange(10**6),
            "n": draw.randrange(1, 5),
            "priority": draw.randrange(-2, 3),
        }
        return {name: every[name] for name in draw.sample(sorted(every), draw.randrange(5))}

    async def _plain(self, path: str, body: dict[str, Any]) -> None:
        call = asyncio.create_task(self.client.post(path, json=body))
        if self.random.random() < 0.25:
            await asyncio.wait([call], timeout=self.random.expovariate(2))
            if not call.done():
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
                raise Left
        reply = await call
        self._check(reply.status_code == 200, f"{path} {body}: {reply.status_code} {reply.text}")

    async def _stream(self, path: str, body: dict[str, Any]) -> None:
        leaves_after = self.random.randrange(1, 60) if self.random.random() < 0.3 else None
        num_events = 0
        last = ""
        async with self.client.stream("POST", path, json={**body, "stream": True}) as reply:
            if reply.status_code != 200:
                self._check(False, f"{path} {body}: {reply.status_code} {(await reply.aread()).decode()}")
            async for line in reply.aiter_lines():
                if not line.startswith("data: "):
                    continue
                last = line
                num_events += 1
                if num_events == leaves_after:
                    raise Left
        self._check(last == "data: [DONE]", f"{path} {body}: the stream ended with {last}")

    async def _embed(self) -> None:
        texts = [self._words(self.random.randrange(1, 60)) for _ in range(self.random.randrange(1, 40))]
        await self._plain("/v1/embeddings", {"model": self.random.choice(self.embedders), "input": texts})

    async def _wrong(self) -> None:
        body = {"model": self.writers[0][0], "prompt": "x", **self.random.choice([{"top_p": 7}, {"n": 0}, {"stop": 5}])}
        reply = await self.client.post("/v1/completions", json=body)
        self._check(reply.status_code == 400, f"{body}: {reply.status_code} instead of 400")

    async def _question(self) -> None:
        model, _ = self.random.choice(self.writers)
        body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 30}
        reply = await self.client.post("/v1/chat/completions", json=body)
        self._check(reply.status_code == 200, f"{body}: {reply.status_code} {reply.text}")
        if reply.status_code == 200:
            answer = reply.json()["choices"][0]["message"]["content"]
            first = self.answers.setdefault(model, answer)
            self._check(answer == first, f"{model} answered {answer!r} after {first!r}")

    def _words(self, count: int) -> str:
        return " ".join(self.random.choices(WORDS, k=count))

    def _check(self, is_right: bool, message: str) -> None:
        if not is_right:
            self.tally.wrong(message)


def memory_mib(pid: int) -> dict[int, float]:
    """Proportional set size of a process and all its descendants."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended
    members = {pid}
    while more := {child for child, parent in parents.items() if parent in members} - members:
        members |= more
    found = {}
    for member in sorted(members):
        try:
            rollup = Path(f"/proc/{member}/smaps_rollup").read_text()
        except OSError:
            continue
        if size := re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE):
            found[member] = round(int(size[1]) / 1024, 1)
    return found


async def figures(client: httpx.AsyncClient) -> dict[str, float]:
    """What `/metrics` says of the engines, added up over the models."""
    found = dict.fromkeys(IDLE, 0.0)
    for line in (await client.get("/metrics")).text.splitlines():
        name = line.partition("{")[0]
        if name in found:
            found[name] += float(line.rpartition(" ")[2])
    return {name.removeprefix("langport_engine_"): round(value, 4) for name, value in found.items()}


async def sample(client: httpx.AsyncClient, pid: int | None, interval_s: float, totals: list[float]) -> None:
    """Print memory and cache until cancelled."""
    begin = time.monotonic()
    while True:
        line: dict[str, Any] = {"s": round(time.monotonic() - begin), **await figures(client)}
        if pid is not None:
            each = memory_mib(pid)
            totals.append(sum(each.values()))
            line |= {"memory_mib": round(totals[-1], 1), "processes": each}
        print(json.dumps(line), flush=True)
        await asyncio.sleep(interval_s)


async def wait_idle(client: httpx.AsyncClient, patience_s: float = 60.0) -> dict[str, float]:
    """The engines' figures when they have nothing to do, or after `patience_s`."""
    end = time.monotonic() + patience_s
    while any((left := await figures(client)).values()) and time.monotonic() < end:
        await asyncio.sleep(0.2)
    return left


async def soak(arguments: argparse.Namespace, url: str, pid: int | None) -> bool:
    """Whether all was as it should be."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits, trust_env=False) as client:
        run = Soak(client, arguments.seed)
        await run.look()
        totals: list[float] = []
        sampling = asyncio.create_task(sample(client, pid, arguments.interval, totals))
        await run.run(60 * arguments.minutes, arguments.rate, arguments.max_open)
        left = await wait_idle(client)
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)
    summary: dict[str, Any] = {
        "minutes": arguments.minutes,
        "requests": dict(run.tally.ended),
        "errors": run.tally.num_errors,
        "left_over": left,
    }
    if len(totals) >= 8:
        quarter = len(totals) // 4
        early, late = statistics.mean(totals[quarter : 2 * quarter]), statistics.mean(totals[-quarter:])
        summary["memory_mib"] = {"second_quarter": round(early, 1), "last_quarter": round(late, 1)}
    print(json.dumps(summary))
    for error in run.tally.errors:
        print(error, file=sys.stderr)
    return not run.tally.num_errors and not any(left.values())


@contextmanager
def serving(arguments: list[str]) -> Iterator[tuple[str, int]]:
    """A server of our own: its address and process."""
    with tempfile.NamedTemporaryFile() as log:
        command = [sys.executable, "-m", "langport", "serve", "--port", "0", *arguments]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while not (found := READY.search(Path(log.name).read_text("utf-8"))):
                if process.poll() is not None:
                    raise SystemExit(
                        f"the server ended with {process.returncode}:\n{Path(log.name).read_text('utf-8')}"
                    )
                time.sleep(0.1)
            yield found[1], process.pid
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=8, help="requests per second, on average")
    parser.add_argument("--max-open", type=int, default=64, help="requests at once; what comes above it is left out")
    parser.add_argument("--interval", type=float, default=10, help="seconds between two samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--url", help="a running server, instead of starting one")
    parser.add_argument("--pid", type=int, help="its process, to report memory")
    parser.add_argument(
        "--serve", nargs=argparse.REMAINDER, default=SMALL, help="what to give to `langport serve` (the last option)"
    )
    arguments = parser.parse_args()
    if arguments.url:
        is_right = asyncio.run(soak(arguments, arguments.url, arguments.pid))
    else:
        with serving(arguments.serve) as (url, pid):
            is_right = asyncio.run(soak(arguments, url, pid))
    raise SystemExit(0 if is_right else 1)


if __name__ == "__main__":
    main()
