"""One request and its answer: the only wrapper around the server's `send`."""

from __future__ import annotations

import math
import random
import re
import time
from asyncio import Future
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from langport.direct import DirectSend
from langport.errors import ApiError, AuthenticationFailed, LargerThanLimit, QuotaExceeded
from langport.figures import Histogram
from langport.gateway.asgi import Header, Message, Receive, Scope, Send
from langport.gateway.keys import OPEN
from langport.gateway.routes import WrongMethod
from langport.gateway.usage import NOTHING, UsageReader
from langport.types import TokenUsage
from langport.wire.dialect import OPENAI, Dialect

if TYPE_CHECKING:
    from langport.gateway.tracing import Trace
    from langport.settings.tree import Price

CLIENT_GONE = 499
"""The status in logs and metrics of a request whose client left unanswered (nginx's word; never sent)."""

_JSON = b"application/json"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_SET_HERE = frozenset(
    (b"x-request-id", b"openai-processing-ms", b"openai-organization", b"openai-version", b"x-langport-overhead-ms")
)
_ALWAYS: Sequence[Header] = ((b"openai-organization", b"langport"), (b"openai-version", b"2020-10-01"))
NOTED_PIECES = 32
"""Pieces of a streamed answer that are noted together, as long as none is larger than `NOTED_BYTES`."""
NOTED_BYTES = 4096
_COLON = ord(":")
_DONE = b"data: [DONE]\n\n"


