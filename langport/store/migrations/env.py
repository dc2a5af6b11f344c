"""Alembic runs this file; the connection comes from `store.sql`, inside the transaction that it has begun."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
