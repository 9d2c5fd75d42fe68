"""The queue in PostgreSQL: a table beside the statestore.

Enqueuing is one INSERT by a role that may do nothing else. A deployer takes messages with `FOR UPDATE SKIP LOCKED` under a short lease
(`available_at` pushed ahead), extends it while handlers run, and deletes the row to settle it, each time under the receipt of its own
delivery: one that was taken over meanwhile is left alone. A deployer that dies is noticed when the lease ends, within seconds.

Waiting is notification *plus* polling: NOTIFY wakes at once, and is lost whenever its connection is.

https://www.postgresql.org/docs/current/sql-select.html#SQL-FOR-UPDATE-SHARE (SKIP LOCKED)
https://www.postgresql.org/docs/current/sql-insert.html (ON CONFLICT without a target needs no right to SELECT)
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, Self
from uuid import UUID

import asyncpg
import structlog

from prevue.errors import MessageInvalid, QueueUnavailable
from prevue.model import Message, decode_message, encode_message
from prevue.postgres import BY_INDEX, CONNECT_SECONDS_MAX, FairPool, check_url, is_outage, open_pool, outages_as
from prevue.queue.handling import OUTAGE_SECONDS, OUTAGE_SECONDS_MAX, after_failure, ask, settle
from prevue.queue.identity import message_identity
from prevue.queue.port import AlreadyEnqueued, Consumer, Depth, Done, Enqueued, Enqueuer, Gauge, Handler, Release, RetryAfter, Settlement

ENQUEUE_SECONDS_MAX = 3.0
"""An enqueue that takes longer has failed: GitHub waits 10 s for its answer, and lists the delivery as failed, which is repaired."""
ENQUEUE_CONNECTIONS = 4
"""Per App process; an insert takes under a millisecond, so four carry thousands a second."""
LEASE_SECONDS = 10.0
"""How long a received message is kept from others; extended at a third of it. A dead deployer's messages come back after it."""
POLL_SECONDS = 1.0
"""Look without having been notified: for delays that have passed, and for notifications that were lost."""
COMMAND_SECONDS_MAX = 5.0
"""Each statement of a consumer; less than the lease."""

_ENQUEUE = "INSERT INTO queue_message (identity, body) VALUES ($1, $2) ON CONFLICT DO NOTHING"
_CHECK = "SELECT has_any_column_privilege('queue_message', 'INSERT') AND NOT pg_is_in_recovery()"
# MATERIALIZED: picked once; as a plain subquery the planner may run it again for each row, and lock more than the limit.
# The time as a subquery: asked once, so that the index ends where the future begins; else a poll would read all that is leased or delayed.
# The limit as a number: of a parameter the planner would want to know how large it is, and plan the statement anew each time.
_RECEIVE = """
WITH picked AS MATERIALIZED (
    SELECT id FROM queue_message WHERE available_at <= (SELECT clock_timestamp())
     ORDER BY available_at, id LIMIT {limit:d} FOR UPDATE SKIP LOCKED
)
UPDATE queue_message AS m
   SET receipt = gen_random_uuid(), deliveries = deliveries + 1, available_at = clock_timestamp() + make_interval(secs => $1)
  FROM picked WHERE m.id = picked.id
RETURNING m.id, m.receipt, m.deliveries, m.body
"""
_EXTEND = """
UPDATE queue_message AS m SET available_at = clock_timestamp() + make_interval(secs => $3)
  FROM unnest($1::bigint[], $2::uuid[]) AS ours (id, receipt) WHERE m.id = ours.id AND m.receipt = ours.receipt
"""
_ACK = "DELETE FROM queue_message WHERE id = $1 AND receipt = $2"
_DELAY = """
UPDATE queue_message SET receipt = NULL, available_at = clock_timestamp() + make_interval(secs => $3) WHERE id = $1 AND receipt = $2
"""
_RELEASE = """
WITH released AS (
    UPDATE queue_message SET receipt = NULL, available_at = clock_timestamp() WHERE id = $1 AND receipt = $2 RETURNING id
)
SELECT pg_notify('prevue_queue', '') FROM released
"""
_REJECT = """
WITH taken AS (DELETE FROM queue_message WHERE id = $1 AND receipt = $2 RETURNING id, identity, body, enqueued_at)
INSERT INTO queue_rejected (id, identity, body, reason, enqueued_at) SELECT id, identity, body, $3, enqueued_at FROM taken
"""
_DEPTH = """
SELECT count(*) AS messages, coalesce(extract(epoch FROM clock_timestamp() - min(enqueued_at)), 0)::float8 AS oldest_seconds
  FROM queue_message
"""

