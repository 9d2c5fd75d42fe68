"""The statestore in PostgreSQL, opened as one object that keeps all four of the port's protocols."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prevue.clock import Clock, SystemClock
from prevue.statestore.port import ClaimLimits, ClaimStore, Outbox, PreviewReader, SweepStore
from prevue.statestore.postgres.claims import PostgresClaims
from prevue.statestore.postgres.database import Database
from prevue.statestore.postgres.outbox import PostgresOutbox
from prevue.statestore.postgres.reader import PostgresReader


class PostgresStateStore(PostgresClaims, PostgresOutbox, PostgresReader):
    """ClaimStore, Outbox, SweepStore and PreviewReader."""

    def __init__(self, database: Database, limits: ClaimLimits, cluster_name: str, clock: Clock) -> None:
        self._database = database
        self._limits = limits
        self._cluster_name = cluster_name
        self._clock = clock

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, limits: ClaimLimits | None = None, cluster_name: str = "default", *, clock: Clock | None = None
    ) -> AsyncIterator[PostgresStateStore]:
        """A store; it connects when it is first used. `prevue.postgres.check_schema` is the caller's first step."""
        limits = limits if limits is not None else ClaimLimits()
        async with Database.open(url, lease_seconds=limits.lease_seconds) as database:
            yield cls(database, limits, cluster_name, clock if clock is not None else SystemClock())


_claims: type[ClaimStore] = PostgresStateStore
_outbox: type[Outbox] = PostgresStateStore
_sweep: type[SweepStore] = PostgresStateStore
_reader: type[PreviewReader] = PostgresStateStore
