"""Brings a database to this version's schema, and makes the role of the GitHub App.

Everything is one transaction under an advisory lock: several processes that migrate at once take turns, and a failure leaves the
database as it was. SQL stands in files of its own (`sql/`), so that it is read and reviewed as SQL.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Any

import asyncpg
from alembic import command, op
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from prevue.errors import ConfigError, OutageError
from prevue.postgres import SCHEMA_REVISION, check_url, outages_as, sqlalchemy_url

FOLDER = Path(__file__).parent
HEAD = SCHEMA_REVISION
_LOCK = 0x70726576  # any constant: "prev"
_SCRAM_ITERATIONS = 4096


async def migrate(url: str, *, app_role: str | None = None, app_password: str | None = None) -> None:
    """Bring the database behind `url` to the newest schema; harmless where it is there already.

    With `app_role`: that role may log in with `app_password` and insert into the queue, and nothing else. It is made if it is missing
    (that needs a role with CREATEROLE); an existing one gets the password, if one is given, and the right.

    Raises:
        ConfigError: the URL is wrong, or the role may not be made; the message holds the SQL to run by hand.
        OutageError: the database cannot be reached.
    """
    check_url(url, setting="statestore.url")
    engine = create_async_engine(sqlalchemy_url(url), poolclass=NullPool)
    try:
        with outages_as(OutageError):
            async with engine.begin() as connection:
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
                await connection.run_sync(_upgrade)
    finally:
        await engine.dispose()
    if app_role is not None:
        with outages_as(OutageError):
            await _allow_app(url, app_role, app_password)


def script_directory() -> ScriptDirectory:
    """Alembic's view of the revisions."""
    return ScriptDirectory.from_config(_config())


def run_sql_file(name: str) -> None:
    """Within a revision: run a file of many statements, as one simple query (a prepared statement may hold only one)."""
    sql = (FOLDER / "sql" / name).read_text()
    driver: Any = op.get_bind().connection.dbapi_connection
    driver.run_async(lambda connection: connection.execute(sql))


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.set_main_option("path_separator", "os")
    return config


def _upgrade(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


async def _allow_app(url: str, role: str, password: str | None) -> None:
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
            exists = await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role)
            quoted = await connection.fetchval("SELECT quote_ident($1)", role)
            if password is not None:
                # The verifier is computed here: the password itself would stand in the server's log.
                verb = "ALTER" if exists else "CREATE"
                await connection.execute(f"{verb} ROLE {quoted} LOGIN PASSWORD '{scram_verifier(password)}'")
            elif not exists:
                raise ConfigError(f"the role {role} does not exist; give a password for it to be made")
            await connection.execute(f"GRANT INSERT (identity, body) ON queue_message TO {quoted}")
    except asyncpg.InsufficientPrivilegeError as exc:
        raise ConfigError(
            f"this role may not make the role {role}; as an administrator run: CREATE ROLE {role} LOGIN PASSWORD '…'; "
            f"GRANT INSERT (identity, body) ON queue_message TO {role};"
        ) from exc
    finally:
        await connection.close()


def scram_verifier(password: str) -> str:
    """What PostgreSQL stores of an ASCII password: RFC 5803, `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`."""
    if not password.isascii():
        raise ConfigError("the password of the GitHub App's role must be ASCII")
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _SCRAM_ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    words = [base64.b64encode(each).decode() for each in (salt, stored, server)]
    return f"SCRAM-SHA-256${_SCRAM_ITERATIONS}:{words[0]}${words[1]}:{words[2]}"