_log = structlog.get_logger(__name__)


class PostgresEnqueuer:
    """What the GitHub App opens: no LISTEN, few connections, one INSERT."""

    def __init__(self, pool: FairPool) -> None:
        self._pool = pool

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, *, connections: int = ENQUEUE_CONNECTIONS) -> AsyncIterator[PostgresEnqueuer]:
        """An enqueuer; it connects when it is first used, so that a process can start although the database is down."""
        check_url(url, setting="queue.url")
        async with open_pool(url, size=connections, command_seconds_max=ENQUEUE_SECONDS_MAX, application="enqueuer") as pool:
            yield cls(pool)

    async def enqueue(self, message: Message) -> Enqueued | AlreadyEnqueued:
        """As the port says; one statement, its commit included."""
        body = encode_message(message).decode()
        with outages_as(QueueUnavailable):
            async with asyncio.timeout(ENQUEUE_SECONDS_MAX):
                status = await self._pool.execute(_ENQUEUE, message_identity(message), body)
        return Enqueued() if status == "INSERT 0 1" else AlreadyEnqueued()

    async def check(self) -> None:
        """As the port says: reachable, migrated, writable, and this role may insert."""
        try:
            with outages_as(QueueUnavailable):
                async with asyncio.timeout(ENQUEUE_SECONDS_MAX):
                    is_writable = await self._pool.fetchval(_CHECK)
        except asyncpg.UndefinedTableError as exc:
            raise QueueUnavailable("the queue's table is missing: run `prevue migrate`") from exc
        if not is_writable:
            raise QueueUnavailable("the queue's table cannot be written with this role, or the server is a standby")


class PostgresGauge:
    """Counts the table's rows: a settled message has none."""

    def __init__(self, pool: FairPool) -> None:
        self._pool = pool

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[PostgresGauge]:
        """A gauge; it needs a role that may read the table, as the deployer's."""
        check_url(url, setting="queue.url")
        async with open_pool(url, size=1, command_seconds_max=COMMAND_SECONDS_MAX, application="gauge") as pool:
            yield cls(pool)

    async def depth(self) -> Depth:
        """As the port says; exact."""
        with outages_as(QueueUnavailable):
            row = (await self._pool.fetch(_DEPTH))[0]
        return Depth(row["messages"], row["oldest_seconds"])


class _Received(NamedTuple):
    """One delivery of one message."""

    id: int
    receipt: UUID
    deliveries: int
    message: Message


