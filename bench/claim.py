"""`make bench-claim`: what a claim costs after a thousand past requests, and after a million.

Both databases have a backlog of 100,000 messages in the queue, each of a pull request of its own; half of them are registered already and
wait in the request table. A deployer with one free slot takes the next message under its lease (one commit), then claims its preview (T1,
another commit): the claim alone is what the glossary calls so, and it is judged; both together are shown beside it. In the same run, by
turns with them: a bare one-row UPDATE and its commit, on a pool as the claim's, so that the driver's part is in both. The disk is
waited for.

Then every hot statement of deployer, sweeper and operator is run once, and the server counts the rows that it read.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

# Run as a file: `bench` is not an installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.report import middle, percentile, say, table, write

from prevue.local.postgres import EmbeddedPostgres, prepare
from prevue.migrations.run import migrate
from prevue.model import Message
from prevue.postgres import BY_INDEX, FairPool, open_pool
from prevue.statestore.port import Granted
from prevue.statestore.postgres import PostgresStateStore
from prevue.statestore.postgres.database import CLAIM_CONNECTIONS, STATEMENT_SECONDS_MAX
from prevue.testing.statestore_past import fill_backlog, fill_past
from prevue.testing.statestore_reads import Reads, Taker, hot_reads

SIZES = (1_000, 1_000_000)
BACKLOG = 100_000
ROUNDS = 9
CLAIMS = 400
"""A round, on each side."""
WARM_UP = 200
RATIO_OF_SIZES_MAX, RATIO_TO_UPDATE_MAX = 2.0, 3.0
"""The acceptance: p99 with a million past requests over that with a thousand, and over the bare UPDATE's."""
PARTS = ("claim", "take", "take and claim", "bare UPDATE")


@dataclass
class Side:
    """One database, with what is measured on it."""

    name: str
    url: str
    store: PostgresStateStore
    taker: Taker
    pool: FairPool
    rounds: dict[str, list[list[float]]] = field(default_factory=lambda: {part: [] for part in PARTS})
    """Seconds of each call, a list a round."""

    async def take_and_claim(self, into: dict[str, list[float]]) -> None:
        """The next message of the queue, from its take to its claim."""
        started = time.perf_counter()
        message: Message = await self.taker.take()
        taken = time.perf_counter()
        verdict = await self.store.register_and_claim(message, holder="deployer-0/1")
        ended = time.perf_counter()
        if not isinstance(verdict, Granted):
            raise SystemExit(f"{self.name}: {verdict} instead of a claim")
        into["take"].append(taken - started)
        into["claim"].append(ended - taken)
        into["take and claim"].append(ended - started)

    async def update(self, into: dict[str, list[float]]) -> None:
        """The measure of all: one row by its key, one commit."""
        started = time.perf_counter()
        await self.pool.execute("UPDATE bare SET n = n + 1 WHERE id = $1", 1)
        into["bare UPDATE"].append(time.perf_counter() - started)

    def p(self, part: str, percent: float) -> float:
        """Milliseconds: the median of the rounds' percentiles."""
        return middle([percentile(one, percent) * 1000 for one in self.rounds[part]])


async def start_postgres(folder: Path, stack: contextlib.ExitStack) -> EmbeddedPostgres:
    """A durable PostgreSQL of our own."""
    postgres = prepare(folder / "postgres")
    postgres.init()
    # Registered before the start: a failed start is stopped too.
    stack.callback(shutil.rmtree, postgres.data, ignore_errors=True)
    stack.callback(postgres.stop)
    postgres.start(dies_with_parent=True)
    await postgres.wait_ready()
    return postgres


async def fill(url: str, past: int, backlog: int) -> None:
    """Migrate, then a past, a backlog, and the one row of the bare UPDATE."""
    started = time.monotonic()
    await migrate(url)
    connection = await asyncpg.connect(url)
    try:
        await fill_past(connection, past)
        await fill_backlog(connection, backlog)
        await connection.execute("CREATE TABLE bare (id int PRIMARY KEY, n bigint NOT NULL); INSERT INTO bare VALUES (1, 0)")
        await connection.execute("CHECKPOINT")
        size = await connection.fetchval("SELECT pg_size_pretty(pg_database_size(current_database()))")
    finally:
        await connection.close()
    say(f"{past:,} past requests, a backlog of {backlog:,}: {size}, filled in {time.monotonic() - started:.0f} s")


