"""Two servers behind one route, one of which is killed every second: whether a request is lost that had not begun.

    python benchmarks/kills.py                     # 60 seconds, 32 clients
    python benchmarks/kills.py --seconds 5 --clients 8

Half of the requests are streams of a second, half are plain answers after the same time. A stream whose server is
killed ends with an error event; every other request must be answered whole, by whichever server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from stage import UpstreamProcess, gateway, upstreams

NUM_EVENTS = 20


@dataclass
class Counts:
    asked: int = 0
    whole: int = 0
    cut_after_their_beginning: int = 0
    lost: list[str] = field(default_factory=list)
    served_by: Counter[str] = field(default_factory=Counter)


async def ask(url: str, *, stream: bool, counts: Counts, seconds: float) -> None:
    parts = urlsplit(url)
    body = {"model": "best", "messages": [], "stream": stream, "num_events": NUM_EVENTS}
    data = json.dumps({**body, "interval_s": seconds / NUM_EVENTS}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    counts.asked += 1
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(head.encode() + data)
        answer = await reader.read(-1)
    finally:
        writer.close()
    found, _, rest = answer.partition(b"\r\n\r\n")
    deployment = found.partition(b"x-langport-deployment: ")[2].partition(b"\r\n")[0].decode()
    if found.startswith(b"HTTP/1.1 200") and (b"data: [DONE]" in rest if stream else b'"num_events":20' in rest):
        counts.whole += 1
        counts.served_by[deployment] += 1
    elif stream and b'data: {"n":0' in rest and b'data: {"error"' in rest:
        counts.cut_after_their_beginning += 1
    else:
        counts.lost.append(answer[-300:].decode("latin-1"))


async def load(url: str, servers: list[UpstreamProcess], arguments: argparse.Namespace) -> Counts:
    counts = Counts()
    end = time.perf_counter() + arguments.seconds

    async def client(number: int) -> None:
        while time.perf_counter() < end:
            await ask(url, stream=number % 2 == 0, counts=counts, seconds=arguments.answer_seconds)

    async def kill() -> None:
        number = 0
        while True:
            await asyncio.sleep(arguments.interval)
            server = servers[number % len(servers)]
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            number += 1

    killing = asyncio.create_task(kill())
    await asyncio.gather(*(client(number) for number in range(arguments.clients)))
    killing.cancel()
    await asyncio.wait([killing])
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two kills")
    parser.add_argument("--answer-seconds", type=float, default=1.0, help="what an answer takes")
    arguments = parser.parse_args()
    with upstreams(2) as servers:
        settings: dict[str, Any] = {
            "upstreams": [{"name": f"server-{number}", "url": server.url} for number, server in enumerate(servers)],
            "routes": {"best": {"deployments": ["server-0", "server-1"], "health": {"check_interval_s": 0.2}}},
        }
        with gateway(settings) as (url, _):
            counts = asyncio.run(load(url, servers, arguments))
    found = {**vars(counts), "lost": len(counts.lost), "of the lost": counts.lost[:5]}
    print(json.dumps(found, indent=1))
    return 0 if not counts.lost and counts.whole else 1


if __name__ == "__main__":
    sys.exit(main())
