"""Remote servers as upstreams: a request goes on byte for byte, and so does the answer.

Only three things of a body are known here: the name of the model, which the server may call otherwise; whether an
answer is a stream of events; and where an event ends, so that a stream which breaks off ends with whole events and an
error, never as if it were complete. Of a client's headers only those named here go on, so no key of this server does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qs, quote

import msgspec

from langport.direct import DirectReceive, DirectSend, watch_client
from langport.errors import UpstreamFailed
from langport.gateway.asgi import ClientGone, Header, Receive, Scope, Send
from langport.gateway.auth import given_key
from langport.gateway.http_client import Address, Connection, HttpClient, Leaver, header_lines
from langport.gateway.model_name import with_model
from langport.gateway.queue import Places
from langport.gateway.upstream import Upstream
from langport.known_head import KnownHeaders
from langport.settings.tree import Price
from langport.settings.upstreams import UpstreamSettings, read_secret

logger = logging.getLogger("langport.gateway")

GATHERED_BYTES = 256 * 1024
"""Answers that are no streams are awaited up to this size before the client is sent anything, so that one that breaks
off is an error with a status."""
MAX_EVENT_BYTES = 1024 * 1024
"""Pieces of an event are held until it is whole, up to this size."""
MAX_LIST_BYTES = 8 * 1024 * 1024
"""Of a server's list of models."""
MAX_RETRY_S = 60.0
"""Between two tries to list a server's models, at most."""

_AZURE_HOSTS = (".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com", ".openai.azure.us")
_AZURE_VERSION = "2024-10-21"
_AZURE_OPERATIONS = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/embeddings"))
"""What Azure has under deployments; the rest is under /openai/v1, and has the model in the body."""
_KEY_HEADERS = {"openai": (b"authorization", b"Bearer "), "azure": (b"api-key", b""), "anthropic": (b"x-api-key", b"")}
"""By API: the header of the key, and what stands before it."""
_ANTHROPIC_VERSION = (b"anthropic-version", b"2023-06-01")

_FORWARDED = frozenset(
    (b"accept", b"content-type", b"user-agent", b"idempotency-key", b"traceparent", b"tracestate", b"openai-beta",
     b"anthropic-version", b"anthropic-beta", b"x-langport-strict")
)  # fmt: skip
"""Headers of clients that go on. What is not listed stays: it could be a key, or a browser's cookie."""
_FORWARDED_PREFIX = b"x-stainless-"
_FORWARDED_WITH_KEY = frozenset((b"openai-organization", b"openai-project"))
"""They belong to the client's key."""
_NEVER_FORWARDED = frozenset(
    (b"host", b"connection", b"content-length", b"transfer-encoding", b"te", b"trailer", b"upgrade", b"keep-alive",
     b"proxy-authorization", b"proxy-connection", b"expect", b"authorization", b"api-key", b"x-api-key", b"cookie",
     b"accept-encoding", b"x-request-id")
)  # fmt: skip
"""Not even when the settings say so: the connection's own, what is set here, and keys."""
_NOT_RELAYED = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-connection", b"te", b"trailer", b"transfer-encoding",
     b"upgrade", b"content-length", b"date", b"server", b"set-cookie", b"alt-svc", b"strict-transport-security",
     b"x-langport-overhead-ms")
)  # fmt: skip
"""Headers of answers that are the connection's, the server's own business, or set anew."""
_CORS_PREFIX = b"access-control-"

_VERSION_PART = re.compile(r"v[0-9]+[a-z0-9]*")
_API_VERSION = re.compile(r"[A-Za-z0-9._-]{1,32}")
_FINAL = re.compile(
    rb"(?:^|[\r\n])(?:data: ?\[DONE\]|event: ?(?:message_stop|response\.(?:completed|incomplete|failed)))[\r\n]"
)
"""In the last event of a stream that is complete."""


