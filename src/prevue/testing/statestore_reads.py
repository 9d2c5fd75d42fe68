"""How many rows each hot statement of deployer, sweeper and operator reads in PostgreSQL, counted by the server itself.

An index that is missing, or read from end to end, shows here whatever the plan is called: what is read grows with the past.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import asyncpg

from prevue import lifecycle
from prevue.model import Claim, Message, PreviewState, Source
from prevue.queue.postgres import PostgresConsumer
from prevue.statestore.port import Granted
from prevue.statestore.postgres import PostgresStateStore
from prevue.testing.statestore_past import past_key

APPLICATIONS = "prevue-%"
_READS = """
SELECT t.relname, t.seq_tup_read + coalesce(sum(i.idx_tup_read), 0)::bigint AS read
  FROM pg_stat_user_tables t LEFT JOIN pg_stat_user_indexes i USING (relid) GROUP BY t.relid, t.relname, t.seq_tup_read
"""
_GONE = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE $1 AND datname = current_database()"


class Taker(PostgresConsumer):
    """A consumer that is asked for one message at a time."""

    async def take(self) -> Message:
        """The next one, under its lease, as a deployer with one free slot takes it."""
        (received,) = await self._receive(1)
        return received.message


class Reads(NamedTuple):
    """What one call read."""

    call: str
    table: str
    """The one of which it read most."""
    rows: int


async def hot_reads(url: str) -> list[Reads]:
    """Make every hot call once on the database behind `url`, filled by `statestore_past`."""
    connection = await asyncpg.connect(url)
    try:
        return [await _counted(url, connection, name, call) for name, call in _CALLS.items()]
    finally:
        await connection.close()


async def _counted(url: str, connection: Any, name: str, call: Call) -> Reads:
    before = dict(await connection.fetch(_READS))
    async with PostgresStateStore.open(url) as store, Taker.open(url) as taker:
        await call(store, taker)
    # A session's counts are there at the latest when it has ended.
    while not await connection.fetchval(_GONE, APPLICATIONS):  # noqa: ASYNC110 (asks the server)
        await asyncio.sleep(0.005)
    after = dict(await connection.fetch(_READS))
    table = max(after, key=lambda each: after[each] - before.get(each, 0))
    return Reads(name, table, after[table] - before.get(table, 0))


Call = Callable[[PostgresStateStore, Taker], Awaitable[object]]


async def claim(store: PostgresStateStore, taker: Taker) -> Claim:
    """A message of the backlog, and its claim, as production makes it."""
    verdict = await store.register_and_claim(await taker.take(), holder="deployer-0/1")
    assert isinstance(verdict, Granted), verdict  # noqa: S101 (nobody else holds a preview of the backlog)
    return verdict.claim


async def _written(store: PostgresStateStore, taker: Taker) -> None:
    """Every write under a claim."""
    held = await claim(store, taker)
    await store.heartbeat(held)
    await store.begin(held, preview_state=PreviewState.DEPLOYING, deadline_seconds=50)
    await store.finish(held, lifecycle.failed(lifecycle.Reason.NOT_READY, "", began=True))
    await store.waiting(held.key)
    held = await claim(store, taker)
    await store.is_expired(held)
    await store.give_back(held, delay=10, counted=True, error="")


async def _drained(store: PostgresStateStore, _taker: Taker) -> None:
    """One item of the outbox sent, one postponed."""
    sent, postponed = await store.due(1, limit=2)
    await store.sent(sent, comment_id=1)
    await store.postpone(postponed, delay=10, error="")
    await store.acquire_lane(1, holder="me", seconds=30)
    await store.reserve_write(1, per_minute=45, per_hour=400)


async def _dead_letter(store: PostgresStateStore, _taker: Taker) -> None:
    letter = (await store.dead_letters(limit=1))[0]
    await store.dead_letter(letter.id)
    await store.dead_message(letter.id)


_CALLS: dict[str, Call] = {
    "take a message and claim": claim,
    "every write under a claim": _written,
    "rule 1: what nobody holds": lambda store, _: store.unheld(quiet_seconds=10, limit=200),
    "rule 2: is a command registered": lambda store, _: store.is_registered(past_key(1), Source.COMMENT, "2"),
    "rules 2 and 3: what stands": lambda store, _: store.standing(after=past_key(1), limit=200),
    "rule 3: one row": lambda store, _: store.find(past_key(1)),
    "rule 4: installations that are due": lambda store, _: store.due_installations(),
    "rule 4: when is the next due": lambda store, _: store.seconds_until_due(),
    "rule 4: what is due": lambda store, _: store.due(1, limit=20),
    "rule 4: sent, postponed, counted": _drained,
    "rule 5: what expired": lambda store, _: store.expired(limit=200),
    "rule 6: what is overdue": lambda store, _: store.overdue(older_than_seconds=3600, limit=100),
    "dead letters, the list": lambda store, _: store.dead_letters(limit=100),
    "dead letters, one": _dead_letter,
    "one preview, for people": lambda store, _: store.preview("acme/repository-1", 1),
    "its ledger": lambda store, _: store.ledger("acme/repository-1", 1),
    "verify: a page": lambda store, _: store.audit_keys(after=past_key(1), limit=200),
    "verify: one preview": lambda store, _: store.audit(past_key(1)),
}
