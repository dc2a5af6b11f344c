"""A route over scripted deployments, and a clock that only tests move."""

from __future__ import annotations

import asyncio
import heapq
import json
from random import Random

import msgspec
from gateway_fakes import Answer, FakeUpstream, check_order

from langport.gateway.model_route import Routing
from langport.gateway.upstream import ReplayedBody, Upstream
from langport.settings.tree import RouteSettings


class FakeClock:
    """Stands still until it is told to go on, or, with `runs`, jumps to whatever is waited for."""

    def __init__(self, *, runs=False):
        self.time = 1000.0
        self.waits: list[float] = []
        self._runs = runs
        self._timers: list[list] = []

    def now(self):
        return self.time

    def call_later(self, delay_s, callback):
        self.waits.append(delay_s)
        timer = _Timer(self.time + delay_s, callback)
        heapq.heappush(self._timers, timer)
        if self._runs:
            asyncio.get_running_loop().call_soon(self.forward, delay_s)
        return timer

    def forward(self, seconds):
        self.time += seconds
        while self._timers and self._timers[0].when <= self.time:
            timer = heapq.heappop(self._timers)
            if not timer.is_cancelled:
                timer.callback()


class _Timer:
    def __init__(self, when, callback):
        self.when, self.callback, self.is_cancelled = when, callback, False

    def cancel(self):
        self.is_cancelled = True

    def __lt__(self, other):
        return self.when < other.when


def upstream(name, script=None, *, is_ready=(True, ""), **more):
    app = script if isinstance(script, FakeUpstream) else FakeUpstream(script)
    return Upstream(
        name, app, card=more.pop("card", lambda: {"max_model_len": 4096}), is_ready=lambda: is_ready, **more
    )


def route_settings(**settings) -> RouteSettings:
    deployments = [{"model": each} if isinstance(each, str) else each for each in settings.pop("deployments")]
    return msgspec.convert({"deployments": deployments, **settings}, RouteSettings)


class Routed:
    """Calls the routes of `settings` over {name: script, FakeUpstream or Upstream}."""

    def __init__(self, models, settings, *, clock=None, seed=0):
        self.models = {
            name: each if isinstance(each, Upstream) else upstream(name, each) for name, each in models.items()
        }
        self.clock = clock or FakeClock(runs=True)
        self.scope = {}
        self.settings = {name: route_settings(**each) for name, each in settings.items()}
        self.routing = Routing(self.settings, lambda name: self.models.get(name), clock=self.clock, random=Random(seed))

    def calls(self, name):
        return self.models[name].app.num_calls

    def route(self, name="chat"):
        (found,) = (each.app for each in self.routing.upstreams() if each.name == name)
        return found

    def deployment(self, model, route="chat"):
        (found,) = (each for each in self.route(route).group.deployments if each.name == model)
        return found

    async def ask(self, body=None, *, name="chat", path="/v1/chat/completions", left=None, send=None, found=None,
                  **known):  # fmt: skip
        """The answer, whole or not; whatever the route raises is raised."""
        found = found if found is not None else Answer()
        left = left or asyncio.Event()
        self.scope = {
            "type": "http",
            "path": path,
            "headers": [],
            "extensions": {"langport": {"request_id": "r", "model": name, **known}},
        }

        async def disconnect():
            await left.wait()
            return {"type": "http.disconnect"}

        async def keep(message):
            check_order(found, message)
            found.messages.append(message)
            if send is not None:
                await send(message)

        data = json.dumps({"model": name, **(body or {})}).encode()
        await self.route(name)(self.scope, ReplayedBody(data, disconnect), keep)
        return found

    @property
    def served_by(self):
        return self.scope["extensions"]["langport"].get("deployment")


async def leftovers():
    """Tasks beside this one, once all that was cancelled has ended."""
    for _ in range(5):
        await asyncio.sleep(0)
    return asyncio.all_tasks() - {asyncio.current_task()}
