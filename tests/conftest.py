"""Fixtures for everybody.

PostgreSQL starts by itself, once a run, in about two seconds, and only if a test asks for it:

- `postgres_url`: a database of the test's own with the current schema; dropped afterwards. What most tests want.
- `empty_postgres_url`: the same without a schema.
- `postgres`: the server (`prevue.local.postgres.EmbeddedPostgres`), for whoever stops, starts or asks it. Leave it running.

Tests that use them are marked `postgres` by themselves. Close what you open: a connection left open is an error here.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog

from prevue.local.postgres import EmbeddedPostgres, prepare
from prevue.migrations import migrate

APP_ROLE, APP_PASSWORD = "prevue_app", "app-password"
_TEMPLATE = "prevue_template"
_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever uses a database is marked so, that `-m "not postgres"` finds the rest."""
    for item in items:
        if "postgres" in getattr(item, "fixturenames", ()):
            item.add_marker("postgres")


@pytest.fixture(autouse=True)
def logs_are_nobodys() -> Iterator[None]:
    """What a test set up for logs ends with it."""
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


@pytest.fixture
def repository_root() -> Path:
    """The folder with pyproject.toml."""
    return Path(__file__).parent.parent
