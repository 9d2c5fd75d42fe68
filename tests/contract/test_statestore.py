"""The statestore's contract, kept by the fake and by PostgreSQL."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from prevue.model import Claim, Order, PreviewState
from prevue.statestore.port import Began, ClaimLimits, NewerDesired
from prevue.statestore.postgres import PostgresStateStore
from prevue.testing.contracts.lifecycle import LifecycleContract
from prevue.testing.contracts.outbox import OutboxContract
from prevue.testing.contracts.statestore import ClaimContract
from prevue.testing.contracts.statestore_harness import LIMITS, Rows, StateStoreHarness, Store
from prevue.testing.contracts.statestore_machine import BOUNDED, StateStoreMachine
from prevue.testing.contracts.statestore_machine import LIMITS as MACHINE_LIMITS
from prevue.testing.contracts.sweep import SweepContract
from prevue.testing.proxy import Proxy
from prevue.testing.statestore import FakeStateStore
from prevue.testing.statestore_disk import StateStoreDisk

CLUSTER = "test-cluster"
TIMES = {
    "preview": ["lease_until", "helm_deadline", "changed_at", "expires_at"],
    "request": ["not_before", "sent_at", "registered_at"],
    "outbox": ["due_at", "verify_at"],
    "lease": ["until"],
    "content_write": ["at"],
}


async def move_back(connection: Any, seconds: float) -> None:
    """Time passes: what lies ahead in the rows is nearer."""
    for table, columns in TIMES.items():
        moves = ", ".join(f"{column} = {column} - make_interval(secs => $1)" for column in columns)
        await connection.execute(f"UPDATE {table} SET {moves}", seconds)


class FakeHarness:
    """Time and outages are the disk's."""

    def __init__(self, limits: ClaimLimits = LIMITS, kind: type[FakeStateStore] = FakeStateStore) -> None:
        self.disk = StateStoreDisk()
        self.limits = limits
        self.kind = kind

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Store]:
        yield self.kind(self.disk, limits=self.limits, cluster_name=CLUSTER)

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
        await move_back(self.connection, seconds)

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


async def emptied(url: str) -> None:
    """As a fresh database."""
    connection = await asyncpg.connect(url)
    await connection.execute("ALTER TABLE ledger DISABLE TRIGGER USER")  # append-only, but for this
    await connection.execute("TRUNCATE request, preview, outbox, lease, ledger, content_write, cursor RESTART IDENTITY")
    await connection.execute("ALTER SEQUENCE claim_token RESTART")
    await connection.close()


class OpenedPostgresHarness:
    """Without a proxy, since nothing is cut; a connection of its own whenever time passes."""

    def __init__(self, url: str) -> None:
        self.url = url

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Store]:
        await emptied(self.url)
        async with PostgresStateStore.open(self.url, MACHINE_LIMITS, CLUSTER) as store:
            yield store

    async def let_time_pass(self, seconds: float) -> None:
        connection = await asyncpg.connect(self.url)
        await move_back(connection, seconds)
        await connection.close()


@pytest.mark.timeout(600)
def test_fake_and_postgres_answer_alike_whatever_is_asked(postgres_url: str) -> None:
    """Hypothesis chooses the commands; each example begins with an empty statestore."""

    class FakeAndPostgres(StateStoreMachine):
        def __init__(self) -> None:
            super().__init__(FakeHarness(MACHINE_LIMITS), OpenedPostgresHarness(postgres_url))

    run_state_machine_as_test(FakeAndPostgres, settings=BOUNDED)


class Revived(FakeStateStore):
    """A heartbeat that forgets that a lease may have lapsed."""

    async def heartbeat(self, claim: Claim) -> Order:
        now = await self._begin_transaction()
        preview = self._held(claim)
        preview.lease_until = now + timedelta(seconds=self.limits.lease_seconds)
        return preview.desired


class KeptLive(FakeStateStore):
    """A failure after which what was live still counts."""

    async def begin(
        self, claim: Claim, *, preview_state: PreviewState, deadline_seconds: float, values_digest: str = ""
    ) -> Began | NewerDesired:
        live = self.disk.previews[claim.key].live
        began = await super().begin(claim, preview_state=preview_state, deadline_seconds=deadline_seconds, values_digest=values_digest)
        if isinstance(began, Began):
            self.disk.previews[claim.key].live = live
        return began


@pytest.mark.parametrize("mistaken", [Revived, KeptLive])
def test_planted_difference_is_found(mistaken: type[FakeStateStore]) -> None:
    """The comparison is not blind."""

    class RightAndMistaken(StateStoreMachine):
        def __init__(self) -> None:
            super().__init__(FakeHarness(MACHINE_LIMITS), FakeHarness(MACHINE_LIMITS, mistaken))

    with pytest.raises(AssertionError, match="differ"):
        run_state_machine_as_test(
            RightAndMistaken, settings=settings(BOUNDED, max_examples=500, phases=[Phase.generate], report_multiple_bugs=False)
        )
