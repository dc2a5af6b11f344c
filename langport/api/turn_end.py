"""How a choice of a turn ends. Loads nothing, so that stored responses are read without a tokenizer."""

from __future__ import annotations

from typing import Literal

import msgspec

TurnFinishReason = Literal["stop", "length", "tool_calls"]


class Finish(msgspec.Struct):
    """A choice has ended; after the last one `ChatTurn.usage` is complete."""

    reason: TurnFinishReason
    stop_string: str | None = None
    """The one that ended it."""
