"""What every user of PostgreSQL shares: URLs, the pool, the schema's check at start, and what a failure means.

Only asyncpg is used here: the GitHub App, which may not reach SQLAlchemy or Alembic, comes by this module too. Migrations are in
`prevue.migrations`, the statestore's engine in its backend.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from prevue.errors import ConfigError, OutageError

SCHEMA_REVISION = "0004"
"""The migration that this version's code is written for; a test compares it with Alembic's head."""
CONNECT_SECONDS_MAX = 5.0
"""A server that does not take a connection in this time is down for us."""
CLOSE_SECONDS_MAX = 2.0
"""After this, connections are dropped instead of closed."""
APPLICATION_NAME = "prevue"
BY_INDEX = MappingProxyType({"enable_seqscan": "off"})
"""Of sessions that only look up: a plan that was made, and kept, while a table was empty would read a sudden backlog row by row."""

# https://www.postgresql.org/docs/current/errcodes-appendix.html, by class or by code. What is listed is over when somebody else has
# acted; everything else is a mistake of ours and must be seen as one.
_OUTAGE_CLASSES = (
    "08",  # connection exception
    "28",  # invalid authorization: a password is being rotated
    "53",  # insufficient resources: too many connections, disk full
    "57",  # operator intervention: shutdown, crash, starting up, statement time-out
    "58",  # system error: I/O
)
_OUTAGE_CODES = (
    "25006",  # read-only transaction: a failover left us with the old primary
    "3D000",  # no such database: it is being restored
    "40001",  # serialization failure
    "40P01",  # deadlock
    "55P03",  # lock not available
)


def is_outage(exc: BaseException) -> bool:
    """Whether `exc` says that the database is down, overloaded or gone; asyncpg's own, or wrapped by SQLAlchemy."""
    seen: BaseException | None = exc
    while seen is not None:
        code = getattr(seen, "sqlstate", None)
        if isinstance(code, str):
            return code[:2] in _OUTAGE_CLASSES or code in _OUTAGE_CODES
        # InterfaceError: asyncpg's words for a connection that closed under it, and for a pool that is closing. A ValueError among them
        # is an argument that does not fit its column: ours.
        # InternalClientError: the server ended the connection just as the driver began to use it ("another operation is in progress").
        if isinstance(seen, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError | EOFError) and not isinstance(seen, ValueError):
            return True
        seen = seen.__cause__ or getattr(seen, "orig", None)
    return False


@contextmanager
def outages_as(error: type[OutageError]) -> Iterator[None]:
    """Translate failures of the database into `error`; mistakes of ours pass as they are."""
    try:
        yield
    except OutageError:
        raise
    except Exception as exc:
        if is_outage(exc):
            raise error(f"PostgreSQL: {_one_line(exc)}") from exc
        raise


def check_url(url: str, *, setting: str) -> str:
    """`url` in the form that asyncpg takes.

    Raises:
        ConfigError: it is empty or no PostgreSQL URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres"):
        raise ConfigError(f"{setting}: expected a URL like postgresql://user:password@host/database, found {parts.scheme or 'nothing'!r}")
    return url


def sqlalchemy_url(url: str) -> str:
    """The same URL, naming the driver as SQLAlchemy wants it."""
    return "postgresql+asyncpg://" + url.split("://", 1)[1]


async def _keep_session(_connection: Any) -> None:
    """Nothing is reset when a connection goes back to the pool.

    asyncpg's default sends RESET ALL, UNLISTEN and others each time: a round trip a statement. No session here changes its settings.
    """


class FairPool:
    """asyncpg's pool, first come first served.

    The pool itself is not fair: whoever asks just as a connection is given back takes it before those who wait, and in a burst some
    would wait until their time is up.
    """

    def __init__(self, pool: Any, size: int) -> None:
        self._pool = pool
        self._turns = asyncio.Semaphore(size)

    def terminate(self) -> None:
        """Drop all connections at once, as a crash would."""
        self._pool.terminate()

    async def execute(self, sql: str, *arguments: Any) -> str:
        """The command's tag, such as `INSERT 0 1`."""
        async with self._turns:
            return str(await self._pool.execute(sql, *arguments))

    async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        """All rows."""
        async with self._turns:
            return list(await self._pool.fetch(sql, *arguments))

    async def fetchrow(self, sql: str, *arguments: Any) -> Any:
        """The first row, or None."""
        async with self._turns:
            return await self._pool.fetchrow(sql, *arguments)

    async def fetchval(self, sql: str, *arguments: Any) -> Any:
        """The first row's first value, or None."""
        async with self._turns:
            return await self._pool.fetchval(sql, *arguments)


@asynccontextmanager
async def open_pool(
    url: str, *, size: int, command_seconds_max: float, application: str, settings: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[FairPool]:
    """A pool of at most `size` connections, the first made when it is needed: a process starts although the database is down.

    `command_seconds_max` bounds each statement, on our side and on the server's; `settings` are the server's own, for these sessions.
    """
    pool = asyncpg.create_pool(
        url,
        min_size=0,
        max_size=size,
        max_inactive_connection_lifetime=300,
        timeout=CONNECT_SECONDS_MAX,
        command_timeout=command_seconds_max,
        reset=_keep_session,
        server_settings={
            "application_name": f"{APPLICATION_NAME}-{application}",
            "statement_timeout": str(max(1, int(command_seconds_max * 1000))),
            **settings,
        },
    )
    await pool
    try:
        yield FairPool(pool, size)
    finally:
        # close() waits for connections in use; by now nobody has one, except a task that was cancelled in the middle of a statement.
        try:
            await asyncio.wait_for(pool.close(), CLOSE_SECONDS_MAX)
        except TimeoutError:
            pool.terminate()


async def check_schema(url: str) -> None:
    """Return if the database has the schema that this version is written for.

    Raises:
        ConfigError: another schema, or none; the message says which and what to do.
        OutageError: the database cannot be reached.
    """
    with outages_as(OutageError):
        connection = await asyncpg.connect(url, timeout=CONNECT_SECONDS_MAX)
        try:
            found = await _revision(connection)
        finally:
            await connection.close()
    if found != SCHEMA_REVISION:
        raise ConfigError(
            f"the database's schema is {found or 'missing'}, this version of Prevue needs {SCHEMA_REVISION}: "
            + ("run `prevue migrate`" if found is None or found < SCHEMA_REVISION else "run a newer version of Prevue")
        )


async def _revision(connection: Any) -> str | None:
    try:
        revision: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
    except asyncpg.UndefinedTableError:
        return None
    return revision


def _one_line(exc: BaseException) -> str:
    """The innermost cause's first line; a connection error's text names host and port, never the password."""
    text = str(getattr(exc, "orig", None) or exc).strip()
    return (text.splitlines()[0] if text else type(exc).__name__)[:300]
