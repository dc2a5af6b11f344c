"""Requests to an engine's process as the API makes them, whoever owns the process.

A request is a mailbox that the socket's reader fills, so an engine step wakes each of its readers once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec

from langport.engine.messages import (
    Abort,
    Embed,
    Embedded,
    FirstToken,
    FromEngine,
    Generate,
    RequestFailed,
    Step,
    ToEngine,
    encode,
)
from langport.errors import ApiError, EngineFailed, ModelNotFound, Unavailable
from langport.figures import Histogram, Phases, phases_watcher
from langport.types import Delta, EmbedRequest, GenerateRequest, ModelInfo


class _Mailbox:
    """What has arrived for one generate request and is not yet read."""

    def __init__(self, num_sequences: int) -> None:
        self.deltas: list[Delta] = []
        self.asked_s = time.time()
        self.first: FirstToken | None = None
        self.first_s = 0.0
        """When the first token came, by `time.time`."""
        self._all = range(num_sequences)
        self.open = set(self._all)
        """Indices of the sequences that have not finished."""
        self.dropped: set[int] = set()
        """Indices of those of which nothing more is wanted, whether or not it has arrived."""
        self.error: ApiError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, delta: Delta) -> None:
        if delta.index not in self.open:
            return  # aborted here; the engine had not yet heard of it
        self.deltas.append(delta)
        if delta.finish_reason is not None:
            self.open.discard(delta.index)
        self.wake()

    def drop(self, index: int | None) -> None:
        """Nothing more is wanted of one sequence, or of all."""
        indices = self._all if index is None else (index,)
        self.dropped.update(indices)
        self.open.difference_update(indices)
        self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Until something was put, dropped or failed."""
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter


class EngineCalls:
    """The part of `types.Engine` that asks a running process. Whether it may be asked, who derives from this knows."""

    def __init__(self, name: str, prefix: str = "") -> None:
        """`prefix`: before the ids of requests, where several processes ask the same engine."""
        self.name = name
        self.info: ModelInfo | None = None
        """Of the model as it was loaded last."""
        self._prefix = prefix
        self._mailboxes: dict[str, _Mailbox] = {}
        self._embeds: dict[str, asyncio.Future[list[bytes]]] = {}
        self._transport: asyncio.WriteTransport | None = None
        self._last_step = Step([], 0, 0, 0.0)
        self.queue_time = Histogram()
        """Seconds from requests' arrivals to their first steps, over all processes that this engine has had."""
        self.prefill_time = Histogram()
        """Seconds from there to their first tokens."""
        self.first_token_time = Histogram()
        """The sum of both."""

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Delta]:
        """See `types.Engine`."""
        self._check_running()
        self._check_adapter(request.lora)
        request = self._named(request)
        mailbox = self._mailboxes[request.request_id] = _Mailbox(request.n)
        watch = phases_watcher.get()
        self._send(Generate(request))
        try:
            while True:
                deltas, mailbox.deltas = mailbox.deltas, []
                for delta in deltas:
                    if delta.index not in mailbox.dropped:  # maybe only now, while an earlier one was read
                        yield delta
                if mailbox.deltas:
                    continue
                if mailbox.error is not None:
                    raise mailbox.error
                if not mailbox.open:
                    return
                await mailbox.wait()
        finally:
            del self._mailboxes[request.request_id]
            if mailbox.open and mailbox.error is None:
                self._send(Abort(request.request_id))
            if watch is not None and mailbox.first is not None:
                decode_s = time.time() - mailbox.first_s
                watch(Phases(mailbox.asked_s, mailbox.first.queue_s, mailbox.first.prefill_s, decode_s))

    def abort(self, request_id: str, index: int | None = None) -> None:
        """See `types.Engine`."""
        if request_id not in self._mailboxes:
            request_id = self._prefix + request_id
        mailbox = self._mailboxes.get(request_id)
        if mailbox is not None:
            mailbox.drop(index)
            self._send(Abort(request_id, index))

    async def embed(self, request: EmbedRequest) -> list[bytes]:
        """See `types.Engine`."""
        self._check_running()
        if self._prefix:
            request = msgspec.structs.replace(request, request_id=self._prefix + request.request_id)
        future = self._embeds[request.request_id] = asyncio.get_running_loop().create_future()
        self._send(Embed(request))
        try:
            return await future
        finally:
            del self._embeds[request.request_id]
            if future.cancelled():
                self._send(Abort(request.request_id))

    def adapter_problem(self, number: int) -> str:
        """Why an adapter cannot be used, though its model can; empty: it can."""
        raise NotImplementedError

    def _has_adapter(self, number: int) -> bool:
        raise NotImplementedError

    def _reason(self) -> str:
        """Why the engine is not ready."""
        raise NotImplementedError

    def _is_ready(self) -> bool:
        raise NotImplementedError

    def _named(self, request: GenerateRequest) -> GenerateRequest:
        if not self._prefix:
            return request
        return msgspec.structs.replace(request, request_id=self._prefix + request.request_id)

    def _check_running(self) -> None:
        """Raises: Unavailable while there is no loaded engine to ask."""
        if self._transport is None or not self._is_ready():
            raise Unavailable(f"the model {self.name} is not available: {self._reason()}")

    def _check_adapter(self, number: int | None) -> None:
        """Raises: ModelNotFound for one that was unloaded; Unavailable for one that could not be loaded again."""
        if number is None:
            return
        if not self._has_adapter(number):
            raise ModelNotFound("this LoRA adapter is not served any more; GET /v1/models lists what is", param="model")
        if problem := self.adapter_problem(number):
            raise Unavailable(f"the adapter could not be loaded again after a failure: {problem}")

    def _send(self, message: ToEngine) -> None:
        if self._transport is not None:
            self._transport.write(encode(message))

    def _take_answer(self, message: FromEngine) -> bool:
        """Whether it is one of those about requests."""
        match message:
            case Step():
                self._last_step = message
                for first in message.first_tokens:
                    self._note(first)
                for delta in message.deltas:
                    if (mailbox := self._mailboxes.get(delta.request_id)) is not None:
                        mailbox.put(delta)
                message.deltas.clear()
            case Embedded(request_id, vectors):
                if (future := self._embeds.get(request_id)) is not None and not future.done():
                    future.set_result(vectors)
            case RequestFailed(request_id, reason):
                self._fail(request_id, EngineFailed(reason))
            case _:
                return False
        return True

    def _note(self, first: FirstToken) -> None:
        self.queue_time.observe(first.queue_s)
        self.prefill_time.observe(first.prefill_s)
        self.first_token_time.observe(first.queue_s + first.prefill_s)
        if (mailbox := self._mailboxes.get(first.request_id)) is not None:
            mailbox.first, mailbox.first_s = first, time.time()

    def _fail(self, request_id: str, error: ApiError) -> None:
        if (mailbox := self._mailboxes.get(request_id)) is not None:
            mailbox.error = error
            mailbox.wake()
        if (future := self._embeds.get(request_id)) is not None and not future.done():
            future.set_exception(error)

    def _fail_all(self, reason: str) -> None:
        """The process has ended: nobody may wait for it any longer."""
        self._transport = None
        self._last_step = Step([], 0, 0, 0.0)
        for request_id in [*self._mailboxes, *self._embeds]:
            self._fail(request_id, Unavailable(f"the engine of {self.name} {reason}"))
