"""Fixtures for everybody.

PostgreSQL starts by itself, once a run, in about two seconds, and only if a test asks for it:

- `postgres_url`: a database of the test's own with the current schema; dropped afterwards. What most tests want.
- `empty_postgres_url`: the same without a schema.
- `postgres`: the server (`prevue.local.postgres.EmbeddedPostgres`), for whoever stops, starts or asks it. Leave it running.

Google's emulators start alike, built on the first run: `cloud_tasks_emulator` and `pubsub_emulator` (`prevue.local.emulators`).

Tests that use a database are marked `postgres` by themselves, those that use an emulator `emulator`. Close what you open: a connection
left open is an error here.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog

from prevue.local.emulators import CloudTasksEmulator, PubSubEmulator, cloud_tasks_program, pubsub_program
from prevue.local.ports import free_ports, listens
from prevue.local.postgres import EmbeddedPostgres, prepare
from prevue.migrations import migrate

APP_ROLE, APP_PASSWORD = "prevue_app", "app-password"
_TEMPLATE = "prevue_template"
_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever uses a database or an emulator is marked so, that `-m "not postgres and not emulator"` finds the rest."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        if "postgres" in names:
            item.add_marker("postgres")
        if "cloud_tasks_emulator" in names or "pubsub_emulator" in names:
            item.add_marker("emulator")


@pytest.fixture(autouse=True)
def logging_of_its_own() -> Iterator[None]:
    """What a command or process that ran inside a test made of logging ends with the test."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """The run's PostgreSQL, with the App's role and a migrated template database."""
    server = prepare(tmp_path_factory.mktemp("postgres"), is_durable=False)
    server.init()
    server.start(dies_with_parent=True)
    try:
        asyncio.run(_make_template(server))
        yield server
    finally:
        server.stop()
        server.remove()


async def _make_template(server: EmbeddedPostgres) -> None:
    await server.wait_ready()
    await migrate(await server.create_database(_TEMPLATE), app_role=APP_ROLE, app_password=APP_PASSWORD)


@pytest.fixture
async def postgres_url(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    """`postgresql://` of a fresh database with the current schema, as its owner."""
    name = f"test_{next(_numbers)}"
    yield await postgres.create_database(name, template=_TEMPLATE)
    await postgres.drop_database(name)


@pytest.fixture
def app_postgres_url(postgres_url: str) -> str:
    """The same database as `postgres_url`, as the GitHub App's role."""
    return f"postgresql://{APP_ROLE}:{APP_PASSWORD}@{postgres_url.split('@', 1)[1]}"


@pytest.fixture
async def empty_postgres_url(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    """`postgresql://` of a fresh database without a schema, as its owner."""
    name = f"empty_{next(_numbers)}"
    yield await postgres.create_database(name)
    await postgres.drop_database(name)


@pytest.fixture(scope="session")
def cloud_tasks_emulator() -> Iterator[CloudTasksEmulator]:
    """The run's Cloud Tasks; each test makes queues of its own."""
    port, issuer_port = free_ports(2)
    emulator = CloudTasksEmulator(program=cloud_tasks_program(_say), port=port, issuer_port=issuer_port)
    with _serving(emulator.command, port, issuer_port):
        yield emulator


@pytest.fixture(scope="session")
def pubsub_emulator() -> Iterator[PubSubEmulator]:
    """The run's Pub/Sub, with a clock that can be moved ahead; each test makes topics of its own."""
    port, clock_port = free_ports(2)
    emulator = PubSubEmulator(program=pubsub_program(_say), port=port, clock_port=clock_port)
    with _serving(emulator.command, port, clock_port):
        yield emulator


@contextmanager
def _serving(command: Sequence[str], *ports: int) -> Iterator[None]:
    """A server as a child, from the moment that it listens."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        give_up_at = time.monotonic() + 30
        while not all(listens(port) for port in ports):
            assert child.poll() is None, f"{command[0]} ended with {child.returncode}"
            assert time.monotonic() < give_up_at, f"{command[0]} does not listen"
            time.sleep(0.05)
        yield
    finally:
        child.terminate()
        child.wait(10)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@pytest.fixture
def repository_root() -> Path:
    """The folder with pyproject.toml."""
    return Path(__file__).parent.parent
