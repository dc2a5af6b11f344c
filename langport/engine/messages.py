"""What the API's process and an engine's process say to each other.

Frames (`langport.frames`) of msgpack on a Unix socket. The engine sends one message per step for
all sequences together. Everything that is asked for has an error form, so nobody waits for an answer that was dropped.
"""

from __future__ import annotations

import msgspec

from langport.frames import framed
from langport.settings.tree import EngineSettings
from langport.types import Delta, EmbedRequest, EngineTotals, GenerateRequest, ModelInfo


class Load(msgspec.Struct, tag=True, frozen=True):
    """The first message to a new engine process."""

    name: str
    checkpoint: str
    settings: EngineSettings
    kv_cache_share: float
    adapters: dict[int, str] = {}
    """LoRA adapters: number to directory."""
    door: str = ""
    """Path of the Unix socket to make, at which guests come (`guests.py`); none comes where it is empty."""


class Join(msgspec.Struct, tag=True, frozen=True):
    """A guest's first message."""

    name: str
    """Unlike any other guest's, without a colon; the ids of its requests begin with it (`guests.guest_id`)."""


class Generate(msgspec.Struct, tag=True, frozen=True):
    request: GenerateRequest


class Embed(msgspec.Struct, tag=True, frozen=True):
    request: EmbedRequest


class Abort(msgspec.Struct, tag=True, frozen=True):
    """Forget one sequence, or all of a request; unknown ids mean it ended in the meantime."""

    request_id: str
    index: int | None = None


class LoadAdapter(msgspec.Struct, tag=True, frozen=True):
    """Read a LoRA adapter between two steps; the engine answers with AdapterLoaded or AdapterFailed."""

    number: int
    """Chosen by the sender, and never twice for one engine: what the cache holds of one adapter serves no other."""
    path: str


class UnloadAdapter(msgspec.Struct, tag=True, frozen=True):
    """Free an adapter as soon as no sequence uses it; an unknown number is gone already."""

    number: int


class Loading(msgspec.Struct, tag=True, frozen=True):
    """Weights are being read: the share that is done, 0 to 1."""

    share: float


class Ready(msgspec.Struct, tag=True, frozen=True):
    info: ModelInfo
    adapter_problems: dict[int, str] = {}
    """Adapters of the Load message that cannot be used, and why; the model serves without them."""


class LoadFailed(msgspec.Struct, tag=True, frozen=True):
    """The checkpoint cannot be served; the process ends."""

    message: str
    lacks_memory: bool = False
    """It could be, with more memory."""


class FirstToken(msgspec.Struct, frozen=True, array_like=True):
    """How long a request's first sequence took to its first token, in seconds."""

    request_id: str
    queue_s: float
    """From its arrival to its first step."""
    prefill_s: float
    """From there to its first token."""


class Step(msgspec.Struct, tag=True, frozen=True):
    """What one step brought, and how full the engine is."""

    deltas: list[Delta]
    num_running: int
    num_waiting: int
    kv_cache_usage: float
    totals: EngineTotals = EngineTotals()
    first_tokens: list[FirstToken] = []


class Embedded(msgspec.Struct, tag=True, frozen=True):
    request_id: str
    vectors: list[bytes]


class RequestFailed(msgspec.Struct, tag=True, frozen=True):
    """The engine gave up on one request; the others go on."""

    request_id: str
    message: str


class AdapterLoaded(msgspec.Struct, tag=True, frozen=True):
    number: int


class AdapterFailed(msgspec.Struct, tag=True, frozen=True):
    """The adapter does not fit, and nothing of it was kept; everything else goes on."""

    number: int
    message: str


ToEngine = Load | Join | Generate | Embed | Abort | LoadAdapter | UnloadAdapter
FromEngine = Loading | Ready | LoadFailed | Step | Embedded | RequestFailed | AdapterLoaded | AdapterFailed

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    """A whole frame."""
    return framed(_encoder.encode(message))


def decode_to_engine(body: bytes) -> ToEngine:
    return _to_engine.decode(body)


def decode_from_engine(body: bytes) -> FromEngine:
    return _from_engine.decode(body)
