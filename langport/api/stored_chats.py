"""Chat completions that are kept: recorded as they are answered, then listed, read, changed and deleted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from langport.api.http import App, ASGIMessage, Receive, Scope, Send, send_json
from langport.api.stored_call import StoredCall, expiry, find, missing, send_page, unknown_cursor
from langport.errors import StoreUnavailable
from langport.settings.tree import StoreSettings
from langport.store.base import Item, Query, Record, Store
from langport.wire.stored import UPDATE_DECODER, Deleted, ListQuery, metadata_filter, page, read_query
from langport.wire.stored_chats import (
    ChatListQuery,
    Json,
    PlainAnswer,
    StreamedAnswer,
    stored_chat,
    with_metadata,
)

logger = logging.getLogger(__name__)

KIND = "chat.completion"
WHAT = "chat completion"
PATIENCE_S = 2.0
"""How long an answer's end may wait for the store, so that a client that asks for it next finds it."""


class StoredChats:
    """The endpoints, and the recorder that fills them."""

    def __init__(self, store: Store, settings: StoreSettings, clock: Callable[[], float]) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._writing: set[asyncio.Task[None]] = set()
        self._is_failing = False

    async def list(self, call: StoredCall) -> None:
        asked = read_query(ChatListQuery, call.query)
        query = Query(
            limit=asked.limit,
            after=asked.after,
            is_descending=asked.order == "desc",
            model=asked.model,
            metadata=metadata_filter(call.query),
        )
        await send_page(call, self._store, KIND, query)

    async def retrieve(self, call: StoredCall) -> None:
        record = await find(self._store, KIND, call.ids["completion_id"], call.owner, what=WHAT)
        await send_json(call.send, msgspec.Raw(record.body))

    async def update(self, call: StoredCall) -> None:
        asked, headers = await call.read(UPDATE_DECODER)
        metadata = asked.metadata or {}
        record = await find(self._store, KIND, call.ids["completion_id"], call.owner, what=WHAT)
        body = with_metadata(record.body, metadata)
        if not await self._store.change(msgspec.structs.replace(record, body=body, metadata=metadata)):
            raise missing(WHAT, record.id)
        await send_json(call.send, msgspec.Raw(body), headers)

    async def delete(self, call: StoredCall) -> None:
        id = call.ids["completion_id"]
        if not await self._store.delete(KIND, id, call.owner):
            raise missing(WHAT, id)
        await send_json(call.send, Deleted(id=id, object="chat.completion.deleted"))

    async def messages(self, call: StoredCall) -> None:
        asked = read_query(ListQuery, call.query)
        record = await find(self._store, KIND, call.ids["completion_id"], call.owner, what=WHAT)
        found = await self._store.items(
            record.id, limit=asked.limit, after=asked.after, is_descending=asked.order == "desc"
        )
        if found is None:
            raise unknown_cursor(asked.after)
        items, has_more = found
        await send_json(call.send, page([item.id for item in items], [item.body for item in items], has_more))

    async def record(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the app answer, and keep its answer when it is whole.

        Raises: what the app raises; StoreUnavailable before it is asked, where the settings say so.
        """
        known = scope["extensions"]["langport"]
        if self._settings.on_failure == "refuse":
            await self._store.get(KIND, "", known["owner"])
        message = await receive()
        body = message.get("body", b"")

        async def keep(completion: Json) -> None:
            await self._keep(body, completion, known["owner"], known["request_id"])

        # The answer is read here, so it must come as it is.
        headers = [header for header in scope["headers"] if header[0] != b"accept-encoding"]
        await app({**scope, "headers": headers}, _first(message, receive), _Tap(send, keep))

    async def close(self) -> None:
        """Wait for what is being written."""
        if self._writing:
            await asyncio.wait(self._writing)

    async def _keep(self, request_body: bytes, completion: Json, owner: str, request_id: str) -> None:
        try:
            chat = stored_chat(request_body, completion, request_id)
        except msgspec.DecodeError as error:
            logger.warning("request %s: the answer is no chat completion that can be stored: %s", request_id, error)
            return
        now = int(self._clock())  # the answer's own time is that of the upstream's clock
        record = Record(
            kind=KIND,
            id=chat.id,
            owner=owner,
            created_at=now,
            body=chat.body,
            model=chat.model,
            metadata=chat.metadata,
            expires_at=expiry(now, self._settings.retention_days),
        )
        items = [Item(id, position, body) for position, (id, body) in enumerate(chat.messages)]
        writing = asyncio.create_task(self._write(record, items))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        await asyncio.wait([writing], timeout=PATIENCE_S)

    async def _write(self, record: Record, items: Sequence[Item]) -> None:
        try:
            await self._store.put(record, items)
        except StoreUnavailable as error:
            if not self._is_failing:
                logger.error("Chat completions are answered but not stored: %s", error)
            self._is_failing = True
        else:
            if self._is_failing:
                logger.info("Chat completions are stored again.")
            self._is_failing = False


def _first(message: ASGIMessage, receive: Receive) -> Receive:
    """A `receive` that gives a message once more."""
    waiting = [message]

    async def again() -> ASGIMessage:
        return waiting.pop() if waiting else await receive()

    return again


class _Tap:
    """A `send` that reads along, and gives a whole completion to `keep` before the client has its end."""

    def __init__(self, send: Send, keep: Callable[[Json], Awaitable[None]]) -> None:
        self._send = send
        self._keep = keep
        self._answer: PlainAnswer | StreamedAnswer | None = None

    async def __call__(self, message: ASGIMessage) -> None:
        if message["type"] == "http.response.start":
            self._answer = _reader(message)
        elif self._answer is not None:
            await self._read(message.get("body", b""), is_last=not message.get("more_body", False))
        await self._send(message)

    async def _read(self, data: bytes, *, is_last: bool) -> None:
        assert self._answer is not None
        try:
            completion = self._answer.feed(data, is_last=is_last)
        except (msgspec.DecodeError, LookupError, TypeError) as error:
            logger.warning("A chat completion cannot be read, so it is not stored: %s", error)
            self._answer = None
            return
        if completion is not None:
            self._answer = None
            await self._keep(completion)


def _reader(start: ASGIMessage) -> PlainAnswer | StreamedAnswer | None:
    if start["status"] != 200:
        return None
    is_stream = any(
        name == b"content-type" and value.startswith(b"text/event-stream") for name, value in start["headers"]
    )
    return StreamedAnswer() if is_stream else PlainAnswer()


async def say_not_stored(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """The recorder of a server that keeps nothing: it lists `store` among the ignored fields."""

    async def tell(message: ASGIMessage) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            ignored = [value for name, value in headers if name == b"x-langport-ignored"]
            others = [header for header in headers if header[0] != b"x-langport-ignored"]
            message = {**message, "headers": [*others, (b"x-langport-ignored", b", ".join([*ignored, b"store"]))]}
        await send(message)

    await app(scope, receive, tell)
