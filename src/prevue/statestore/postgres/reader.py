"""Previews, requests, dead letters and the ledger for people: read-only, one snapshot a call."""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, exists, func, select, true

from prevue.model import RequestState, decode_message
from prevue.statestore.port import PreviewView, RequestView
from prevue.statestore.postgres.database import Database
from prevue.statestore.postgres.tables import ledger, preview, request
from prevue.statestore.rules import SETTLED

REQUESTS_MAX = 100
"""Requests of one preview that are shown."""


class PostgresReader:
    """PreviewReader."""

    _database: Database

    async def previews(self, *, repo: str | None = None, limit: int = 100) -> list[PreviewView]:
        """Newest change first. Sorted, not indexed: an index on the time of change would cost every claim more than this costs people."""
        chosen = select(preview).order_by(preview.c.changed_at.desc()).limit(limit)
        if repo is not None:
            chosen = chosen.where(func.lower(preview.c.repo) == repo.lower())
        shown = chosen.subquery()
        newest = select(request).where(_same_preview(shown)).order_by(*_newest_first()).limit(1).lateral("newest")
        statement = select(shown, *_prefixed(newest)).select_from(shown).join(newest, true()).order_by(shown.c.changed_at.desc())
        async with self._database.statement() as connection:
            rows = list((await connection.execute(statement)).mappings())
        return [_preview_view(row, [request_view(row, "newest_")]) for row in rows]

    async def preview(self, repo: str, pr_number: int) -> PreviewView | None:
        """The one that changed last, should two repositories have borne that name."""
        async with self._database.statement() as connection:
            found = (await connection.execute(_find(repo, pr_number))).mappings().one_or_none()
            if found is None:
                return None
            statement = (
                select(request)
                .where(
                    request.c.github_host == found["github_host"],
                    request.c.repository_id == found["repository_id"],
                    request.c.pr_number == found["pr_number"],
                )
                .order_by(*_newest_first())
                .limit(REQUESTS_MAX)
            )
            requests = [request_view(row) for row in (await connection.execute(statement)).mappings()]
        return _preview_view(found, requests)

    async def dead_letters(self, *, limit: int = 100) -> list[RequestView]:
        """Newest first, by their own partial index."""
        is_settled = exists().where(ledger.c.request_id == request.c.id, ledger.c.event.in_(SETTLED))
        statement = (
            select(request)
            .where(request.c.state == RequestState.DEAD.value, ~is_settled)
            .order_by(request.c.finished_at.desc(), request.c.id.desc())
            .limit(limit)
        )
        async with self._database.statement() as connection:
            return [request_view(row) for row in (await connection.execute(statement)).mappings()]

    async def dead_letter(self, request_id: int) -> RequestView | None:
        """By id."""
        statement = select(request).where(request.c.id == request_id, request.c.state == RequestState.DEAD.value)
        async with self._database.statement() as connection:
            row = (await connection.execute(statement)).mappings().one_or_none()
        return None if row is None else request_view(row)

    async def ledger(self, repo: str, pr_number: int) -> list[dict[str, str | int | float | bool | None]]:
        """Details first, so that no detail hides a column."""
        found = _find(repo, pr_number).subquery()
        statement = (
            select(ledger).join(request, request.c.id == ledger.c.request_id).join(found, _same_preview(found)).order_by(ledger.c.id)
        )
        async with self._database.statement() as connection:
            rows = list((await connection.execute(statement)).mappings())
        return [
            {
                **row["details"],
                "at": row["at"].isoformat(),
                "request_id": row["request_id"],
                "token": row["token"],
                "event": row["event"],
            }
            for row in rows
        ]


def _find(repo: str, pr_number: int) -> Any:
    return (
        select(preview)
        .where(func.lower(preview.c.repo) == repo.lower(), preview.c.pr_number == pr_number)
        .order_by(preview.c.changed_at.desc())
        .limit(1)
    )


def _same_preview(table: Any) -> Any:
    return and_(
        request.c.github_host == table.c.github_host,
        request.c.repository_id == table.c.repository_id,
        request.c.pr_number == table.c.pr_number,
    )


def _newest_first() -> list[Any]:
    return [request.c.at.desc(), request.c.rank.desc(), request.c.tie.desc(), request.c.id.desc()]


def _prefixed(table: Any) -> list[Any]:
    return [column.label(f"newest_{column.name}") for column in table.c]


def request_view(row: Any, prefix: str = "") -> RequestView:
    """A row of `request`, its columns perhaps with a prefix."""
    values = {name: row[prefix + name] for name in RequestView.__struct_fields__ if name != "delivery_id"}
    return RequestView(delivery_id=decode_message(row[prefix + "message"]).delivery_id, **values)


def _preview_view(row: Any, requests: list[RequestView]) -> PreviewView:
    newest = requests[0]
    return PreviewView(
        repo=row["repo"],
        pr_number=row["pr_number"],
        state=row["state"],
        commit_sha=row["live_sha"] or newest.commit_sha,
        url=row["url"],
        namespace=row["namespace"],
        release=row["releases"][0],
        token=row["token"],
        attempts=newest.attempts,
        error=newest.error,
        repository_id=row["repository_id"],
        github_host=row["github_host"],
        cluster=row["cluster"],
        requests=requests,
    )
