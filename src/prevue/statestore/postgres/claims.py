"""Register, claim and every write under the claim: the transactions of protocol section 2, in PostgreSQL.

Lock order everywhere: preview, request, outbox. T1 is a function in the database (`migrations/sql/0001_functions.sql`): measured on one
machine (PostgreSQL 18, commit to disk) it took 0.7 ms, the same statements one by one 1.8 ms from the bare driver and 2.9 from SQLAlchemy,
the rest being round trips made under the preview's row lock. What happens once a claim stands here, statement by statement.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, func, insert, literal_column, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from prevue.clock import Clock
from prevue.errors import StaleClaim
from prevue.lifecycle import Finish, LiveAfter, preview_step
from prevue.model import (
    Claim,
    Live,
    Message,
    Order,
    PreviewKey,
    PreviewState,
    RequestState,
    decode_message,
    encode_message,
    preview_namespace,
    release_name,
)
from prevue.statestore.port import Began, ClaimLimits, Dead, Done, Granted, InProgress, Later, NewerDesired, Superseded, Verdict
from prevue.statestore.postgres.database import Database
from prevue.statestore.postgres.tables import ledger, outbox, preview, request
from prevue.statestore.rules import STATUS, is_told, storable

NEVER: ColumnElement[Any] = literal_column("'-infinity'::timestamptz")
NOW = func.clock_timestamp()
START = select(func.clock_timestamp()).scalar_subquery()
"""The time once a statement, by which an index can be searched: `clock_timestamp()` itself is asked for each row. Not after a lock."""

_T1_ARGUMENTS = (
    "host", "repository_id", "pr_number", "source", "source_id", "installation_id", "action", "repo", "commit_sha", "idempotency_key",
    "comment_id", "requested_by", "message", "at", "rank", "tie", "cluster", "namespace", "releases",
    "holder", "lease_seconds", "attempts_max", "acknowledge_seconds",
)  # fmt: skip
_T1 = "SELECT * FROM prevue_register_and_claim({})".format(  # noqa: S608 (only the names above)
    ", ".join(f"a_{name} => ${number}" for number, name in enumerate(_T1_ARGUMENTS, start=1))
)

_HEARTBEAT = """
UPDATE preview SET lease_until = clock_timestamp() + make_interval(secs => $5)
 WHERE github_host = $1 AND repository_id = $2 AND pr_number = $3 AND token = $4 AND lease_until > clock_timestamp()
