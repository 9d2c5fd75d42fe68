"""The statestore in PostgreSQL, opened as one object that keeps all of the port's protocols."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prevue.clock import Clock, SystemClock
from prevue.statestore.port import (
    AlarmStore,
    Auditor,
    ClaimLimits,
    ClaimStore,
    CursorStore,
    DeadLetterStore,
    JanitorStore,
    LeaseStore,
    Outbox,
    PreviewReader,
    SweepStore,
    TokenStore,
)
from prevue.statestore.postgres.audit import PostgresAudit
from prevue.statestore.postgres.claims import PostgresClaims
from prevue.statestore.postgres.database import Database
from prevue.statestore.postgres.outbox import PostgresOutbox
from prevue.statestore.postgres.reader import PostgresReader


class PostgresStateStore(PostgresClaims, PostgresOutbox, PostgresReader, PostgresAudit):
    """Every protocol of the port."""

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
_janitor: type[JanitorStore] = PostgresStateStore
_leases: type[LeaseStore] = PostgresStateStore
_cursors: type[CursorStore] = PostgresStateStore
_tokens: type[TokenStore] = PostgresStateStore
_alarms: type[AlarmStore] = PostgresStateStore
_dead_letters: type[DeadLetterStore] = PostgresStateStore
_auditor: type[Auditor] = PostgresStateStore
