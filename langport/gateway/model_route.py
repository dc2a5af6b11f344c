"""A route: one public name for several deployments, with fallbacks to other names. To the gateway it is an upstream.

It chooses (`balance.py`), asks (`attempt.py`), learns from what comes (`health.py`), and asks again within bounds
(`retry.py`) while the client has been sent nothing. It knows its deployments as ASGI apps that have names.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from langport.errors import ApiError, RateLimited, Unavailable
from langport.gateway.asgi import ClientGone, Receive, Scope, Send
from langport.gateway.attempt import Attempt, Client
from langport.gateway.balance import STRATEGIES, Strategy
from langport.gateway.checks import Checks, Watch
from langport.gateway.clock import Clock, LoopClock, sleep
from langport.gateway.health import Health, State, Ticket
from langport.gateway.queue import Places
from langport.gateway.retry import RETRYABLE, Budget, backoff_s
from langport.gateway.upstream import Upstream
from langport.settings.tree import DeploymentSettings, HealthSettings, RouteSettings

HEDGED_PATH = "/v1/embeddings"
HEDGE_SAMPLES = 100
"""Latest embeddings whose times say what is slow; a fifth of them must be there."""
HEDGE_SHARE = 0.1
"""Most second requests, as a share of all."""

Find = Callable[[str], Upstream | None]
"""The model or adapter of a name, while it is served."""


class Deployment:
    """One member of a route. Its upstream is looked up whenever it is needed, as adapters come and go."""

    def __init__(self, settings: DeploymentSettings, health: Health, find: Find) -> None:
        self.name = settings.model
        self._weight = settings.weight
        self.priority = settings.priority
        self.health = health
        self.num_in_flight = 0
        self._find = find

    @property
    def upstream(self) -> Upstream | None:
        return self._find(self.name)

    @property
    def weight(self) -> float:
        """Of the route's settings, else of who answers."""
        if self._weight is not None:
            return self._weight
        upstream = self.upstream
        return upstream.weight if upstream is not None else 1.0

    @property
    def is_open(self) -> bool:
        """Whether it can be asked, as far as is known."""
        if not self.health.is_open:
            return False
        upstream = self.upstream
        return upstream is not None and upstream.is_ready()[0]

    @property
    def is_worth_a_try(self) -> bool:
        """Whether it may be asked though it is thought to be down."""
        return not self.health.is_held and self.upstream is not None

    def describe(self) -> str:
        """Why it cannot be asked."""
        upstream = self.upstream
        if upstream is None:
            return "not served"
        if self.health.is_held:
            return "asked for less work"
        if self.health.state is not State.HEALTHY:
            return "failed too often"
        is_ready, reason = upstream.is_ready()
        return "ready" if is_ready else reason

    def load(self) -> float:
        """Requests in flight, or what its engine reports where that is more, per unit of weight."""
        upstream = self.upstream
        figures = upstream.stats() if upstream is not None and upstream.stats is not None else {}
        counts = (figures.get(name, 0.0) for name in ("num_running", "num_waiting"))
        reported = sum(count for count in counts if isinstance(count, int | float))
        return max(self.num_in_flight, reported) / self.weight


class Group:
    """Deployments of which any may answer, and the way to choose."""

    def __init__(self, name: str, deployments: Sequence[Deployment], strategy: Strategy) -> None:
        self.name = name
        self.deployments = deployments
        self._strategy = strategy

    def choose(self, body: bytes, among: Callable[[Deployment], bool]) -> Deployment | None:
        """One of those of the first priority that has some; None where no priority has."""
        found = [deployment for deployment in self.deployments if among(deployment)]
        if not found:
            return None
        first = min(deployment.priority for deployment in found)
        return self._strategy.choose([each for each in found if each.priority == first], body)


@dataclass(frozen=True)
class _Choice:
    """Whom to ask next."""

    deployment: Deployment
    group: Group
    is_again: bool = False
    """It has failed this very request."""


