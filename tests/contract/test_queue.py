"""The queue's contract, kept by the fake and by PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from prevue.queue.postgres import PostgresConsumer, PostgresEnqueuer, PostgresGauge
from prevue.testing.contracts.queue import OpenedQueue, Queue, QueueContract, QueueHarness
from prevue.testing.proxy import Proxy
from prevue.testing.queue import FakeQueue, QueueDisk


class FakeHarness:
    """Time, outages and crashes are the disk's."""

    def __init__(self) -> None:
        self.disk = QueueDisk()

    @asynccontextmanager
    async def open(self, *, lease_seconds: float = 10) -> AsyncIterator[Queue]:
        yield FakeQueue(self.disk, lease_seconds=lease_seconds)

    async def let_time_pass(self, seconds: float) -> None:
        self.disk.advance(seconds)

    async def put_raw(self, body: str) -> None:
        self.disk.put_raw(body.encode())

    async def rejected(self) -> list[str]:
        return [body.decode() for body, _ in self.disk.rejected]

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        self.disk.outage = True
        try:
            yield
        finally:
            self.disk.outage = False


class PostgresHarness:
    """Time passes by moving the rows' times back; the network between is a proxy that can be cut."""

    def __init__(self, url: str, proxy: Proxy, connection: Any) -> None:
        address = urlsplit(url)
        self.url = address._replace(netloc=f"{address.username}:{address.password}@127.0.0.1:{proxy.port}").geturl()
        self.proxy = proxy
        self.connection = connection

    @asynccontextmanager
    async def open(self, *, lease_seconds: float = 10) -> AsyncIterator[Queue]:
        async with (
            PostgresEnqueuer.open(self.url) as enqueuer,
            PostgresConsumer.open(self.url, lease_seconds=lease_seconds, poll_seconds=0.1) as consumer,
            PostgresGauge.open(self.url) as gauge,
        ):
            yield OpenedQueue(enqueuer, consumer, gauge, crash=consumer._pool.terminate)

    async def let_time_pass(self, seconds: float) -> None:
        await self.connection.execute("UPDATE queue_message SET available_at = available_at - make_interval(secs => $1)", seconds)

    async def put_raw(self, body: str) -> None:
        await self.connection.execute("INSERT INTO queue_message (identity, body) VALUES (gen_random_uuid()::text, $1)", body)

    async def rejected(self) -> list[str]:
        return [row["body"] for row in await self.connection.fetch("SELECT body FROM queue_rejected WHERE reason <> ''")]

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        await self.proxy.cut()
        try:
            yield
        finally:
            await self.proxy.mend()


class TestFakeQueue(QueueContract):
    @pytest.fixture
    def harness(self) -> QueueHarness:
        return FakeHarness()


class TestPostgresQueue(QueueContract):
    @pytest.fixture
    async def harness(self, postgres_url: str) -> AsyncIterator[QueueHarness]:
        async with AsyncExitStack() as stack:
            proxy = await stack.enter_async_context(Proxy.to(postgres_url))
            connection = await asyncpg.connect(postgres_url)
            stack.push_async_callback(connection.close)
            yield PostgresHarness(postgres_url, proxy, connection)
