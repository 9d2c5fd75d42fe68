"""Cursors of the sweeper, previews that stand or expire, tokens after a restore.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from prevue.migrations.run import run_sql_file

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them."""
    run_sql_file("0002_sweeper.sql")


def downgrade() -> None:
    """An older version of Prevue works with this schema's additions as they are."""
    raise NotImplementedError("there is no way back; an older version needs a database of its own")
