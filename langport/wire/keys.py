"""The JSON of /admin/keys and /admin/usage. The API is LangPort's own; its lists look like OpenAI's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Count = Annotated[int, Meta(ge=1)]
Time = Annotated[int, Meta(ge=1, le=2**40)]
Text = Annotated[str, Meta(max_length=512)]


class BudgetFields(msgspec.Struct, omit_defaults=True):
    """What a key may use in a day or a month."""

    per: Literal["day", "month"]
    """Of UTC."""
    tokens: Count | None = None
    money: Annotated[float, Meta(gt=0, le=1e9)] | None = None


class KeyFields(msgspec.Struct, kw_only=True):
    """What may be said of a key; null takes a limit away."""

    expires_at: Time | UnsetType | None = UNSET
    """Seconds since 1970."""
    models: list[Annotated[str, Meta(min_length=1, max_length=512)]] | UnsetType | None = UNSET
    requests_per_minute: Count | UnsetType | None = UNSET
    tokens_per_minute: Count | UnsetType | None = UNSET
    max_concurrency: Count | UnsetType | None = UNSET
    budgets: list[BudgetFields] | UnsetType | None = UNSET
    metadata: dict[Annotated[str, Meta(max_length=64)], Text] | UnsetType | None = UNSET


class CreateKeyRequest(KeyFields, kw_only=True):
    """Make a key."""

    name: Name


class ChangeKeyRequest(KeyFields, kw_only=True):
    """Change a key; what is left out stays as it is."""

    name: Name | UnsetType = UNSET


class RotateKeyRequest(msgspec.Struct):
    """Give a key a new secret."""

    grace_s: Annotated[int, Meta(ge=0)] = 0
    """How long the old one is good for."""


class KeyObject(msgspec.Struct, kw_only=True):
    """A key as it is shown."""

    id: str
    object: str = "key"
    name: str
    status: str
    """active, expired or revoked."""
    hint: str
    """The beginning of its secret."""
    key: str | UnsetType = UNSET
    """The secret: only in the answer that made it."""
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    models: tuple[str, ...] | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_concurrency: int | None
    budgets: list[Any]
    metadata: dict[str, str]


class UsageObject(msgspec.Struct, kw_only=True):
    """Sums; of the groups only those that were asked for are there."""

    object: str = "usage"
    day: str | UnsetType = UNSET
    key_id: str | UnsetType = UNSET
    key_name: str | UnsetType | None = UNSET
    model: str | UnsetType = UNSET
    upstream: str | UnsetType = UNSET
    num_requests: int
    num_failed: int
    num_estimated: int
    prompt_tokens: int
    completion_tokens: int
    cost: float


class KeyList(msgspec.Struct):
    data: list[KeyObject]
    object: str = "list"


class UsageList(msgspec.Struct):
    data: list[UsageObject]
    object: str = "list"


CREATE_DECODER = msgspec.json.Decoder(CreateKeyRequest)
CHANGE_DECODER = msgspec.json.Decoder(ChangeKeyRequest)
ROTATE_DECODER = msgspec.json.Decoder(RotateKeyRequest)
