"""The statestore's PostgreSQL backend."""

from prevue.statestore.postgres.store import PostgresStateStore

__all__ = ["PostgresStateStore"]
