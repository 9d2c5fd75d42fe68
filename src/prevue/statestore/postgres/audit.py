"""One preview with all that is stored about it, for `prevue verify`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, func, select, tuple_

from prevue.model import Live, PreviewKey, RequestState, decode_message
from prevue.statestore.port import AuditCase, AuditEvent, AuditRequest
from prevue.statestore.postgres.claims import NOW
from prevue.statestore.postgres.database import Database
from prevue.statestore.postgres.sweep import standing_columns, standing_preview
from prevue.statestore.postgres.tables import ledger, outbox, preview, request
from prevue.statestore.rules import STATUS


class PostgresAudit:
    """Auditor."""

    _database: Database

    async def audit_keys(self, *, after: PreviewKey | None = None, limit: int) -> list[PreviewKey]:
        """By the primary key, page after page."""
        columns = (preview.c.github_host, preview.c.repository_id, preview.c.pr_number)
        statement = select(*columns).order_by(*columns).limit(limit)
        if after is not None:
            statement = statement.where(tuple_(*columns) > tuple_(*after, types=[column.type for column in columns]))
        async with self._database.statement() as connection:
            return [PreviewKey(*row) for row in await connection.execute(statement)]

    async def audit(self, key: PreviewKey) -> AuditCase | None:
        """Under the preview's row lock, which every writer takes first: milliseconds, and a heartbeat waits so long at most."""
        mine = (key.github_host, key.repository_id, key.pr_number)
        is_preview = and_(preview.c.github_host == mine[0], preview.c.repository_id == mine[1], preview.c.pr_number == mine[2])
        is_request = and_(request.c.github_host == mine[0], request.c.repository_id == mine[1], request.c.pr_number == mine[2])
        async with self._database.transaction() as connection:
            locked = await connection.scalar(select(preview.c.pr_number).where(is_preview).with_for_update(read=True))
            if locked is None:
                return None
            row = (await connection.execute(_case().where(is_preview))).mappings().one()
            requests = list((await connection.execute(_requests().where(is_request).order_by(request.c.id))).mappings())
            events = list(
                (
                    await connection.execute(
                        select(ledger.c.request_id, ledger.c.token, ledger.c.event, _STATE)
                        .join(request, request.c.id == ledger.c.request_id)
                        .where(is_request)
                        .order_by(ledger.c.id)
                    )
                ).mappings()
            )
        live = None
        if row["live_sha"] is not None:
            live = Live(sha=row["live_sha"], digest=row["live_digest"], request_id=row["live_request"], token=row["live_token"])
        return AuditCase(
            preview=standing_preview(row),
            live=live,
            url=row["url"],
            release=row["releases"][0],
            requests=[_request(one) for one in requests],
            events=[
                AuditEvent(request_id=one["request_id"], token=one["token"], event=one["event"], state=one["state"] or "") for one in events
            ],
        )


_STATE = func.coalesce(ledger.c.details["state"].astext, ledger.c.details["outcome"].astext).label("state")


def _case() -> Any:
    more = (preview.c.live_sha, preview.c.live_digest, preview.c.live_token, preview.c.url, preview.c.releases)
    return standing_columns(*more)


def _requests() -> Any:
    since = func.coalesce(request.c.finished_at, request.c.registered_at)
    return select(
        request.c.id,
        request.c.message,
        request.c.state,
        request.c.reason,
        request.c.token,
        func.extract("epoch", NOW - since).label("age_seconds"),
        outbox.c.version,
        outbox.c.sent_version,
        outbox.c.verify_at,
    ).select_from(request.outerjoin(outbox, and_(outbox.c.request_id == request.c.id, outbox.c.kind == STATUS)))


def _request(row: Any) -> AuditRequest:
    is_sent = row["version"] is not None and row["sent_version"] == row["version"]
    return AuditRequest(
        id=row["id"],
        message=decode_message(row["message"]),
        state=RequestState(row["state"]),
        reason=row["reason"],
        token=row["token"],
        age_seconds=float(row["age_seconds"]),
        told_version=row["version"],
        is_sent=is_sent,
        is_verified=is_sent and row["verify_at"] is None,
    )
