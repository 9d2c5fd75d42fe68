"""The local GitHub as a process: arguments, a socket, uvicorn.

`python -m prevue.local.github --webhook-url URL --webhook-secret-file FILE --public-key-file FILE …`. It prints one
line with its URL once it listens. Invariant: what it knows is in memory, so a restart is a new GitHub; ids therefore
start from the time, and never mean something else than they did to a database that outlives it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import uvicorn
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from prevue.local.github.ci import OnPush, command_hook, imported_hook
from prevue.local.github.door import create_app
from prevue.local.github.pump import WebhookPump
from prevue.testing.github import FakeGitHub

REPOSITORIES = ("acme/hello", "acme/other")
USERS = ("writer=write", "reader=read")
GRACEFUL_SECONDS = 3


def seed(github: FakeGitHub, *, repositories: Sequence[str] = REPOSITORIES, users: Sequence[str] = USERS) -> None:
    """Put repositories and users (`login=role`) into a new GitHub.

    Raises:
        ControlError: a name or a role is not one.
    """
    for full_name in repositories:
        github.add_repository(full_name)
        for user in users:
            login, _, role = user.partition("=")
            github.set_permission(full_name, login, role or "read")


async def serve(
    github: FakeGitHub,
    listener: socket.socket,
    *,
    webhook_url: str | None,
    on_push: OnPush | None = None,
) -> None:
    """Serve a GitHub on a bound socket until SIGTERM or SIGINT; without `webhook_url` deliveries stay in the log."""
    pump = WebhookPump(github, webhook_url) if webhook_url else None
    app = create_app(github, on_push=on_push, pump=pump)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
    )
    await _Server(config).serve(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn that ends with status 0 when it was asked to stop, where the original raises the signal again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop gracefully at the first signal, at once at the second."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address; port 0 is any free one.

    Raises:
        OSError: the port is taken.
    """
    listener = socket.create_server((host, port), backlog=1024)
    listener.set_inheritable(False)
    return listener


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m prevue.local.github", description="A GitHub on this machine.")
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=0, help="port to listen on; 0: any free one (default: %(default)s)")
    add("--base-url", help="URL under which others reach it (default: http://HOST:PORT)")
    add("--webhook-url", help="where webhooks go; without it they stay in the log")
    add("--webhook-secret-file", type=Path, required=True, help="file with the secret that signs webhooks")
    add("--app-id", type=int, default=1, help="the App's id (default: %(default)s)")
    add("--public-key-file", type=Path, required=True, help="PEM file with the App's public key (RSA)")
    add("--repository-id-start", type=int, default=1_001, help="id of the first repository (default: %(default)s)")
    add("--id-start", type=int, help="first of all other ids (default: ten times the time in seconds)")
    add("--seed", type=int, help="seed of SHAs, tokens and delivery ids (default: unpredictable)")
    add("--repository", action="append", metavar="OWNER/NAME", help=f"default: {', '.join(REPOSITORIES)}")
    add("--user", action="append", metavar="LOGIN=ROLE", help=f"default: {', '.join(USERS)}")
    ci = parser.add_mutually_exclusive_group()
    ci.add_argument("--ci-command", help="command at each new head commit; {owner}, {repo} and {sha} are filled in")
    ci.add_argument("--ci-hook", metavar="MODULE:NAME", help="coroutine function (repository, sha) to call instead")
    return parser


def _open(options: argparse.Namespace, port: int) -> tuple[FakeGitHub, str]:
    """Return the GitHub that the arguments describe, and its URL.

    Raises:
        OSError: a file cannot be read.
        ValueError: the key is none, or a name or role is not one (`ControlError`).
    """
    public_key = options.public_key_file.read_bytes()
    load_pem_public_key(public_key)
    url = options.base_url or f"http://{options.host}:{port}"
    id_start = int(datetime.now(UTC).timestamp()) * 10 if options.id_start is None else options.id_start
    github = FakeGitHub(
        now=lambda: datetime.now(UTC),
        public_key=public_key,
        app_id=options.app_id,
        webhook_secret=options.webhook_secret_file.read_text().strip(),
        api_url=url,
        html_url=url,
        id_start=id_start,
        repository_id_start=options.repository_id_start,
        seed=secrets.randbits(64) if options.seed is None else options.seed,
    )
    seed(github, repositories=options.repository or REPOSITORIES, users=options.user or USERS)
    return github, url


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the local GitHub; return the process's exit status."""
    options = _parser().parse_args(arguments)
    try:
        on_push = command_hook(options.ci_command) if options.ci_command else None
        on_push = imported_hook(options.ci_hook) if options.ci_hook else on_push
        listener = listen(options.host, options.port)
        with listener:
            github, url = _open(options, listener.getsockname()[1])
            print(f"local GitHub: {url}", flush=True)
            asyncio.run(serve(github, listener, webhook_url=options.webhook_url, on_push=on_push))
    except (OSError, ValueError) as exc:
        print(f"local GitHub: {exc}", file=sys.stderr)
        return 1
    return 0
