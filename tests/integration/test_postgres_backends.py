"""What only PostgreSQL can get wrong: notifications, dead connections, stopped processes, deadlocks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
import pytest

from prevue import lifecycle
from prevue.errors import StaleClaim, StateStoreUnavailable
from prevue.model import PreviewState
from prevue.postgres import is_outage
from prevue.queue.postgres import PostgresConsumer, PostgresEnqueuer
from prevue.statestore.port import ClaimLimits, Granted
from prevue.statestore.postgres import PostgresStateStore, database
from prevue.testing.contracts.queue import Blocker, Recorder, command, eventually
from prevue.testing.contracts.statestore_harness import claim_of, close
from prevue.testing.contracts.statestore_harness import command as preview_command


async def recorded(recorder: Recorder, count: int) -> None:
    await eventually(lambda: len(recorder.seen) == count)


async def test_new_message_wakes_an_idle_consumer(postgres_url: str) -> None:
    """Without the notification it would take a minute."""
    recorder = Recorder()
    stop = asyncio.Event()
    async with PostgresEnqueuer.open(postgres_url) as enqueuer, PostgresConsumer.open(postgres_url, poll_seconds=60) as consumer:
        task = asyncio.create_task(consumer.run(recorder, slots=2, stop=stop))
        await asyncio.sleep(0.3)
        for number in (1, 2, 3):
            await enqueuer.enqueue(command(number))
            await recorded(recorder, number)
        stop.set()
        await task


async def test_only_an_enqueue_waits_for_the_disk(postgres_url: str) -> None:
    """What a consumer writes may be lost with the server, since the message then comes back; what was accepted may not."""
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(f"ALTER DATABASE {postgres_url.rsplit('/', 1)[1]} SET synchronous_commit = on")
    await connection.close()
    async with PostgresEnqueuer.open(postgres_url) as enqueuer, PostgresConsumer.open(postgres_url) as consumer:
        assert await enqueuer._pool.fetchval("SHOW synchronous_commit") == "on"
        assert await consumer._pool.fetchval("SHOW synchronous_commit") == "off"


async def test_poll_reads_no_message_that_is_delayed(postgres_url: str) -> None:
    """A backlog that is leased or delayed is not read at each look, nor where the plan was made while nothing was there."""
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("VACUUM ANALYZE queue_message")
    async with PostgresConsumer.open(postgres_url) as consumer:
        for _ in range(10):
            assert await consumer._receive(1) == []
        await connection.execute(
            "INSERT INTO queue_message (identity, body, available_at) "
            "SELECT n::text, '{}', clock_timestamp() + interval '1 hour' FROM generate_series(1, 2000) AS n"
        )
        kept = await consumer._pool.fetchval("SELECT name FROM pg_prepared_statements WHERE statement LIKE $1", "%SKIP LOCKED%")
        assert await consumer._pool.fetchval("SELECT generic_plans FROM pg_prepared_statements WHERE name = $1", kept) > 0
        plan = json.loads(await consumer._pool.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE {kept}(10.0)"))
    await connection.close()
    read = nodes(plan[0]["Plan"])
    scans = [node for node in read if node.get("Index Name") == "queue_message_available"]
    assert [(node["Actual Rows"], node.get("Rows Removed by Filter", 0)) for node in scans] == [(0, 0)]
    assert "Seq Scan" not in {node["Node Type"] for node in read}


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """A plan's nodes, itself first."""
    return [plan, *(node for child in plan.get("Plans", []) for node in nodes(child))]


async def test_lost_listener_is_replaced(postgres_url: str) -> None:
    recorder = Recorder()
    stop = asyncio.Event()
    connection = await asyncpg.connect(postgres_url)
    kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'prevue-queue-listener'"
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'prevue-queue-listener' AND query LIKE 'LISTEN%'"
    async with PostgresEnqueuer.open(postgres_url) as enqueuer, PostgresConsumer.open(postgres_url, poll_seconds=60) as consumer:
        task = asyncio.create_task(consumer.run(recorder, slots=2, stop=stop))
        for number in (1, 2):
            async with asyncio.timeout(20):
                while not await connection.fetchval(count):  # noqa: ASYNC110 (asks the server)
                    await asyncio.sleep(0.01)
            await enqueuer.enqueue(command(number))
            await recorded(recorder, number)
            await connection.fetchval(kill)
        stop.set()
        await task
    await connection.close()


