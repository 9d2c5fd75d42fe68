"""A Redis server for one machine: the program of Debian's package, unpacked into the cache, run as a child process.

It listens on 127.0.0.1 alone, asks for a password, and writes its append-only file before it answers, so that a kill -9 loses nothing.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from prevue.errors import PrevueError
from prevue.local.ports import free_ports
from prevue.local.postgres import die_with_parent

APP_RIGHTS = "~rq:* ~prevue:* +hset +rpush +sadd +zadd +set +multi +exec +ping +info +config|get +client|setname +hello"
"""What the GitHub App's user needs, in the words of `ACL SETUSER`: to enqueue, to be checked, and no more. docs/queues.md tells it."""
START_SECONDS_MAX = 20.0
STOP_SECONDS_MAX = 10.0


class RedisFailed(PrevueError):
    """The local Redis could not be started; the message holds the end of its log."""


class LocalRedis:
    """One server and its data in `folder`; `settings` are more of Redis' own. `programs.redis_program` finds the program."""

    def __init__(self, folder: Path, program: Path, environ: Mapping[str, str], *, settings: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self.password = secrets.token_urlsafe(24)
        self._app_password = secrets.token_urlsafe(24)
        [self.port] = free_ports(1)
        self._program = program
        self._environ = dict(environ)
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: int = 0) -> str:
        """`redis://` of one of its 16 databases."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/{database}"

    def app_url(self, database: int = 0) -> str:
        """The same as a user who may only enqueue."""
        return f"redis://app:{self._app_password}@127.0.0.1:{self.port}/{database}"

    def command(self) -> list[str]:
        """The foreground process; its settings, the password among them, come from a file that only we can read."""
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "requirepass": self.password,
            "user": f"app on >{self._app_password} {APP_RIGHTS}",
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": '""',
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            **self._settings,
        }
        file = self.folder / "redis.conf"
        file.touch(mode=0o600)
        file.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        return [str(self._program), str(file)]

    @property
    def environ(self) -> Mapping[str, str]:
        """All that the child gets to see of the environment."""
        return self._environ

    def start(self, *, dies_with_parent: bool = False) -> None:
        """Start it and wait until it answers, its file read again.

        `dies_with_parent`: the kernel ends it with the thread that called this (Linux); for test runs that are killed.

        Raises:
            RedisFailed: it did not.
        """
        with (self.folder / "redis.log").open("ab") as sink:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=self._environ,
                start_new_session=True,
                preexec_fn=die_with_parent if dies_with_parent and sys.platform == "linux" else None,  # noqa: PLW1509 (one system call)
            )
        until = time.monotonic() + START_SECONDS_MAX
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise RedisFailed(f"Redis on port {self.port} is not ready:\n{self.log()}")
            time.sleep(0.02)

    def log(self) -> str:
        """The end of what the server said."""
        return (self.folder / "redis.log").read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        """Stop it in order; harmless if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def remove(self) -> None:
        """Delete the data of a stopped server."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def answers(self) -> bool:
        """Whether it takes commands; while it reads its file again it does not."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2:
                    part = connection.recv(1024)
                    if not part:
                        return False
                    answer += part
                return b"+PONG" in answer
        except OSError:
            return False


def environment(libraries: Path | None) -> dict[str, str]:
    """All that the child gets to see: where its libraries lie."""
    found = {"PATH": os.defpath, "LC_ALL": "C"}
    return found | ({"LD_LIBRARY_PATH": str(libraries)} if libraries else {})
