"""Alembic's entry: the caller (`prevue.migrations.run`) brings the connection, inside its own transaction."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], transaction_per_migration=False)
with context.begin_transaction():
    context.run_migrations()
