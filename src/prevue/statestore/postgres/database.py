"""Connections of the statestore: an engine for its transactions, and two small pools for what must be quick.

T1 and the heartbeat are one statement each and go to the driver directly: through SQLAlchemy T1 took 1.1 ms instead of 0.7, beside a
bare one-row UPDATE's 0.3 (measured on one machine, commit to disk). A heartbeat moreover must never wait behind other statements for a
connection, and must fail early enough for two more to be tried within the lease (protocol section 7): hence its own pool and limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from prevue.errors import StateStoreUnavailable
from prevue.postgres import APPLICATION_NAME, BY_INDEX, CONNECT_SECONDS_MAX, FairPool, check_url, open_pool, outages_as, sqlalchemy_url

STATEMENT_SECONDS_MAX = 10.0
"""Of any statement but a heartbeat's, the wait for a row lock included; each takes milliseconds."""
IDLE_IN_TRANSACTION_SECONDS_MAX = 3.0
"""A process that is stopped inside a transaction would keep its row locks, and no other could ever claim that preview."""
TRANSACTION_CONNECTIONS, CLAIM_CONNECTIONS, HEARTBEAT_CONNECTIONS = 6, 4, 2
"""At most, made when they are needed; statements are short, so that few connections serve many slots."""


class Database:
    """The connections, and the ways to use them."""

    def __init__(self, engine: AsyncEngine, claims: FairPool, heartbeats: FairPool, *, heartbeat_seconds_max: float) -> None:
        self._transactions = engine
        # A lone statement commits by itself: BEGIN and COMMIT would be two more round trips.
        self._statements = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._claims = claims
        self._heartbeats = heartbeats
        self._heartbeat_seconds_max = heartbeat_seconds_max

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, *, lease_seconds: float) -> AsyncIterator[Database]:
        """All connections, none of them made yet."""
        check_url(url, setting="statestore.url")
        heartbeat_seconds_max = lease_seconds / 4 * 0.8
        async with AsyncExitStack() as stack:
            engine = _engine(url)
            stack.push_async_callback(engine.dispose)
            claims = open_pool(
                url, size=CLAIM_CONNECTIONS, command_seconds_max=STATEMENT_SECONDS_MAX, application="claims", settings=BY_INDEX
            )
            heartbeats = open_pool(
                url, size=HEARTBEAT_CONNECTIONS, command_seconds_max=heartbeat_seconds_max, application="heartbeats", settings=BY_INDEX
            )
            pools = await stack.enter_async_context(claims), await stack.enter_async_context(heartbeats)
            yield cls(engine, *pools, heartbeat_seconds_max=heartbeat_seconds_max)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Several statements, committed together at the end; an exception rolls them back."""
        with _outages():
            async with self._transactions.begin() as connection:
                yield connection

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[AsyncConnection]:
        """One statement that commits by itself."""
        with _outages():
            async with self._statements.connect() as connection:
                yield connection

    async def claim(self, sql: str, *arguments: Any) -> Any:
        """T1: one row back."""
        with _outages():
            return await self._claims.fetchrow(sql, *arguments)

    async def heartbeat(self, sql: str, *arguments: Any) -> Any:
        """One row back or none, within a quarter of the lease, connecting and waiting for a lock included."""
        with _outages():
            async with asyncio.timeout(self._heartbeat_seconds_max):
                return await self._heartbeats.fetchrow(sql, *arguments)


def _engine(url: str) -> AsyncEngine:
    return create_async_engine(
        sqlalchemy_url(url),
        pool_size=TRANSACTION_CONNECTIONS,
        max_overflow=0,
        pool_timeout=STATEMENT_SECONDS_MAX,
        connect_args={
            "timeout": CONNECT_SECONDS_MAX,
            "command_timeout": STATEMENT_SECONDS_MAX,
            "server_settings": {
                "application_name": f"{APPLICATION_NAME}-statestore",
                "statement_timeout": str(int(STATEMENT_SECONDS_MAX * 1000)),
                "idle_in_transaction_session_timeout": str(int(IDLE_IN_TRANSACTION_SECONDS_MAX * 1000)),
                "jit": "off",  # every statement touches few rows
            },
        },
    )


@contextmanager
def _outages() -> Iterator[None]:
    with outages_as(StateStoreUnavailable):
        try:
            yield
        except PoolTimeoutError as exc:
            raise StateStoreUnavailable("PostgreSQL: no connection of the pool became free in time") from exc