class Exchange:
    """What is known of a request while it is answered, and the `send` that adds the gateway's headers."""

    key = OPEN
    """Who asks."""
    route = "other"
    """The matched route's path; "other" where none matched, so that metrics stay bounded."""
    model_in_path: str | None = None
    ids: Mapping[str, str] = {}
    """What the path says where the route's has braces."""
    owner = OPEN.owner
    """Whose the objects are that the request stores and sees: the key's owner, or who work is done for."""
    model = ""
    """The model that answers, once known; never a name that the client made up."""
    num_held_bytes = 0
    """Of the body, as counted by the gateway's admission."""
    deployment = ""
    """Which of the model's deployments answers; empty where there is no choice."""
    extension: Mapping[str, Any] = {}
    """What the upstream's app finds in its scope's extension, and where it says which `deployment` answers."""
    cache = ""
    """Whether the response cache answers (`cache.Result`); empty where there is none."""
    queue_s = 0.0
    """How long the request waited for its turn before an upstream was asked."""
    status = CLIENT_GONE
    late_work: Future[Any] | None = None
    """What goes on when the request has ended, and takes tokens on its account."""
    error_code = ""
    """Of the error that this server answered with, or ended the answer with."""
    first_byte_s: float | None = None
    """Seconds from the request's headers to the first byte of the answer's body."""
    first_token_s: float | None = None
    """The same to the first event of a streamed answer, unless it is an error."""
    last_chunk_s = 0.0
    """The same to the latest piece of the body."""
    num_bytes = 0
    """Of the answer's body, as far as it was sent."""
    waited_s = 0.0
    """How long the client's own body was waited for."""
    asked_s: float | None = None
    """When an upstream was asked first, by `time.perf_counter`."""
    overhead_s: float | None = None
    """What the gateway itself added to the time until the answer's start: without `waited_s`, `queue_s` and all
    that passed since an upstream was asked, or what of that the upstream's app says was the server's own."""
    upstream_s: float | None = None
    """What the upstream itself took to the answer's start; None where none was asked."""
    price: Price | None = None
    """What the tokens of who answered cost, as its own settings say."""
    trace: Trace | None = None
    """Where this request is traced."""
    find_gaps: Callable[[Exchange], Histogram] | None = None
    """Where the pauses between the pieces of a streamed answer are counted."""
    is_started = False
    is_finished = False
    is_client_gone = False
    _gaps: Histogram | None = None
    _count_tokens: Callable[[], TokenUsage] | None = None
    _reader: UsageReader | None = None
    _is_event_stream = False
    _replaced: frozenset[bytes] = frozenset()
    # Most of these stay as they are, and cost a request nothing where they are the class's.

    def __init__(self, scope: Scope, receive: Receive, send: Send, dialect: Dialect = OPENAI) -> None:
        self.started_s = time.perf_counter()
        self.scope = scope
        self.receive = receive
        self.method: str = scope["method"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = _request_id(self.headers.get(b"x-request-id"))
        self.dialect = dialect
        """How this request's client reads errors."""
        extensions = scope.get("extensions")
        self.known: Mapping[str, Any] = extensions.get("langport", {}) if extensions else {}
        """What code of this process says of the request; nobody else can."""
        self.is_background = bool(self.known) and int(self.known.get("priority", 0)) > 0
        """Whether it is work that nobody waits for."""
        self.unnoted: list[tuple[bytes, float]] = []
        """Pieces of the answer's body that have been sent, and when by `time.perf_counter`, for `note_all`."""
        self._extra_headers: list[Header] = []
        self._send = send

    def add_headers(self, headers: Iterable[Header]) -> None:
        """Put these on the answer, whoever writes it."""
        self._extra_headers.extend(headers)

    def replace_headers(self, headers: Sequence[Header]) -> None:
        """Put these on the answer, in place of what an upstream says under the same names."""
        self._replaced = self._replaced.union([name for name, _ in headers])
        self.add_headers(headers)

    @property
    def usage(self) -> TokenUsage:
        """The tokens that the request has taken so far; all of them once it and its `late_work` have ended.

        What was refused or failed before its answer began has taken none.
        """
        if self.status >= 400 and self.status != CLIENT_GONE:
            return NOTHING
        if self.unnoted:
            self.note_all()
        if self._count_tokens is not None:
            return self._count_tokens()
        return self._reader.usage() if self._reader is not None else NOTHING

    def meter(self, count: Callable[[], TokenUsage], work: Future[Any] | None = None) -> None:
        """The `types.Meter` of upstreams that count the tokens themselves."""
        self._count_tokens = count
        self.late_work = work

    def read_usage(self, prompt_estimate: int) -> None:
        """Read the tokens from the answer, which somebody else's upstream gives; the estimate counts if it does not."""
        self._reader = UsageReader(prompt_estimate)

    @property
    def outlet(self) -> Send:
        """`send`, for an upstream; a `DirectSend` where the server has one."""
        return _Outlet(self, self._send) if isinstance(self._send, DirectSend) else self.send

    async def send(self, message: Message) -> None:
        """ASGI `send` for handlers and upstreams.

        A start's message may say in `upstream_s` how long a remote server alone took.
        """
        if message["type"] == "http.response.start":
            headers = self.start(message["status"], message.get("headers", ()), message.get("upstream_s"))
            message = {"type": "http.response.start", "status": self.status, "headers": headers}
        elif message["type"] == "http.response.body":
            self.unnoted.append((message.get("body", b""), time.perf_counter()))
            self.note_all()
            if not message.get("more_body", False):
                self.is_finished = True
        try:
            await self._send(message)
        except OSError:  # what ASGI servers raise when the connection is lost
            self.is_client_gone = True
            raise

    def note_all(self) -> None:
        """Remember when the pieces of the answer came that were not noted yet; in lots, which costs each of them less.

        A stream's pings and its `[DONE]` are no tokens.
        """
        reader, gaps, started_s = self._reader, self._gaps, self.started_s
        for chunk, came_s in self.unnoted:
            if reader is not None:
                reader.feed(chunk)
            now_s = came_s - started_s
            if self.first_byte_s is None:
                self.first_byte_s = now_s
            self.num_bytes += len(chunk)
            if gaps is not None and chunk and chunk[0] != _COLON and not chunk.endswith(_DONE):
                if self.first_token_s is None:
                    self.first_token_s = now_s
                else:
                    gaps.observe(now_s - self.last_chunk_s)
                self.last_chunk_s = now_s
        self.unnoted.clear()

    def ask(self) -> None:
        """An upstream is asked now; time that passes from here to the answer's start is not the gateway's."""
        if self.asked_s is None:
            self.asked_s = time.perf_counter()

    def _measure_overhead(self, now_s: float, upstream_s: float | None) -> float:
        if self.asked_s is None:
            upstream_s = 0.0
        else:
            upstream_s = self.upstream_s = now_s - self.asked_s if upstream_s is None else upstream_s
        return max(0.0, now_s - self.started_s - self.waited_s - self.queue_s - upstream_s)

    def start(self, status: int, given: Iterable[Header], upstream_s: float | None = None) -> list[Header]:
        """An answer begins: note what that says, and the headers that the client gets."""
        self.is_started = True
        self.status = status
        replaced = self._replaced
        headers: list[Header] = []
        for header in given:
            name, value = header
            if name not in _SET_HERE and name not in replaced:
                headers.append(header)
                if name == b"content-type":
                    self._is_event_stream = value.startswith(b"text/event-stream")
        self.deployment = self.extension.get("deployment", self.deployment)
        if self._is_event_stream and self.status == 200 and self.find_gaps is not None:
            self._gaps = self.find_gaps(self)
        now_s = time.perf_counter()
        self.overhead_s = self._measure_overhead(now_s, upstream_s)
        request_id = self.request_id.encode()
        headers += (
            (b"x-langport-overhead-ms", b"%.3f" % (self.overhead_s * 1000)),
            (b"x-request-id", request_id),
            (b"openai-processing-ms", b"%d" % ((now_s - self.started_s) * 1000)),
            *_ALWAYS,
        )
        headers += self._extra_headers
        if self.dialect.id_header is not None:
            headers.append((self.dialect.id_header, request_id))
        return headers

    async def reply(
        self, status: int, body: bytes, content_type: bytes = _JSON, headers: Iterable[Header] = ()
    ) -> None:
        """Send a whole answer; to HEAD without its body."""
        all_headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *headers]
        if self.method == "HEAD":
            body = b""
        if isinstance(self._send, DirectSend) and self._send.can_finish():
            self.finish(self._send, status, all_headers, body)
            return
        await self.send({"type": "http.response.start", "status": status, "headers": all_headers})
        await self.send({"type": "http.response.body", "body": body})

    def finish(self, client: DirectSend, status: int, given: Iterable[Header], body: bytes) -> None:
        """Send a whole answer at once, as the client can take it."""
        headers = self.start(status, given)
        self.unnoted.append((body, time.perf_counter()))
        self.note_all()
        self.is_finished = True
        client.finish(status, headers, body)

    async def reply_json(self, value: object, status: int = 200) -> None:
        """Send a value as JSON."""
        await self.reply(status, msgspec.json.encode(value))

    async def reply_nothing(self, headers: Iterable[Header]) -> None:
        """Send 204, which has neither a body nor headers about one (RFC 9110, 8.6)."""
        await self.send({"type": "http.response.start", "status": 204, "headers": list(headers)})
        await self.send({"type": "http.response.body", "body": b""})

    async def fail(self, error: ApiError) -> None:
        """Tell the client of an error, as well as the state of the answer allows.

        Before the start it is an error body; in an event stream it is the last event; anywhere else
        nothing is sent, and the server closes the connection because the answer is incomplete.
        """
        self.error_code = error.code or error.type
        try:
            if not self.is_started:
                body = self.dialect.error_body(error, self.request_id)
                await self.reply(error.status, body, headers=_error_headers(error))
            elif self._is_event_stream and not self.is_finished:
                event = self.dialect.error_event(error, self.request_id)
                await self.send({"type": "http.response.body", "body": event})
        except OSError:
            self.is_client_gone = True


