"""Every interleaving of two transactions' statements on a real PostgreSQL, each transaction on connections of its own.

A transaction stops at each boundary between two of its statements, and a scheduler says who goes on; one that waits for a row lock is
recognised in `pg_locks`, and the other goes on. The statements that the backend sends from Python stop in an event of its engine. Those
inside a function of the database, above all T1, stop in the database: `put_boundaries` rewrites the function *of the test's database*
from its own text, with a call before each of its statements that waits for an advisory lock of the scheduler's. (A trigger would stop
inside a statement, after its snapshot, and never before a SELECT.)

The INSERT into the ledger is no step of its own: it touches no row that another transaction touches.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import msgspec
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import await_only

from prevue.clock import SystemClock
from prevue.errors import StaleClaim
from prevue.postgres import FairPool, sqlalchemy_url
from prevue.statestore.port import ClaimLimits
from prevue.statestore.postgres import PostgresStateStore
from prevue.statestore.postgres.database import Database
from prevue.testing.contracts.statestore_view import told

SECONDS_MAX = 20.0
"""Of one step; a hang is a failure."""
LOOK_SECONDS = 0.001
"""A step that takes longer is perhaps waiting for a lock."""
_DEADLOCK_MS = "20"
_LEDGER = "INSERT INTO ledger"
_STATEMENT = re.compile(r"((?:;|\bTHEN|\bELSE)(?:\s|--[^\n]*\n)+)(?=(INSERT INTO \w+|SELECT|UPDATE|DELETE|ALTER|PERFORM|RETURN)\b)")

Operation = Callable[[PostgresStateStore], Awaitable[object]]


class Ran(msgspec.Struct, frozen=True):
    """One interleaving."""

    schedule: str
    """Who went on, step by step, such as `abba`."""
    results: tuple[object, object]
    """What the two methods answered; an exception's text, if that is how one ended."""


async def put_boundaries(connection: Any, function: str, *, first: int) -> int:
    """Rewrite `function` of this database; boundaries are numbered from `first`. Returns how many there are.

    The call of the function is a boundary by itself: none is put before its first statement.
    """
    definition: str = await connection.fetchval("SELECT pg_get_functiondef(oid) FROM pg_proc WHERE proname = $1", function)
    head, begin, body = definition.partition("\nBEGIN\n")  # what follows it at once is the first statement
    put = 0

    def boundary(found: re.Match[str]) -> str:
        nonlocal put
        if found[2] == _LEDGER:
            return found[1]
        put += 1
        return f"{found[1]}PERFORM at_boundary({first + put - 1}); "

    await connection.execute(head + begin + _STATEMENT.sub(boundary, body))
    return put


