"""Kept answers in Redis or Valkey, for all servers that name the same one; implements `cache.SharedStore`.

Each answer is one value that ends by itself; how much memory they take altogether is the store's own setting
(`maxmemory`, `maxmemory-policy allkeys-lru`). While the store is down the models are asked as if it were empty.
"""

from __future__ import annotations

import logging
from typing import cast

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from langport.errors import ConfigError
from langport.gateway.cache_answer import KeptAnswer
from langport.gateway.clock import Clock, LoopClock
from langport.settings.fields import hide_password

logger = logging.getLogger("langport.cache")

TIMEOUT_S = 0.5
"""Longest that a request waits for the store before it counts as down."""
RETRY_S = 1.0
"""After a failure the store is left alone so long."""
MAX_CONNECTIONS = 16
PREFIX = "langport:cache:1:"
"""The number changes with the form of the values."""

_decode = msgspec.msgpack.Decoder(KeptAnswer).decode
_encode = msgspec.msgpack.Encoder().encode


class SharedAnswers:
    """The answers under one prefix of one store."""

    def __init__(self, url: str, ttl_s: int, *, clock: Clock | None = None, prefix: str = PREFIX) -> None:
        """Raises: ConfigError for a URL that is none; nothing is contacted yet."""
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=MAX_CONNECTIONS,
                timeout=TIMEOUT_S,
                socket_timeout=TIMEOUT_S,
                socket_connect_timeout=TIMEOUT_S,
                retry=None,
            )
        except ValueError as error:
            raise ConfigError(
                f"--response-cache-store {hide_password(url)} is no address of a Redis or Valkey server: {error}."
            ) from None
        self._redis: Redis = Redis.from_pool(pool)
        self._ttl_s = ttl_s
        self._clock = clock or LoopClock()
        self._prefix = prefix
        self._down_until = 0.0
        self._is_down = False

    async def get(self, key: bytes) -> KeptAnswer | None:
        """See `SharedStore`."""
        if self._clock.now() < self._down_until:
            return None
        try:
            value = cast("bytes | None", await self._redis.get(self._prefix + key.hex()))
        except (RedisError, OSError) as error:
            self._fail(error)
            return None
        self._recover()
        try:
            return _decode(value) if value is not None else None
        except msgspec.DecodeError:
            logger.warning("A kept answer in the store cannot be read, and is made anew.")
            return None

    async def put(self, key: bytes, answer: KeptAnswer) -> None:
        """See `SharedStore`."""
        if self._clock.now() < self._down_until:
            return
        try:
            await self._redis.set(self._prefix + key.hex(), _encode(answer), ex=self._ttl_s)
        except (RedisError, OSError) as error:
            self._fail(error)
        else:
            self._recover()

    async def close(self) -> None:
        """See `SharedStore`."""
        await self._redis.aclose()

    def _fail(self, error: Exception) -> None:
        self._down_until = self._clock.now() + RETRY_S
        if not self._is_down:
            self._is_down = True
            logger.error("The store of kept answers cannot be used (%s); until it can, models are asked.", error)

    def _recover(self) -> None:
        if self._is_down:
            self._is_down = False
            logger.info("The store of kept answers is used again.")
