"""Does the work of batches in the background, through the same app as any client's request.

    validating ──> in_progress ──> finalizing ──> completed
        │              ├─ window over ─> finalizing ─> expired
        ├─> failed     └─ cancelling ──> cancelled

What a line was answered is stored at once, under the batch and the line's number, so that a server that starts again,
even after kill -9, goes on behind the answered lines. Of several processes over one store, one does the work.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress

import msgspec

from langport.api.batches import COMPLETED, FAILED, KIND, as_record, count_lines
from langport.api.files import KIND as FILE
from langport.api.files import Files
from langport.api.http import App
from langport.api.inner_call import InnerAnswer, post
from langport.errors import InvalidRequest, StoreUnavailable
from langport.store.base import Item, Record, Store
from langport.store.blobs import BlobWriter
from langport.wire.batches import (
    BATCH_DECODER,
    Batch,
    BatchError,
    BatchErrors,
    Line,
    LineError,
    LineResponse,
    LineResult,
    custom_id,
    read_line,
)

logger = logging.getLogger(__name__)

MAX_LINES = 50_000
"""In one batch; OpenAI's limit."""
PRIORITY = 1000
"""Of the lines in an engine's queue: behind every request that waits for less than some hours."""
MAX_ACTIVE = 8
"""Batches worked on at once; they share the places for lines."""
POLL_S = 2.0
"""Between two looks for batches, and for cancellations, that other processes have stored."""
BUSY_POLL_S = 0.2
"""Between two looks whether the other requests have been answered."""
RETRIED = frozenset((429, 502, 503, 504))
"""Statuses of a line that may be answered later."""
MAX_TRIES = 6
MAX_DELAY_S = 60.0
PAGE_LINES = 20
"""Of answers, which may be long, read at once to be written to a file."""
EXPIRED_LINES = 200
"""Of errors, which are short, stored at once."""
OPEN = ("validating", "in_progress", "finalizing", "cancelling")


