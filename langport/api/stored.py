"""`StoredApi`: the ASGI app that answers for what is stored, beside the apps of the models."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from time import time

from langport.api.batch_runner import BatchRunner
from langport.api.batches import Batches
from langport.api.files import KIND as FILE
from langport.api.files import Files
from langport.api.http import App, Receive, Scope, Send
from langport.api.response_runs import Runs
from langport.api.response_store import ResponseStore
from langport.api.stored_call import ClientLeft, StoredCall
from langport.api.stored_chats import StoredChats, say_not_stored
from langport.api.stored_endpoints import CHATS, ENDPOINTS
from langport.api.stored_responses import StoredResponses
from langport.api.uploads import PART as UPLOAD_PART
from langport.api.uploads import Uploads
from langport.errors import NotFound, StoreUnavailable
from langport.settings.tree import StoreSettings
from langport.store.base import Store
from langport.store.blobs import Blobs
from langport.store.threaded import open_store

logger = logging.getLogger(__name__)

Handler = Callable[[StoredCall], Awaitable[None]]
Recorder = Callable[[App, Scope, Receive, Send], Awaitable[None]]

PURGE_S = 3600.0
"""Between two rounds that remove what has expired."""


class StoredApi:
    """Handlers over one store. Nothing is opened before the first call that needs it."""

    def __init__(
        self,
        settings: StoreSettings,
        default_place: Path,
        *,
        max_line_bytes: int,
        store: Store | None = None,
        clock: Callable[[], float] = time,
    ) -> None:
        """`max_line_bytes` bounds one line of a batch; tests may bring a `store` of their own."""
        self.store = store or open_store(settings.place, default_place, clock)
        self._blobs = Blobs(_files_folder(settings, default_place))
        self.chats = StoredChats(self.store, settings, clock)
        self.files = Files(self.store, self._blobs, settings, clock)
        self.runner = BatchRunner(
            self.store,
            self.files,
            concurrency=settings.batch_concurrency,
            max_line_bytes=max_line_bytes,
            clock=clock,
        )
        batches = Batches(self.store, settings, clock, self.runner.wake)
        self.runs = Runs(
            ResponseStore(
                self.store,
                retention_days=settings.retention_days,
                refuses_unstored=settings.on_failure == "refuse",
                clock=clock,
            )
        )
        responses = StoredResponses(self.runs)
        uploads = Uploads(self.store, self.files, settings, clock)
        handlers: tuple[Handler, ...] = (
            self.chats.list,
            self.chats.retrieve,
            self.chats.update,
            self.chats.delete,
            self.chats.messages,
            responses.retrieve,
            responses.delete,
            responses.cancel,
            responses.input_items,
            responses.compact,
            self.files.create,
            self.files.list,
            self.files.retrieve,
            self.files.delete,
            self.files.content,
            uploads.create,
            uploads.add_part,
            uploads.complete,
            uploads.cancel,
            batches.create,
            batches.list,
            batches.retrieve,
            batches.cancel,
        )
        self._handlers = dict(zip(ENDPOINTS, handlers, strict=True))
        self.recorders: Mapping[str, Recorder] = {CHATS: self.chats.record}
        self._cleaning: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`scope["path"]` is one of ENDPOINTS', `path_params` fill its braces. Raises: ApiError before it has sent."""
        known = scope["extensions"]["langport"]
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        call = StoredCall(
            request_id=known["request_id"],
            owner=known["owner"],
            ids=scope["path_params"],
            query=scope["query_string"],
            headers=dict(scope["headers"]),
            receive=receive,
            send=send,
            is_strict=known.get("is_strict", False),
        )
        try:
            await self._handlers[method, scope["path"]](call)
        except ClientLeft:
            return

    async def start(self, app: App, num_in_flight: Callable[[], int]) -> None:
        """Begin the work in the background: go on with batches, remove what has expired.

        The app is what answers the lines of batches; `num_in_flight` counts what it is answering.
        """
        self.runner.start(app, num_in_flight)
        if await self.store.exists():
            self.runner.wake()
        self._cleaning = asyncio.create_task(self._clean())

    async def stop_work(self) -> None:
        """End the work in the background; requests are still answered."""
        await self.runner.close()
        if self._cleaning is not None:
            self._cleaning.cancel()
            await asyncio.wait([self._cleaning])

    async def drain(self, timeout_s: float) -> None:
        """Give the responses in the background so long to end by themselves, then end them."""
        await self.runs.drain(timeout_s)

    async def close(self) -> None:
        """End the work, finish what is being written, close the store."""
        await self.stop_work()
        await self.runs.drain(0)
        await self.chats.close()
        await self.store.close()
        self._blobs.close()

    async def _clean(self) -> None:
        while True:
            try:
                if await self.store.exists():
                    await self.purge()
                    await self._blobs.clean()
            except (StoreUnavailable, OSError) as error:
                logger.warning("What has expired is not removed from the store: %s", error)
            await asyncio.sleep(PURGE_S)

    async def purge(self) -> None:
        """Remove what has expired."""
        for record in await self.store.purge():
            if record.kind in (FILE, UPLOAD_PART):
                await self._blobs.delete(record.id)


def _files_folder(settings: StoreSettings, default_place: Path) -> Path | None:
    """Where the contents of files are: beside the store, if it is a file."""
    if settings.files is not None:
        return Path(settings.files).expanduser()
    if settings.place == "memory":
        return None
    is_file = settings.place is not None and "://" not in settings.place
    place = Path(settings.place).expanduser() if is_file and settings.place else default_place.expanduser()
    return place.with_name(place.name + ".files")


class NothingStored:
    """In place of a `StoredApi` on a server that keeps nothing."""

    recorders: Mapping[str, Recorder] = {CHATS: say_not_stored}

    def __init__(self) -> None:
        self.runs = Runs(ResponseStore(None))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises: NotFound, always."""
        raise NotFound("This server keeps nothing: it was started with --store none.")

    async def start(self, app: App, num_in_flight: Callable[[], int]) -> None:
        pass

    async def stop_work(self) -> None:
        pass

    async def drain(self, timeout_s: float) -> None:
        pass

    async def close(self) -> None:
        pass
