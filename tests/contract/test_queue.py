"""The queue's contract, kept by the fake and by PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from prevue.model import Message
from prevue.queue.port import AlreadyEnqueued, Depth, Enqueued, Handler
from prevue.queue.postgres import PostgresConsumer, PostgresEnqueuer, PostgresGauge
from prevue.testing.contracts.queue import Queue, QueueContract, QueueHarness
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


class PostgresQueue:
    """Both sides, as one process would open them."""

    def __init__(self, enqueuer: PostgresEnqueuer, consumer: PostgresConsumer, gauge: PostgresGauge) -> None:
        self._enqueuer = enqueuer
        self._consumer = consumer
        self._gauge = gauge

    async def enqueue(self, message: Message) -> Enqueued | AlreadyEnqueued:
        return await self._enqueuer.enqueue(message)

    async def check(self) -> None:
        await self._enqueuer.check()

    async def run(self, handler: Handler, *, slots: int, stop: asyncio.Event) -> None:
        await self._consumer.run(handler, slots=slots, stop=stop)

    async def depth(self) -> Depth:
        return await self._gauge.depth()

    def crash(self) -> None:
        self._consumer._pool.terminate()


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
            yield PostgresQueue(enqueuer, consumer, gauge)

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
