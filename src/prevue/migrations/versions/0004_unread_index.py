"""An index that nothing reads goes.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from prevue.migrations.run import run_sql_file

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Drop it."""
    run_sql_file("0004_unread_index.sql")


def downgrade() -> None:
    """An older version of Prevue works without the index, too."""
    raise NotImplementedError("there is no way back; an older version needs a database of its own")
