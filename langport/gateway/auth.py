"""Who may use the server: keys of the settings, keys of the store, and the one that opens /admin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
from hmac import compare_digest

from langport.errors import AuthenticationFailed, ConfigError, NotFound, PermissionDenied
from langport.gateway.keys import OPEN, Key
from langport.gateway.stored_keys import StoredKeys

_KEY_HEADERS = (b"api-key", b"x-api-key")
"""Azure's clients' and Anthropic's."""
_HOW = "Send one of this server's keys as 'Authorization: Bearer KEY' (or 'api-key: KEY' or 'x-api-key: KEY')."


MAX_CACHED_KEY = 256
"""Longer ones are nobody's, and would take memory."""


def _digest(key: bytes) -> bytes:
    return _cached_digest(key) if len(key) <= MAX_CACHED_KEY else sha256(key).digest()


@lru_cache(1024)
def _cached_digest(key: bytes) -> bytes:
    """Computed once for those that come again and again. They are found by a hash that nobody outside can know."""
    return sha256(key).digest()


class Keyring:
    """The configured keys, kept as digests, and those of a store. Without any the server is open."""

    def __init__(self, keys: Iterable[str], stored: StoredKeys | None = None) -> None:
        """Raises: ConfigError for an empty key, which any client would match."""
        keys = tuple(keys)
        if not all(key.strip() for key in keys):
            raise ConfigError("An API key is empty; give --api-key a value, or leave it out for an open server.")
        digests = [sha256(key.encode()).digest() for key in keys]
        self._keys = {digest: _static_key(number, digest) for number, digest in enumerate(digests, 1)}
        self._stored = stored

    async def find(self, given: bytes | None) -> Key:
        """The key that the request shows, if it shows any; OPEN where the server needs none.

        Raises: AuthenticationFailed, whose message never holds the key; StoreUnavailable while stored keys are unknown.
        """
        if (key := self.find_static(given)) is not None:
            return key
        if self._stored is not None:
            await self._stored.refresh()
        if not self._keys and not (self._stored and self._stored.has_any):
            return OPEN
        if given is None:
            raise AuthenticationFailed(f"No API key was given. {_HOW}")
        stored = None
        if self._stored is not None:
            digest = _digest(given)
            stored = self._stored.find(digest)
            if stored is None:
                await self._stored.look_for_new()
                stored = self._stored.find(digest)
        if stored is None:
            raise AuthenticationFailed(f"The API key is not known here. {_HOW}")
        return stored

    async def of_owner(self, owner: str) -> Key:
        """The stored key on whose behalf this process works; OPEN where there is none.

        Raises: AuthenticationFailed when it is not good any more, StoreUnavailable.
        """
        if self._stored is None:
            return OPEN
        await self._stored.refresh()
        return self._stored.of_owner(owner) or OPEN

    def find_static(self, given: bytes | None) -> Key | None:
        """The key of the settings that the request shows; None where `find` has to look further."""
        if given is None or not self._keys:
            return None
        digest = _digest(given)
        # Every digest is compared, so the time says nothing about which one was close.
        matching = [key for known, key in self._keys.items() if compare_digest(digest, known)]
        return matching[0] if matching else None


class AdminDoor:
    """Lets those in who show the admin key."""

    def __init__(self, key: str | None) -> None:
        self._digest = sha256(key.encode()).digest() if key else None

    def check(self, given: bytes | None) -> None:
        """Raises: NotFound where there is no admin API, AuthenticationFailed without a key, PermissionDenied."""
        if self._digest is None:
            raise NotFound("The admin API is off; start the server with --admin-key (or LANGPORT_ADMIN_KEY) to use it.")
        if given is None:
            raise AuthenticationFailed("The admin API needs the admin key: send it as 'Authorization: Bearer KEY'.")
        if not compare_digest(sha256(given).digest(), self._digest):
            raise PermissionDenied("This key is not the admin key, which alone opens the admin API.")


def _static_key(number: int, digest: bytes) -> Key:
    """A key of the settings, which is as good as all others and has no name but its number there."""
    return Key(id=f"static-{number}", name=f"static-{number}", owner=sha256(b"owner " + digest).hexdigest())


def given_key(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The key that a request shows, in whichever header."""
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and (key := key.strip()):
        return key
    return next((key for name in _KEY_HEADERS if (key := headers.get(name, b"").strip())), None)