class _Outlet(DirectSend):
    """An exchange's `send`, and the way past its messages."""

    __slots__ = ("_client", "_exchange")

    def __init__(self, exchange: Exchange, client: DirectSend) -> None:
        self._exchange = exchange
        self._client = client

    def __call__(self, message: Message) -> Awaitable[None]:
        return self._exchange.send(message)

    def write(self, piece: bytes) -> bool:
        exchange = self._exchange
        unnoted = exchange.unnoted
        unnoted.append((piece, time.perf_counter()))
        if len(unnoted) >= NOTED_PIECES or len(piece) > NOTED_BYTES:
            exchange.note_all()
        return self._client.write(piece)

    def when_ready(self, callback: Callable[[], None]) -> None:
        self._client.when_ready(callback)

    def can_finish(self) -> bool:
        return self._client.can_finish()

    def finish(self, status: int, headers: list[Header], body: bytes) -> None:
        self._exchange.finish(self._client, status, headers, body)


def _request_id(given: bytes | None) -> str:
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode()
    return f"req_{random.getrandbits(128):032x}"


def _error_headers(error: ApiError) -> list[Header]:
    headers: list[Header] = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    if isinstance(error, LargerThanLimit | QuotaExceeded):
        headers.append((b"x-should-retry", b"false"))  # which openai's and anthropic's clients obey
    if isinstance(error, WrongMethod):
        headers.append((b"allow", error.allowed.encode()))
    if isinstance(error, AuthenticationFailed):
        headers.append((b"www-authenticate", b"Bearer"))
    return headers
