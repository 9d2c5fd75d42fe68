"""The ledger is append-only.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from prevue.migrations.run import run_sql_file

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Refuse what would change it."""
    run_sql_file("0003_ledger.sql")


def downgrade() -> None:
    """An older version of Prevue works with this schema's additions as they are."""
    raise NotImplementedError("there is no way back; an older version needs a database of its own")
