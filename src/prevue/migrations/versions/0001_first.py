"""Queue, statestore and their functions.

Revision ID: 0001
Revises: none
"""

from __future__ import annotations

from prevue.migrations.run import run_sql_file

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make everything."""
    run_sql_file("0001_tables.sql")
    run_sql_file("0001_functions.sql")


def downgrade() -> None:
    """There is nothing before it."""
    raise NotImplementedError("drop the database instead")
