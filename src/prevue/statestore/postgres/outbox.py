"""What is still to be said on pull requests, and what the sweeper asks: protocol sections 5 and 6, in PostgreSQL."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, insert, select, tuple_, union, update

from prevue.model import Message, Notice, RequestState, decode_message
from prevue.statestore.port import ClaimLimits, OutboxItem
from prevue.statestore.postgres.claims import NOW, START
from prevue.statestore.postgres.database import Database
from prevue.statestore.postgres.sweep import PostgresSweep
from prevue.statestore.postgres.tables import ledger, outbox, preview, request
from prevue.statestore.rules import VERIFIED, storable

_OPEN = (RequestState.WAITING.value, RequestState.CLAIMED.value)
# Written as the partial indexes are, so that the planner sees that they fit.
_IS_TO_SEND = outbox.c.sent_version < outbox.c.version
_IS_TO_VERIFY = and_(outbox.c.sent_version == outbox.c.version, outbox.c.verify_at.is_not(None))
_other = request.alias("other")


class PostgresOutbox(PostgresSweep):
    """Outbox and SweepStore."""

    _database: Database
    _limits: ClaimLimits

    async def due_installations(self) -> list[int]:
        """Both partial indexes, from their oldest ends."""
        statement = union(
            select(outbox.c.installation_id).where(_IS_TO_SEND, outbox.c.due_at <= START),
            select(outbox.c.installation_id).where(_IS_TO_VERIFY, outbox.c.verify_at <= START),
        )
        async with self._database.statement() as connection:
            return sorted((await connection.execute(statement)).scalars())

    async def seconds_until_due(self) -> float | None:
        """The ends of the two indexes."""
        next_at = func.least(
            select(func.min(outbox.c.due_at)).where(_IS_TO_SEND).scalar_subquery(),
            select(func.min(outbox.c.verify_at)).where(_IS_TO_VERIFY).scalar_subquery(),
        )
        async with self._database.statement() as connection:
            seconds = await connection.scalar(select(func.extract("epoch", next_at - NOW)))
        return None if seconds is None else max(0.0, float(seconds))

    async def acquire_lane(self, installation_id: int, *, holder: str, seconds: float) -> bool:
        """A lease of that name."""
        return await self.acquire_lease(_lane(installation_id), holder=holder, seconds=seconds)

    async def release_lane(self, installation_id: int, *, holder: str) -> None:
        """Only ours."""
        await self.release_lease(_lane(installation_id), holder=holder)

    async def due(self, installation_id: int, *, limit: int) -> list[OutboxItem]:
        """Each row with its request as it is now, in one snapshot: the version that is reported sent is that of the text."""
        mine = outbox.c.installation_id == installation_id
        to_send = _items(
            [_IS_TO_SEND, outbox.c.due_at <= START, mine], [request.c.state.in_(_OPEN), outbox.c.due_at, outbox.c.request_id], limit
        )
        to_verify = [_IS_TO_VERIFY, outbox.c.verify_at <= START, mine]
        async with self._database.statement() as connection:
            rows = list((await connection.execute(to_send)).mappings())
            items = [_item(row, is_verify=False) for row in rows]
            if len(rows) < limit:
                verify = _items(to_verify, [outbox.c.verify_at, outbox.c.request_id], limit - len(rows))
                rows = list((await connection.execute(verify)).mappings())
                items += [_item(row, is_verify=True) for row in rows]
        return items

    async def reserve_write(self, installation_id: int, *, per_minute: int, per_hour: int) -> float:
        """A function in the database: counting and inserting are one step under an advisory lock."""
        async with self._database.statement() as connection:
            result = await connection.exec_driver_sql("SELECT prevue_reserve_write($1, $2, $3)", (installation_id, per_minute, per_hour))
            return float(result.scalar_one())

    async def sent(self, item: OutboxItem, *, comment_id: int) -> None:
        """Only upwards: a drainer that was overtaken marks nothing. What was told stands in the ledger, once a version."""
        values: dict[str, Any] = {"comment_id": comment_id, "attempts": 0, "error": ""}
        statement = update(outbox).where(_row(item))
        if item.is_verify:
            statement = statement.where(outbox.c.version == item.version, outbox.c.verify_at == item.verify_at)
            statement = statement.where(_IS_TO_VERIFY).values(**values, verify_at=None)
        else:
            verify_at = NOW + timedelta(seconds=self._limits.verify_after_seconds)
            statement = statement.where(outbox.c.sent_version < item.version)
            statement = statement.values(**values, sent_version=item.version, verify_at=verify_at)
        async with self._database.transaction() as connection:
            marked = (await connection.execute(statement)).rowcount
            if marked:
                event = VERIFIED if item.is_verify else "comment_written"
                details = {"comment_id": comment_id, "text": item.notice.state.value, "version": item.version}
                await connection.execute(insert(ledger).values(request_id=item.notice.request_id, event=event, details=details))

    async def postpone(self, item: OutboxItem, *, delay: float, error: str) -> None:
        """A newer version is not held back by the failure of an older one."""
        later = NOW + timedelta(seconds=delay)
        column = "verify_at" if item.is_verify else "due_at"
        statement = (
            update(outbox)
            .where(_row(item), outbox.c.version == item.version)
            .values({column: later, "attempts": outbox.c.attempts + 1, "error": storable(error)})
        )
        async with self._database.statement() as connection:
            await connection.execute(statement)

    async def unheld(self, *, quiet_seconds: float, limit: int) -> list[Message]:
        """Protocol rule 1. Rows that somebody is working on are passed over: they are not quiet, and waiting for them could deadlock."""
        chosen = (
            select(request.c.id)
            .join(preview, _same_preview(preview, request))
            .where(
                request.c.state.in_(_OPEN),
                request.c.not_before <= NOW,
                request.c.sent_at <= START - timedelta(seconds=quiet_seconds),
                preview.c.lease_until <= NOW,
                preview.c.helm_deadline <= NOW,
            )
            .order_by(request.c.sent_at, request.c.id)
            .limit(limit)
            .with_for_update(of=request, skip_locked=True)
            .cte("chosen")
        )
        statement = update(request).where(request.c.id == chosen.c.id).values(sent_at=NOW).returning(request.c.id, request.c.message)
        async with self._database.statement() as connection:
            rows = list(await connection.execute(statement))
        return [decode_message(body) for _, body in sorted(rows)]


def _lane(installation_id: int) -> str:
    return f"outbox/{installation_id}"


def _row(item: OutboxItem) -> ColumnElement[bool]:
    return and_(outbox.c.request_id == item.notice.request_id, outbox.c.kind == item.kind)


def _same_preview(one: Any, other: Any) -> ColumnElement[bool]:
    return and_(
        one.c.github_host == other.c.github_host, one.c.repository_id == other.c.repository_id, one.c.pr_number == other.c.pr_number
    )


# The one that was desired when the request ended: what is desired now may have come later, and a comment that follows it never stays.
_newer_sha = (
    select(_other.c.commit_sha)
    .where(
        _same_preview(_other, request),
        tuple_(_other.c.at, _other.c.rank, _other.c.tie) > tuple_(request.c.at, request.c.rank, request.c.tie),
        _other.c.registered_at <= request.c.finished_at,
    )
    .order_by(_other.c.at.desc(), _other.c.rank.desc(), _other.c.tie.desc(), _other.c.id)
    .limit(1)
    .correlate(request)
    .scalar_subquery()
)


def _items(conditions: list[ColumnElement[bool]], order: list[ColumnElement[Any]], limit: int) -> Any:
    """The first `limit` rows in that order, each with its request; only for these is the newer request looked for that took over."""
    place = func.row_number().over(order_by=order).label("place")
    chosen = (
        select(outbox.c.request_id, outbox.c.kind, outbox.c.version, outbox.c.comment_id, outbox.c.verify_at, place)
        .join(request, request.c.id == outbox.c.request_id)
        .where(*conditions)
        .order_by(*order)
        .limit(limit)
        .subquery()
    )
    return (
        select(
            chosen.c.kind,
            chosen.c.version,
            chosen.c.comment_id.label("known_comment_id"),
            chosen.c.verify_at,
            request.c.id,
            request.c.message,
            request.c.state,
            request.c.attempts,
            request.c.reason,
            request.c.error,
            request.c.url,
            request.c.registered_at,
            request.c.finished_at,
            case((request.c.state == RequestState.SUPERSEDED.value, _newer_sha)).label("newer_sha"),
        )
        .select_from(chosen)
        .join(request, request.c.id == chosen.c.request_id)
        .order_by(chosen.c.place)
    )


def _item(row: Any, *, is_verify: bool) -> OutboxItem:
    message = decode_message(row["message"])
    notice = Notice(
        request_id=row["id"],
        key=message.key,
        repo=message.repo,
        installation_id=message.installation_id,
        source=message.effective_source,
        source_id=message.effective_source_id,
        action=message.action,
        comment_id=message.comment_id,
        commit_sha=message.commit_sha,
        requested_by=message.requested_by,
        state=RequestState(row["state"]),
        attempts=row["attempts"],
        reason=row["reason"],
        error=row["error"],
        url=row["url"],
        registered_at=row["registered_at"],
        finished_at=row["finished_at"],
        superseded_by_sha=row["newer_sha"] or "",
    )
    return OutboxItem(
        notice=notice,
        kind=row["kind"],
        version=row["version"],
        known_comment_id=row["known_comment_id"],
        is_verify=is_verify,
        verify_at=row["verify_at"],
    )
