"""The statestore's contract, kept by the fake and by PostgreSQL."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, ClassVar
from urllib.parse import urlsplit

import asyncpg
import pytest

from prevue.statestore.postgres import PostgresStateStore
from prevue.testing.contracts.lifecycle import LifecycleContract
from prevue.testing.contracts.outbox import OutboxContract
from prevue.testing.contracts.statestore import ClaimContract
from prevue.testing.contracts.statestore_harness import LIMITS, Rows, StateStoreHarness, Store
from prevue.testing.contracts.sweep import SweepContract
from prevue.testing.proxy import Proxy
from prevue.testing.statestore import FakeStateStore
from prevue.testing.statestore_disk import StateStoreDisk

CLUSTER = "test-cluster"


class FakeHarness:
    """Time and outages are the disk's."""

    def __init__(self) -> None:
        self.disk = StateStoreDisk()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Store]:
        yield FakeStateStore(self.disk, limits=LIMITS, cluster_name=CLUSTER)

    async def let_time_pass(self, seconds: float) -> None:
        FakeStateStore(self.disk).advance(seconds)

    async def rows(self) -> Rows:
        disk = copy.deepcopy(self.disk)
        return {field.name: [getattr(disk, field.name)] for field in dataclasses.fields(disk)}

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        self.disk.outage = True
        try:
            yield
        finally:
            self.disk.outage = False


class PostgresHarness:
    """Time passes by moving the rows' times back; the network between is a proxy that can be cut."""

    TIMES: ClassVar[dict[str, list[str]]] = {
        "preview": ["lease_until", "helm_deadline", "changed_at", "expires_at"],
        "request": ["not_before", "sent_at", "registered_at"],
        "outbox": ["due_at", "verify_at"],
        "lease": ["until"],
        "content_write": ["at"],
    }

    def __init__(self, url: str, proxy: Proxy, connection: Any) -> None:
        address = urlsplit(url)
        self.url = address._replace(netloc=f"{address.username}:{address.password}@127.0.0.1:{proxy.port}").geturl()
        self.proxy = proxy
        self.connection = connection

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Store]:
        async with PostgresStateStore.open(self.url, LIMITS, CLUSTER) as store:
            yield store

    async def let_time_pass(self, seconds: float) -> None:
        for table, columns in self.TIMES.items():
            moves = ", ".join(f"{column} = {column} - make_interval(secs => $1)" for column in columns)
            await self.connection.execute(f"UPDATE {table} SET {moves}", seconds)

    async def rows(self) -> Rows:
        tables = ("request", "preview", "outbox", "lease", "ledger", "content_write", "cursor")
        return {table: [tuple(row) for row in await self.connection.fetch(f"SELECT * FROM {table} ORDER BY 1, 2, 3")] for table in tables}

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        await self.proxy.cut()
        try:
            yield
        finally:
            await self.proxy.mend()


class Fake:
    @pytest.fixture
    def harness(self) -> StateStoreHarness:
        return FakeHarness()


class Postgres:
    @pytest.fixture
    async def harness(self, postgres_url: str) -> AsyncIterator[StateStoreHarness]:
        async with AsyncExitStack() as stack:
            proxy = await stack.enter_async_context(Proxy.to(postgres_url))
            connection = await asyncpg.connect(postgres_url)
            stack.push_async_callback(connection.close)
            yield PostgresHarness(postgres_url, proxy, connection)


class TestFakeClaims(Fake, ClaimContract):
    pass


class TestFakeOutbox(Fake, OutboxContract):
    pass


class TestFakeSweep(Fake, SweepContract):
    pass


class TestFakeLifecycle(Fake, LifecycleContract):
    pass


class TestPostgresLifecycle(Postgres, LifecycleContract):
    pass


class TestPostgresClaims(Postgres, ClaimContract):
    pass


class TestPostgresOutbox(Postgres, OutboxContract):
    pass


class TestPostgresSweep(Postgres, SweepContract):
    pass
