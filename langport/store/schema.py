"""The tables, as the newest migration leaves them. A change here needs a file in `migrations/versions`, and HEAD."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, String, Table

HEAD = "0001"
"""The newest migration."""

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
