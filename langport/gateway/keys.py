"""An API key as the gateway knows it once a request has shown it: what it may do, never the secret itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from langport.store.base import ANYONE

Count = Annotated[int, Meta(ge=1)]
Per = Literal["day", "month"]


class KeyLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one key may use; None is as much as there is."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    """Prompt and completion tokens together."""
    max_concurrency: Count | None = None
    """Requests that are being answered at once."""


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one key may use in a day or a month of UTC; tokens, money or both."""

    per: Per
    tokens: Count | None = None
    """Prompt and completion tokens together."""
    money: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    """In the unit of the prices that the server was given."""

    def begins(self, now_s: float) -> datetime:
        """The beginning of the current day or month."""
        now = datetime.fromtimestamp(now_s, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        return now if self.per == "day" else now.replace(day=1)

    def ends(self, now_s: float) -> datetime:
        """The beginning of the next one."""
        begin = self.begins(now_s)
        if self.per == "day":
            return begin + timedelta(days=1)
        return (begin + timedelta(days=32)).replace(day=1)


class Key(msgspec.Struct, frozen=True):
    """Who asks."""

    id: str
    """Names it in logs, metrics and the store; empty where the server is open."""
    name: str
    """What its owner calls it."""
    owner: str
    """Whose the stored objects are; stays the same when the key is rotated."""
    models: tuple[str, ...] | None = None
    """The public names it may use; None is all of them. A model's name stands for its aliases, too."""
    limits: KeyLimits = KeyLimits()
    budgets: tuple[Budget, ...] = ()

    def may_use(self, *names: str) -> bool:
        """Whether it may use what has these names: what was asked for, and the model that it leads to."""
        return self.models is None or any(name in self.models for name in names)


OPEN = Key(id="", name="", owner=ANYONE)
"""Who asks where no key is needed."""
