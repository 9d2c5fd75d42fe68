"""The GitHub App's process: settings become an ASGI application, and one server runs it until SIGTERM.

Nothing here reaches the statestore, Helm or Kubernetes (an import contract proves it). Stopping: no new connection is taken, what has
begun is answered, then begun acknowledgements may finish; each within a bound, together below the 30 s that Kubernetes grants.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from types import FrameType
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from prevue.clock import SystemClock
from prevue.config import GitHubSettings, Settings
from prevue.errors import ConfigError
from prevue.github.client import GitHubClient
from prevue.github_app.acknowledge import Acknowledger
from prevue.github_app.asgi import create_app
from prevue.github_app.budget import Budget
from prevue.serving import listen
from prevue.telemetry import Log, configure_logging, get_logger
from prevue.wiring.http_server import http_protocol
from prevue.wiring.queues import open_enqueuer, warn_of_doubts

REQUESTS_GRACE_SECONDS: Final = 12
"""After SIGTERM: longer than the slowest delivery (look-ups and enqueue, 9 s by default)."""
ACKNOWLEDGEMENTS_GRACE_SECONDS: Final = 8.0
"""Then for acknowledgements; what is cut off the outbox writes."""
CONNECTIONS_MAX: Final = 1_000
"""Open connections, each with at most one body in memory; beyond, 503. GitHub keeps a handful."""
KEEP_ALIVE_SECONDS: Final = 75
"""Longer than a load balancer's idle time (60 s), so that it is the balancer that closes first."""

_log = get_logger()


@asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[ASGIApp]:
    """Open GitHub's client and the queue; gives the application. At the end begun acknowledgements are drained, then all is closed.

    Raises:
        ConfigError: a setting is missing or wrong.
        QueueUnavailable: the queue cannot be reached at start, where its backend wants to know that.
    """
    secrets = _webhook_secrets(settings.github)
    clock = SystemClock()
    app = settings.app
    if app.replicas < 1:
        raise ConfigError(f"app.replicas is {app.replicas}; accepted: 1 or more")
    async with AsyncExitStack() as stack:
        github = await stack.enter_async_context(GitHubClient.open(settings.github, clock=clock))
        enqueuer = await stack.enter_async_context(open_enqueuer(settings.queue))
        budget = Budget(per_minute=app.comments_per_minute, per_hour=app.comments_per_hour, replicas=app.replicas, now=clock.boottime)
        acknowledger = Acknowledger(github, budget)
        stack.push_async_callback(acknowledger.drain, ACKNOWLEDGEMENTS_GRACE_SECONDS)
        yield create_app(
            github=github,
            enqueuer=enqueuer,
            acknowledger=acknowledger,
            settings=app,
            secrets=secrets,
            github_host=settings.github.host,
        )


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; a second SIGINT stops at once.

    Raises:
        ConfigError: a setting is missing or wrong, or the address cannot be listened on.
    """
    async with build(settings) as app:
        await warn_of_doubts(settings.queue)
        listener = listen(settings.app.listen_host, settings.app.listen_port, setting="app.listen_host, app.listen_port")
        host, port = listener.getsockname()[:2]
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=http_protocol(),
                proxy_headers=False,  # nobody's address is asked for; the signature says who it is
                lifespan="off",
                ws="none",
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=False,
                limit_concurrency=CONNECTIONS_MAX,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=REQUESTS_GRACE_SECONDS,
            )
        )
        # uvicorn raises the signal again after its own drain; taken here, the process ends in order and with exit code 0.
        previous = {number: signal.signal(number, _ignore) for number in (signal.SIGTERM, signal.SIGINT)}
        # What start-up made lives as long as the process: no collection need look at it again.
        gc.collect()
        gc.freeze()
        _log.info(Log.LISTENING, address=f"http://{host}:{port}")
        try:
            await server.serve(sockets=[listener])
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        _log.info(Log.STOPPING)
    _log.info(Log.STOPPED)


def run(settings: Settings) -> None:
    """The process of `prevue github-app`: logs, event loop (uvloop where it is installed), server. Returns after an orderly stop.

    Raises:
        ConfigError: as `serve`.
    """
    configure_logging(settings.log)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(settings))


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """A signal that uvicorn has acted on already."""


def _webhook_secrets(settings: GitHubSettings) -> tuple[bytes, ...]:
    """The secrets as the HMAC's keys; an empty one would let anybody sign."""
    secrets = tuple(secret.encode() for secret in settings.webhook_secrets if secret.strip())
    if not 1 <= len(secrets) <= 2 or len(secrets) != len(settings.webhook_secrets):
        raise ConfigError(
            f"github.webhook_secrets (or the lines of github.webhook_secrets_file) are {len(settings.webhook_secrets)}; "
            "accepted: one secret, or two while one is being rotated, none of them empty"
        )
    return secrets


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
