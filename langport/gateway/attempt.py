"""One try of one deployment: what it sends is held back until it is known to be the answer.

A failed try leaves no trace at the client, so another one may follow; once the first byte has gone, none may.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

from langport.direct import DirectReceive, DirectSend
from langport.errors import ApiError, RateLimited, Unavailable
from langport.gateway.asgi import ASGIApp, Header, Message, Receive, Scope, Send
from langport.gateway.retry import RETRYABLE
from langport.types import Meter, TokenUsage

HELD_BYTES = 64 * 1024
"""Most of an answer that waits here for its end. Of an event stream only its head does, until the first event."""
DEPLOYMENT_HEADER = b"x-langport-deployment"

_SECONDS = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")


class Client:
    """The client of a request that may be asked more than once: its body, and whether it is still there."""

    __slots__ = ("_receive", "body", "is_gone")

    def __init__(self, body: bytes, receive: Receive) -> None:
        """`receive` waits for the client to leave."""
        self.body = body
        self.is_gone = False
        self._receive = receive

    async def wait_gone(self) -> Message:
        """Returns when the client has left."""
        message: Message = {"type": "http.disconnect"}
        while not self.is_gone:
            message = await self._receive()
            self.is_gone = message["type"] == "http.disconnect"
        return message

    def when_gone(self, callback: Callable[[], None]) -> bool:
        """See `DirectReceive`."""

        def leave() -> None:
            self.is_gone = True
            callback()

        return isinstance(self._receive, DirectReceive) and self._receive.when_gone(leave)


class Attempt:
    """What became of one try.

    Exactly one of these holds when `run` has returned: the client was sent a whole answer (`is_committed`), or is
    gone, or the try has failed (`has_failed`). Whatever else happens is raised.
    """

    __slots__ = (
        "_claim",
        "_client",
        "_deployment",
        "_held",
        "_is_event_stream",
        "_is_whole",
        "_meter",
        "_metered",
        "_num_held_bytes",
        "_retry_after_s",
        "_send",
        "_shows_deployment",
        "_status",
        "error",
        "has_lost_client",
        "is_committed",
    )

    def __init__(self, deployment: str, client: Client, send: Send, *, shows_deployment: bool) -> None:
        self.error: ApiError | OSError | None = None
        """What it raised instead of an answer."""
        self.is_committed = False
        """The client has been sent something."""
        self.has_lost_client = False
        """Sending to the client failed."""
        self._deployment = deployment
        self._client = client
        self._send = send
        self._claim: Callable[[], bool] = lambda: True
        self._shows_deployment = shows_deployment
        self._held: list[Message] = []
        self._num_held_bytes = 0
        self._is_whole = False
        self._is_event_stream = False
        self._status = 0
        self._retry_after_s: float | None = None
        self._meter: Meter | None = None
        self._metered: tuple[Callable[[], TokenUsage], asyncio.Future[Any] | None] | None = None

    async def run(self, app: ASGIApp, scope: Scope, claim: Callable[[], bool]) -> None:
        """Ask the deployment. `claim` is asked before the first byte goes: whether this is the try that answers.

        Raises: what the deployment raises, but for what another try may better.
        """
        self._claim = claim
        try:
            await app(self._metered_scope(scope), _Receive(self._client), self._outlet())
        except ApiError as error:
            if self.is_committed or error.status not in RETRYABLE:
                raise
            self.error = error
        except OSError as error:
            if self.has_lost_client:
                raise
            if self.is_committed:
                raise Unavailable(f"{self._deployment} broke off its answer: {_reason(error)}.") from error
            self.error = error
        else:
            if not self.is_committed and not self._is_whole and not self._client.is_gone:
                self.error = Unavailable(f"{self._deployment} ended without an answer.")
        finally:
            if self._client.is_gone:
                self._tell_meter()

    @property
    def has_failed(self) -> bool:
        """Whether another try may follow."""
        return not self.is_committed and not self._client.is_gone

    @property
    def is_failure(self) -> bool:
        """Whether what came is nothing that a healthy deployment answers."""
        return self.error is not None or self._status in RETRYABLE

    @property
    def asks_for_less(self) -> bool:
        """Whether the deployment has too much work, rather than a fault."""
        return self._failure_status == 429

    @property
    def retry_after_s(self) -> float | None:
        """When the deployment wants to be asked again, if it says so. What our own 5xx say is for clients only."""
        if self.error is None:
            return self._retry_after_s
        return self.error.retry_after_s if isinstance(self.error, RateLimited) else None

    @property
    def _failure_status(self) -> int:
        return self.error.status if isinstance(self.error, ApiError) else self._status

    async def show(self) -> None:
        """Give the client the failure, as there is no other try. Raises: ApiError where it was raised as one."""
        if isinstance(self.error, ApiError):
            raise self.error
        if self.error is not None:
            raise Unavailable(f"{self._deployment} cannot be reached: {_reason(self.error)}.") from self.error
        await self._commit()

    def _outlet(self) -> Send:
        """The deployment's `send`; a `DirectSend` where the gateway's is one."""
        return _Outlet(self, self._send) if isinstance(self._send, DirectSend) else self.pass_on

    async def pass_on(self, message: Message) -> None:
        """The deployment's `send`."""
        if self.is_committed:
            await self._to_client(message)
            return
        self._held.append(message)
        if message["type"] == "http.response.start":
            self._read_head(message)
            return
        self._num_held_bytes += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        is_streaming = self._is_event_stream and self._num_held_bytes > 0
        is_final = self._status not in RETRYABLE and (self._is_whole or is_streaming)
        if is_final or self._num_held_bytes > HELD_BYTES:
            await self._commit()

    def _read_head(self, start: Message) -> None:
        self._status = start["status"]
        headers = {name.lower(): value.strip() for name, value in start.get("headers", ())}
        self._is_event_stream = headers.get(b"content-type", b"").startswith(b"text/event-stream")
        retry_after = headers.get(b"retry-after", b"")
        self._retry_after_s = float(retry_after) if _SECONDS.fullmatch(retry_after) else None

    async def _commit(self) -> None:
        if not self._claim():
            return
        self.is_committed = True
        self._tell_meter()
        held, self._held = self._held, []
        if self._shows_deployment:
            held[0] = _with_header(held[0], (DEPLOYMENT_HEADER, quote(self._deployment, safe="/:@,; ").encode()))
        for message in held:
            await self._to_client(message)

    async def _to_client(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:
            self.has_lost_client = True
            raise

    def _metered_scope(self, scope: Scope) -> Scope:
        """Tokens are counted for the try that answers, or that the client left, and for none that failed."""
        known = scope["extensions"]["langport"]
        self._meter = known.get("meter")
        if self._meter is None:
            return scope
        return {**scope, "extensions": {**scope["extensions"], "langport": {**known, "meter": self._note_meter}}}

    def _note_meter(self, count: Callable[[], TokenUsage], work: asyncio.Future[Any] | None = None) -> None:
        self._metered = (count, work)
        if self.is_committed:
            self._tell_meter()

    def _tell_meter(self) -> None:
        if self._metered is not None and self._meter is not None:
            self._meter(*self._metered)


class _Receive(DirectReceive):
    """A deployment's `receive`."""

    __slots__ = ("_client", "_has_body")

    def __init__(self, client: Client) -> None:
        self._client = client
        self._has_body = True

    async def __call__(self) -> Message:
        if self._has_body:
            self._has_body = False
            return {"type": "http.request", "body": self._client.body, "more_body": False}
        return await self._client.wait_gone()

    def take_whole(self) -> bytes | None:
        has_body, self._has_body = self._has_body, False
        return self._client.body if has_body else None

    def when_gone(self, callback: Callable[[], None]) -> bool:
        return self._client.when_gone(callback)


class _Outlet(DirectSend):
    """A deployment's `send`, and the way past the attempt once the client has been sent something."""

    __slots__ = ("_attempt", "_client")

    def __init__(self, attempt: Attempt, client: DirectSend) -> None:
        self._attempt = attempt
        self._client = client

    def __call__(self, message: Message) -> Awaitable[None]:
        return self._attempt.pass_on(message)

    def write(self, piece: bytes) -> bool:
        # An attempt that was not let answer has nobody to tell.
        return self._client.write(piece) if self._attempt.is_committed else True

    def when_ready(self, callback: Callable[[], None]) -> None:
        self._client.when_ready(callback)


def _reason(error: OSError) -> str:
    return str(error) or type(error).__name__


def _with_header(start: Message, header: Header) -> Message:
    others = [other for other in start.get("headers", ()) if other[0].lower() != header[0]]
    return {**start, "headers": [*others, header]}
