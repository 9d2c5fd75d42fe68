"""A web server inside a process that has signals of its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from prevue.errors import ConfigError


class Server(uvicorn.Server):
    """A server that leaves the process's signals to the process; `should_exit` ends it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing is captured."""
        yield


BACKLOG = 1_024


def listen(host: str, port: int, *, setting: str) -> socket.socket:
    """A listening socket; made here, not by the server, so that a failure is an error of `setting`.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG)
    except (OSError, OverflowError) as exc:
        raise ConfigError(f"{setting}: cannot listen on {host}:{port}: {exc}") from exc