class Actor:
    """One side: a store on two connections, one of SQLAlchemy's and one of the driver's."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.store: PostgresStateStore
        self.pids: list[int] = []
        self.is_blocked = False
        self._task: asyncio.Task[object] | None = None
        self._moved = asyncio.Event()
        self._is_first = True
        self._go: asyncio.Future[None] | None = None
        self._database_boundary: tuple[int, int] | None = None

    @asynccontextmanager
    async def open(self, url: str, limits: ClaimLimits, kind: type[PostgresStateStore]) -> AsyncIterator[None]:
        """Connect both, and stop at their boundaries from now on."""
        settings = {"deadlock_timeout": _DEADLOCK_MS, "application_name": f"actor-{self.name}"}
        async with AsyncExitStack() as stack:
            engine = create_async_engine(sqlalchemy_url(url), pool_size=1, max_overflow=0, connect_args={"server_settings": settings})
            stack.push_async_callback(engine.dispose)
            event.listen(engine.sync_engine, "connect", lambda adapted, _record: self._listen(adapted.driver_connection))
            event.listen(engine.sync_engine, "before_cursor_execute", self._before_statement)
            event.listen(engine.sync_engine, "commit", self._before_commit)
            connection = await asyncpg.connect(url, server_settings=settings)
            stack.callback(connection.terminate)
            self._listen(connection)
            claims = FairPool(connection, 1)  # a pool of one
            self.store = kind(Database(engine, claims, claims, heartbeat_seconds_max=SECONDS_MAX), limits, "default", SystemClock())
            await self.store.cursor("")  # connects
            stack.push_async_callback(self._end)
            yield

    async def _end(self) -> None:
        """Nothing of ours goes on, where a check failed on the way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _listen(self, connection: Any) -> None:
        connection.add_log_listener(self._at_database_boundary)
        self.pids.append(connection.get_server_pid())

    def begin(self) -> None:
        """Forget the last transaction."""
        self._task, self._is_first, self._go, self._database_boundary, self.is_blocked = None, True, None, None, False

    async def go_on(self, operation: Operation, controller: Any) -> tuple[int, int] | None:
        """One step: until the next boundary, if nothing blocks it. Returns the lock of the boundary that was left, if it had one."""
        self._moved.clear()
        left = self._database_boundary
        if self._task is None:
            self._task = asyncio.create_task(answer(operation(self.store)), name=f"actor-{self.name}")
            self._task.add_done_callback(lambda _: self._moved.set())
        elif left is not None:
            self._database_boundary = None
            await controller.fetchval("SELECT pg_advisory_unlock($1, $2)", *left)
        elif self._go is not None:
            self._go.set_result(None)
            self._go = None
        return left

    async def stops(self, controller: Any) -> None:
        """Return when it is at a boundary, or done, or waits for a lock: `is_blocked`."""
        async with asyncio.timeout(SECONDS_MAX):
            if self.is_blocked and await controller.fetchval(_WAITS, self.pids):
                return
            while True:
                try:
                    await asyncio.wait_for(self._moved.wait(), LOOK_SECONDS)
                except TimeoutError:
                    self.is_blocked = await controller.fetchval(_WAITS, self.pids)
                    if self.is_blocked:
                        return
                else:
                    self.is_blocked = False
                    return

    @property
    def is_done(self) -> bool:
        """It has answered."""
        return self._task is not None and self._task.done()

    @property
    def result(self) -> object:
        """What it answered."""
        assert self._task is not None  # noqa: S101 (only asked for when it is done)
        return self._task.result()

    async def wait_moved(self) -> None:
        """Until its next boundary or its end, however long a lock is waited for."""
        await self._moved.wait()
        self.is_blocked = False

    def _before_statement(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if self._task is None or statement.startswith(_LEDGER):
            return
        if self._is_first:
            self._is_first = False
            return
        await_only(self._boundary())

    def _before_commit(self, _connection: Any) -> None:
        await_only(self._boundary())

    async def _boundary(self) -> None:
        self._go = asyncio.get_running_loop().create_future()
        self._moved.set()
        await self._go

    def _at_database_boundary(self, _connection: Any, message: Any) -> None:
        if message.message.startswith("boundary "):
            _, pid, number = message.message.split()
            self._database_boundary = (int(pid), int(number))
            self._moved.set()


_WAITS = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = ANY($1) AND NOT granted AND locktype <> 'advisory')"
_AT_BOUNDARY = """
CREATE FUNCTION at_boundary(a_number integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE 'boundary % %', pg_backend_pid(), a_number;
    PERFORM pg_advisory_lock(pg_backend_pid(), a_number);
    PERFORM pg_advisory_unlock(pg_backend_pid(), a_number);
END $$
"""


async def answer(call: Awaitable[object]) -> object:
    """What a transaction answered, comparable; an exception's text, if that is how it ended."""
    try:
        return told(await call)
    except StaleClaim:
        return "stale"
    except Exception as exc:  # noqa: BLE001 (a deadlock, above all: whoever checks the answer sees it)
        return f"{type(exc).__name__}: {exc}"


