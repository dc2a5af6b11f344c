"""What the supervisor and its workers say to each other: msgpack in frames (`langport.frames`) on a socket.

Each message travels with a number: positive for a call, which is answered once with its negative; 0 for what needs no
answer. Whatever goes wrong is answered with a `Failure`, so nobody waits for ever.
"""

from __future__ import annotations

import inspect
from typing import Generic, TypeVar

import msgspec

from langport import errors
from langport.errors import ApiError, ConfigError, LangPortError, QuotaExceeded
from langport.gateway.keys import Key
from langport.gateway.limits import Share
from langport.gateway.residence import ModelStatus
from langport.gateway.summing import Packed
from langport.settings.tree import Settings
from langport.store.base import KeyRecord, UsageQuery, UsageRecord, UsageSum
from langport.types import EngineNews

T = TypeVar("T")


class Message(msgspec.Struct, array_like=True, tag=True):
    """Base of all."""


class Frame(msgspec.Struct, Generic[T], array_like=True):
    """A message with its number."""

    id: int
    body: T


# Answers.


class Done(Message):
    """It has been done."""


class Failure(Message):
    """An error, as the other process is to raise it."""

    kind: str
    """Name of a class in `langport.errors`."""
    message: str
    problems: tuple[str, ...] = ()
    word: str | None = None
    """Its type, as OpenAI's error bodies call it."""
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: LangPortError) -> Failure:
        kind = type(error).__name__
        if isinstance(error, ConfigError):
            return cls(kind, "", error.problems)
        if isinstance(error, ApiError):
            return cls(kind, error.message, (), error.type, error.param, error.code, error.retry_after_s)
        return cls(kind, str(error))

    def error(self) -> LangPortError:
        kind = _ERRORS[self.kind]
        if issubclass(kind, ConfigError):
            return kind(*self.problems)
        if issubclass(kind, QuotaExceeded):
            return kind(self.message, retry_after_s=self.retry_after_s or 0.0)
        if not issubclass(kind, ApiError):
            return kind(self.message)
        error = kind(self.message, param=self.param, code=self.code)
        error.retry_after_s = self.retry_after_s
        if self.word is not None:
            error.type = self.word
        return error


_ERRORS: dict[str, type[LangPortError]] = {
    name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, LangPortError)
}


class Admitted(Message):
    """How an `Admit` or a `Look` ended."""

    runs: bool
    """If not, a `Turn` follows, unless it was refused or has failed."""
    standings: list[tuple[int, float]]
    """Of each share: what remains, and in how many seconds all of it is there again."""
    refused_by: int | None = None
    """The number of the share that could not be had."""
    retry_after_s: float | None = None
    failure: Failure | None = None


class Keys(Message):
    records: list[KeyRecord]


class PutResult(Message):
    record: KeyRecord | None


class Sums(Message):
    sums: list[UsageSum]


class Requests(Message):
    records: list[UsageRecord]


class Truth(Message):
    value: bool


class Figures(Message):
    """What a process has counted; from a worker also unasked, each second."""

    packed: Packed


class Reloaded(Message):
    """Names of settings: what changed, and what only a restart changes."""

    changed: tuple[str, ...]
    need_restart: tuple[str, ...]


class Kept(Message):
    """An answer of the response cache, encoded; None: there is none."""

    answer: bytes | None


class Entered(Message):
    """A model is in memory, and stays until what has entered has left."""

    num_closings: int
    """How often its new requests had to wait so far, by `CloseModel`."""


class Residing(Message):
    status: ModelStatus


class Counted(Message):
    """Requests that a worker has in a model, and that wait for it."""

    num_open: int
    num_waiting: int


class TextLoaded(Message):
    template: str | None
    """Where the chat template comes from."""


class AdapterNumber(Message):
    number: int


class RunEvents(Message):
    """What a `FollowRun` found; None: this process has no such response."""

    events: list[bytes] | None
    is_ended: bool


# Of responses in the background: from a worker, and on to the others.


class CancelRun(Message):
    """Answered with a `Truth`: whether somebody worked on it."""

    id: str
    owner: str


class FollowRun(Message):
    """Answered with `RunEvents`: those behind the event of this number, as soon as there are some."""

    id: str
    owner: str
    after: int


# From a worker.


class Listening(Message):
    """It answers HTTP."""


class StartFailed(Message):
    """It does not, and ends."""

    failure: Failure


class Admit(Message):
    """A request wants to go on; its call's number is its ticket. Answered with `Admitted`."""

    shares: list[Share]
    who: str
    num_tokens: int
    num_places: int
    is_background: bool
    max_wait_s: float
    places: tuple[str, int] | None
    """Name and number of its upstream's."""