class RemoteServer:
    """One server of the settings: its connections, its key, and upstreams of its models."""

    def __init__(self, settings: UpstreamSettings, environment: Mapping[str, str] = os.environ) -> None:
        """Contacts nobody. Raises: ConfigError for a secret or a certificate that cannot be read."""
        self.settings = settings
        self.client = HttpClient(settings, environment)
        self.client.load_tls()
        address = self.client.address
        what = f"The upstream {settings.name or address.origin}"
        self.api = _api_of(settings, address)
        self._key = read_secret(settings.key, environment, f"{what}: its key") if settings.key else None
        headers = {
            name.lower().encode(): read_secret(text, environment, f"{what}: its header {name}").encode()
            for name, text in settings.headers.items()
        }
        self._headers = list(headers.items())
        self._secrets = [value for value in headers.values() if len(value) >= _MIN_SECRET]
        credential = self._credential(self._key.encode()) if self._key else None
        if credential is None and address.credentials is not None:
            credential = (b"authorization", address.credentials)
        if credential is not None and credential[0] not in headers:
            self._headers.append(credential)
            self._secrets += [credential[1], credential[1].rpartition(b" ")[2]]
        self.has_own_key = credential is not None or any(name in _NEVER_FORWARDED for name in headers)
        given = frozenset(name.lower().encode() for name in settings.forward_headers)
        self._forwarded = (_FORWARDED | given | (_FORWARDED_WITH_KEY if settings.forward_key else frozenset())) - (
            _NEVER_FORWARDED | headers.keys()
        )
        self._set_here = frozenset(headers)
        self._slots = asyncio.Semaphore(settings.max_concurrency) if settings.max_concurrency else None
        self._paths: dict[str, str] = {}
        prompt, completion = settings.prompt_cost, settings.completion_cost
        self._price = Price(prompt, completion) if prompt or completion else None

    @property
    def origin(self) -> str:
        """How messages name it."""
        return self.client.address.origin

    def _credential(self, key: bytes) -> Header:
        name, prefix = _KEY_HEADERS[self.api]
        return name, prefix + key

    def upstream(self, name: str, model: str | None = None, card: Mapping[str, Any] | None = None) -> Upstream:
        """What answers for `name`, which the server calls `model`; its entry of /v1/models holds `card`."""
        model = model or name
        entry = {"owned_by": self.client.address.host, **(card or {}), "root": model}
        limit = self.settings.max_concurrency
        return Upstream(
            name,
            partial(self.relay, model),
            card=lambda: entry,
            is_ready=lambda: (True, ""),
            check=self.check,
            limits_keys=self.settings.forward_key,
            places=Places(self.settings.name or self.origin, limit) if limit else None,  # those wait in the fair queue
            generation=partial(str, sha256(msgspec.json.encode((self.settings, model))).hexdigest()[:32]),
            weight=self.settings.weight,
            price=self._price,
            read_headers=tuple(sorted(name.lower().encode() for name in self.settings.forward_headers)),
        )

    # Requests.

    async def relay(self, model: str, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI app of one of its models. Raises: ApiError; before the client was sent anything, if at all possible.

        A client that leaves ends the request at the server at once, then this returns.
        """
        body = receive.take_whole() if isinstance(receive, DirectReceive) else None
        if body is None:
            body = (await receive())["body"]
        known = scope["extensions"]["langport"]
        path, is_in_path = self._path(scope, model)
        if not is_in_path:
            body = with_model(body, model, has_own=known["has_model"])
        lines = self._request_lines(scope["headers"], known["request_id"])
        leaver = Leaver()
        watch_no_more = watch_client(receive, leaver.leave)
        try:
            if self._slots is None:
                await self._exchange(path, lines, body, send, leaver)
            else:
                async with _turn(self._slots, leaver):
                    await self._exchange(path, lines, body, send, leaver)
        except ClientGone:
            return
        finally:
            watch_no_more()

    async def _exchange(self, path: str, lines: bytes, body: bytes, send: Send, leaver: Leaver) -> None:
        relay = _Relay(self, await self.client.request("POST", path, lines, body, leaver=leaver), send)
        try:
            await relay.run()
        finally:
            relay.end()

    def _path(self, scope: Scope, model: str) -> tuple[str, bool]:
        """Where the request goes, and whether that says which model is meant."""
        path: str = scope["path"]
        if self.api == "azure" and path in _AZURE_OPERATIONS:
            version = self.settings.api_version or _asked_version(scope) or _AZURE_VERSION
            base = self.client.address.path.removesuffix("/v1").removesuffix("/openai")
            operation = path.removeprefix("/v1")
            return f"{base}/openai/deployments/{quote(model, safe='')}{operation}?api-version={version}", True
        return self.path(path), False

    def path(self, path: str) -> str:
        """The server's spelling of `/v1/...` or of a path beside it."""
        found = self._paths.get(path)
        if found is None:
            found = self._paths[path] = _below(self.client.address.path, path, is_azure=self.api == "azure")
        return found

    def _request_lines(self, given: Sequence[Header], request_id: str) -> bytes:
        """The headers of a request, with those of the client's that go on. Raises: InvalidRequest."""
        notes = given.notes if isinstance(given, KnownHeaders) else {}
        lines: bytes | None = notes.get(self)
        if lines is None:
            lines = notes[self] = header_lines(self._request_headers(given))
        return lines + header_lines([(b"x-request-id", request_id.encode())])

    def _request_headers(self, given: Sequence[Header]) -> list[Header]:
        forwarded = self._forwarded
        headers = [(name, value) for name, value in given if name in forwarded or name.startswith(_FORWARDED_PREFIX)]
        headers.append((b"accept-encoding", b"identity"))  # events are looked for in what comes
        headers += self._headers
        if self.settings.forward_key:
            key = given_key(dict(given))
            if key is not None and (credential := self._credential(key))[0] not in self._set_here:
                headers.append(credential)
        if self.api == "anthropic" and not any(name == b"anthropic-version" for name, _ in headers):
            headers.append(_ANTHROPIC_VERSION)
        return headers

    # Answers.

    def answer_headers(self, connection: Connection) -> list[Header]:
        """Those that the client may see."""
        given = connection.headers
        notes = given.notes if isinstance(given, KnownHeaders) else {}
        headers: list[Header] | None = notes.get(self)
        if headers is None:
            headers = notes[self] = self._relayed(given)
        return headers.copy()

    def _relayed(self, given: Sequence[Header]) -> list[Header]:
        dropped = _NOT_RELAYED
        for name, value in given:
            if name == b"connection":
                dropped = dropped | {part.strip().lower() for part in value.split(b",")}
        return [
            (name, value)
            for name, value in given
            if name not in dropped and not name.startswith(_CORS_PREFIX) and not self._holds_secret(value)
        ]

    def _holds_secret(self, text: bytes) -> bool:
        return any(secret in text for secret in self._secrets)

    def without_secrets(self, text: bytes) -> bytes:
        """A text that the server wrote, without what only this server may know."""
        for secret in self._secrets:
            text = text.replace(secret, b"(hidden)")
        return text

    def check_status(self, connection: Connection) -> None:
        """Raises: UpstreamFailed for an answer that is none for the client."""
        status = connection.status
        if status < 300:
            return
        if status < 400 and status != 304:
            raise UpstreamFailed(
                f"The upstream {self.origin} answered with a redirect ({status}), which is never followed; "
                "the operator of this server should set the upstream's url to where the API is."
            )
        if status in (401, 407) and self.has_own_key:
            logger.error("The upstream %s refuses the key that it is sent (status %d).", self.origin, status)
            raise UpstreamFailed(
                f"The upstream {self.origin} refuses the key that this server sends it; the operator of this server "
                "should set a valid one."
            )

    # The list of models.

    async def list_models(self) -> dict[str, dict[str, Any]]:
        """By name, what its entries of /v1/models say that is worth repeating. Raises: ApiError."""
        status, body = await self._get_models()
        if status != 200:
            raise self.client.failed(f"does not list its models: GET /v1/models answers {status}")
        try:
            entries = _LISTING.decode(body).data
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self.client.failed("lists its models in a form that is not OpenAI's") from None
        return {entry.id: _card(entry) for entry in entries if entry.id}

    async def check(self) -> None:
        """Whether it lives, be it that it lets nobody see its models. Raises: ApiError when it does not."""
        status, _ = await self._get_models()
        if status >= 500:
            raise self.client.failed(f"does not work: GET /v1/models answers {status}")

    async def _get_models(self) -> tuple[int, bytes]:
        """The status and the body of GET /v1/models. Raises: ApiError."""
        connection = await self.client.request("GET", self.path("/v1/models"), self._request_lines((), "models"), b"")
        try:
            pieces: list[bytes] = []
            while piece := await connection.read():
                pieces.append(piece)
                if sum(map(len, pieces)) > MAX_LIST_BYTES:
                    raise self.client.failed("lists more models than can be read")
            return connection.status, b"".join(pieces)
        finally:
            connection.release()

    def is_same(self, other: RemoteServer) -> bool:
        """Whether the other one asks the same server in the same way, secrets included."""
        return self.settings == other.settings and self._key == other._key and self._headers == other._headers

    def close(self) -> None:
        """Close its connections."""
        self.client.close()


class _Relay:
    """One answer on its way to the client."""

    def __init__(self, server: RemoteServer, connection: Connection, send: Send) -> None:
        self._server = server
        self._connection = connection
        self._send = send
        self._is_over = False

    def end(self) -> None:
        """Nothing more is wanted of the server; only once, since the connection may serve another request then."""
        if not self._is_over:
            self._is_over = True
            self._connection.release()

    async def run(self) -> None:
        self._server.check_status(self._connection)
        headers = self._server.answer_headers(self._connection)
        if _is_event_stream(headers):
            await self._relay_events(headers)
        else:
            await self._relay_whole(headers)

    async def _relay_whole(self, headers: list[Header]) -> None:
        connection = self._connection
        has_more = False
        body = connection.take_whole()
        if body is None:
            body, has_more = await self._gather()
        if connection.status >= 400:
            body = self._server.without_secrets(body)
        if not has_more:
            self.end()  # whatever the client does now, the server is done
            if connection.status not in (204, 304):
                headers.append((b"content-length", b"%d" % len(body)))
        if not has_more and isinstance(self._send, DirectSend) and self._send.can_finish():
            self._send.finish(connection.status, headers, body)
            return
        await self._start(headers)
        await self._send({"type": "http.response.body", "body": body, "more_body": has_more})
        while has_more:
            body = await connection.read()
            has_more = bool(body)
            await self._send({"type": "http.response.body", "body": body, "more_body": has_more})

    async def _gather(self) -> tuple[bytes, bool]:
        """The beginning of the body, and whether there is more of it."""
        pieces: list[bytes] = []
        num_bytes = 0
        while num_bytes <= GATHERED_BYTES:
            piece = await self._connection.read()
            if not piece:
                return b"".join(pieces), False
            pieces.append(piece)
            num_bytes += len(piece)
        return b"".join(pieces), True

    async def _relay_events(self, headers: list[Header]) -> None:
        """Whole events as they come, the first one with the head of the answer."""
        connection, send = self._connection, self._send
        events = Events()
        is_started = False
        try:
            while data := await connection.read():
                whole = events.take(data)
                if whole:
                    if not is_started:
                        await self._start(headers)
                        is_started = True
                    await send({"type": "http.response.body", "body": whole, "more_body": True})
                    if isinstance(send, DirectSend) and connection.status == 200:
                        await self._pour(events, send)
            if connection.ends_with_connection and not events.may_end_here:
                raise self._server.client.failed("closed the connection before its last event")
        except UpstreamFailed:
            if not events.is_complete:
                raise
            events.rest = b""
        self.end()
        if not is_started:
            await self._start(headers)
        await send({"type": "http.response.body", "body": events.rest, "more_body": False})

    async def _pour(self, events: Events, send: DirectSend) -> None:
        """The same without a task's turn for each piece."""
        connection, write = self._connection, send.write

        def pass_on(data: bytes) -> bool:
            if events.rest or not data.endswith(_END):
                data = events.take(data)
            else:  # as nearly always, and `take` need not be asked
                events.last = data
            if not data or write(data):
                return True
            send.when_ready(connection.go_on)
            return False

        await connection.pour(pass_on)

    async def _start(self, headers: list[Header]) -> None:
        await self._send({"type": "http.response.start", "status": self._connection.status, "headers": headers})


def _is_event_stream(headers: list[Header]) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)