class _Call:
    """One request on its way through a route."""

    def __init__(self, scope: Scope, client: Client, send: Send, started_s: float) -> None:
        self.scope = scope
        self.client = client
        self.send = send
        self.started_s = started_s
        self.tried: set[Deployment] = set()
        self.fallbacks_tried: set[str] = set()
        self.num_own = 0
        self.num_failures = 0
        self.answering: Attempt | None = None
        self.beside: dict[asyncio.Future[None], Attempt] = {}
        """Tries that run at the same time, where several do."""

    def claim(self, attempt: Attempt) -> bool:
        """Only the first to ask answers; those beside it are ended."""
        if self.answering is None:
            self.answering = attempt
            for task, other in self.beside.items():
                if other is not attempt:
                    task.cancel()
        return self.answering is attempt

    def note(self, deployment: Deployment) -> None:
        """Tell the gateway who is asked now, or answers."""
        self.scope["extensions"]["langport"]["deployment"] = deployment.name

    def scope_of(self, choice: _Choice) -> Scope:
        """The scope for a try. A fallback answers under its own name."""
        extensions = self.scope["extensions"]
        known = {**extensions["langport"], "model": choice.group.name}
        return {**self.scope, "extensions": {**extensions, "langport": known}}


class ModelRoute:
    """The ASGI app of a route."""

    def __init__(
        self,
        name: str,
        settings: RouteSettings,
        find: Find,
        fallback: Callable[[str, HealthSettings], Group],
        *,
        shows_deployment: bool = True,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        """`fallback` gives what a name among the fallbacks stands for, at the time of the request."""
        self.name = name
        self.settings = settings
        self._clock = clock or LoopClock()
        self._random = random or Random()
        self._find = find
        self._fallback = fallback
        self.shows_deployment = shows_deployment
        self._budget = Budget(settings.retry.budget)
        self._hedge_budget = Budget(HEDGE_SHARE)
        self._times_s: deque[float] = deque(maxlen=HEDGE_SAMPLES)
        deployments = [Deployment(each, Health(settings.health, self._clock), find) for each in settings.deployments]
        self.group = Group(name, deployments, STRATEGIES[settings.strategy](settings))

    def upstream(self, models: Mapping[str, Upstream]) -> Upstream:
        """As the gateway sees it. `models`: what is served beside it."""
        deployments = [models[each.name] for each in self.group.deployments if each.name in models]
        is_whole = len(deployments) == len(self.group.deployments)
        return Upstream(
            name=self.name,
            app=self,
            card=self._card,
            is_ready=self._is_ready,
            deployments=lambda: {each.name: each.is_open for each in self.group.deployments},
            places=_places(self.name, deployments) if is_whole else None,
            is_metered=is_whole and all(deployment.is_metered for deployment in deployments),
            generation=self._generation,
            read_headers=tuple(sorted({name for deployment in deployments for name in deployment.read_headers})),
        )

    def _generation(self) -> str:
        """Those of whoever may answer but for fallbacks."""
        return "|".join(f"{upstream.name} {upstream.generation()}" for upstream in self._upstreams())

    def _card(self) -> dict[str, Any]:
        """The first deployment's, with the shortest context of all."""
        cards = [dict(upstream.card()) for upstream in self._upstreams()]
        lengths = [length for card in cards if isinstance(length := card.get("max_model_len"), int)]
        shortest = {"max_model_len": min(lengths)} if lengths else {}
        return {**(cards[0] if cards else {}), **shortest}

    def _is_ready(self) -> tuple[bool, str]:
        states = {upstream.name: upstream.is_ready() for upstream in self._upstreams()}
        if any(is_ready for is_ready, _ in states.values()):
            return True, ""
        reasons = ", ".join(f"{name}: {reason}" for name, (_, reason) in states.items())
        return False, f"none of its deployments is ready ({reasons or 'none is served'})"

    def _upstreams(self) -> Iterator[Upstream]:
        return (upstream for each in self.group.deployments if (upstream := each.upstream) is not None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI 3, as `Upstream.app` says."""
        body = (await receive())["body"]
        call = _Call(scope, Client(body, receive), send, self._clock.now())
        self._budget.earn()
        failed: Attempt | None = None
        while choice := self._next(call):
            if failed is not None and not await self._may_retry(call, choice):
                break
            attempt = await self._ask(call, choice)
            if not attempt.has_failed:
                return
            if failed is not None:
                self._budget.spend()
            call.num_failures += 1
            failed = attempt
        if call.client.is_gone:
            return
        if failed is None:
            raise self._refusal()
        await failed.show()

    def _next(self, call: _Call) -> _Choice | None:
        """Whom to ask: an own deployment, while it may be tried, then a fallback, then who is thought to be down."""
        body, tried = call.client.body, call.tried
        may_try_own = call.num_own < self.settings.retry.attempts
        asks_doubtful = self.settings.health.when_down == "try"
        if may_try_own and (choice := self._next_own(call, asks_doubtful=asks_doubtful and call.num_own > 0)):
            return choice
        names = [name for name in self.settings.fallbacks if name not in call.fallbacks_tried]
        fallbacks = [self._fallback(name, self.settings.health) for name in names]
        for group in fallbacks:
            if found := group.choose(body, lambda each: each.is_open and each not in tried):
                return _Choice(found, group)
        if asks_doubtful:
            for group in (self.group, *fallbacks) if may_try_own else fallbacks:
                if found := group.choose(body, lambda each: each.is_worth_a_try and each not in tried):
                    return _Choice(found, group)
        return None

    def _next_own(self, call: _Call, *, asks_doubtful: bool) -> _Choice | None:
        """One that has not failed this request; else, and rather one that is thought to be down, one that has."""
        body, tried = call.client.body, call.tried
        if found := self.group.choose(body, lambda each: each.is_open and each not in tried):
            return _Choice(found, self.group)
        if asks_doubtful and (found := self.group.choose(body, lambda each: each.is_worth_a_try and each not in tried)):
            return _Choice(found, self.group)
        if found := self.group.choose(body, lambda each: each.is_open):
            return _Choice(found, self.group, is_again=True)
        return None

    async def _may_retry(self, call: _Call, choice: _Choice) -> bool:
        """Whether another try is within bounds; comes back when it is time for it."""
        if not self._budget.is_left or self._clock.now() - call.started_s >= self.settings.retry.within_s:
            return False
        if choice.is_again:
            return await self._pause(backoff_s(self.settings.retry, call.num_failures, self._random), call.client)
        return not call.client.is_gone

    async def _pause(self, seconds: float, client: Client) -> bool:
        """Whether the client was still there in the end."""
        waiting = [asyncio.ensure_future(sleep(self._clock, seconds)), asyncio.ensure_future(client.wait_gone())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(waiting)
        return not client.is_gone

    async def _ask(self, call: _Call, choice: _Choice) -> Attempt:
        """Try once; twice at the same time where that is wanted. The attempt that answers, or else has failed."""
        if self.settings.hedge and call.scope["path"] == HEDGED_PATH:
            self._hedge_budget.earn()
            slow_s = self._slow_s()
            if slow_s is not None and self._hedge_budget.is_left:
                return await self._ask_hedged(call, choice, slow_s)
        attempt, work = self._try(call, choice)
        await work
        return attempt

    async def _ask_hedged(self, call: _Call, choice: _Choice, slow_s: float) -> Attempt:
        """Ask another one, too, when the first has not answered after `slow_s`. Who answers first ends the other."""
        failed, work = self._try(call, choice)
        running: dict[asyncio.Future[None], Attempt] = {asyncio.ensure_future(work): failed}
        call.beside = running
        try:
            timer = asyncio.ensure_future(sleep(self._clock, slow_s))
            await asyncio.wait([*running, timer], return_when=asyncio.FIRST_COMPLETED)
            await _end([timer])
            if call.answering is None and not any(task.done() for task in running):
                self._start_hedge(call, running)
            while running:
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    attempt = running.pop(task)
                    if task.cancelled():
                        continue
                    task.result()
                    if not attempt.has_failed:
                        return attempt
                    failed = attempt
            return failed
        finally:
            await _end(list(running))
            call.beside = {}

    def _start_hedge(self, call: _Call, running: dict[asyncio.Future[None], Attempt]) -> None:
        second = self.group.choose(call.client.body, lambda each: each.is_open and each not in call.tried)
        if second is not None:
            self._hedge_budget.spend()
            attempt, work = self._try(call, _Choice(second, self.group))
            running[asyncio.ensure_future(work)] = attempt

    def _slow_s(self) -> float | None:
        """What 95 % of the latest embeddings did not take; None while too few are known."""
        if len(self._times_s) * 5 < HEDGE_SAMPLES:
            return None
        return sorted(self._times_s)[math.ceil(0.95 * len(self._times_s)) - 1]

    def _try(self, call: _Call, choice: _Choice) -> tuple[Attempt, Coroutine[Any, Any, None]]:
        """A try, and what must be awaited to make it. Raises then: as `Attempt.run` does."""
        deployment = choice.deployment
        call.tried.add(deployment)
        if choice.group is self.group:
            call.num_own += 1
        else:
            call.fallbacks_tried.add(choice.group.name)
        attempt = Attempt(deployment.name, call.client, call.send, shows_deployment=self.shows_deployment)
        return attempt, self._run(call, choice, attempt)

    async def _run(self, call: _Call, choice: _Choice, attempt: Attempt) -> None:
        deployment = choice.deployment
        upstream = deployment.upstream
        assert upstream is not None, "a deployment was chosen that is not served: our bug, please report it"
        ticket = deployment.health.begin()
        started_s = self._clock.now()

        def claim() -> bool:
            if not call.claim(attempt):
                return False
            call.note(deployment)
            if not attempt.is_failure:
                deployment.health.passed(ticket)
                if call.scope["path"] == HEDGED_PATH:
                    self._times_s.append(self._clock.now() - started_s)
            return True

        call.note(deployment)
        deployment.num_in_flight += 1
        try:
            await attempt.run(upstream.app, call.scope_of(choice), claim)
        except BaseException as error:
            _learn_from_error(deployment.health, ticket, attempt, error)
            raise
        else:
            _learn(deployment.health, ticket, attempt, limits_keys=upstream.limits_keys)
        finally:
            deployment.num_in_flight -= 1

    def _refusal(self) -> ApiError:
        """Why nobody could be asked, and when it is worth asking again."""
        deployments = self.group.deployments
        wait_s = min(each.health.wait_s for each in deployments)
        states = ", ".join(f"{each.name}: {each.describe()}" for each in deployments)
        text = f"None of the deployments of {self.name} can be asked now ({states})."
        kind = RateLimited if any(each.health.is_held for each in deployments) else Unavailable
        error = kind(f"{text} Try again in {max(1, math.ceil(wait_s))} s.")
        error.retry_after_s = wait_s
        return error


def _places(name: str, deployments: Sequence[Upstream]) -> Places | None:
    """Those of all deployments together; None where one of them has as many as are wanted."""
    places = {deployment.places for deployment in deployments}
    known = [each for each in places if each is not None]  # adapters of one model share theirs
    return Places(name, sum(each.num_places for each in known)) if len(known) == len(places) else None


def _learn(health: Health, ticket: Ticket, attempt: Attempt, *, limits_keys: bool) -> None:
    """What a try that ended without raising says of its deployment; where it answered, `claim` has noted it."""
    if attempt.asks_for_less and limits_keys:
        health.passed(ticket)  # to this client it says no, to others it may not
    elif attempt.asks_for_less:
        health.held(ticket, attempt.retry_after_s)
    elif attempt.is_failure:
        health.failed(ticket, attempt.retry_after_s)
    elif not attempt.is_committed:
        health.given_up(ticket)


def _learn_from_error(health: Health, ticket: Ticket, attempt: Attempt, error: BaseException) -> None:
    """The same of one that raised: before the first byte an error that is the client's own, after it any."""
    is_fault = not isinstance(error, ApiError) or error.status in RETRYABLE
    if attempt.has_lost_client or isinstance(error, ClientGone) or not isinstance(error, Exception):
        health.given_up(ticket)
    elif is_fault:
        health.failed(ticket)
    else:
        health.passed(ticket)


async def _end(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel what still runs, and wait until it has ended."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.gather(*tasks, return_exceptions=True)


class Routing:
    """All routes by their names, and what their fallbacks stand for. Routes whose settings stay keep what they know."""

    def __init__(
        self,
        settings: Mapping[str, RouteSettings],
        find: Find,
        *,
        shows_deployment: bool = True,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        """`find` gives whatever is served under a name, routes included."""
        self._find_served = find
        self._clock = clock or LoopClock()
        self._random = random or Random()
        self._routes: dict[str, ModelRoute] = {}
        self._models: dict[str, Group] = {}
        self.checks = Checks(self._find, self._clock)
        """Of the deployments; they begin when they are started."""
        self.update(settings, shows_deployment=shows_deployment)

    def update(self, settings: Mapping[str, RouteSettings], *, shows_deployment: bool) -> None:
        """Use these from now on; requests that run end as they began."""
        kept = {
            name: route
            for name, route in self._routes.items()
            if route.settings == settings.get(name) and route.shows_deployment == shows_deployment
        }
        self._routes = {
            name: kept.get(name) or self._route(name, each, shows_deployment) for name, each in settings.items()
        }
        self._models = {}
        self.checks.watch(self._watches())

    def has(self, name: str) -> bool:
        """Whether a route has the name."""
        return name in self._routes

    def _watches(self) -> dict[str, Watch]:
        """What is looked at for all routes: as often as the most curious one wants."""
        found: dict[str, Watch] = {}
        for route in self._routes.values():
            interval_s = route.settings.health.check_interval_s
            for each in route.group.deployments if interval_s else ():
                known = found.get(each.name, Watch(interval_s, ()))
                found[each.name] = Watch(min(interval_s, known.interval_s), (*known.healths, each.health))
        return found

    def problems(self, settings: Mapping[str, RouteSettings], models: Sequence[str]) -> list[str]:
        """Names in these settings that nothing is served under, when these models are."""
        names = {*models, *settings}
        return [
            f"routes.{name}: {target!r} is not served; a model of this machine is only after a restart."
            for name, route in settings.items()
            for target in (*(each.model for each in route.deployments), *route.fallbacks)
            if target not in names
        ]

    def upstreams(self, models: Iterable[Upstream] = ()) -> list[Upstream]:
        """The routes as the gateway serves them, beside these models."""
        by_name = {model.name: model for model in models}
        return [route.upstream(by_name) for route in self._routes.values()]

    def _route(self, name: str, settings: RouteSettings, shows_deployment: bool) -> ModelRoute:
        return ModelRoute(
            name,
            settings,
            self._find,
            self._fallback,
            shows_deployment=shows_deployment,
            clock=self._clock,
            random=self._random,
        )

    def _find(self, name: str) -> Upstream | None:
        return None if name in self._routes else self._find_served(name)

    def _fallback(self, name: str, health: HealthSettings) -> Group:
        """A route's own deployments, without its fallbacks; or a model."""
        if name in self._routes:
            return self._routes[name].group
        if name not in self._models:
            deployment = Deployment(DeploymentSettings(name), Health(health, self._clock), self._find)
            self._models[name] = Group(name, [deployment], STRATEGIES["weighted"](RouteSettings(())))
        return self._models[name]