class PostgresConsumer:
    """What a deployer opens; any number of processes may run one, each takes only as many messages as it has free slots."""

    def __init__(self, pool: FairPool, url: str, *, lease_seconds: float, poll_seconds: float) -> None:
        self._pool = pool
        self._url = url
        self._lease_seconds = lease_seconds
        self._poll_seconds = poll_seconds
        self._wake = asyncio.Event()
        self._held: dict[UUID, int] = {}
        """Receipts of running handlers, with their messages' ids: what is extended."""
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, *, lease_seconds: float = LEASE_SECONDS, poll_seconds: float = POLL_SECONDS) -> AsyncIterator[Self]:
        """A consumer; three connections at most, beside the one that listens while it runs."""
        check_url(url, setting="queue.url")
        # What a consumer writes may be lost with the server: a message then comes back, which the port allows, and T1's commit, which
        # waits for the disk, stays the one wait of a claim.
        settings = {"synchronous_commit": "off", **BY_INDEX}
        async with open_pool(url, size=3, command_seconds_max=COMMAND_SECONDS_MAX, application="consumer", settings=settings) as pool:
            yield cls(pool, url, lease_seconds=lease_seconds, poll_seconds=poll_seconds)

    async def run(self, handler: Handler, *, slots: int, stop: asyncio.Event) -> None:
        """As the port says."""
        # A group: a side task that fails ends everything, and a caller that cancels cancels the handlers, whose messages come back.
        async with asyncio.TaskGroup() as group:
            side_tasks = [
                group.create_task(self._listen(), name="queue-listen"),
                group.create_task(self._extend(), name="queue-extend"),
                group.create_task(self._wake_when(stop), name="queue-stop"),
            ]
            await self._receive_until(stop, handler, slots, group)
            while self._tasks:  # their leases are still extended
                await asyncio.wait(self._tasks)
            for task in side_tasks:
                task.cancel()

    async def _receive_until(self, stop: asyncio.Event, handler: Handler, slots: int, group: asyncio.TaskGroup) -> None:
        outage = OUTAGE_SECONDS
        while not stop.is_set():
            self._wake.clear()  # before looking: what comes while we look wakes us again
            free = slots - len(self._tasks)
            try:
                received = await self._receive(free) if free > 0 else []
            except QueueUnavailable as exc:
                _log.warning("queue_unavailable", error=str(exc), retry_seconds=outage)
                await self._wait(outage)
                outage = min(OUTAGE_SECONDS_MAX, outage * 2)
                continue
            outage = OUTAGE_SECONDS
            for each in received:
                task = group.create_task(self._handle(handler, each), name=f"queue-message-{each.id}")
                self._tasks.add(task)
                task.add_done_callback(self._forget)
            # Room left means that nothing else was available; no room, that a slot must become free, which wakes us.
            if len(self._tasks) >= slots or not received:
                await self._wait(self._poll_seconds)

    async def _receive(self, limit: int) -> list[_Received]:
        """Take at most `limit` messages; one that cannot be decoded is set aside, and never comes back."""
        with outages_as(QueueUnavailable):
            rows = await self._pool.fetch(_RECEIVE.format(limit=limit), self._lease_seconds)
        received = []
        for row in rows:
            try:
                message = decode_message(row["body"])
            except MessageInvalid as exc:
                _log.error("queue_message_set_aside", queue_message=row["id"], error=str(exc))
                await self._try_once(_REJECT, row["id"], row["receipt"], str(exc))
            else:
                received.append(_Received(row["id"], row["receipt"], row["deliveries"], message))
                self._held[row["receipt"]] = row["id"]
        return received

    async def _handle(self, handler: Handler, received: _Received) -> None:
        """One delivery, from the handler to the settlement. Nothing but cancellation leaves this."""
        try:
            answer = await ask(handler, received.message)
        except asyncio.CancelledError:
            await self._release_cancelled(received)
            raise
        try:
            if isinstance(answer, BaseException):
                answer = after_failure(answer, earlier=received.deliveries - 1, queue_message=received.id)
            await settle(functools.partial(self._settle_once, received, answer), lease_seconds=self._lease_seconds)
        finally:
            self._held.pop(received.receipt, None)

    async def _settle_once(self, received: _Received, settlement: Settlement) -> bool:
        match settlement:
            case Done():
                return await self._try_once(_ACK, received.id, received.receipt)
            case RetryAfter(delay):
                return await self._try_once(_DELAY, received.id, received.receipt, max(0.0, delay))
            case Release():
                return await self._try_once(_RELEASE, received.id, received.receipt)

    async def _try_once(self, sql: str, *arguments: Any) -> bool:
        try:
            with outages_as(QueueUnavailable):
                await self._pool.execute(sql, *arguments)
        except QueueUnavailable as exc:
            _log.warning("queue_settlement_failed", error=str(exc))
            return False
        return True

    async def _release_cancelled(self, received: _Received) -> None:
        """The caller cancelled the handler: give the message back now, if that is quick; else its lease ends."""
        self._held.pop(received.receipt, None)
        try:
            await asyncio.wait_for(self._settle_once(received, Release()), COMMAND_SECONDS_MAX)
        except TimeoutError:
            _log.warning("queue_release_timed_out", queue_message=received.id)

    async def _extend(self) -> None:
        """Keep the messages of running handlers ours; losing one is allowed, its repeat finds the claim."""
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            if not self._held:
                continue
            receipts, ids = list(self._held), list(self._held.values())
            await self._try_once(_EXTEND, ids, receipts, self._lease_seconds)

    async def _listen(self) -> None:
        """Wake at each notification; a lost connection is made again, and polling goes on meanwhile."""
        outage = OUTAGE_SECONDS
        while True:
            try:
                await self._listen_once()
                outage = OUTAGE_SECONDS
            except Exception as exc:
                if not is_outage(exc):
                    raise
                _log.info("queue_listener_lost", error=str(exc)[:200], retry_seconds=outage)
            await asyncio.sleep(outage)
            outage = min(OUTAGE_SECONDS_MAX, outage * 2)

    async def _listen_once(self) -> None:
        connection = await asyncpg.connect(
            self._url, timeout=CONNECT_SECONDS_MAX, server_settings={"application_name": "prevue-queue-listener"}
        )
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _connection: lost.set())
        try:
            await connection.add_listener("prevue_queue", lambda *_: self._wake.set())
            self._wake.set()  # what came before we listened
            await lost.wait()
        finally:
            connection.terminate()

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)

    async def _wake_when(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._wake.set()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._wake.set()


_enqueuer: type[Enqueuer] = PostgresEnqueuer
_consumer: type[Consumer] = PostgresConsumer
_gauge: type[Gauge] = PostgresGauge