class Events:
    """Cuts a stream of server-sent events behind the last whole one.

    Source: HTML Living Standard, 9.2.5: an event ends with an empty line.
    """

    __slots__ = ("last", "rest")

    def __init__(self) -> None:
        self.rest = b""
        """The beginning of the next event."""
        self.last = b""
        """The latest whole events."""

    def take(self, data: bytes) -> bytes:
        """The events that `data` completes, with all that was held of them; empty when it completes none."""
        if self.rest:
            data, self.rest = self.rest + data, b""
        if data.endswith(_END):
            self.last = data
            return data
        end = _end_of_events(data)
        rest = data[end:]
        is_comment = rest.startswith(b":") and rest.find(b"\n") == len(rest) - 1
        if is_comment or len(rest) > MAX_EVENT_BYTES:
            end, rest = len(data), b""  # a comment keeps the connection alive: it must not wait for an event
        self.rest = rest
        if end:
            self.last = data[:end]
        return data[:end]

    @property
    def is_complete(self) -> bool:
        """Whether the last whole event says that none follows."""
        text = self.last.rstrip(b"\r\n")
        return _FINAL.search(text[_end_of_events(text) :] + b"\n") is not None

    @property
    def may_end_here(self) -> bool:
        """Whether the last event says that none follows, be it without the empty line behind it."""
        return self.is_complete or _FINAL.search(self.rest + b"\n") is not None


