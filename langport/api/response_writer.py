"""From a turn's events to the events of a response, and the response they add up to.

One path: a plain answer, a streamed one and one in the background read the same events. An event shows the response
and its items as they are at that moment, so it is encoded before the next one is asked for.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, TypedDict

from langport.api.response_items import ItemIds
from langport.api.turn_end import Finish
from langport.errors import ApiError, EngineFailed
from langport.text.answer import ReasoningDelta, TextDelta, ToolCallBegin, ToolCallDelta, ToolCallEnd
from langport.wire.chat import TokenEntry, chat_logprobs
from langport.wire.generation import Usage
from langport.wire.response_events import (
    ArgumentsDelta,
    ArgumentsDone,
    ContentPartAdded,
    ContentPartDone,
    CustomInputDelta,
    CustomInputDone,
    Delta,
    Event,
    OutputItemAdded,
    OutputItemDone,
    OutputTextDelta,
    OutputTextDone,
    ReasoningTextDelta,
    ReasoningTextDone,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseQueued,
    SummaryPartAdded,
    SummaryPartDone,
    SummaryTextDelta,
    SummaryTextDone,
)
from langport.wire.response_items import (
    CustomToolCallItem,
    FunctionCallItem,
    ItemStatus,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    SummaryText,
)
from langport.wire.responses import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    Response,
    ResponseError,
    ResponseUsage,
)

if TYPE_CHECKING:
    from langport.api.turn import ChatTurn, TurnEvent

logger = logging.getLogger(__name__)

Clock = Callable[[], float]


class _Place(TypedDict):
    """Where in the response a delta belongs."""

    item_id: str
    output_index: int


class ResponseWriter:
    """Writes one response. `response` is what there is of it so far."""

    def __init__(
        self,
        response: Response,
        *,
        has_logprobs: bool = False,
        has_summary: bool = False,
        obfuscate: bool = False,
        clock: Clock = time.time,
    ) -> None:
        """`has_summary`: reasoning goes into the item's summary instead of its content."""
        self.response = response
        self.error: ApiError | None = None
        """Why it failed."""
        self._ids = ItemIds(response.id)
        self._has_logprobs = has_logprobs
        self._has_summary = has_summary
        self._obfuscate = obfuscate
        self._clock = clock
        self._num_events = 0
        self._item: OutputItem | None = None
        """The item that is being written, the last of the output."""
        self._pieces: list[str] = []
        """Of its text."""
        self._logprobs: list[TokenEntry] = []

    async def events(self, turn: ChatTurn, request_id: str) -> AsyncGenerator[Event, None]:
        """Everything from `response.created` to the response's end; an error is an end too, and kept in `error`.

        Closing it early aborts the engine's work. Raises: ApiError before the first event; one in the background
        begins at once, so it never raises.
        """
        if self.response.background:
            yield self._numbered(ResponseCreated(response=self.response))
            yield self._numbered(ResponseQueued(response=self.response))
        try:
            async with aclosing(turn.events()) as events:
                async for turn_event in events:
                    if self.response.status == "queued":
                        for event in self._opening():
                            yield event
                    for event in self._take(turn_event, turn):
                        yield self._numbered(event)
        except ApiError as error:
            if not self._num_events:
                raise
            yield self.failed(error)
        except Exception:  # the stream has begun, so its end is told in its own words
            if not self._num_events:
                raise
            logger.exception("request %s failed while it was answered", request_id)
            yield self.failed(EngineFailed("The server failed while it was answering; the cause is in its log."))

    def _opening(self) -> Iterator[Event]:
        self.response.status = "in_progress"
        if not self.response.background:
            yield self._numbered(ResponseCreated(response=self.response))
        yield self._numbered(ResponseInProgress(response=self.response))

    def failed(self, error: ApiError) -> Event:
        """The last event of a response that cannot go on; what there is of its output stays."""
        self.error = error
        self._leave_incomplete()
        self.response.status = "failed"
        self.response.error = ResponseError("server_error", error.message)
        return self._numbered(ResponseFailed(response=self.response))

    def cancel(self) -> None:
        """Nobody wants the rest."""
        self._leave_incomplete()
        self.response.status = "cancelled"

    def _take(self, event: TurnEvent, turn: ChatTurn) -> Iterator[Event]:
        match event.delta:
            case TextDelta(text):
                logprobs = chat_logprobs(event.tokens).content if event.tokens and self._has_logprobs else []
                if text or logprobs:
                    yield from self._open(MessageItem)
                    yield self._text_delta(text, logprobs)
            case ReasoningDelta(text):
                yield from self._open(ReasoningItem)
                yield self._reasoning_delta(text)
            case ToolCallBegin() as call:
                yield from self._close("completed")
                yield from self._begin(self._call(call))
            case ToolCallDelta(_, arguments, is_custom):
                yield self._call_delta(arguments, CustomInputDelta if is_custom else ArgumentsDelta)
            case ToolCallEnd():
                yield from self._close("completed")
            case Finish(reason):
                yield from self._finish(is_cut=reason == "length", usage=turn.usage())

    def _finish(self, *, is_cut: bool, usage: Usage) -> Iterator[Event]:
        if not self.response.output:
            yield from self._open(MessageItem)
        yield from self._close("incomplete" if is_cut else "completed")
        response = self.response
        response.usage = _usage(usage)
        if is_cut:
            response.status = "incomplete"
            response.incomplete_details = IncompleteDetails("max_output_tokens")
            yield ResponseIncomplete(response=response)
        else:
            response.status = "completed"
            response.completed_at = int(self._clock())
            yield ResponseCompleted(response=response)

    def _open(self, kind: type[MessageItem] | type[ReasoningItem]) -> Iterator[Event]:
        """Begin an item of this kind, unless one is being written."""
        if isinstance(self._item, kind):
            return
        yield from self._close("completed")
        id = self._ids.output(kind)
        if kind is MessageItem:
            yield from self._begin(MessageItem(id=id, status="in_progress", role="assistant", content=[]))
            yield ContentPartAdded(**self._place(), part=OutputText(""))
        else:
            yield from self._begin(ReasoningItem(id=id, status="in_progress"))
            if self._has_summary:
                yield SummaryPartAdded(**self._place(), part=SummaryText(""))
            else:
                yield ContentPartAdded(**self._place(), part=ReasoningText(""))

    def _call(self, call: ToolCallBegin) -> OutputItem:
        if call.is_custom:
            id = self._ids.output(CustomToolCallItem)
            return CustomToolCallItem(id=id, status="in_progress", call_id=call.id, name=call.name, input="")
        id = self._ids.output(FunctionCallItem)
        return FunctionCallItem(id=id, status="in_progress", call_id=call.id, name=call.name, arguments="")

    def _begin(self, item: OutputItem) -> Iterator[Event]:
        self._item = item
        self.response.output.append(item)
        self._pieces, self._logprobs = [], []
        yield OutputItemAdded(output_index=len(self.response.output) - 1, item=item)

    def _close(self, status: ItemStatus) -> Iterator[Event]:
        """End the item that is being written, if there is one."""
        item = self._item
        if item is None:
            return
        place = self._place()
        self._fill()
        match item:
            case MessageItem(content=[OutputText() as part]):
                yield OutputTextDone(**place, text=part.text, logprobs=part.logprobs)
                yield ContentPartDone(**place, part=part)
            case ReasoningItem(content=[part]):
                yield ReasoningTextDone(**place, text=part.text)
                yield ContentPartDone(**place, part=part)
            case ReasoningItem(summary=[part]):
                yield SummaryTextDone(**place, text=part.text)
                yield SummaryPartDone(**place, part=part)
            case FunctionCallItem():
                yield ArgumentsDone(**place, name=item.name, arguments=item.arguments)
            case CustomToolCallItem():
                yield CustomInputDone(**place, input=item.input)
        item.status = status
        self._item = None
        yield OutputItemDone(output_index=len(self.response.output) - 1, item=item)

    def _fill(self) -> None:
        """Put the pieces into the item."""
        text = "".join(self._pieces)
        match self._item:
            case MessageItem() as item:
                item.content = [OutputText(text, logprobs=self._logprobs)]
            case ReasoningItem() as item if self._has_summary:
                item.summary = [SummaryText(text)]
            case ReasoningItem() as item:
                item.content = [ReasoningText(text)]
            case FunctionCallItem() as item:
                item.arguments = text
            case CustomToolCallItem() as item:
                item.input = text

    def _leave_incomplete(self) -> None:
        if self._item is not None:
            self._fill()
            self._item.status = "incomplete"
            self._item = None

    def _text_delta(self, text: str, logprobs: list[TokenEntry]) -> Event:
        self._pieces.append(text)
        self._logprobs.extend(logprobs)
        return self._padded(OutputTextDelta(**self._place(), delta=text, logprobs=logprobs))

    def _reasoning_delta(self, text: str) -> Event:
        self._pieces.append(text)
        kind = SummaryTextDelta if self._has_summary else ReasoningTextDelta
        return self._padded(kind(**self._place(), delta=text))

    def _call_delta(self, text: str, kind: type[ArgumentsDelta] | type[CustomInputDelta]) -> Event:
        self._pieces.append(text)
        return self._padded(kind(**self._place(), delta=text))

    def _place(self) -> _Place:
        assert self._item is not None
        return {"item_id": self._item.id, "output_index": len(self.response.output) - 1}

    def _padded(self, delta: Delta) -> Event:
        """With padding that hides the text's length from an eavesdropper, where it is wanted."""
        if self._obfuscate:
            delta.obfuscation = secrets.token_urlsafe(secrets.randbelow(16) + 1)
        return delta

    def _numbered(self, event: Event) -> Event:
        event.sequence_number = self._num_events
        self._num_events += 1
        return event


def _usage(usage: Usage) -> ResponseUsage:
    return ResponseUsage(
        usage.prompt_tokens,
        InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
        usage.completion_tokens,
        OutputTokensDetails(usage.completion_tokens_details.reasoning_tokens),
        usage.total_tokens,
    )