RETURNING desired_at, desired_rank, desired_tie
"""


class PostgresClaims:
    """ClaimStore."""

    _database: Database
    _limits: ClaimLimits
    _cluster_name: str
    _clock: Clock

    async def register_and_claim(self, message: Message, *, holder: str) -> Verdict:
        """Protocol T1, one round trip."""
        if not message.is_complete:
            raise ValueError("the message must be complete before it is registered")
        order = message.order
        arguments = (
            message.github_host,
            message.repository_id,
            message.pr_number,
            message.effective_source.value,
            message.effective_source_id,
            message.installation_id,
            message.action.value,
            message.repo,
            message.commit_sha,
            message.idempotency_key,
            message.comment_id,
            message.requested_by,
            encode_message(message).decode(),
            *order,
            self._cluster_name,
            preview_namespace(message.key, message.repo),
            [release_name(message.pr_number)],
            holder,
            self._limits.lease_seconds,
            self._limits.attempts_max,
            self._limits.acknowledge_after_seconds,
        )
        # Read before the statement is sent: the lease cannot begin earlier than this.
        granted_at_boottime = self._clock.boottime()
        row = await self._database.claim(_T1, *arguments)
        match row["verdict"]:
            case "done":
                return Done(RequestState(row["request_state"]))
            case "in_progress":
                return InProgress()
            case "superseded":
                return Superseded()
            case "later":
                return Later(row["delay"])
            case "dead":
                return Dead()
            case "granted":
                return Granted(_claim(message.key, row, granted_at_boottime))
        raise AssertionError(f"unknown verdict {row['verdict']}")

    async def heartbeat(self, claim: Claim) -> Order:
        """One statement; a lapsed lease is never revived."""
        row = await self._database.heartbeat(_HEARTBEAT, *claim.key, claim.token, self._limits.lease_seconds)
        if row is None:
            raise StaleClaim
        return order_of(*row)

    async def begin(
        self, claim: Claim, *, preview_state: PreviewState, deadline_seconds: float, values_digest: str = ""
    ) -> Began | NewerDesired:
        """Protocol step 5. Orders are compared, never `desired_request`: a replay, sweep or expiry equals what it repeats."""
        desired = tuple_(preview.c.desired_at, preview.c.desired_rank, preview.c.desired_tie)
        mine = tuple_(*claim.order, types=[preview.c.desired_at.type, preview.c.desired_rank.type, preview.c.desired_tie.type])
        began = (
            update(preview)
            .where(_holds(claim), preview.c.lease_until > NOW, desired <= mine)
            .values(
                helm_deadline=NOW + timedelta(seconds=deadline_seconds),
                state=preview_state.value,
                **_live(None),
                changed_at=NOW,
            )
        )
        async with self._database.transaction() as connection:
            if (await connection.execute(began)).rowcount == 0:
                newer = await connection.scalar(select(desired > mine).where(_holds(claim)))
                if newer:
                    return NewerDesired()
                raise StaleClaim
            if values_digest:
                await connection.execute(update(request).where(request.c.id == claim.request_id).values(values_digest=values_digest))
            await _record(connection, claim, "began", state=preview_state.value, deadline_seconds=deadline_seconds)
        return Began()

    async def finish(self, claim: Claim, finish: Finish) -> None:
        """Protocol step 10: both updates hit one row, or nothing is written."""
        async with self._database.transaction() as connection:
            state_before = await connection.scalar(select(preview.c.state).where(_holds(claim)).with_for_update())
            if state_before is None:
                raise StaleClaim
            ended = update(request).values(
                state=finish.outcome.value, reason=finish.reason.value, error=storable(finish.error), url=finish.url, finished_at=NOW
            )
            # The token alone is not enough: a request that ended under it stays as it ended. It comes before the preview's step: a finish
            # that is repeated after an ambiguous commit is stale, not impossible. The preview's row is locked already.
            if (await connection.execute(ended.where(_claimed(claim)))).rowcount != 1:
                raise StaleClaim
            step = preview_step(PreviewState(state_before), finish.preview_event)
            values: dict[str, Any] = {}
            if step.live is not LiveAfter.AS_BEFORE:
                is_found = step.live is LiveAfter.FOUND
                values = {"state": step.to.value, "url": finish.url if is_found else "", **_live(finish.live if is_found else None)}
            if finish.ttl_seconds is not None:
                values["expires_at"] = NOW + timedelta(seconds=finish.ttl_seconds) if finish.ttl_seconds > 0 else None
            await _free(connection, claim, values)
            if finish.tell and is_told(claim.message, finish.outcome, PreviewState(state_before)):
                await _tell(connection, claim)
            details = {"outcome": finish.outcome.value, "reason": finish.reason.value, "error": finish.error, "url": finish.url}
            await _record(connection, claim, "finished", **{name: value for name, value in details.items() if value})

    async def give_back(self, claim: Claim, *, delay: float, counted: bool, error: str) -> None:
        """Protocol transient failure, or protocol give back; live stays as `begin` left it."""
        waits = update(request).values(
            state=RequestState.WAITING.value,
            not_before=NOW + timedelta(seconds=delay),
            attempts=request.c.attempts - (0 if counted else 1),
            error=storable(error),
        )
        async with self._database.transaction() as connection:
            await _free(connection, claim, {})
            if (await connection.execute(waits.where(_claimed(claim)))).rowcount != 1:
                raise StaleClaim
            await _record(connection, claim, "given_back", counted=counted, delay=delay, error=error)

    async def waiting(self, key: PreviewKey) -> list[Message]:
        """Newest first: the one that is desired should be the next to run, and the others then end as superseded."""
        statement = (
            select(request.c.message)
            .where(
                request.c.github_host == key.github_host,
                request.c.repository_id == key.repository_id,
                request.c.pr_number == key.pr_number,
                request.c.state == RequestState.WAITING.value,
                request.c.not_before <= NOW,
            )
            .order_by(request.c.at.desc(), request.c.rank.desc(), request.c.tie.desc(), request.c.id.desc())
        )
        async with self._database.statement() as connection:
            return [decode_message(body) for body in await connection.scalars(statement)]

    async def is_expired(self, claim: Claim) -> bool:
        """Read under the claim: nobody else moves `expires_at`."""
        async with self._database.statement() as connection:
            return bool(await connection.scalar(select(preview.c.expires_at <= NOW).where(_holds(claim))))

    async def note(self, claim: Claim, event: str, details: dict[str, str | int | float | bool]) -> None:
        """One row, whoever holds the preview now."""
        async with self._database.statement() as connection:
            await _record(connection, claim, event, **details)


def _holds(claim: Claim) -> ColumnElement[bool]:
    """The preview is still under the claim's token."""
    return and_(
        preview.c.github_host == claim.key.github_host,
        preview.c.repository_id == claim.key.repository_id,
        preview.c.pr_number == claim.key.pr_number,
        preview.c.token == claim.token,
    )