class BatchRunner:
    """Works on batches from the first one on; before that it costs nothing."""

    def __init__(
        self,
        store: Store,
        files: Files,
        *,
        concurrency: int,
        max_line_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        """`concurrency` lines at once, none longer than `max_line_bytes`."""
        self._store = store
        self._files = files
        self._max_line_bytes = max_line_bytes
        self._clock = clock
        self._slots = _Slots(concurrency)
        self._is_wanted = asyncio.Event()
        self._changes: dict[str, asyncio.Event] = {}
        """By id, of the batches that are worked on: set when somebody has changed it."""
        self._active: dict[str, asyncio.Task[None]] = {}
        self._main: asyncio.Task[None] | None = None
        self._app: App | None = None
        self._num_asking = 0
        """Lines that the app is answering."""

    def start(self, app: App, num_in_flight: Callable[[], int]) -> None:
        """Send lines to the app from now on, fewer while it answers other requests.

        `num_in_flight` counts all requests that it is answering, lines included.
        """
        self._app = app
        self._slots.is_busy = lambda: num_in_flight() > self._num_asking
        self._main = asyncio.create_task(self._run())

    def wake(self, id: str | None = None) -> None:
        """There is work to do, or the batch `id` has changed."""
        self._is_wanted.set()
        if id in self._changes:
            self._changes[id].set()

    async def ask(self, endpoint: str, body: bytes, owner: str) -> InnerAnswer:
        """What the app answers to a line's request."""
        assert self._app is not None
        self._num_asking += 1
        try:
            return await post(self._app, endpoint, body, owner=owner, priority=PRIORITY)
        finally:
            self._num_asking -= 1

    async def close(self) -> None:
        """Stop at once; lines that are being answered are asked again when a server goes on with the batch."""
        tasks = [task for task in (self._main, *self._active.values()) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self) -> None:
        """Wait for the first batch; from then on look for batches again and again."""
        is_failing = False
        await self._is_wanted.wait()
        while True:
            self._is_wanted.clear()
            try:
                if await self._store.lead():
                    await self._begin_open_batches()
                is_failing = False
            except StoreUnavailable as error:
                if not is_failing:
                    logger.error("Batches wait: %s", error)
                is_failing = True
            await _wait(self._is_wanted, POLL_S)

    async def _begin_open_batches(self) -> None:
        for record in await self._store.with_status(KIND, OPEN):
            if record.id not in self._active and len(self._active) < MAX_ACTIVE:
                self._changes[record.id] = asyncio.Event()
                task = asyncio.create_task(self._work_on(record))
                self._active[record.id] = task
                task.add_done_callback(lambda _, id=record.id: self._forget(id))  # type: ignore[misc]

    def _forget(self, id: str) -> None:
        del self._active[id], self._changes[id]
        self._is_wanted.set()  # another batch may have waited for the place

    async def _work_on(self, record: Record) -> None:
        try:
            await _Job(self, record).run()
        except StoreUnavailable as error:
            logger.error("The batch %s waits: %s", record.id, error)
            await asyncio.sleep(POLL_S)
        except Exception:
            # The line that breaks us would break us again and again.
            logger.exception("The batch %s failed", record.id)
            await self._give_up(record)

    async def _give_up(self, record: Record) -> None:
        batch = BATCH_DECODER.decode(record.body)
        _fail(batch, int(self._clock()), "server_error", "The server failed on this batch; its log says why.")
        try:
            await self._store.change(as_record(batch, record.owner, record.expires_at))
        except StoreUnavailable as error:
            logger.error("The batch %s could not be ended: %s", record.id, error)


class _Job:
    """One batch on its way to its end."""

    def __init__(self, runner: BatchRunner, record: Record) -> None:
        self._runner = runner
        self._store = runner._store
        self._files = runner._files
        self._owner = record.owner
        self._removed_at = record.expires_at
        self._batch = BATCH_DECODER.decode(record.body)
        self._change = runner._changes[record.id]
        self._is_failing = False

    async def run(self) -> None:
        batch = self._batch
        logger.info("batch %s: %s", batch.id, batch.status)
        if not await self._has_input():
            await self._end_badly("file_not_found", f"The input file {batch.input_file_id} was deleted.")
            return
        if batch.status == "validating" and not await self._validate():
            return
        end = "completed"
        if batch.status == "in_progress":
            end = await self._answer_lines()
        if batch.status == "cancelling":
            end = "cancelled"
        elif batch.status == "finalizing" and batch.expired_at is not None:
            end = "expired"
        await self._finish(end)

    # Validating.

    async def _has_input(self) -> bool:
        id = self._batch.input_file_id
        is_known = await self._store.get(FILE, id, self._owner) is not None
        return is_known and await self._files.blobs.exists(id)

    async def _validate(self) -> bool:
        """Count the lines and look for names that are there twice; what else is wrong is an error of its line."""
        batch = self._batch
        names: set[bytes] = set()
        async with aclosing(self._lines()) as lines:
            async for number, text in lines:
                batch.request_counts.total += 1
                if batch.request_counts.total > MAX_LINES:
                    await self._end_badly("too_many_requests", f"A batch holds up to {MAX_LINES} lines.")
                    return False
                name = None if text is None else custom_id(text)
                digest = hashlib.blake2b((name or "").encode("utf-8", "surrogatepass"), digest_size=16).digest()
                if name is not None and digest in names:
                    message = f"The custom_id {name[:100]!r} is there twice; each must be unique in its batch."
                    await self._end_badly("duplicate_custom_id", message, line=number, param="custom_id")
                    return False
                names.add(digest)
        if not batch.request_counts.total:
            await self._end_badly("empty_file", "The input file holds no requests.")
            return False
        batch.status, batch.in_progress_at = "in_progress", self._now()
        return await self._save(("validating",))

    async def _end_badly(self, code: str, message: str, **where: int | str) -> None:
        _fail(self._batch, self._now(), code, message, **where)
        await self._save(OPEN)
        await self._store.drop_items(self._batch.id)

    # In progress.

    async def _answer_lines(self) -> str:
        """How the batch ends: once all lines are answered, or somebody cancels it, or its time is over."""
        working = asyncio.create_task(self._answer_open_lines())
        working.add_done_callback(lambda _: self._change.set())
        try:
            while not working.done():
                if self._now() >= self._batch.expires_at:
                    return "expired"
                if await self._is_cancelled():
                    return "cancelled"
                await _wait(self._change, POLL_S)
                self._change.clear()
            await working
            return "completed"
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def _is_cancelled(self) -> bool:
        """Raises nothing: while the store is down nobody can have cancelled anything."""
        try:
            record = await self._store.get(KIND, self._batch.id, self._owner)
        except StoreUnavailable:
            return False
        if record is not None and record.status == "cancelling":
            self._batch = BATCH_DECODER.decode(record.body)
        return record is None or record.status == "cancelling"

    async def _answer_open_lines(self) -> None:
        answered = set(await self._store.positions(self._batch.id))
        slots = self._runner._slots
        async with asyncio.TaskGroup() as group, aclosing(self._lines()) as lines:
            async for number, text in lines:
                if number not in answered:
                    await slots.take()
                    group.create_task(self._answer_line(number, text)).add_done_callback(slots.give_back)

    async def _answer_line(self, number: int, text: bytes | None) -> None:
        tag, result = await self._result(number, text)
        item = Item(f"{self._batch.id}-{number}", number, msgspec.json.encode(result), tag)
        while True:
            try:
                await self._store.put_items(self._batch.id, [item])
                return
            except StoreUnavailable as error:
                # The answer is kept here until it can be stored, and no further lines are begun meanwhile.
                if not self._is_failing:
                    logger.error("The batch %s waits: %s", self._batch.id, error)
                self._is_failing = True
                await asyncio.sleep(POLL_S)

    async def _result(self, number: int, text: bytes | None) -> tuple[str, LineResult]:
        try:
            line = self._read(number, text)
        except InvalidRequest as error:
            name = None if text is None else custom_id(text)
            return FAILED, _refused(name, "invalid_request", f"Line {number}: {error.message}")
        answer = await self._ask(line)
        body = msgspec.Raw(answer.body if _is_json(answer.body) else msgspec.json.encode(answer.body.decode("latin-1")))
        result = LineResult(
            id=_line_id(),
            custom_id=line.custom_id,
            response=LineResponse(answer.status, answer.request_id, body),
            error=None,
        )
        return COMPLETED if answer.status == 200 else FAILED, result

    def _read(self, number: int, text: bytes | None) -> Line:
        if text is None:
            raise InvalidRequest(f"The line is longer than the {self._runner._max_line_bytes} bytes of a request.")
        return read_line(text, self._batch.endpoint)

    async def _ask(self, line: Line) -> InnerAnswer:
        """The answer; what may pass (429, 503) is asked again, in growing distances."""
        body = msgspec.json.encode(line.body)
        for tries in range(1, MAX_TRIES + 1):
            answer = await self._runner.ask(self._batch.endpoint, body, self._owner)
            if answer.status not in RETRIED or tries == MAX_TRIES:
                break
            await asyncio.sleep(min(max(answer.retry_after_s or 0, 2.0**tries), MAX_DELAY_S))
        return answer

    # Finalizing.

    async def _finish(self, end: str) -> None:
        """Write the files, describe them, and end the batch. Harmless when it is done again after a kill."""
        batch = self._batch
        if end != "cancelled":
            batch.status = "finalizing"
            batch.finalizing_at = batch.finalizing_at or self._now()
            if end == "expired":
                batch.expired_at = batch.expired_at or self._now()
            if not await self._save(("in_progress", "finalizing")):
                end = "cancelled"  # somebody was faster
                if not await self._is_cancelled():
                    return
                batch = self._batch
        if end == "expired":
            await self._say_expired()
        await count_lines(self._store, batch)
        batch.output_file_id = await self._write_file(COMPLETED, "output")
        batch.error_file_id = await self._write_file(FAILED, "error")
        batch.status = end  # type: ignore[assignment]
        if end == "completed":
            batch.completed_at = self._now()
        elif end == "cancelled":
            batch.cancelled_at = self._now()
        if await self._save(("finalizing", "cancelling")):
            await self._store.drop_items(batch.id)
        logger.info("batch %s: %s, %s", batch.id, batch.status, batch.request_counts)

    async def _say_expired(self) -> None:
        """An error line for each line that was not answered in time."""
        answered = set(await self._store.positions(self._batch.id))
        message = "This request could not be executed before the completion window expired."
        waiting: list[Item] = []
        async with aclosing(self._lines()) as lines:
            async for number, text in lines:
                if number in answered:
                    continue
                name = None if text is None else custom_id(text)
                result = _refused(name, "batch_expired", message)
                waiting.append(Item(f"{self._batch.id}-{number}", number, msgspec.json.encode(result), FAILED))
                if len(waiting) == EXPIRED_LINES:
                    await self._store.put_items(self._batch.id, waiting)
                    waiting.clear()
        await self._store.put_items(self._batch.id, waiting)

    async def _write_file(self, tag: str, what: str) -> str | None:
        """The id of the file with these lines; None when there are none."""
        batch = self._batch
        # The same after a kill, so that the work is done over and not twice.
        id = "file-" + hashlib.sha256(f"{batch.id}:{what}".encode()).hexdigest()[:24]
        async with aclosing(_Output(self._files, id)) as output:
            async for item in self._items(tag):
                await output.write(item.body + b"\n")
            if not output.num_bytes:
                return None
            await output.commit()
        seconds = batch.output_expires_after.seconds if batch.output_expires_after else None
        name = f"{batch.id}_{what}.jsonl"
        await self._files.add(id, self._owner, name, output.num_bytes, "batch_output", seconds)
        return id

    async def _items(self, tag: str) -> AsyncIterator[Item]:
        after: str | None = None
        has_more = True
        while has_more:
            found = await self._store.items(self._batch.id, limit=PAGE_LINES, after=after, tag=tag)
            items, has_more = found or ([], False)
            for item in items:
                yield item
                after = item.id

    def _lines(self) -> AsyncGenerator[tuple[int, bytes | None], None]:
        return self._files.blobs.lines(self._batch.input_file_id, self._runner._max_line_bytes)

    async def _save(self, if_status: tuple[str, ...]) -> bool:
        """False when somebody has cancelled the batch meanwhile."""
        return await self._store.change(as_record(self._batch, self._owner, self._removed_at), if_status=if_status)

    def _now(self) -> int:
        return int(self._runner._clock())


class _Output:
    """A file that is made with its first line."""

    def __init__(self, files: Files, id: str) -> None:
        self._files = files
        self._id = id
        self._writer: BlobWriter | None = None

    @property
    def num_bytes(self) -> int:
        return self._writer.num_bytes if self._writer else 0

    async def write(self, data: bytes) -> None:
        if self._writer is None:
            self._writer = await self._files.blobs.create(self._id)
        await self._writer.write(data)

    async def commit(self) -> None:
        if self._writer is not None:
            await self._writer.commit()

    async def aclose(self) -> None:
        if self._writer is not None:
            await self._writer.discard()


class _Slots:
    """Places for lines; most stay empty while other requests are answered."""

    def __init__(self, most: int) -> None:
        self.num_running = 0
        self.is_busy: Callable[[], bool] = lambda: False
        self._most = most
        self._freed = asyncio.Event()

    async def take(self) -> None:
        """Wait for a place."""
        while self.num_running >= (max(1, self._most // 4) if self.is_busy() else self._most):
            self._freed.clear()
            await _wait(self._freed, BUSY_POLL_S)
        self.num_running += 1

    def give_back(self, task: asyncio.Task[None]) -> None:
        self.num_running -= 1
        self._freed.set()


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    """Until the event is set, or the time is over."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


def _fail(batch: Batch, now: int, code: str, message: str, **where: int | str) -> None:
    error = msgspec.convert({"code": code, "message": message, **where}, BatchError)
    batch.status, batch.failed_at, batch.errors = "failed", now, BatchErrors(data=[error])


def _refused(name: str | None, code: str, message: str) -> LineResult:
    return LineResult(id=_line_id(), custom_id=name, response=None, error=LineError(code, message))


def _line_id() -> str:
    return f"batch_req_{secrets.token_hex(12)}"


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return True
