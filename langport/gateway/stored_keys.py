"""The keys of the store, held in memory, so that a request's key is found without asking the store.

Every change in the store has a number; asking for those after the last one known is one small query. It is asked when a
request comes and the last answer is half a second old, beside that request, and before the request goes on when the
answer is a second old: so a key that was revoked anywhere, by another process or the command line, works for a second
more at most. A server without requests asks nothing.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from langport.errors import AuthenticationFailed, StoreUnavailable
from langport.gateway.key_book import key_of
from langport.gateway.keys import Key
from langport.store.base import Accounts, KeyRecord

logger = logging.getLogger("langport.gateway")

ASK_AFTER_S = 0.5
MAX_AGE_S = 1.0
ASK_FOR_NEW_S = 0.05
"""How often the store is asked, at most, for the sake of keys that nobody knows."""
PATIENCE_S = 1.0
"""How long a request waits for a store that hangs."""


class StoredKeys:
    """All keys of a store, by the digests of their secrets."""

    def __init__(
        self,
        accounts: Accounts,
        *,
        refuses_on_failure: bool = False,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """`refuses_on_failure`: without the store no request goes on; else with what was last known."""
        self._accounts = accounts
        self._refuses = refuses_on_failure
        self._clock = clock
        self._timer = timer
        self._records: dict[str, KeyRecord] = {}
        self._keys: dict[str, Key] = {}
        self._by_digest: dict[bytes, str] = {}
        self._by_owner: dict[str, str] = {}
        self._version = 0
        self._known_s = float("-inf")
        """When the last question was asked that was answered."""
        self._tried_s = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._problem: StoreUnavailable | None = None

    @property
    def has_any(self) -> bool:
        """Whether a key was ever made. Then a request needs one, even if all have been revoked."""
        return bool(self._records)

    async def refresh(self) -> None:
        """Know what has changed up to a second ago. Raises: StoreUnavailable."""
        now = self._timer()
        if now - self._known_s < ASK_AFTER_S:
            return
        self._begin_to_ask(now, ASK_AFTER_S)
        needs_answer = self._refuses or self._known_s == float("-inf")
        is_late = now - self._known_s >= MAX_AGE_S
        if is_late and self._asking is not None and (self._problem is None or needs_answer):
            await asyncio.wait([self._asking], timeout=PATIENCE_S)
            if self._asking is not None and self._problem is None:
                self._fail(StoreUnavailable("The store does not answer."))
        if self._problem is not None and needs_answer:
            raise StoreUnavailable(f"Keys cannot be checked now. {self._problem.message}") from self._problem

    async def look_for_new(self) -> None:
        """Know of a key that was just made elsewhere, if the store answers; one question for all who wait for it."""
        self._begin_to_ask(self._timer(), ASK_FOR_NEW_S)
        if self._asking is not None and self._problem is None:
            await asyncio.wait([self._asking], timeout=PATIENCE_S)

    def _begin_to_ask(self, now: float, interval_s: float) -> None:
        if self._asking is None and now - self._tried_s >= interval_s:
            self._tried_s = now
            self._asking = asyncio.create_task(self._ask(now))

    def apply(self, record: KeyRecord) -> None:
        """Know of a change that was made here, at once."""
        known = self._records.get(record.id)
        if known is not None:
            if known.version >= record.version:
                return  # an answer that was on its way when the change was made
            for digest in (known.digest, known.previous_digest):
                self._by_digest.pop(digest or b"", None)
        self._records[record.id] = record
        self._keys[record.id] = key_of(record)
        self._by_owner[record.owner] = record.id
        self._by_digest[record.digest] = record.id
        if record.previous_digest is not None:
            self._by_digest[record.previous_digest] = record.id

    def find(self, digest: bytes) -> Key | None:
        """The key whose secret has this digest; None when there is none.

        Raises: AuthenticationFailed for one that is not good any more.
        """
        id = self._by_digest.get(digest)
        if id is None:
            return None
        record = self._records[id]
        # The table finds it by its hash; that it is the same is asked in a time that says nothing.
        if not hmac.compare_digest(digest, record.digest):
            if record.previous_digest is None or not hmac.compare_digest(digest, record.previous_digest):
                return None
            if record.previous_until is None or self._clock() >= record.previous_until:
                raise AuthenticationFailed("This API key was replaced by a newer secret; use that one.")
        self._check(record)
        return self._keys[id]

    def of_owner(self, owner: str) -> Key | None:
        """The key with which an owner's objects are stored. Raises: AuthenticationFailed, as `find` does."""
        id = self._by_owner.get(owner)
        if id is None:
            return None
        self._check(self._records[id])
        return self._keys[id]

    def name_of(self, id: str) -> str | None:
        """What the owner of a key calls it."""
        key = self._keys.get(id)
        return key.name if key is not None else None

    def _check(self, record: KeyRecord) -> None:
        if record.revoked_at is not None:
            raise AuthenticationFailed("This API key has been revoked.")
        if record.expires_at is not None and self._clock() >= record.expires_at:
            when = datetime.fromtimestamp(record.expires_at, UTC)
            raise AuthenticationFailed(f"This API key expired on {when:%Y-%m-%d at %H:%M} UTC.")

    async def _ask(self, asked_s: float) -> None:
        try:
            changed = await self._accounts.keys(self._version) if await self._accounts.exists() else []
        except StoreUnavailable as error:
            self._fail(error)
        else:
            if self._problem is not None:
                logger.warning("The store of keys answers again.")
                self._problem = None
            for record in changed:
                self._version = max(self._version, record.version)
                self.apply(record)
            self._known_s = asked_s
        finally:
            self._asking = None

    def _fail(self, error: StoreUnavailable) -> None:
        if self._problem is None:
            what = "requests are refused" if self._refuses else "keys count as they were last known"
            logger.error("Keys cannot be read from the store, %s: %s", what, error)
        self._problem = error