def _claimed(claim: Claim) -> ColumnElement[bool]:
    """The request is still claimed under the claim's token."""
    return and_(request.c.id == claim.request_id, request.c.token == claim.token, request.c.state == RequestState.CLAIMED.value)


async def _free(connection: AsyncConnection, claim: Claim, values: dict[str, Any]) -> None:
    """Nobody holds the preview any more; its row lock is taken here, before the request's."""
    free = {"holder": None, "holder_request": None, "lease_until": NEVER, "helm_deadline": NEVER, "changed_at": NOW}
    if (await connection.execute(update(preview).where(_holds(claim)).values(**free, **values))).rowcount != 1:
        raise StaleClaim


async def _tell(connection: AsyncConnection, claim: Claim) -> None:
    """A newer text of the same row, due now: the acknowledgement's row becomes the outcome's."""
    row = upsert(outbox).values(
        request_id=claim.request_id,
        kind=STATUS,
        installation_id=claim.message.installation_id,
        repository_id=claim.key.repository_id,
        pr_number=claim.key.pr_number,
        due_at=NOW,
    )
    newer = {"version": outbox.c.version + 1, "due_at": row.excluded.due_at, "attempts": 0, "error": ""}
    await connection.execute(row.on_conflict_do_update(index_elements=["request_id", "kind"], set_=newer))


async def _record(connection: AsyncConnection, claim: Claim, event: str, **details: str | float | bool) -> None:
    """One row of the ledger."""
    details = {name: storable(value) if isinstance(value, str) else value for name, value in details.items()}
    await connection.execute(insert(ledger).values(request_id=claim.request_id, token=claim.token, event=event, details=details))


def _live(live: Live | None) -> dict[str, Any]:
    """The columns of what is live; all NULL: nothing, or unknown."""
    if live is None:
        return {"live_sha": None, "live_digest": None, "live_request": None, "live_token": None}
    return {"live_sha": live.sha, "live_digest": live.digest, "live_request": live.request_id, "live_token": live.token}


def order_of(at: datetime, rank: int, tie: int) -> Order:
    """`-infinity` comes back as the smallest datetime, without its zone."""
    return Order(at if at.tzinfo is not None else at.replace(tzinfo=UTC), rank, tie)


def _claim(key: PreviewKey, row: Any, granted_at_boottime: float) -> Claim:
    live = None
    if row["live_sha"] is not None:
        live = Live(sha=row["live_sha"], digest=row["live_digest"], request_id=row["live_request"], token=row["live_token"])
    return Claim(
        key=key,
        request_id=row["request_id"],
        token=row["token"],
        attempt=row["attempt"],
        message=decode_message(row["message"]),
        order=order_of(row["order_at"], row["order_rank"], row["order_tie"]),
        cluster=row["cluster"],
        namespace=row["namespace"],
        releases=tuple(row["releases"]),
        preview_state=PreviewState(row["preview_state"]),
        live=live,
        url=row["url"],
        registered_at=row["registered_at"],
        granted_at_boottime=granted_at_boottime,
    )