class Look(Message):
    shares: list[Share]


class Settle(Message):
    """An admitted request has ended."""

    ticket: int
    num_tokens: int


class Undo(Message):
    """A request does not want to go on any more."""

    ticket: int


class Used(Message):
    record: UsageRecord


class CheckBudgets(Message):
    key: Key


class FlushUsage(Message):
    pass


class StoreExists(Message):
    pass


class KeysAfter(Message):
    version: int


class PutKey(Message):
    record: KeyRecord


class AddUsage(Message):
    records: list[UsageRecord]


class AskUsage(Message):
    query: UsageQuery


class PurgeRequests(Message):
    before_ms: int


class AskRequests(Message):
    limit: int
    key_id: str | None


class TellKey(Message):
    """A key was changed; answered when all other workers know."""

    record: KeyRecord


class Collect(Message):
    """With a worker's own figures; answered with those of all."""

    packed: Packed


class Reload(Message):
    pass


class GetAnswer(Message):
    key: bytes


class PutAnswer(Message):
    key: bytes
    answer: bytes


class GiveUp(Message):
    """A call is not waited for any more."""

    call: int


class EnterModel(Message):
    """Answered with `Entered`, once the model is loaded."""

    model: str


class LeaveModel(Message):
    """So many of those that entered have left."""

    model: str
    number: int


class LoadModel(Message):
    model: str


class UnloadModel(Message):
    model: str


class AskResidence(Message):
    """Answered with `Residing`."""

    model: str


class LoadAdapter(Message):
    """Answered with `AdapterNumber`, when all workers have been told."""

    model: str
    name: str
    path: str


class DismissAdapter(Message):
    """Clients may not name it any more; all workers are told."""

    model: str
    name: str
    number: int


class AdapterUnused(Message):
    """No request of this worker uses it any more."""

    model: str
    number: int


# To a worker.


class Welcome(Message):
    """The first message."""

    settings: Settings
    """Of the whole server."""


class Turn(Message):
    """A waiting request may go on, or why it may not."""

    ticket: int
    failure: Failure | None


class Told(Message):
    """Another worker has changed a key."""

    record: KeyRecord


class Report(Message):
    """Answered with `Figures`."""


class Apply(Message):
    """Go on with these settings; answered with `Done`, or a `Failure` when nothing has changed."""

    settings: Settings


class News(Message):
    """How a model's engine stands."""

    model: str
    engine: EngineNews
    answers_later: bool
    """It is not in memory, but a request would load it."""
    num_loads: int


class CloseModel(Message):
    """Have new requests ask before they enter; those that are in go on."""

    model: str
    num_closings: int


class LoadText(Message):
    """Load what makes a model's prompts; answered with `TextLoaded`."""

    model: str


class CountRequests(Message):
    """Answered with `Counted`."""

    model: str


class AdapterPut(Message):
    """Serve one more adapter, or another one under its name."""

    model: str
    name: str
    path: str
    number: int


class AdapterGone(Message):
    """Serve it no longer; requests that run go on."""

    model: str
    name: str
    number: int


class Stop(Message):
    """Answer no new requests, and end when those that run have ended.

    A worker that was sent SIGTERM, too, as systemd does it, hears it twice: that alone does not mean at once.
    """

    is_forced: bool = False
    """End at once."""


Answer = (
    Done | Failure | Admitted | Keys | PutResult | Sums | Requests | Truth | Figures | Reloaded | Kept | Entered
    | Residing | Counted | TextLoaded | AdapterNumber | RunEvents
)  # fmt: skip
ToSupervisor = (
    Answer | Listening | StartFailed | Admit | Look | Settle | Undo | Used | CheckBudgets | FlushUsage | StoreExists
    | KeysAfter | PutKey | AddUsage | AskUsage | PurgeRequests | AskRequests | TellKey | Collect | Reload | GetAnswer
    | PutAnswer | GiveUp | EnterModel | LeaveModel | LoadModel | UnloadModel | AskResidence | LoadAdapter
    | DismissAdapter | AdapterUnused | CancelRun | FollowRun
)  # fmt: skip
ToWorker = (
    Answer | Welcome | Turn | Told | Report | Apply | Stop | News | CloseModel | LoadText | CountRequests | AdapterPut
    | AdapterGone | CancelRun | FollowRun
)  # fmt: skip

decode_to_supervisor = msgspec.msgpack.Decoder(Frame[ToSupervisor]).decode
decode_to_worker = msgspec.msgpack.Decoder(Frame[ToWorker]).decode
encode = msgspec.msgpack.Encoder().encode
