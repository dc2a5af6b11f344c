"""The admin API over keys and usage: JSON in, JSON out, behind the admin key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, date, datetime
from time import time
from typing import TypeVar, cast, get_args
from urllib.parse import parse_qsl

import msgspec
from msgspec import UNSET

from langport.errors import InvalidRequest, NotFound
from langport.gateway.bookkeeping import Bookkeeping
from langport.gateway.exchange import Exchange
from langport.gateway.key_book import KeyChange, Permissions, permissions_of, status_of
from langport.gateway.keys import Budget, KeyLimits
from langport.settings.tree import MONEY
from langport.store.base import KeyRecord, UsageGroup, UsageQuery, UsageSum
from langport.wire import keys as wire
from langport.wire.error import decode_body
from langport.wire.unknown import ignored_header, unknown_fields

T = TypeVar("T", bound=msgspec.Struct)

KEYS, KEY = "/admin/keys", "/admin/keys/{key_id}"
ROUTES = (
    ("POST", KEYS),
    ("GET", KEYS),
    ("GET", KEY),
    ("POST", KEY),
    ("DELETE", KEY),
    ("POST", KEY + "/rotate"),
    ("GET", "/admin/usage"),
)
"""Method and path of all that is answered here."""
DEFAULT_DAYS = 30
_GROUPS = get_args(UsageGroup)
_LIMITS = ("requests_per_minute", "tokens_per_minute", "max_concurrency")
_USAGE_WORDS = ("from", "to", "group_by", "key_id", "model")
_FIRST = date(1970, 1, 1).toordinal()

Handler = Callable[[Exchange, bytes], Awaitable[msgspec.Struct]]


class KeyAdmin:
    """Handlers of the admin API; without a store they say so."""

    def __init__(self, books: Bookkeeping | None, clock: Callable[[], float] = time) -> None:
        self._given = books
        self._clock = clock
        handlers: tuple[Handler, ...] = (
            self.create,
            self.list,
            self.retrieve,
            self.change,
            self.revoke,
            self.rotate,
            self.usage,
        )
        self._handlers = dict(zip(ROUTES, handlers, strict=True))

    @property
    def _books(self) -> Bookkeeping:
        if self._given is None:
            raise NotFound("This server keeps neither keys nor usage: it was started with --store none.")
        return self._given

    async def answer(self, exchange: Exchange, body: bytes) -> None:
        """Raises: ApiError."""
        method = "GET" if exchange.method == "HEAD" else exchange.method
        await exchange.reply_json(await self._handlers[method, exchange.route](exchange, body))

    async def create(self, exchange: Exchange, body: bytes) -> wire.KeyObject:
        """A new key, with its secret, which nobody can ask for again."""
        request = _read(wire.CREATE_DECODER, body)
        permissions = _permissions(request, Permissions())
        record, secret = await self._books.book.create(request.name, permissions, request.expires_at or None)
        await self._books.know(record)
        return self._shown(record, secret)

    async def list(self, exchange: Exchange, body: bytes) -> wire.KeyList:
        """All keys, those that were revoked too."""
        return wire.KeyList([self._shown(record) for record in await self._books.book.list()])

    async def retrieve(self, exchange: Exchange, body: bytes) -> wire.KeyObject:
        return self._shown(await self._books.book.find(exchange.ids["key_id"]))

    async def change(self, exchange: Exchange, body: bytes) -> wire.KeyObject:
        request = _read(wire.CHANGE_DECODER, body)
        known = permissions_of(await self._books.book.find(exchange.ids["key_id"]))
        change = KeyChange(name=request.name, expires_at=request.expires_at, permissions=_permissions(request, known))
        record = await self._books.book.change(exchange.ids["key_id"], change)
        await self._books.know(record)
        return self._shown(record)

    async def revoke(self, exchange: Exchange, body: bytes) -> wire.KeyObject:
        record = await self._books.book.revoke(exchange.ids["key_id"])
        await self._books.know(record)
        return self._shown(record)

    async def rotate(self, exchange: Exchange, body: bytes) -> wire.KeyObject:
        """The key with another secret; its id, its owner and what it may do stay."""
        request = _read(wire.ROTATE_DECODER, body or b"{}")
        record, secret = await self._books.book.rotate(exchange.ids["key_id"], request.grace_s)
        await self._books.know(record)
        return self._shown(record, secret)

    async def usage(self, exchange: Exchange, body: bytes) -> wire.UsageList:
        """Sums, up to the last second."""
        query = usage_query(exchange.scope["query_string"], self._clock())
        await self._books.ledger.flush()
        names = {record.id: record.name for record in await self._books.book.list()}
        return wire.UsageList([shown_usage(one, names) for one in await self._books.accounts.usage(query)])

    def _shown(self, record: KeyRecord, secret: str | None = None) -> wire.KeyObject:
        return shown_key(record, self._clock(), secret)


def shown_key(record: KeyRecord, now_s: float, secret: str | None = None) -> wire.KeyObject:
    """A key as people see it, on the web and in a terminal."""
    known = permissions_of(record)
    return wire.KeyObject(
        id=record.id,
        name=record.name,
        status=status_of(record, now_s),
        hint=record.hint,
        key=secret or UNSET,
        created_at=record.created_at,
        expires_at=record.expires_at,
        revoked_at=record.revoked_at,
        models=known.models,
        requests_per_minute=known.limits.requests_per_minute,
        tokens_per_minute=known.limits.tokens_per_minute,
        max_concurrency=known.limits.max_concurrency,
        budgets=[msgspec.to_builtins(budget) for budget in known.budgets],
        metadata=known.metadata,
    )


def shown_usage(one: UsageSum, names: Mapping[str, str]) -> wire.UsageObject:
    """A sum as people see it; `names` of keys by id."""
    return wire.UsageObject(
        day=UNSET if one.day is None else date.fromordinal(_FIRST + one.day).isoformat(),
        key_id=UNSET if one.key_id is None else one.key_id,
        key_name=UNSET if one.key_id is None else names.get(one.key_id),
        model=UNSET if one.model is None else one.model,
        upstream=UNSET if one.upstream is None else one.upstream,
        num_requests=one.num_requests,
        num_failed=one.num_failed,
        num_estimated=one.num_estimated,
        prompt_tokens=one.prompt_tokens,
        completion_tokens=one.completion_tokens,
        cost=one.cost_nano / MONEY,
    )


def usage_query(query: bytes, now_s: float) -> UsageQuery:
    """From a query string. Raises: InvalidRequest naming the parameter."""
    given = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
    for name in given:
        if name not in _USAGE_WORDS:
            raise InvalidRequest(f"There is no parameter {name}; there are {', '.join(_USAGE_WORDS)}.", param=name)
    today = datetime.fromtimestamp(now_s, UTC).date().toordinal() - _FIRST
    last = _day(given, "to", today)
    groups = tuple(word.strip() for word in given.get("group_by", "").split(",") if word.strip())
    if wrong := [word for word in groups if word not in _GROUPS]:
        raise InvalidRequest(f"group_by takes {', '.join(_GROUPS)}, not {wrong[0]}.", param="group_by")
    return UsageQuery(
        first_day=_day(given, "from", last - DEFAULT_DAYS + 1),
        last_day=last,
        groups=cast("tuple[UsageGroup, ...]", tuple(dict.fromkeys(groups))),
        key_id=given.get("key_id"),
        model=given.get("model"),
    )


def _day(given: Mapping[str, str], name: str, default: int) -> int:
    if name not in given:
        return default
    try:
        return date.fromisoformat(given[name]).toordinal() - _FIRST
    except ValueError:
        raise InvalidRequest(f"{name} must be a day such as 2026-11-24 (UTC).", param=name) from None


def _read(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Raises: InvalidRequest, also for a field that there is not: a limit that was misspelled is none."""
    request = decode_body(decoder, body)
    ignored_header(unknown_fields(body, type(request)), is_strict=True)
    return request


def _permissions(request: wire.KeyFields, known: Permissions) -> Permissions:
    """Those that are known, with what the request says. Raises: InvalidRequest."""
    limits = {name: value for name in _LIMITS if (value := getattr(request, name)) is not UNSET}
    changes: dict[str, object] = {"limits": msgspec.structs.replace(known.limits or KeyLimits(), **limits)}
    if request.models is not UNSET:
        changes["models"] = None if request.models is None else tuple(dict.fromkeys(request.models))
    if request.budgets is not UNSET:
        changes["budgets"] = tuple(Budget(one.per, one.tokens, one.money) for one in request.budgets or [])
    if request.metadata is not UNSET:
        changes["metadata"] = request.metadata or {}
    return msgspec.structs.replace(known, **changes)