async def test_message_of_a_dead_deployer_comes_back_within_seconds(postgres_url: str) -> None:
    blocker, recorder = Blocker(), Recorder()
    async with PostgresEnqueuer.open(postgres_url) as enqueuer:
        await enqueuer.enqueue(command(1))
    async with PostgresConsumer.open(postgres_url, lease_seconds=1) as dead, PostgresConsumer.open(postgres_url) as other:
        task = asyncio.create_task(dead.run(blocker, slots=1, stop=asyncio.Event()))
        await eventually(lambda: blocker.inside)
        dead._pool.terminate()
        task.cancel()
        await asyncio.wait({task})
        stop = asyncio.Event()
        task = asyncio.create_task(other.run(recorder, slots=1, stop=stop))
        async with asyncio.timeout(10):
            await eventually(lambda: recorder.seen)
        stop.set()
        await task


async def test_process_stopped_inside_a_transaction_blocks_nobody_for_long(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SIGSTOP between two statements of a finish keeps the row lock until the server ends that transaction."""
    monkeypatch.setattr(database, "IDLE_IN_TRANSACTION_SECONDS_MAX", 0.5)
    async with PostgresStateStore.open(postgres_url) as stopped, PostgresStateStore.open(postgres_url) as other:
        claim = await claim_of(stopped, preview_command(1))

        async def stop_within_a_transaction() -> None:
            async with stopped._database.transaction() as transaction:
                await transaction.exec_driver_sql("SELECT 1 FROM preview FOR UPDATE")
                async with asyncio.timeout(8):
                    assert await other.heartbeat(claim) == claim.order
                await transaction.exec_driver_sql("UPDATE preview SET token = NULL")

        with pytest.raises(StateStoreUnavailable):
            await stop_within_a_transaction()
        await stopped.finish(claim, lifecycle.superseded())


async def test_heartbeat_that_waits_for_a_lock_fails_within_a_quarter_of_the_lease(postgres_url: str) -> None:
    async with PostgresStateStore.open(postgres_url, ClaimLimits(lease_seconds=4)) as store:
        claim = await claim_of(store, preview_command(1))
        async with store._database.transaction() as transaction:
            await transaction.exec_driver_sql("SELECT 1 FROM preview FOR UPDATE")
            started = asyncio.get_running_loop().time()
            with pytest.raises(StateStoreUnavailable):
                await store.heartbeat(claim)
            assert asyncio.get_running_loop().time() - started < 1.5


async def test_everything_at_once_on_one_preview_never_deadlocks(postgres_url: str) -> None:
    """Claims, finishes, give-backs and sweeps of one preview from three processes: one order of locks everywhere."""

    async def worker(store: PostgresStateStore, offset: int) -> None:
        for number in range(offset, 40, 3):
            message = close(number) if number % 5 == 0 else preview_command(number + 1, at=number)
            verdict = await store.register_and_claim(message, holder=f"worker-{offset}")
            await store.unheld(quiet_seconds=0, limit=10)
            if not isinstance(verdict, Granted):
                continue
            claim = verdict.claim
            try:
                await store.begin(claim, preview_state=PreviewState.DEPLOYING, deadline_seconds=50)
                await store.heartbeat(claim)
                if number % 2:
                    await store.finish(claim, lifecycle.superseded())
                else:
                    await store.give_back(claim, delay=0, counted=True, error="")
            except StaleClaim:
                continue
            for waiting in await store.waiting(claim.key):
                await store.register_and_claim(waiting, holder=f"worker-{offset}")

    async with PostgresStateStore.open(postgres_url, ClaimLimits(lease_seconds=2)) as one, PostgresStateStore.open(postgres_url) as two:
        await asyncio.gather(worker(one, 0), worker(two, 1), worker(one, 2))


async def test_mistakes_of_ours_are_no_outage(postgres_url: str) -> None:
    """Taken for one, they would be tried again for ever."""
    connection = await asyncpg.connect(postgres_url)
    for statement, arguments in (("SELECT nonsense", ()), ("SELECT $1::int", ("text",)), ("SELECT 1/0", ()), ("SELEC", ())):
        with pytest.raises(Exception, match=r".") as caught:
            await connection.fetch(statement, *arguments)
        assert not is_outage(caught.value), statement
    await connection.close()
    with pytest.raises(asyncpg.InterfaceError) as closed:
        await connection.fetch("SELECT 1")
    assert is_outage(closed.value)


async def test_consumer_starts_before_its_database(postgres_url: str) -> None:
    """Nothing listens there: it waits with backoff, and stops when it is asked to."""
    async with PostgresConsumer.open("postgresql://nobody@127.0.0.1:1/none") as consumer:
        stop = asyncio.Event()
        task = asyncio.create_task(consumer.run(Recorder(), slots=1, stop=stop))
        await asyncio.sleep(0.5)
        assert not task.done()
        stop.set()
        async with asyncio.timeout(10):
            await task
