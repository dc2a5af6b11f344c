"""The gateway: one ASGI app in front of all models.

The life of a request here: id, CORS, key, route, body, envelope, admission, upstream. `Gateway._http` is the one place
that turns errors into answers, in the form that the path's clients read. What a request's parameters mean is the
upstream's business.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from langport import __version__
from langport.errors import (
    ApiError,
    ConfigError,
    InvalidRequest,
    LangPortError,
    ModelNotFound,
    NotFound,
    PermissionDenied,
)
from langport.gateway import docs
from langport.gateway.admin import AdapterAdmin
from langport.gateway.admission import Admission
from langport.gateway.asgi import ASGIApp, ClientGone, Receive, Scope, Send
from langport.gateway.auth import AdminDoor, Keyring
from langport.gateway.body import read_body, take_body
from langport.gateway.bookkeeping import Bookkeeping
from langport.gateway.cache import ResponseCache
from langport.gateway.checks import Checks
from langport.gateway.cors import Cors
from langport.gateway.envelope import Envelope, read_envelope, requested_model
from langport.gateway.estimate import UNMETERED_PATHS
from langport.gateway.exchange import Exchange
from langport.gateway.head import CLOSE, Head
from langport.gateway.key_admin import ROUTES as KEY_ROUTES
from langport.gateway.key_admin import KeyAdmin
from langport.gateway.keys import Key
from langport.gateway.metrics import CONTENT_TYPE, Metrics
from langport.gateway.model_admin import ROUTES as MODEL_ROUTES
from langport.gateway.model_admin import ModelAdmin
from langport.gateway.model_route import Routing
from langport.gateway.models import Served
from langport.gateway.routes import MODEL_PATH, Route, Routes
from langport.gateway.service import Endpoint, Service
from langport.gateway.telemetry import Telemetry
from langport.gateway.tracing import Tracer
from langport.gateway.upstream import ReplayedBody, StreamedBody, Upstream, inner_scope
from langport.settings.tree import GatewaySettings, OverloadSettings, Price, TelemetrySettings
from langport.wire.unknown import asks_strict

logger = logging.getLogger("langport.gateway")

OPEN_PATHS = frozenset(("/health", "/ready"))
"""What needs no key, so that a probe works without one."""
ADMIN_PREFIX = "/admin/"
"""All below needs the admin key, and no other will do."""
UPSTREAM_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/responses/input_tokens",
    "/v1/decisions",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/score",
    "/v1/classify",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
)
ADAPTER_PATHS = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")

_NOTHING: Mapping[str, Any] = {}
_DEFAULT_TELEMETRY = TelemetrySettings()

Hook = Callable[[], Awaitable[None]]
Handler = Callable[[Exchange], Awaitable[None]]
ReloadHook = Callable[[], Awaitable[tuple[Sequence[str], Sequence[str]]]]


class Gateway:
    """The ASGI app that the server runs."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        settings: GatewaySettings,
        *,
        telemetry: TelemetrySettings = _DEFAULT_TELEMETRY,
        tracer: Tracer | None = None,
        service: Service | None = None,
        admission: Admission | None = None,
        books: Bookkeeping | None = None,
        may_grow: bool = False,
        cache: ResponseCache | None = None,
        on_startup: Hook | None = None,
        on_shutdown: Hook | None = None,
        openapi: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        """`service` answers what belongs to no model, `books` keeps keys and usage in a store, `cache` answers that
        can be given again, `openapi` makes the document of /openapi.json when it is wanted. With `may_grow` more models
        are found later.
        Without an `admission` it has the limits that are the default.

        `tracer`: instead of the one that `telemetry` asks for. Raises: ConfigError for names that are taken twice,
        aliases that lead nowhere, empty keys, a log that cannot be opened and traces without their library.
        """
        self._served = Served((), {}, may_grow=may_grow)
        self._routing = Routing(settings.routes, self._served.model, shows_deployment=settings.deployment_header)
        self._served.update([*upstreams, *self._routing.upstreams(upstreams)], settings.aliases)
        self._books = books
        self.on_reload: ReloadHook | None = None
        """Reads the settings again; the names of those that changed, and of those that only a restart changes."""
        self.on_metrics: Callable[[], Awaitable[bytes]] | None = None
        """What /metrics shows, where this process is one of several."""
        self._keys = self._keyring(settings)
        self._key_admin = KeyAdmin(books)
        self._apply(settings)
        self._admission = admission or Admission(OverloadSettings())
        self._telemetry = Telemetry(self._served, telemetry, lanes=lambda: self._admission.lanes, tracer=tracer)
        self._cache = cache
        if cache is not None:
            self._telemetry.metrics.num_cache_bytes = lambda: cache.memory.num_bytes
        self._on_startup = on_startup
        self._on_shutdown = on_shutdown
        self._openapi = openapi
        self._openapi_body: bytes | None = None
        self._recorders = service.recorders if service else {}
        to_service: list[Route[Handler]] = []
        if service:
            for endpoint in service.endpoints:
                handler = partial(self._to_service, service.app, endpoint)
                to_service.append(Route(endpoint.method, endpoint.path, handler))
        adapters = self._adapters = AdapterAdmin(self._served, is_allowed=settings.allow_adapter_updates)
        self._change_adapters = dict(zip(ADAPTER_PATHS, (adapters.load, adapters.unload), strict=True))
        posts: list[Route[Handler]] = [Route("POST", path, self._to_upstream) for path in UPSTREAM_PATHS]
        posts += [Route("POST", path, self._to_adapters) for path in ADAPTER_PATHS]
        to_admin: list[Route[Handler]] = [Route(method, path, self._to_key_admin) for method, path in KEY_ROUTES]
        to_models = ModelAdmin(self._served).answer
        to_admin += [Route(method, path, to_models) for method, path in MODEL_ROUTES]
        self._routes: Routes[Handler] = Routes(
            [
                *posts,
                *to_admin,
                Route("POST", "/admin/reload", self._reload_settings),
                *to_service,
                Route("GET", "/v1/models", self._list_models),
                Route("GET", MODEL_PATH, self._retrieve_model),
                Route("GET", "/health", self._health),
                Route("GET", "/ready", self._ready),
                Route("GET", "/metrics", self._show_metrics),
                Route("GET", "/openapi.json", self._show_openapi),
                Route("GET", "/docs", self._show_docs),
                Route("GET", "/", self._index),
            ]
        )

    @property
    def served(self) -> Served:
        """The table of names, which may change while requests run."""
        return self._served

    @property
    def num_in_flight(self) -> int:
        """Requests that are being answered."""
        return self._telemetry.metrics.num_in_flight

    @property
    def metrics(self) -> Metrics:
        """This process's own figures."""
        return self._telemetry.metrics

    def close(self) -> None:
        """Write the last lines of the log and send the last spans; call it in a thread, when no request is left."""
        self._telemetry.close()

    def drain(self) -> None:
        """The server is stopping: refuse what waits for its turn; what is being answered goes on."""
        self._admission.drain()

    @property
    def checks(self) -> Checks:
        """Looks whether the routes' deployments live, once they are started."""
        return self._routing.checks

    @property
    def models(self) -> list[Upstream]:
        """What is served now, but for routes and aliases."""
        return [upstream for upstream in self._served.upstreams if not self._routing.has(upstream.name)]

    def reload(
        self, settings: GatewaySettings, models: Sequence[Upstream] | None = None, *, may_grow: bool | None = None
    ) -> None:
        """Go on with these settings, and these models where they are others; requests that run end as they began.
        `may_grow` is as for a new gateway, and stays where it is not given.

        Raises: ConfigError with all problems; nothing has changed then.
        """
        models = self.models if models is None else models
        names = [model.name for model in models]
        may_grow = self._served.may_grow if may_grow is None else may_grow
        problems = self._served.problems([*names, *settings.routes], settings.aliases, may_grow=may_grow)
        if not may_grow:
            problems += self._routing.problems(settings.routes, names)
        try:
            keys = self._keyring(settings)
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError(*problems)
        self._keys = keys
        self._routing.update(settings.routes, shows_deployment=settings.deployment_header)
        self._served.update([*models, *self._routing.upstreams(models)], settings.aliases, may_grow=may_grow)
        self._adapters.is_allowed = settings.allow_adapter_updates
        self._apply(settings)

    def _keyring(self, settings: GatewaySettings) -> Keyring:
        return Keyring(settings.api_keys, self._books.keys if self._books else None)

    def _apply(self, settings: GatewaySettings) -> None:
        """What no request keeps."""
        self._admin = AdminDoor(settings.admin_key)
        self._open_paths = OPEN_PATHS | {"/metrics"} if settings.metrics_without_key else OPEN_PATHS
        self._cors = Cors(settings.allowed_origins)
        self._max_body_bytes = settings.max_body_bytes
        self._refuses_unknown = settings.unknown_parameters == "refuse"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI 3."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "LangPort speaks HTTP only."})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        hooks = {"startup": self._on_startup, "shutdown": self._on_shutdown}
        for phase, hook in hooks.items():
            await receive()
            try:
                if hook is not None:
                    await hook()
            except LangPortError as error:
                await send({"type": f"lifespan.{phase}.failed", "message": str(error)})
                return
            except Exception as error:
                logger.exception("%s failed", phase)
                await send({"type": f"lifespan.{phase}.failed", "message": str(error)})
                return
            await send({"type": f"lifespan.{phase}.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        head: Head[Handler] = Head.of(scope)
        exchange = Exchange(scope, receive, send, head.dialect)
        self._telemetry.begin(exchange)
        try:
            await self._answer(exchange, head)
        except ClientGone:
            exchange.is_client_gone = True
        except ApiError as error:
            if exchange.is_started:
                logger.error("request %s failed after its answer had begun: %s", exchange.request_id, error)
            await exchange.fail(error)
        except Exception:
            if not exchange.is_client_gone:
                logger.exception("request %s failed", exchange.request_id)
                await exchange.fail(_internal_error(exchange.request_id))
        finally:
            self._admission.let_go(exchange)
            self._record(exchange)
            exchange.extension = _NOTHING  # it knows the exchange, and nobody should have to look for that

    async def _answer(self, exchange: Exchange, head: Head[Handler]) -> None:
        try:
            head.check(exchange.scope, exchange.headers)
        except InvalidRequest:
            exchange.add_headers([CLOSE])
            raise
        if self._cors.is_on:
            exchange.add_headers(self._cors.headers(exchange.headers.get(b"origin")))
            if self._cors.is_preflight(exchange.method, exchange.headers):
                await exchange.reply_nothing(self._cors.preflight_headers(exchange.headers))
                return
        if head.path.startswith(ADMIN_PREFIX):
            self._admin.check(head.given_key)
        elif head.path not in self._open_paths:
            await self._identify(exchange, head.given_key)
        found = head.match(self._routes, exchange.scope)
        exchange.route, exchange.model_in_path, exchange.ids = found.route.path, found.model, found.ids
        await found.route.handler(exchange)

    async def _identify(self, exchange: Exchange, given: bytes | None) -> None:
        """Find out who asks, and for whom. Raises: AuthenticationFailed, StoreUnavailable.

        Only code of this process can give an extension, so it may say on whose behalf it works.
        """
        owner: str | None = exchange.known.get("owner")
        if owner is None:
            exchange.key = self._keys.find_static(given) or await self._keys.find(given)
            owner = exchange.key.owner
        else:
            exchange.key = await self._keys.of_owner(owner)
        exchange.owner = owner

    def _record(self, exchange: Exchange) -> None:
        exchange.note_all()
        self._telemetry.end(exchange)
        if self._books is not None and exchange.asked_s is not None and exchange.route not in UNMETERED_PATHS:
            exchange.price = self._price(exchange)
            self._books.record(exchange)

    def _price(self, exchange: Exchange) -> Price | None:
        """As the settings of who answered say."""
        names = (name for name in (exchange.deployment, exchange.model) if name)
        found = (upstream.price for name in names if (upstream := self._served.model(name)) is not None)
        return next((price for price in found if price is not None), None)

    async def _to_upstream(self, exchange: Exchange) -> None:
        body = await self._read_body(exchange)
        envelope = read_envelope(body)
        upstream = self._find_model(requested_model(envelope, exchange.model_in_path), exchange.key)
        exchange.model = upstream.name
        if self._cache is None:
            await self._ask(exchange, upstream, envelope, body, exchange.outlet)
        else:
            ask = partial(self._ask, exchange, upstream, envelope, body)
            await self._cache.answer(exchange, upstream, body, ask, is_strict=self._is_strict(exchange))

    async def _ask(self, exchange: Exchange, upstream: Upstream, envelope: Envelope, body: bytes, send: Send) -> None:
        if self._books is not None and exchange.key.budgets and exchange.route not in UNMETERED_PATHS:
            await self._books.ledger.check(exchange.key)
        replay = ReplayedBody(body, exchange.receive)
        scope = inner_scope(
            exchange.scope,
            exchange.route,
            request_id=exchange.request_id,
            model=upstream.name,
            owner=exchange.owner,
            is_strict=self._is_strict(exchange),
            meter=exchange.meter,
            has_model=envelope.model is not None,
        )
        exchange.extension = scope["extensions"]["langport"]
        record = self._recorders.get(exchange.route) if envelope.store is True else None
        admitted = await self._admission.enter(exchange, upstream, envelope, body)
        if not upstream.is_metered and exchange.route not in UNMETERED_PATHS:
            exchange.read_usage(admitted.estimate.prompt)
        try:
            exchange.ask()
            if record is None:
                await upstream.app(scope, replay, send)
            else:
                await record(upstream.app, scope, replay, send)
        finally:
            self._admission.leave(admitted, exchange)
            exchange.deployment = scope["extensions"]["langport"].get("deployment", "")
        _check_finished(exchange, replay, f"the upstream of {upstream.name}")

    def _find_model(self, name: str, key: Key) -> Upstream:
        """Raises: ModelNotFound, PermissionDenied; who may not use all models does not learn which there are."""
        try:
            upstream = self._served.find(name)
        except ModelNotFound:
            if key.models is None:
                raise
        else:
            if key.may_use(name, upstream.name):
                return upstream
        raise PermissionDenied(_not_for(name, key), param="model", code="model_not_found")

    async def _reload_settings(self, exchange: Exchange) -> None:
        if self.on_reload is None:
            raise NotFound("This server was assembled without settings that could be read again.")
        try:
            changed, need_restart = await self.on_reload()
        except ConfigError as error:
            raise InvalidRequest(f"Nothing was changed. {' '.join(error.problems)}") from error
        await exchange.reply_json(
            {"object": "settings.reload", "changed": list(changed), "need_restart": list(need_restart)}
        )

    async def _to_key_admin(self, exchange: Exchange) -> None:
        body = await self._read_body(exchange)
        await self._key_admin.answer(exchange, body)

    async def _to_service(self, app: ASGIApp, endpoint: Endpoint, exchange: Exchange) -> None:
        body: ReplayedBody | StreamedBody = StreamedBody(exchange.receive)
        if not endpoint.streams_body:
            whole = await self._read_body(exchange)
            body = ReplayedBody(whole, exchange.receive)
        scope = inner_scope(
            exchange.scope,
            exchange.route,
            request_id=exchange.request_id,
            owner=exchange.owner,
            is_strict=self._is_strict(exchange),
        )
        scope["path_params"] = exchange.ids
        exchange.ask()
        await app(scope, body, exchange.send)
        _check_finished(exchange, body, f"the service behind {exchange.route}")

    async def _to_adapters(self, exchange: Exchange) -> None:
        body = await self._read_body(exchange)
        done, headers = await self._change_adapters[exchange.route](body, is_strict=self._is_strict(exchange))
        await exchange.reply(200, done.encode(), b"text/plain; charset=utf-8", headers)

    async def _read_body(self, exchange: Exchange) -> bytes:
        """Raises: InvalidRequest, PayloadTooLarge, Overloaded, ClientGone."""
        hold = partial(self._admission.hold, exchange)
        body = take_body(exchange.receive, exchange.headers, self._max_body_bytes, hold)
        if body is None:
            began_s = time.perf_counter()
            body = await read_body(exchange.receive, exchange.headers, self._max_body_bytes, hold)
            exchange.waited_s += time.perf_counter() - began_s
        return body

    def _is_strict(self, exchange: Exchange) -> bool:
        """Whether fields that nobody documents are refused. Raises: InvalidRequest."""
        return asks_strict(exchange.headers.get(b"x-langport-strict"), default=self._refuses_unknown)

    async def _list_models(self, exchange: Exchange) -> None:
        entries = [entry for entry in self._served.entries() if exchange.key.may_use(entry["id"], entry["root"])]
        await exchange.reply_json({"object": "list", "data": entries})

    async def _retrieve_model(self, exchange: Exchange) -> None:
        name = exchange.model_in_path or ""
        try:
            self._find_model(name, exchange.key)
        except PermissionDenied as error:
            raise ModelNotFound(error.message, param="model") from error
        await exchange.reply_json(self._served.entry(name))

    async def _health(self, exchange: Exchange) -> None:
        await exchange.reply_json({"status": "ok"})

    async def _ready(self, exchange: Exchange) -> None:
        states = {upstream.name: upstream.is_ready() for upstream in self._served.upstreams}
        reasons = {name: reason for name, (is_ready, reason) in states.items() if not is_ready}
        if reasons:
            await exchange.reply_json({"status": "not ready", "models": reasons}, status=503)
        else:
            await exchange.reply_json({"status": "ready"})

    async def _show_metrics(self, exchange: Exchange) -> None:
        text = self.metrics.text() if self.on_metrics is None else await self.on_metrics()
        await exchange.reply(200, text, CONTENT_TYPE)

    async def _show_openapi(self, exchange: Exchange) -> None:
        if self._openapi_body is None:
            if self._openapi is None:
                raise NotFound("This server was assembled without an OpenAPI document.")
            self._openapi_body = msgspec.json.encode(self._openapi())
        await exchange.reply(200, self._openapi_body)

    async def _show_docs(self, exchange: Exchange) -> None:
        await exchange.reply(200, docs.PAGE, b"text/html; charset=utf-8")

    async def _index(self, exchange: Exchange) -> None:
        if b"text/html" in exchange.headers.get(b"accept", b""):
            await exchange.reply(200, docs.INDEX, b"text/html; charset=utf-8")
            return
        links = {"api": "/v1", "models": "/v1/models", "docs": "/docs", "openapi": "/openapi.json"}
        about = "Language models behind OpenAI's API; give clients this server's address and /v1 as the base URL."
        await exchange.reply_json({"name": "LangPort", "version": __version__, "about": about, **links})


def _check_finished(exchange: Exchange, body: ReplayedBody | StreamedBody, who: str) -> None:
    """Raises: ClientGone when nobody is left to answer, RuntimeError when somebody is."""
    if exchange.is_finished:
        return
    if body.is_client_gone:
        raise ClientGone
    raise RuntimeError(f"{who} returned without completing its answer")


def _not_for(name: str, key: Key) -> str:
    allowed = ", ".join(key.models or ())
    return f"This API key has no access to the model '{name[:200]}'. It may use: {allowed}."


def _internal_error(request_id: str) -> ApiError:
    return ApiError(
        "The server failed on this request, through no fault of the request; "
        f"the cause is in the server's log under the request id {request_id}."
    )
