"""What the driver reads of the statestore, by SQL of its own, through outages of the database that it caused itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg
from tests.chaos.records import LeaseSeen, LedgerRow, PullKey, RequestRow

AGAIN_SECONDS = 0.1
OUTAGE_SECONDS_MAX = 60.0
OUTAGES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)

_CLAIMS = """
SELECT p.repository_id, p.pr_number, p.token, p.holder, r.action, r.attempts, g.at AS granted_at, b.at AS began_at,
       greatest(p.lease_until, p.helm_deadline) AS until, p.lease_until > clock_timestamp() AS is_held, clock_timestamp() AS now
  FROM preview p JOIN request r ON r.id = p.holder_request
  LEFT JOIN ledger g ON g.request_id = r.id AND g.token = p.token AND g.event = 'granted'
  LEFT JOIN ledger b ON b.request_id = r.id AND b.token = p.token AND b.event = 'began'
 WHERE p.holder IS NOT NULL
"""
_REQUESTS = """
SELECT id, repository_id, pr_number, source, source_id, action, commit_sha, state, attempts, registered_at, finished_at
  FROM request ORDER BY id
"""
_LEDGER = "SELECT request_id, token, event, at, coalesce(details ->> 'outcome', '') AS outcome FROM ledger ORDER BY id"
_UNQUIET = """
SELECT (SELECT count(*) FROM request WHERE state IN ('waiting', 'claimed'))
     + (SELECT count(*) FROM outbox WHERE sent_version < version OR verify_at IS NOT NULL)
"""
_WAITS_IN_FINISH = """
SELECT count(*) FROM pg_stat_activity
 WHERE wait_event_type = 'Lock' AND application_name LIKE 'prevue%' AND query LIKE 'SELECT preview.state%FOR UPDATE%'
"""
_LOCK = "SELECT 1 FROM preview WHERE repository_id = $1 AND pr_number = $2 AND token = $3 FOR UPDATE"


@dataclass(frozen=True, kw_only=True)
class ClaimRow:
    """A preview that somebody holds, or held when it was killed."""

    pull: PullKey
    token: int
    holder_pid: int
    action: str
    attempts: int
    granted_at: datetime
    began_at: datetime | None
    until: datetime
    """Nobody else may have it before."""
    is_held: bool
    """Its lease has not run out: one that went on after a long stop has lost it, though its Helm's deadline still protects it."""
    now: datetime

    @property
    def lease_seen(self) -> LeaseSeen:
        """For the judge."""
        return LeaseSeen(pull=self.pull, token=self.token, until=self.until)


class StoreView:
    """One connection at a time, made again when it is lost."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Any = None
        self._turn = asyncio.Lock()

    async def claims(self) -> list[ClaimRow]:
        """Of every preview that has a holder."""
        return [
            ClaimRow(
                pull=PullKey(row["repository_id"], row["pr_number"]),
                token=row["token"],
                holder_pid=int(row["holder"].rsplit("-", 2)[1]),
                action=row["action"],
                attempts=row["attempts"],
                granted_at=row["granted_at"],
                began_at=row["began_at"],
                until=row["until"],
                is_held=row["is_held"],
                now=row["now"],
            )
            for row in await self._rows(_CLAIMS)
            if row["granted_at"] is not None
        ]

    async def requests(self) -> list[RequestRow]:
        """All."""
        return [
            RequestRow(
                id=row["id"],
                pull=PullKey(row["repository_id"], row["pr_number"]),
                source=row["source"],
                source_id=row["source_id"],
                action=row["action"],
                sha=row["commit_sha"],
                state=row["state"],
                attempts=row["attempts"],
                registered_at=row["registered_at"],
                finished_at=row["finished_at"],
            )
            for row in await self._rows(_REQUESTS)
        ]

    async def ledger(self) -> list[LedgerRow]:
        """All, in the order in which they were written."""
        return [LedgerRow(**dict(row)) for row in await self._rows(_LEDGER)]

    async def open_work(self) -> int:
        """Requests that are open, and comments that are not written and verified."""
        ((count,),) = await self._rows(_UNQUIET)
        return int(count)

    @asynccontextmanager
    async def lock(self, claim: ClaimRow) -> AsyncIterator[None]:
        """Hold the preview's row lock inside the block, as an operator's session may.

        Raises:
            OSError, asyncpg.PostgresError: the database is down.
        """
        connection = await asyncpg.connect(self._url, timeout=2)
        try:
            async with connection.transaction():
                await connection.execute(_LOCK, *claim.pull, claim.token)
                yield
        finally:
            connection.terminate()

    async def waits_in_finish(self) -> bool:
        """Whether a finish waits for a preview's row."""
        ((count,),) = await self._rows(_WAITS_IN_FINISH)
        return bool(count)

    async def close(self) -> None:
        """Drop the connection."""
        if self._connection is not None:
            self._connection.terminate()

    async def _rows(self, sql: str) -> list[Any]:
        give_up_at = asyncio.get_running_loop().time() + OUTAGE_SECONDS_MAX
        while True:
            try:
                async with self._turn:
                    if self._connection is None or self._connection.is_closed():
                        self._connection = await asyncpg.connect(self._url, timeout=2, command_timeout=5)
                    return list(await self._connection.fetch(sql))
            except OUTAGES:
                if self._connection is not None:
                    self._connection.terminate()
                    self._connection = None
                if asyncio.get_running_loop().time() >= give_up_at:
                    raise
                await asyncio.sleep(AGAIN_SECONDS)