@contextlib.asynccontextmanager
async def opened(name: str, url: str) -> AsyncIterator[Side]:
    """One side's connections, as a deployer has them."""
    pool = open_pool(url, size=CLAIM_CONNECTIONS, command_seconds_max=STATEMENT_SECONDS_MAX, application="bare", settings=BY_INDEX)
    async with PostgresStateStore.open(url) as store, Taker.open(url) as taker, pool as bare:
        yield Side(name, url, store, taker, bare)


async def run_rounds(sides: list[Side], rounds: int, claims: int) -> None:
    """One claim and one UPDATE at a time, the sides by turns: what disturbs the machine disturbs all alike."""
    for number in range(-1, rounds):
        found: list[dict[str, list[float]]] = [{part: [] for part in PARTS} for _ in sides]
        for turn in range(claims if number >= 0 else WARM_UP):
            for side, into in list(zip(sides, found, strict=True))[:: 1 if turn % 2 else -1]:
                calls: list[Callable[[dict[str, list[float]]], Awaitable[None]]] = [side.take_and_claim, side.update]
                for call in calls[:: 1 if turn % 4 < 2 else -1]:
                    await call(into)
        if number < 0:
            continue
        for side, into in zip(sides, found, strict=True):
            for part in PARTS:
                side.rounds[part].append(into[part])
        p99 = [
            f"{side.name}: {' and '.join(f'{part} {percentile(into[part], 99) * 1000:.2f}' for part in ('claim', 'bare UPDATE'))}"
            for side, into in zip(sides, found, strict=True)
        ]
        say(f"  round {number + 1}, p99 in ms, {'; '.join(p99)}")


def report(sides: list[Side], reads: list[Reads], backlog: int) -> bool:
    """Tables and `bench/results/claim.json`; whether both ratios are kept."""
    rows: list[list[object]] = [
        [f"{side.name}, {part}", side.p(part, 50), side.p(part, 95), side.p(part, 99)] for side in sides for part in PARTS
    ]
    table(f"A claim with {backlog:,} messages waiting, durable, ms (medians of rounds)", ["", "p50", "p95", "p99"], rows)
    table(
        "Rows that one call reads in the larger database",
        ["call", "most of", "rows"],
        [[each.call, each.table, each.rows] for each in reads],
    )
    small, large = sides
    parts = ("claim", "take and claim")
    sizes = {part: large.p(part, 99) / small.p(part, 99) for part in parts}
    update = {part: large.p(part, 99) / large.p("bare UPDATE", 99) for part in parts}
    figures = {
        "ratio_of_sizes_p99": sizes,
        "ratio_to_update_p99": update,
        "ms": {side.name: {part: {f"p{n}": side.p(part, n) for n in (50, 95, 99)} for part in PARTS} for side in sides},
        "claims_each": sum(len(one) for one in large.rounds["claim"]),
        "backlog": backlog,
        "rows_read": {each.call: each.rows for each in reads},
        "load_average": os.getloadavg()[0],
    }
    for ratios, what, limit in (
        (sizes, f"that with {small.name}", f"less than {RATIO_OF_SIZES_MAX:.0f}"),
        (update, "the bare UPDATE's", f"at most {RATIO_TO_UPDATE_MAX:.0f}"),
    ):
        told = ", ".join(f"{part} {ratio:.2f}" for part, ratio in ratios.items())
        say(f"p99 with {large.name} over {what}: {told} ({limit} is asked for of the claim)")
    say(f"written to {write('claim', figures)}")
    return sizes["claim"] < RATIO_OF_SIZES_MAX and update["claim"] <= RATIO_TO_UPDATE_MAX


async def main() -> bool:
    """Fill both databases, run the rounds, count what is read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--claims", type=int, default=CLAIMS, help="a round, on each side")
    parser.add_argument("--past", type=int, nargs=2, default=SIZES)
    parser.add_argument("--backlog", type=int, default=BACKLOG)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prevue-bench-") as name, contextlib.ExitStack() as stack:
        postgres = await start_postgres(Path(name), stack)
        names = {f"{past:,} past": past for past in arguments.past}
        urls = {side: await postgres.create_database(f"past_{past}") for side, past in names.items()}
        for side, url in urls.items():
            await fill(url, names[side], arguments.backlog)
        async with contextlib.AsyncExitStack() as connections:
            sides = [await connections.enter_async_context(opened(side, url)) for side, url in urls.items()]
            await run_rounds(sides, arguments.rounds, arguments.claims)
        reads = await hot_reads(urls[f"{arguments.past[1]:,} past"])
    return report(sides, reads, arguments.backlog)


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(main()) else 1)
