"""The embedded PostgreSQL: starts as an unprivileged user, survives kill -9, keeps its port and its data."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from prevue.errors import ConfigError
from prevue.local import postgres as module
from prevue.local.postgres import EmbeddedPostgres, PostgresFailed, prepare


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="prevue-postgres-") as name:
        yield Path(name)


def postmaster(server: EmbeddedPostgres) -> int:
    return int((server.data / "postmaster.pid").read_text().splitlines()[0])


def owner_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


async def value(server: EmbeddedPostgres) -> int:
    connection = await asyncpg.connect(server.url("kept"))
    try:
        found: int = await connection.fetchval("SELECT sum(number) FROM kept")
        return found
    finally:
        await connection.close()


async def test_survives_kill_of_the_postmaster_under_load(folder: Path) -> None:
    server = prepare(folder)
    server.init()
    server.init()  # harmless
    assert server.is_initialised
    server.start(dies_with_parent=True)
    try:
        await server.wait_ready()
        url = await server.create_database("kept")
        assert await server.create_database("kept") == url
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE kept (number int); INSERT INTO kept VALUES (42)")
        busy = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))  # a backend that outlives its postmaster for a while
        await asyncio.sleep(0.1)
        if server.account is not None:
            assert owner_of(postmaster(server)) == server.account.uid != 0

        os.kill(postmaster(server), signal.SIGKILL)
        again = prepare(folder)
        assert (again.port, again.password) == (server.port, server.password)
        await server.wait_ready()  # starts it again, as a supervisor would
        assert await value(server) == 42
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await busy
        connection.terminate()
    finally:
        server.stop()
        server.stop()
    assert not (server.data / "postmaster.pid").exists()
    server.remove()


async def test_never_ready_is_said_with_the_log(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = prepare(folder)
    server.log.write_text("FATAL: the reason\n")
    with pytest.raises(PostgresFailed, match="the reason"):
        await server.wait_ready(seconds=0.1)


def test_folder_holds_its_secret_alone(folder: Path) -> None:
    server = prepare(folder)
    assert (folder / "postgres.json").stat().st_mode & 0o077 == 0
    assert server.password in server.url("x")
    assert server.command()[server.command().index("unix_socket_directories=")].split("=")[1] == ""


@pytest.mark.parametrize("is_reachable", [True, False], ids=["reachable", "below a private home"])
def test_data_lie_where_the_unprivileged_user_can_reach_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_reachable: bool
) -> None:
    """Root's home is closed to others: then the data go beside the copied binaries."""
    folder.chmod(0o755 if is_reachable else 0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(module, "_readable_copy", lambda binaries, _base: binaries)
    account = module.Account("somebody", 12345, 12345)
    monkeypatch.setattr(module, "_unprivileged_account", lambda _name: account)
    server = prepare(folder, binaries_folder=tmp_path)
    assert server.account == account
    assert server.data.is_relative_to(folder if is_reachable else tmp_path)
    assert server.process_arguments()["user"] == 12345


def test_unknown_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(ConfigError, match="no-such-user"):
        prepare(folder, account_name="no-such-user")
