"""`make bench-scale QUEUE=…`: does work that waits get faster with more deployers?

50 requests for 50 pull requests go through the real queue to 1, 2 and 4 deployer processes with 2 slots each. Queue, statestore, claim,
heartbeats and outcome are the real ones; only the pipeline is a stand-in that waits for 10 s, as one that waits for pods does. The clock
runs from the first enqueue, all deployers being ready, until the statestore holds the 50th outcome.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import asyncpg
import msgspec

# Run as a file: `bench` is not an installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.report import say, table, write

from prevue.clock import SystemClock
from prevue.config import LogSettings, QueueSettings
from prevue.deployer.worker import Worker, WorkerLimits
from prevue.github.port import GitHub
from prevue.lifecycle import Finish, deployed
from prevue.local.folder import StackFolder
from prevue.local.postgres import EmbeddedPostgres, prepare
from prevue.local.queues import KINDS, Fleet, LocalQueue
from prevue.local.stack import QUEUES
from prevue.local.supervisor import Supervisor
from prevue.migrations import migrate
from prevue.model import Claim, Live, Message, PreviewState, Source, idempotency_key
from prevue.statestore.port import ClaimLimits
from prevue.statestore.postgres import PostgresStateStore
from prevue.telemetry import configure_logging
from prevue.wiring.queues import open_consumer, open_enqueuer
from prevue.wiring.sweeper import new_holder

REQUESTS, SLOTS, PIPELINE_SECONDS = 50, 2, 10.0
DEPLOYERS = (1, 2, 4)
GOALS = {2: 1.8, 4: 3.2}
ROUND_SECONDS_MAX = 600.0


@asynccontextmanager
async def _queue(kind: str, folder: StackFolder, fleet: Fleet, database_url: str) -> AsyncIterator[LocalQueue]:
    """The queue, ready to take messages, on fresh data."""
    if kind == QUEUES[0]:
        yield LocalQueue(deployer={"url": database_url}, app={"url": database_url})
        return
    folder.make()
    queue = await asyncio.to_thread(KINDS[kind], folder, fleet, say)
    supervisor = Supervisor(folder.logs, lambda _text: None)
    try:
        await asyncio.to_thread(supervisor.start, *queue.services)
        await asyncio.to_thread(queue.prepare)
        yield queue
    finally:
        await asyncio.to_thread(supervisor.stop)


async def deploy(section: str, database_url: str) -> None:
    """One deployer process, until SIGTERM."""
    configure_logging(LogSettings(level="warning"))
    settings = msgspec.json.decode(section, type=QueueSettings)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with (
        PostgresStateStore.open(database_url, ClaimLimits(), cluster_name="bench") as store,
        open_enqueuer(settings) as enqueuer,
        open_consumer(settings) as consumer,
    ):

        async def pipeline(claim: Claim) -> Finish:
            await store.begin(claim, preview_state=PreviewState.DEPLOYING, deadline_seconds=20)
            await asyncio.sleep(PIPELINE_SECONDS)
            live = Live(sha=claim.message.commit_sha, digest="", request_id=claim.request_id, token=claim.token)
            return deployed(live, "http://bench.invalid")

        worker = Worker(
            holder=new_holder(),
            store=store,
            github=cast("GitHub", None),  # complete messages ask GitHub nothing
            enqueuer=enqueuer,
            pipeline=pipeline,
            limits=WorkerLimits(),
            clock=SystemClock(),
        )
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await consumer.run(worker.handle, slots=SLOTS, stop=stop)


@asynccontextmanager
async def deployers(count: int, queue: LocalQueue, database_url: str) -> AsyncIterator[None]:
    """So many processes, ready."""
    started = []
    for number in range(count):
        section = dict(queue.deployer)
        if (port := queue.door_port(number)) is not None:
            section["cloud_tasks"] = {**section["cloud_tasks"], "listen_port": port}
        command = [sys.executable, __file__, "--deployer", msgspec.json.encode(section).decode(), database_url]
        started.append(await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE))
    try:
        for one in started:
            assert one.stdout is not None
            if await one.stdout.readline() != b"ready\n":
                raise RuntimeError("a deployer did not start")
        yield
    finally:
        for one in started:
            if one.returncode is None:
                one.terminate()
        for one in started:
            await one.wait()


def message(number: int) -> Message:
    """A complete `/preview` of a pull request of its own."""
    sha = f"{number:040x}"
    return Message(
        idempotency_key=idempotency_key("bench/scale", number, sha),
        repo="bench/scale",
        pr_number=number,
        commit_sha=sha,
        installation_id=1,
        comment_id=number,
        repository_id=42,
        requested_by="bench",
        requested_at=datetime.now(UTC),
        source=Source.COMMENT,
        source_id=str(number),
    )


async def measure(postgres: EmbeddedPostgres, kind: str, count: int) -> float:
    """Seconds that `count` deployers took, on fresh data."""
    database_url = await postgres.create_database(f"scale_{kind}_{count}")
    await migrate(database_url)
    async with AsyncExitStack() as stack:
        folder = StackFolder(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prevue-scale-"))))
        queue = await stack.enter_async_context(_queue(kind, folder, Fleet(deployers=count, slots=SLOTS), database_url))
        connection = await asyncpg.connect(database_url)
        stack.push_async_callback(connection.close)
        enqueuer = await stack.enter_async_context(open_enqueuer(msgspec.convert(queue.app, type=QueueSettings)))
        await stack.enter_async_context(deployers(count, queue, database_url))
        began = time.monotonic()
        await asyncio.gather(*(enqueuer.enqueue(message(number)) for number in range(1, REQUESTS + 1)))
        async with asyncio.timeout(ROUND_SECONDS_MAX):
            while await connection.fetchval("SELECT count(*) FROM request WHERE state = 'deployed'") < REQUESTS:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        took = time.monotonic() - began
        twice = await connection.fetchval("SELECT count(*) FROM request WHERE attempts <> 1")
        if twice:
            raise RuntimeError(f"{twice} of {REQUESTS} requests were not claimed exactly once")
        return took


async def main(queue: str) -> int:
    """All rounds; 1 if a goal is missed."""
    with tempfile.TemporaryDirectory(prefix="prevue-scale-") as folder:
        postgres = prepare(Path(folder))
        postgres.init()
        postgres.start(dies_with_parent=True)
        try:
            await postgres.wait_ready()
            seconds = {}
            for count in DEPLOYERS:
                say(f"{queue}: {REQUESTS} requests of {PIPELINE_SECONDS:g} s, {count} deployer(s) with {SLOTS} slots …")
                seconds[count] = await measure(postgres, queue, count)
                say(f"  {seconds[count]:.1f} s")
        finally:
            postgres.stop()
            postgres.remove()
    speedup = {count: seconds[DEPLOYERS[0]] / seconds[count] for count in DEPLOYERS}
    table(
        f"{queue}: {REQUESTS} requests, each {PIPELINE_SECONDS:g} s of waiting, {SLOTS} slots a deployer",
        ("deployers", "seconds", "speed-up", "wanted"),
        [(str(count), seconds[count], speedup[count], GOALS.get(count, 1.0)) for count in DEPLOYERS],
    )
    figures = {"queue": queue, "seconds": {str(k): v for k, v in seconds.items()}, "speedup": {str(k): v for k, v in speedup.items()}}
    say(f"written to {write(f'scale-{queue}', figures)}")
    return 1 if any(speedup[count] < goal for count, goal in GOALS.items()) else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--queue", choices=QUEUES, default=QUEUES[0])
    parser.add_argument("--deployer", nargs=2, metavar=("QUEUE", "DATABASE_URL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.deployer:
        asyncio.run(deploy(*options.deployer))
    else:
        sys.exit(asyncio.run(main(options.queue)))
