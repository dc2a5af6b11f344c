"""An API key as the gateway knows it once a request has shown it: what it may do, never the secret itself."""

from __future__ import annotations

import msgspec

from langport.store.base import ANYONE


class KeyLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one key may use; None is as much as there is."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompt and completion tokens together."""
    max_concurrency: int | None = None
    """Requests that are being answered at once."""


class Key(msgspec.Struct, frozen=True):
    """Who asks."""

    id: str
    """Names it in logs, metrics and the store; empty where the server is open."""
    name: str
    """What its owner calls it."""
    owner: str
    """Whose the stored objects are; stays the same when the key is rotated."""
    models: tuple[str, ...] | None = None
    """The public names it may use; None is all of them."""
    limits: KeyLimits = KeyLimits()


OPEN = Key(id="", name="", owner=ANYONE)
"""Who asks where no key is needed."""
