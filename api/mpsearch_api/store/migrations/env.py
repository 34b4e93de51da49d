"""Runs migrations on the connection, and in the transaction, that the caller holds."""

from __future__ import annotations

from alembic import context

from mpsearch_api.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite cannot alter most things in place; Alembic then copies the table.
    render_as_batch=True,
)
context.run_migrations()
