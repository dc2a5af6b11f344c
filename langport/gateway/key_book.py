"""Keys made, changed, rotated and revoked in the store. The admin API and the command line both work through this.

A secret is 256 random bits behind a prefix by which scanners of leaked secrets know it. Only its digest is kept, so it
is shown once. A key that was revoked stays in the store: what it was and what it used can still be read.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from hashlib import sha256
from time import time
from typing import Annotated

import msgspec
from msgspec import Meta

from langport.errors import InvalidRequest, NotFound, Unavailable
from langport.gateway.keys import Budget, Key, KeyLimits
from langport.store.base import Accounts, KeyRecord

PREFIX = "lp-"
HINT_CHARACTERS = 7
MAX_NAME = 256
MAX_KEYS_OF_METADATA = 16
MAX_GRACE_S = 30 * 24 * 3600
_MAX_TRIES = 5

Word = Annotated[str, Meta(min_length=1, max_length=512)]


class Permissions(msgspec.Struct, frozen=True):
    """What a key may do, as the store keeps it."""

    models: tuple[Word, ...] | None = None
    limits: KeyLimits = KeyLimits()
    budgets: tuple[Budget, ...] = ()
    metadata: dict[str, str] = {}


class KeyChange(msgspec.Struct, frozen=True, kw_only=True):
    """What is to become of a key; UNSET leaves a thing as it is."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    expires_at: int | msgspec.UnsetType | None = msgspec.UNSET
    permissions: Permissions | msgspec.UnsetType = msgspec.UNSET


_PERMISSIONS = msgspec.json.Decoder(Permissions)


def digest_of(secret: bytes) -> bytes:
    """What is kept of a secret. Its 256 bits are random, so a fast hash is as safe as a slow one."""
    return sha256(secret).digest()


def permissions_of(record: KeyRecord) -> Permissions:
    return _PERMISSIONS.decode(record.body)


def key_of(record: KeyRecord) -> Key:
    """The key as requests carry it."""
    known = permissions_of(record)
    return Key(record.id, record.name, record.owner, known.models, known.limits, known.budgets)


class KeyBook:
    """The keys of one store."""

    def __init__(self, accounts: Accounts, clock: Callable[[], float] = time) -> None:
        self._accounts = accounts
        self._clock = clock

    async def create(self, name: str, permissions: Permissions, expires_at: int | None = None) -> tuple[KeyRecord, str]:
        """A new key and its secret. Raises: InvalidRequest, StoreUnavailable."""
        now = int(self._clock())
        _check_name(name)
        _check(permissions, expires_at, now)
        secret = _new_secret()
        record = KeyRecord(
            id=f"key_{secrets.token_hex(8)}",
            name=name,
            owner=secrets.token_hex(32),
            digest=digest_of(secret.encode()),
            hint=secret[:HINT_CHARACTERS],
            created_at=now,
            expires_at=expires_at,
            body=msgspec.json.encode(permissions),
        )
        put = await self._accounts.put_key(record)
        assert put is not None, "a new id is taken"
        return put, secret

    async def list(self) -> list[KeyRecord]:
        """All keys in the order they were made. Raises: StoreUnavailable."""
        if not await self._accounts.exists():
            return []
        return sorted(await self._accounts.keys(), key=lambda record: (record.created_at, record.id))

    async def find(self, id: str) -> KeyRecord:
        """The key of this id. Raises: NotFound, StoreUnavailable."""
        for record in await self.list():
            if record.id == id:
                return record
        raise NotFound(f"There is no key with the id '{id[:100]}'.", param="id")

    async def change(self, id: str, change: KeyChange) -> KeyRecord:
        """Raises: InvalidRequest, NotFound, StoreUnavailable."""

        def changed(record: KeyRecord, now: int) -> KeyRecord:
            _check_not_revoked(record)
            if change.name is not msgspec.UNSET:
                _check_name(change.name)
                record = msgspec.structs.replace(record, name=change.name)
            if change.expires_at is not msgspec.UNSET:
                _check(Permissions(), change.expires_at, now)
                record = msgspec.structs.replace(record, expires_at=change.expires_at)
            if change.permissions is not msgspec.UNSET:
                _check(change.permissions, None, now)
                record = msgspec.structs.replace(record, body=msgspec.json.encode(change.permissions))
            return record

        return await self._rewrite(id, changed)

    async def rotate(self, id: str, grace_s: int = 0) -> tuple[KeyRecord, str]:
        """The key with a new secret; the old one is good for so many seconds more.

        Raises: InvalidRequest, NotFound, StoreUnavailable.
        """
        if not 0 <= grace_s <= MAX_GRACE_S:
            raise InvalidRequest(f"grace_s must be from 0 to {MAX_GRACE_S} (30 days).", param="grace_s")
        secret = _new_secret()

        def rotated(record: KeyRecord, now: int) -> KeyRecord:
            _check_not_revoked(record)
            return msgspec.structs.replace(
                record,
                digest=digest_of(secret.encode()),
                hint=secret[:HINT_CHARACTERS],
                previous_digest=record.digest,
                previous_until=now + grace_s,
            )

        return await self._rewrite(id, rotated), secret

    async def revoke(self, id: str) -> KeyRecord:
        """End a key; one that was revoked before stays as it is. Raises: NotFound, StoreUnavailable."""

        def revoked(record: KeyRecord, now: int) -> KeyRecord:
            return record if record.revoked_at else msgspec.structs.replace(record, revoked_at=now)

        return await self._rewrite(id, revoked)

    async def _rewrite(self, id: str, change: Callable[[KeyRecord, int], KeyRecord]) -> KeyRecord:
        """Read, change and write; again when somebody else was faster, so that no change is undone unseen."""
        for _ in range(_MAX_TRIES):
            known = await self.find(id)
            wanted = change(known, int(self._clock()))
            if wanted == known:
                return known
            put = await self._accounts.put_key(wanted)
            if put is not None:
                return put
        raise Unavailable("The key is being changed by others all the time; try again.")


def status_of(record: KeyRecord, now_s: float) -> str:
    """`active`, `expired` or `revoked`."""
    if record.revoked_at is not None:
        return "revoked"
    return "active" if record.expires_at is None or now_s < record.expires_at else "expired"


def _new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def _check_name(name: str) -> None:
    """Raises: InvalidRequest for what would look odd in a log."""
    if not name.strip() or not name.isprintable() or len(name) > MAX_NAME:
        raise InvalidRequest(f"name must be up to {MAX_NAME} printable characters, not only spaces.", param="name")


def _check(permissions: Permissions, expires_at: int | None, now: int) -> None:
    if expires_at is not None and expires_at <= now:
        raise InvalidRequest("expires_at is in the past; a key is ended by revoking it.", param="expires_at")
    if permissions.models is not None and not permissions.models:
        raise InvalidRequest("models is empty; leave it out to allow all models.", param="models")
    for budget in permissions.budgets:
        if budget.tokens is None and budget.money is None:
            raise InvalidRequest("A budget needs tokens, money, or both.", param="budgets")
    if len(permissions.metadata) > MAX_KEYS_OF_METADATA:
        raise InvalidRequest(f"metadata has more than {MAX_KEYS_OF_METADATA} keys.", param="metadata")


def _check_not_revoked(record: KeyRecord) -> None:
    if record.revoked_at is not None:
        raise InvalidRequest(f"The key {record.id} was revoked, and stays so; make a new one.", param="id")
