"""Static keys: who may use the server."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from hashlib import sha256

from langport.errors import AuthenticationFailed, ConfigError
from langport.gateway.keys import OPEN, Key

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
        digests = [sha256(key.encode()).digest() for key in keys]
        self._keys = {digest: _static_key(number, digest) for number, digest in enumerate(digests, 1)}

    def find(self, headers: Mapping[bytes, bytes]) -> Key:
        """The key that the request shows; OPEN where the server needs none.

        Raises: AuthenticationFailed, whose message never holds the key.
        """
        if not self._keys:
            return OPEN
        given = _given_key(headers)
        if given is None:
            raise AuthenticationFailed(f"No API key was given. {_HOW}")
        digest = sha256(given).digest()
        # Every digest is compared, so the time says nothing about which one was close.
        matching = [key for known, key in self._keys.items() if hmac.compare_digest(digest, known)]
        if not matching:
            raise AuthenticationFailed(f"The API key is not known here. {_HOW}")
        return matching[0]


def _static_key(number: int, digest: bytes) -> Key:
    """A key of the settings, which is as good as all others and has no name but its number there."""
    return Key(id=f"static-{number}", name=f"static-{number}", owner=sha256(b"owner " + digest).hexdigest())


def _given_key(headers: Mapping[bytes, bytes]) -> bytes | None:
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and key.strip():
        return key.strip()
    return next((key for name in _KEY_HEADERS if (key := headers.get(name, b"").strip())), None)
