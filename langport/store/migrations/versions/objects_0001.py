"""The first tables: objects, their metadata, their items."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "objects",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("id", sa.String(96), nullable=False, unique=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, index=True),
        sa.Column("model", sa.String(512)),
        sa.Column("status", sa.String(32)),
        sa.Column("tag", sa.String(64)),
        sa.Column("parent", sa.String(96)),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_objects_owner", "objects", ["owner", "kind", "number"])
    op.create_index("ix_objects_status", "objects", ["kind", "status"])
    op.create_table(
        "object_metadata",
        sa.Column("object_id", sa.String(96), primary_key=True),
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("value", sa.String(512), nullable=False),
    )
    op.create_index("ix_object_metadata_pair", "object_metadata", ["key", "value"])
    op.create_table(
        "items",
        sa.Column("object_id", sa.String(96), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("tag", sa.String(64)),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_items_id", "items", ["object_id", "id"])
    op.create_index("ix_items_tag", "items", ["object_id", "tag", "position"])