class Interleaver:
    """Two actors on one database, and the scheduler."""

    FUNCTIONS = ("prevue_register_and_claim", "prevue_raise_tokens")

    def __init__(self, controller: Any, actors: tuple[Actor, Actor]) -> None:
        self._controller = controller
        self._actors = actors
        self.boundaries: dict[str, int] = {}
        """Of each function of the database: how many were put into it."""

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, limits: ClaimLimits, kind: type[PostgresStateStore] = PostgresStateStore) -> AsyncIterator[Interleaver]:
        """Put the boundaries into the database behind `url` and connect both actors."""
        async with AsyncExitStack() as stack:
            controller = await asyncpg.connect(url)
            stack.push_async_callback(controller.close)
            await controller.execute(_AT_BOUNDARY)
            actors = Actor("a"), Actor("b")
            found = cls(controller, actors)
            for function in cls.FUNCTIONS:
                first = sum(found.boundaries.values()) + 1
                found.boundaries[function] = await put_boundaries(controller, function, first=first)
            for actor in actors:
                await stack.enter_async_context(actor.open(url, limits, kind))
            numbers = range(1, sum(found.boundaries.values()) + 1)
            await found._close([(pid, number) for actor in actors for pid in actor.pids for number in numbers])
            yield found

    async def interleavings(
        self, a: Operation, b: Operation, restore: Callable[[], Awaitable[None]], *, preemptions_max: int | None = None
    ) -> AsyncIterator[Ran]:
        """Run every one, depth first; `restore` brings the database back before each. First of all a before b.

        `preemptions_max`: only those in which at most so many times the one that could go on has to stop; waits for locks do not count.
        """
        choices: list[tuple[int, int]] = []  # at each decision: the choice, and among how many
        while True:
            await restore()
            yield await self._one((a, b), choices, preemptions_max)
            while choices and choices[-1][0] == choices[-1][1] - 1:
                choices.pop()
            if not choices:
                return
            choices[-1] = (choices[-1][0] + 1, choices[-1][1])

    async def _one(self, operations: tuple[Operation, Operation], choices: list[tuple[int, int]], preemptions_max: int | None) -> Ran:
        """One interleaving: as `choices` say; further decisions are appended, taken for going on as before."""
        for actor in self._actors:
            actor.begin()
        schedule, opened, decisions, last = "", [], 0, 0
        left = preemptions_max
        while not all(actor.is_done for actor in self._actors):
            able = [number for number in (last, 1 - last) if not self._actors[number].is_done and not self._actors[number].is_blocked]
            if not able:  # each waits for the other: the database ends one of them
                await self._deadlock_resolved()
                continue
            if len(able) > 1 and (left != 0 or not schedule):
                if decisions == len(choices):
                    choices.append((0, len(able)))
                able = [able[choices[decisions][0]]]
                decisions += 1
                if left is not None and schedule and able[0] != last:
                    left -= 1
            last = able[0]
            actor, other = self._actors[last], self._actors[1 - last]
            schedule += actor.name
            boundary = await actor.go_on(operations[last], self._controller)
            opened += [boundary] if boundary is not None else []
            await actor.stops(self._controller)
            if other.is_blocked:
                await other.stops(self._controller)
        await self._close(opened)
        return Ran(schedule, (self._actors[0].result, self._actors[1].result))

    async def _deadlock_resolved(self) -> None:
        async with asyncio.timeout(SECONDS_MAX):
            waits = [asyncio.create_task(actor.wait_moved()) for actor in self._actors if not actor.is_done]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        for actor in self._actors:
            if actor.is_blocked:
                await actor.stops(self._controller)

    async def _close(self, boundaries: list[tuple[int, int]]) -> None:
        pids, numbers = [pid for pid, _ in boundaries], [number for _, number in boundaries]
        await self._controller.execute("SELECT pg_advisory_lock(pid, n) FROM unnest($1::int[], $2::int[]) AS b (pid, n)", pids, numbers)
