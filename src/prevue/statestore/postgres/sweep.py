"""What the sweeper and the operator ask and mark, beside outbox and waiting requests: protocol section 6, in PostgreSQL."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, exists, func, insert, or_, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert

from prevue.model import Message, PreviewKey, PreviewState, RequestState, Source, decode_message
from prevue.statestore.port import RequestView, StandingPreview
from prevue.statestore.postgres.claims import NOW, START, order_of
from prevue.statestore.postgres.database import Database
from prevue.statestore.postgres.reader import request_view
from prevue.statestore.postgres.tables import cursor, lease, ledger, outbox, preview, request
from prevue.statestore.rules import STATUS, VERIFIED

_OPEN = (RequestState.WAITING.value, RequestState.CLAIMED.value)
# Written as the partial index is, so that the planner sees that it fits.
_STANDS = preview.c.state != PreviewState.DESTROYED.value


class PostgresSweep:
    """JanitorStore, LeaseStore, CursorStore, TokenStore, AlarmStore and DeadLetterStore."""

    _database: Database

    async def standing(self, *, after: PreviewKey | None = None, limit: int) -> list[StandingPreview]:
        """By the partial index, page after page."""
        key = tuple_(preview.c.github_host, preview.c.repository_id, preview.c.pr_number)
        statement = standing_columns().where(_STANDS)
        if after is not None:
            statement = statement.where(key > tuple_(*after, types=[column.type for column in key.clauses]))
        statement = statement.order_by(preview.c.github_host, preview.c.repository_id, preview.c.pr_number).limit(limit)
        return await self._standing_rows(statement)

    async def find(self, key: PreviewKey) -> StandingPreview | None:
        """By the primary key."""
        statement = standing_columns().where(
            preview.c.github_host == key.github_host,
            preview.c.repository_id == key.repository_id,
            preview.c.pr_number == key.pr_number,
        )
        rows = await self._standing_rows(statement)
        return rows[0] if rows else None

    async def expired(self, *, limit: int) -> list[StandingPreview]:
        """By their own partial index."""
        is_due = and_(preview.c.expires_at.is_not(None), _STANDS, preview.c.expires_at <= START)
        statement = standing_columns().where(is_due, _IS_IDLE).order_by(preview.c.expires_at).limit(limit)
        return await self._standing_rows(statement)

    async def _standing_rows(self, statement: Any) -> list[StandingPreview]:
        async with self._database.statement() as connection:
            return [standing_preview(row) for row in (await connection.execute(statement)).mappings()]

    async def is_registered(self, key: PreviewKey, source: Source, source_id: str) -> bool:
        """By the unique index."""
        async with self._database.statement() as connection:
            return bool(await connection.scalar(select(exists().where(_is(key, source, source_id)))))

    async def verify_again(self, key: PreviewKey, source: Source, source_id: str, *, written_at: datetime) -> None:
        """One statement; the ledger says when it was verified last. A time that has come moves: the verify that read it does not end it."""
        seen = exists().where(ledger.c.request_id == outbox.c.request_id, ledger.c.event == VERIFIED, ledger.c.at >= written_at)
        statement = (
            update(outbox)
            .where(_is(key, source, source_id), outbox.c.request_id == request.c.id, outbox.c.kind == STATUS)
            .where(outbox.c.sent_version >= outbox.c.version, ~seen)
            .values(verify_at=func.greatest(outbox.c.verify_at, NOW))
        )
        async with self._database.statement() as connection:
            await connection.execute(statement)

    async def acquire_lease(self, name: str, *, holder: str, seconds: float) -> bool:
        """One statement: taken where it is free, lapsed or ours."""
        row = upsert(lease).values(name=name, holder=holder, until=NOW + timedelta(seconds=seconds))
        taken = row.on_conflict_do_update(
            index_elements=["name"],
            set_={"holder": row.excluded.holder, "until": row.excluded.until, "token": lease.c.token + 1},
            where=or_(lease.c.holder == row.excluded.holder, lease.c.until <= NOW),
        ).returning(lease.c.token)
        async with self._database.statement() as connection:
            return (await connection.scalar(taken)) is not None

    async def release_lease(self, name: str, *, holder: str) -> None:
        """Only ours."""
        async with self._database.statement() as connection:
            await connection.execute(delete(lease).where(lease.c.name == name, lease.c.holder == holder))

    async def cursor(self, name: str) -> str | None:
        """One row."""
        async with self._database.statement() as connection:
            value: str | None = await connection.scalar(select(cursor.c.value).where(cursor.c.name == name))
        return value

    async def set_cursor(self, name: str, value: str) -> None:
        """One row; unchanged it is not written."""
        row = upsert(cursor).values(name=name, value=value, changed_at=NOW)
        statement = row.on_conflict_do_update(
            index_elements=["name"],
            set_={"value": row.excluded.value, "changed_at": row.excluded.changed_at},
            where=cursor.c.value != row.excluded.value,
        )
        async with self._database.statement() as connection:
            await connection.execute(statement)

    async def last_token(self) -> int:
        """From the sequence itself: it is ahead of every row."""
        async with self._database.statement() as connection:
            result = await connection.exec_driver_sql("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM claim_token")
            return int(result.scalar_one())

    async def raise_tokens(self, *, above: int) -> bool:
        """A function in the database: it keeps others out between the look and the step."""
        async with self._database.statement() as connection:
            result = await connection.exec_driver_sql("SELECT prevue_raise_tokens($1)", (above,))
            return bool(result.scalar_one())

    async def overdue(self, *, older_than_seconds: float, limit: int) -> list[RequestView]:
        """Open requests have partial indexes, so few rows are looked at."""
        statement = (
            select(request)
            .where(request.c.state.in_(_OPEN), request.c.registered_at <= NOW - timedelta(seconds=older_than_seconds))
            .order_by(request.c.registered_at, request.c.id)
            .limit(limit)
        )
        async with self._database.statement() as connection:
            return [request_view(row) for row in (await connection.execute(statement)).mappings()]

    async def dead_message(self, request_id: int) -> Message | None:
        """As it was first registered."""
        statement = select(request.c.message).where(request.c.id == request_id, request.c.state == RequestState.DEAD.value)
        async with self._database.statement() as connection:
            body = await connection.scalar(statement)
        return None if body is None else decode_message(body)

    async def settle_dead_letter(self, request_id: int, event: str) -> None:
        """A row of the ledger; the request stays as it ended."""
        async with self._database.statement() as connection:
            await connection.execute(insert(ledger).values(request_id=request_id, event=event))


def _is(key: PreviewKey, source: Source, source_id: str) -> ColumnElement[bool]:
    return and_(
        request.c.github_host == key.github_host,
        request.c.repository_id == key.repository_id,
        request.c.pr_number == key.pr_number,
        request.c.source == source.value,
        request.c.source_id == source_id,
    )


_IS_IDLE = and_(
    preview.c.lease_until <= NOW,
    preview.c.helm_deadline <= NOW,
    # A desired request that is not there (a restored database) is nobody's work either.
    or_(request.c.id.is_(None), request.c.state.not_in(_OPEN)),
)


def standing_columns(*more: Any) -> Any:
    """What `standing_preview` reads, and `more`."""
    return select(
        *more,
        preview.c.github_host,
        preview.c.repository_id,
        preview.c.pr_number,
        preview.c.repo,
        func.coalesce(request.c.installation_id, 0).label("installation_id"),
        preview.c.namespace,
        preview.c.state,
        preview.c.desired_at,
        preview.c.desired_rank,
        preview.c.desired_tie,
        _IS_IDLE.label("is_idle"),
        preview.c.live_request,
        preview.c.token,
    ).select_from(preview.outerjoin(request, request.c.id == preview.c.desired_request))


def standing_preview(row: Any) -> StandingPreview:
    """A row of `standing_columns`."""
    return StandingPreview(
        key=PreviewKey(row["github_host"], row["repository_id"], row["pr_number"]),
        repo=row["repo"],
        installation_id=row["installation_id"],
        namespace=row["namespace"],
        state=PreviewState(row["state"]),
        order=order_of(row["desired_at"], row["desired_rank"], row["desired_tie"]),
        is_idle=row["is_idle"],
        live_request=row["live_request"],
        token=row["token"],
    )
