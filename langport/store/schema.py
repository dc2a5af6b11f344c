"""The tables, as the newest migration leaves them. A change here needs a file in `migrations/versions`, and HEAD."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, MetaData, String, Table

HEAD = "0002"
"""The newest migration."""

KEY_COUNTER = "keys"
"""The name under which changes of keys are counted."""

metadata = MetaData()

objects = Table(
    "objects",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("kind", String(32), nullable=False),
    Column("id", String(96), nullable=False, unique=True),
    Column("owner", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, index=True),
    Column("model", String(512)),
    Column("status", String(32)),
    Column("tag", String(64)),
    Column("parent", String(96)),
    Column("body", LargeBinary, nullable=False),
    Index("ix_objects_owner", "owner", "kind", "number"),
    Index("ix_objects_status", "kind", "status"),
    sqlite_autoincrement=True,
)
"""`number` gives the order of lists; it is never used twice."""

object_metadata = Table(
    "object_metadata",
    metadata,
    Column("object_id", String(96), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("value", String(512), nullable=False),
    Index("ix_object_metadata_pair", "key", "value"),
)

items = Table(
    "items",
    metadata,
    Column("object_id", String(96), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("id", String(128), nullable=False),
    Column("tag", String(64)),
    Column("body", LargeBinary, nullable=False),
    Index("ix_items_id", "object_id", "id"),
    Index("ix_items_tag", "object_id", "tag", "position"),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(256), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("hint", String(16), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("previous_digest", LargeBinary(32)),
    Column("previous_until", BigInteger),
    Column("body", LargeBinary, nullable=False),
    Column("version", BigInteger, nullable=False, index=True),
)

counters = Table(
    "counters",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

requests = Table(
    "requests",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False, index=True),
    Column("request_id", String(128), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("model", String(512), nullable=False),
    Column("upstream", String(512), nullable=False),
    Column("path", String(128), nullable=False),
    Column("status", Integer, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("is_estimated", Boolean, nullable=False),
    Column("cost_nano", BigInteger, nullable=False),
    Column("duration_ms", BigInteger, nullable=False),
    Index("ix_requests_key", "key_id", "number"),
)
"""What each request took; removed after the time that stored objects are kept."""

usage_days = Table(
    "usage_days",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("key_id", String(64), primary_key=True),
    Column("model", String(512), primary_key=True),
    Column("upstream", String(512), primary_key=True),
    Column("num_requests", BigInteger, nullable=False),
    Column("num_failed", BigInteger, nullable=False),
    Column("num_estimated", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cost_nano", BigInteger, nullable=False),
    Index("ix_usage_days_key", "key_id", "day"),
)
"""The sums of the same, which stay."""