_END = b"\n\n"
"""Of an event, as all engines write it."""


def _end_of_events(data: bytes) -> int:
    return max((data.rfind(end) + len(end) for end in (b"\n\n", b"\n\r\n", b"\r\r") if end in data), default=0)


_MIN_SECRET = 8
"""Shorter values of headers are no secrets worth hiding: they would be found in any text."""


class _Entry(msgspec.Struct):
    id: str
    owned_by: Any = None
    max_model_len: Any = None
    context_length: Any = None


class _Listing(msgspec.Struct):
    data: list[_Entry]


_LISTING = msgspec.json.Decoder(_Listing)


def _card(entry: _Entry) -> dict[str, Any]:
    card: dict[str, Any] = {}
    if isinstance(entry.owned_by, str) and entry.owned_by:
        card["owned_by"] = entry.owned_by
    length = entry.max_model_len or entry.context_length
    if isinstance(length, int) and length > 0:
        card["max_model_len"] = length
    return card


@asynccontextmanager
async def _turn(slots: asyncio.Semaphore, leaver: Leaver) -> AsyncIterator[None]:
    """Wait for a slot, no longer than the client does."""
    if slots.locked():
        waiting = asyncio.ensure_future(slots.acquire())
        try:
            await leaver.wait_for(waiting)
        except BaseException:
            if not waiting.cancel() and waiting.done() and not waiting.cancelled():
                slots.release()
            raise
    else:
        await slots.acquire()
    try:
        yield
    finally:
        slots.release()


def _api_of(settings: UpstreamSettings, address: Address) -> str:
    if settings.api != "auto":
        return settings.api
    if address.host.endswith(_AZURE_HOSTS):
        return "azure"
    return "anthropic" if address.host == "api.anthropic.com" else "openai"


def _asked_version(scope: Scope) -> str | None:
    """The client's api-version, if it gives one that can be one."""
    given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("api-version", [""])[0]
    return given if _API_VERSION.fullmatch(given) else None


def _below(base: str, path: str, *, is_azure: bool) -> str:
    """A path under a base URL, which may be a server's root or end in a version, as clients' base URLs do."""
    if is_azure:
        base = base.removesuffix("/v1").removesuffix("/openai") + "/openai"
    parts = base.split("/")
    if not path.startswith("/v1/"):
        return ("/".join(parts[:-1]) if _VERSION_PART.fullmatch(parts[-1]) else base) + path
    if any(_VERSION_PART.fullmatch(part) for part in parts):
        return base + path.removeprefix("/v1")
    return base + path
