"""Output tokens per second of a running server at 1, 8 and 32 clients, and what long prompts do to the others.

    langport serve bench=DIR --port 8123 &
    python benchmarks/throughput.py --url http://127.0.0.1:8123/v1 --model bench

A closed loop over streaming completions: 128 prompt tokens, 128 output tokens, `ignore_eos`. Run it on a quiet
machine, in turns with what it is compared to, and quote medians and ratios. Needs httpx.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx

PROMPT_TOKENS = 128
OUTPUT_TOKENS = 128
LONG_STREAM_TOKENS = 256
"""Of the streams that long prompts come between."""


@dataclass
class Timing:
    """When one stream's chunks came, in seconds from its start."""

    chunks: list[float]
    num_tokens: int

    @property
    def first_s(self) -> float:
        return self.chunks[0]

    @property
    def gaps_s(self) -> list[float]:
        return [b - a for a, b in zip(self.chunks, self.chunks[1:], strict=False)]


class Load:
    """A closed loop of clients on one server."""

    def __init__(self, client: httpx.AsyncClient, model: str) -> None:
        self.client = client
        self.model = model
        self.random = random.Random(0)

    async def one(
        self,
        prompt_tokens: int = PROMPT_TOKENS,
        output_tokens: int = OUTPUT_TOKENS,
        has_begun: asyncio.Event | None = None,
    ) -> Timing:
        """One stream to its end."""
        body = {
            "model": self.model,
            "prompt": [self.random.randrange(10, 250) for _ in range(prompt_tokens)],
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        begin = time.perf_counter()
        timing = Timing([], 0)
        async for chunk in self._chunks(body):
            if chunk["choices"]:
                timing.chunks.append(time.perf_counter() - begin)
                if has_begun is not None:
                    has_begun.set()
            if chunk.get("usage"):
                timing.num_tokens = chunk["usage"]["completion_tokens"]
        assert timing.num_tokens == output_tokens, f"asked for {output_tokens} tokens, got {timing.num_tokens}"
        return timing

    async def _chunks(self, body: dict[str, object]) -> AsyncIterator[dict[str, object]]:
        async with self.client.stream("POST", "/completions", json=body) as response:
            if response.status_code != 200:
                raise SystemExit(f"{response.status_code}: {(await response.aread()).decode()[:300]}")
            async for line in response.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield json.loads(line[6:])

    async def closed_loop(self, num_clients: int, num_requests: int) -> dict[str, float]:
        """`num_clients` clients share `num_requests` requests."""
        left = list(range(num_requests))
        timings: list[Timing] = []

        async def client() -> None:
            while left:
                left.pop()
                timings.append(await self.one())

        begin = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(num_clients)))
        elapsed_s = time.perf_counter() - begin
        return {
            "clients": num_clients,
            "requests": num_requests,
            "output_tokens_per_s": round(sum(t.num_tokens for t in timings) / elapsed_s, 1),
            "first_token_ms_median": round(1e3 * statistics.median(t.first_s for t in timings), 1),
            "inter_token_ms_median": round(1e3 * statistics.median(g for t in timings for g in t.gaps_s), 2),
        }

    async def long_prompts(self, num_streams: int, prompt_tokens: int, num_prompts: int) -> dict[str, float]:
        """The silences of running streams while long prompts arrive one after the other."""
        begun = [asyncio.Event() for _ in range(num_streams)]
        running = [asyncio.create_task(self.one(output_tokens=LONG_STREAM_TOKENS, has_begun=event)) for event in begun]
        await asyncio.gather(*(event.wait() for event in begun))
        begin = time.perf_counter()
        for _ in range(num_prompts):
            await self.one(prompt_tokens=prompt_tokens, output_tokens=1)
        elapsed_s = time.perf_counter() - begin
        are_running = not any(stream.done() for stream in running)
        gaps = [gap for stream in await asyncio.gather(*running) for gap in stream.gaps_s]
        percentiles = statistics.quantiles(gaps, n=100)
        return {
            "streams": num_streams,
            "long_prompts": num_prompts,
            "long_prompt_tokens": prompt_tokens,
            "long_prompt_s": round(elapsed_s / num_prompts, 2),
            "streams_outlast_them": are_running,
            "inter_token_ms_median": round(1e3 * percentiles[49], 1),
            "inter_token_ms_p99": round(1e3 * percentiles[98], 1),
            "inter_token_ms_max": round(1e3 * max(gaps), 1),
        }


async def measure(arguments: argparse.Namespace) -> None:
    async with httpx.AsyncClient(base_url=arguments.url, timeout=1200) as client:
        load = Load(client, arguments.model)
        await load.one(output_tokens=8)  # warm-up
        rates = {}
        for num_clients in arguments.clients:
            result = await load.closed_loop(num_clients, max(2, num_clients))
            rates[num_clients] = result["output_tokens_per_s"]
            print(json.dumps(result | {"ratio_to_first": round(rates[num_clients] / rates[arguments.clients[0]], 2)}))
        if arguments.long_prompts:
            result = await load.long_prompts(arguments.streams, arguments.long_prompt_tokens, arguments.long_prompts)
            print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", required=True)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--long-prompts", type=int, default=1, help="how many; 0 leaves this part out")
    parser.add_argument("--long-prompt-tokens", type=int, default=2000)
    parser.add_argument("--streams", type=int, default=4, help="streams that run while long prompts arrive")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
