"""Static keys: who may use the server."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from hashlib import sha256

from langport.errors import AuthenticationFailed, ConfigError
from langport.store.base import ANYONE

_KEY_HEADERS = (b"api-key", b"x-api-key")
"""Azure's clients' and Anthropic's."""
_HOW = "Send one of this server's keys as 'Authorization: Bearer KEY' (or 'api-key: KEY' or 'x-api-key: KEY')."


class Keyring:
    """The configured keys, kept as digests. Without any the server is open."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Raises: ConfigError for an empty key, which any client would match."""
        keys = tuple(keys)
        if not all(key.strip() for key in keys):
            raise ConfigError("An API key is empty; give --api-key a value, or leave it out for an open server.")
        self._digests = [sha256(key.encode()).digest() for key in keys]

    def owner(self, headers: Mapping[bytes, bytes]) -> str:
        """Whose the objects are that this request stores: a digest of its key; ANYONE where the server is open.

        Raises: AuthenticationFailed, whose message never holds the key.
        """
        if not self._digests:
            return ANYONE
        given = _given_key(headers)
        if given is None:
            raise AuthenticationFailed(f"No API key was given. {_HOW}")
        digest = sha256(given).digest()
        # Every digest is compared, so the time says nothing about which one was close.
        if not sum([hmac.compare_digest(digest, known) for known in self._digests]):
            raise AuthenticationFailed(f"The API key is not known here. {_HOW}")
        return sha256(b"owner " + digest).hexdigest()


def _given_key(headers: Mapping[bytes, bytes]) -> bytes | None:
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and key.strip():
        return key.strip()
    return next((key for name in _KEY_HEADERS if (key := headers.get(name, b"").strip())), None)
