"""What the parts of the statestore's fake share: the disk, its time, and rows by what they are about."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

from prevue.clock import Clock, SystemClock
from prevue.errors import StateStoreUnavailable
from prevue.model import PreviewKey
from prevue.statestore.port import ClaimLimits
from prevue.statestore.rules import storable
from prevue.testing.statestore_disk import LedgerRow, PreviewRow, RequestRow, StateStoreDisk


class FakeStore:
    """One process's view of a disk."""

    def __init__(
        self,
        disk: StateStoreDisk | None = None,
        *,
        limits: ClaimLimits | None = None,
        cluster_name: str = "default",
        clock: Clock | None = None,
    ) -> None:
        self.disk = disk if disk is not None else StateStoreDisk()
        self.limits = limits if limits is not None else ClaimLimits()
        self.cluster_name = cluster_name
        self.clock: Clock = clock if clock is not None else SystemClock()

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass on the database's clock, and on no other."""
        self.disk.offset += timedelta(seconds=seconds)

    async def _begin_transaction(self) -> datetime:
        """The database's time; other tasks may run before the transaction, none within it."""
        await asyncio.sleep(0)
        if self.disk.outage:
            raise StateStoreUnavailable("the fake statestore is down")
        return self.clock.now() + self.disk.offset

    def _record(self, request_id: int, token: int | None, event: str, now: datetime, **details: str | float | bool) -> None:
        kept = {name: storable(value) if isinstance(value, str) else value for name, value in details.items()}
        self.disk.ledger.append(LedgerRow(request_id, token, event, now, kept))

    def _requests_of(self, key: PreviewKey) -> list[RequestRow]:
        return [row for row in self.disk.requests.values() if row.message.key == key]

    def _find(self, repo: str, pr_number: int) -> PreviewRow | None:
        rows = [row for row in self.disk.previews.values() if row.repo.lower() == repo.lower() and row.key.pr_number == pr_number]
        return max(rows, key=lambda row: row.changed_at, default=None)
