"""Connections of the statestore: one pool for its transactions, a small one apart for heartbeats.

A heartbeat must never wait behind other statements for a connection, and must fail early enough for two more to be tried within the
lease (protocol, section 7): hence its own pool and its own, shorter, time limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from prevue.errors import StateStoreUnavailable
from prevue.postgres import APPLICATION_NAME, CONNECT_SECONDS_MAX, check_url, outages_as, sqlalchemy_url

STATEMENT_SECONDS_MAX = 10.0
"""Of any statement but a heartbeat's, the wait for a row lock included; each takes milliseconds."""
IDLE_IN_TRANSACTION_SECONDS_MAX = 3.0
"""A process that is stopped inside a transaction would keep its row locks, and no other could ever claim that preview."""
CONNECTIONS = 10
"""At most, for transactions; they are short, so that few serve many slots."""


class Database:
    """The two engines, and the three ways to use them."""

    def __init__(self, url: str, *, lease_seconds: float) -> None:
        check_url(url, setting="statestore.url")
        self.heartbeat_seconds_max = lease_seconds / 4 * 0.8
        self._transactions = _engine(url, CONNECTIONS, STATEMENT_SECONDS_MAX, "statestore")
        self._heartbeats = _engine(url, 2, self.heartbeat_seconds_max, "heartbeat")
        # A lone statement commits by itself: BEGIN and COMMIT would be two more round trips.
        self._statements = self._transactions.execution_options(isolation_level="AUTOCOMMIT")
        self._heartbeat_statements = self._heartbeats.execution_options(isolation_level="AUTOCOMMIT")

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

    @asynccontextmanager
    async def heartbeat(self) -> AsyncIterator[AsyncConnection]:
        """One statement, on connections of their own, within a quarter of the lease: connecting and waiting for a lock included."""
        with _outages():
            async with asyncio.timeout(self.heartbeat_seconds_max), self._heartbeat_statements.connect() as connection:
                yield connection

    async def close(self) -> None:
        """Close all connections."""
        await self._transactions.dispose()
        await self._heartbeats.dispose()


def _engine(url: str, connections: int, statement_seconds_max: float, application: str) -> AsyncEngine:
    return create_async_engine(
        sqlalchemy_url(url),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=STATEMENT_SECONDS_MAX,
        connect_args={
            "timeout": CONNECT_SECONDS_MAX,
            "command_timeout": statement_seconds_max,
            "server_settings": {
                "application_name": f"{APPLICATION_NAME}-{application}",
                "statement_timeout": str(max(1, int(statement_seconds_max * 1000))),
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
