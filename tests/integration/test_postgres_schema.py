"""Migrations, the check at start, and what the App's role may do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from prevue.errors import ConfigError, OutageError, QueueUnavailable
from prevue.local.postgres import EmbeddedPostgres
from prevue.migrations import HEAD, migrate
from prevue.migrations.run import script_directory
from prevue.postgres import SCHEMA_REVISION, check_schema, sqlalchemy_url
from prevue.queue.port import AlreadyEnqueued, Enqueued
from prevue.queue.postgres import PostgresEnqueuer
from prevue.statestore.postgres.tables import metadata
from prevue.testing.contracts.queue import command


@pytest.fixture
async def connection(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


async def test_empty_database_is_brought_to_the_expected_schema(empty_postgres_url: str) -> None:
    await migrate(empty_postgres_url)
    await check_schema(empty_postgres_url)
    await migrate(empty_postgres_url)
    await check_schema(empty_postgres_url)


async def test_processes_that_migrate_at_once_take_turns(empty_postgres_url: str) -> None:
    await asyncio.gather(*(migrate(empty_postgres_url, app_role="prevue_app", app_password="app-password") for _ in range(3)))
    await check_schema(empty_postgres_url)


async def test_missing_schema_is_refused_with_the_next_step(empty_postgres_url: str) -> None:
    with pytest.raises(ConfigError, match=rf"schema is missing.*needs {SCHEMA_REVISION}.*prevue migrate"):
        await check_schema(empty_postgres_url)


@pytest.mark.parametrize(("found", "step"), [("0000", "prevue migrate"), ("9999", "newer version of Prevue")], ids=["older", "newer"])
async def test_other_schema_is_refused_with_the_next_step(postgres_url: str, connection: asyncpg.Connection, found: str, step: str) -> None:
    await connection.execute("UPDATE alembic_version SET version_num = $1", found)
    with pytest.raises(ConfigError, match=rf"{found}.*{SCHEMA_REVISION}.*{step}"):
        await check_schema(postgres_url)


async def test_unreachable_database_is_an_outage_not_a_wrong_schema() -> None:
    with pytest.raises(OutageError):
        await check_schema("postgresql://nobody@127.0.0.1:1/none")


async def test_url_of_something_else_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"statestore\.url"):
        await migrate("mysql://host/database")


def test_code_names_the_newest_revision() -> None:
    assert script_directory().get_current_head() == SCHEMA_REVISION == HEAD


async def test_tables_of_the_code_equal_the_migrated_schema(postgres_url: str) -> None:
    own = set(metadata.tables)

    def differences(connection: Connection) -> list[object]:
        def include(name: str | None, kind: str, _parents: object) -> bool:
            return kind != "table" or name in own

        options = {"compare_type": True, "compare_server_default": True, "include_name": include}
        found = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
        return [each for each in found if "comment" not in str(each[0])[:30]]  # comments stand in the SQL alone

    engine = create_async_engine(sqlalchemy_url(postgres_url))
    try:
        async with engine.connect() as connection:
            assert await connection.run_sync(differences) == []
    finally:
        await engine.dispose()


@pytest.mark.parametrize("statement", ["UPDATE ledger SET event = 'finished'", "DELETE FROM ledger", "TRUNCATE ledger"])
async def test_ledger_is_append_only_for_its_owner_too(connection: asyncpg.Connection, statement: str) -> None:
    await connection.execute("INSERT INTO ledger (request_id, event) VALUES (1, 'registered')")
    with pytest.raises(asyncpg.RestrictViolationError, match="append-only"):
        await connection.execute(statement)


async def test_ledger_may_be_cut_where_it_is_old(connection: asyncpg.Connection) -> None:
    await connection.execute("INSERT INTO ledger (request_id, event, at) VALUES (1, 'registered', now() - interval '31 days')")
    await connection.execute("DELETE FROM ledger WHERE at < now() - interval '30 days'")
    assert await connection.fetchval("SELECT count(*) FROM ledger") == 0


async def test_app_may_enqueue(app_postgres_url: str) -> None:
    async with PostgresEnqueuer.open(app_postgres_url) as enqueuer:
        await enqueuer.check()
        assert await enqueuer.enqueue(command(1)) == Enqueued()
        assert await enqueuer.enqueue(command(1)) == AlreadyEnqueued()


async def test_app_may_do_nothing_else(app_postgres_url: str, connection: asyncpg.Connection) -> None:
    """Every table, every verb; and the queue's columns that only a deployer sets."""
    await connection.execute("INSERT INTO queue_message (identity, body) VALUES ('theirs', '{}')")
    tables = [row["tablename"] for row in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    assert {"request", "preview", "outbox", "lease", "ledger", "content_write", "queue_message", "queue_rejected"} <= set(tables)
    statements = [f"{verb} {table}" for table in tables for verb in ("SELECT count(*) FROM", "DELETE FROM", "TRUNCATE")]
    statements += [f"INSERT INTO {table} DEFAULT VALUES" for table in tables if table != "queue_message"]
    statements += [
        "UPDATE queue_message SET body = ''",
        "UPDATE preview SET token = NULL",
        "UPDATE request SET state = 'waiting'",
        "INSERT INTO queue_message (identity, body, available_at) VALUES ('late', '{}', 'infinity')",
        "INSERT INTO queue_message (identity, body) VALUES ('theirs', 'mine') ON CONFLICT (identity) DO UPDATE SET body = 'mine'",
        "INSERT INTO queue_message (identity, body) VALUES ('returning', '{}') RETURNING id",
        "SELECT nextval('claim_token')",
        "SELECT prevue_reserve_write(1, 1, 1)",
        "CREATE TABLE mine (id int)",
    ]
    app = await asyncpg.connect(app_postgres_url)
    try:
        for statement in statements:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await app.execute(statement)
    finally:
        await app.close()


async def test_role_without_the_right_fails_the_check(postgres: EmbeddedPostgres, empty_postgres_url: str, app_postgres_url: str) -> None:
    database = empty_postgres_url.rsplit("/", 1)[1]
    async with PostgresEnqueuer.open(f"{app_postgres_url.rsplit('/', 1)[0]}/{database}") as enqueuer:
        with pytest.raises(QueueUnavailable, match="prevue migrate"):
            await enqueuer.check()
        await migrate(empty_postgres_url)
        with pytest.raises(QueueUnavailable, match="role"):
            await enqueuer.check()


async def test_owner_that_may_not_make_roles_is_told_what_to_run(
    postgres: EmbeddedPostgres, empty_postgres_url: str, connection: asyncpg.Connection
) -> None:
    await connection.execute("CREATE ROLE only_owner LOGIN PASSWORD 'owner'")
    database = empty_postgres_url.rsplit("/", 1)[1]
    try:
        await connection.execute(f"ALTER DATABASE {database} OWNER TO only_owner")
        url = f"postgresql://only_owner:owner@127.0.0.1:{postgres.port}/{database}"
        await migrate(url)
        await check_schema(url)
        with pytest.raises(ConfigError, match="CREATE ROLE another_app"):
            await migrate(url, app_role="another_app", app_password="secret")
        await migrate(url, app_role="prevue_app")  # it exists: the right alone is given
    finally:
        await connection.execute(f"ALTER DATABASE {database} OWNER TO prevue")
        owner = await asyncpg.connect(empty_postgres_url)
        await owner.execute("REASSIGN OWNED BY only_owner TO prevue")
        await owner.execute("DROP OWNED BY only_owner")
        await owner.close()
        await connection.execute("DROP ROLE only_owner")
