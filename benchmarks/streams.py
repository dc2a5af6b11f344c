"""Many streams at once through one gateway: whether every byte comes in order, and how much later than without it.

    python benchmarks/streams.py                  # 1,000 streams of 10 events a second, for 20 seconds
    python benchmarks/streams.py --streams 200 --rate 50

The same streams are read from the server itself first, so that what the gateway adds can be told from what the clients
of this machine cost. It fails when an event is missing, comes twice, out of its order or changed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
from stage import cpu_s, gateway, microseconds, upstreams

END = b"data: [DONE]\n\n"


@dataclass
class Phase:
    delays_us: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        cuts = statistics.quantiles(self.delays_us, n=1000) if len(self.delays_us) > 1 else [0.0] * 999
        times = {"p50": cuts[499], "p99": cuts[989], "p99.9": cuts[998], "max": max(self.delays_us, default=0)}
        return {"events": len(self.delays_us), **{name: round(value / 1000, 2) for name, value in times.items()}}


class Stream(asyncio.Protocol):
    """One client."""

    def __init__(self, phase: Phase, request: bytes, num_events: int) -> None:
        self._phase = phase
        self._request = request
        self._num_events = num_events
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._next = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's have no base class
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._now = microseconds()
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        *events, self._rest = (self._rest + data).split(b"\n\n")
        for event in events:
            if event + b"\n\n" == END:
                if self._next != self._num_events:
                    self._phase.problems.append(f"{self._next} of {self._num_events} events before the end")
                continue
            try:
                number, sent = (int(part) for part in event.split(b'"n":')[1].split(b',"choices"')[0].split(b',"t":'))
            except (IndexError, ValueError):
                self._phase.problems.append(f"no event: {event[:200]!r}")
                continue
            if number != self._next:
                self._phase.problems.append(f"event {number} in the place of {self._next}")
            self._next = number + 1
            self._phase.delays_us.append(self._now - sent)

    def on_message_complete(self) -> None:
        if self._next != self._num_events or self._rest:
            self._phase.problems.append(f"it ended after {self._next} of {self._num_events} events")
        if not self.ended.done():
            self.ended.set_result(None)
        self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self._phase.problems.append(f"the connection ended after {self._next} events: {error}")
            self.ended.set_result(None)


async def read_all(url: str, arguments: argparse.Namespace) -> Phase:
    """All streams from one server; they begin evenly spread over an interval."""
    parts = urlsplit(url)
    num_events = round(arguments.seconds * arguments.rate)
    body = {"model": "far", "messages": [], "stream": True, "num_events": num_events, "interval_s": 1 / arguments.rate}
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    phase = Phase()
    loop = asyncio.get_running_loop()

    async def one(number: int) -> None:
        await asyncio.sleep(number / arguments.streams * max(1.0, 1 / arguments.rate))
        _, stream = await loop.create_connection(
            lambda: Stream(phase, head + data, num_events), parts.hostname, parts.port
        )
        await stream.ended

    await asyncio.gather(*(one(number) for number in range(arguments.streams)))
    return phase


def main() -> int:
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=10.0, help="events a second of each stream")
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    with upstreams(1) as (server,):
        direct = uvloop.run(read_all(server.url, arguments))
        with gateway({"upstreams": [{"name": "far", "url": server.url}]}) as (url, pid):
            before = cpu_s(pid)
            through = uvloop.run(read_all(url, arguments))
            used_s = cpu_s(pid) - before
    expected = arguments.streams * round(arguments.seconds * arguments.rate)
    first, second = direct.describe(), through.describe()
    found = {
        "streams": arguments.streams,
        "delay ms, direct": first,
        "delay ms, through the gateway": second,
        "added p50 ms": round(second["p50"] - first["p50"], 2),
        "added p99 ms": round(second["p99"] - first["p99"], 2),
        "CPU of the gateway per event us": round(used_s / max(1, second["events"]) * 1e6, 1),
        "problems": [*direct.problems, *through.problems][:10],
    }
    print(json.dumps(found, indent=1))
    is_whole = first["events"] == second["events"] == expected
    return 0 if is_whole and not found["problems"] else 1


if __name__ == "__main__":
    sys.exit(main())
