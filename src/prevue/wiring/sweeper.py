"""The sweeper: put together for a deployer that runs one beside itself, and as a process of its own.

The process also sends waiting requests again and drains the outbox, as every deployer does: it works while no deployer runs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog

from prevue.clock import Clock, SystemClock
from prevue.cluster.kubernetes import KubernetesCluster
from prevue.cluster.port import NamespaceList
from prevue.config import Settings
from prevue.github.client import GitHubClient
from prevue.github_app.acknowledge import Acknowledger
from prevue.github_app.budget import Budget
from prevue.github_app.handle import Handler
from prevue.postgres import check_schema
from prevue.queue.port import Enqueuer
from prevue.settings import settings_for
from prevue.statestore.port import ClaimLimits
from prevue.statestore.postgres import PostgresStateStore
from prevue.sweeper.outbox import LANE_SECONDS, OutboxDrainer, OutboxLimits
from prevue.sweeper.rules import make_rules
from prevue.sweeper.run import Sweeper
from prevue.sweeper.waiting import WaitingSweeper
from prevue.wiring.commands import AppDoor
from prevue.wiring.queues import open_enqueuer

log = structlog.get_logger(__name__)

HTTP_TIMEOUT_SECONDS = 20
"""Longest a drainer can stay inside one POST; with the lane's lease it gives the time of the verify pass."""
DRAIN_SECONDS = 5.0
"""For acknowledgements that have begun, at the end."""


@dataclass(frozen=True, kw_only=True)
class SweeperProcess:
    """What the process runs."""

    sweeper: Sweeper
    waiting: WaitingSweeper
    drainer: OutboxDrainer


def new_holder() -> str:
    """A name for leases: host, process, and a part that a restarted process does not share."""
    return f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"


def claim_limits(settings: Settings) -> ClaimLimits:
    """The protocol's numbers for the statestore."""
    limits = settings.deployer
    return ClaimLimits(
        lease_seconds=limits.lease_seconds,
        attempts_max=limits.attempts_max,
        verify_after_seconds=LANE_SECONDS + HTTP_TIMEOUT_SECONDS,
    )


@asynccontextmanager
async def open_sweeper(
    settings: Settings,
    *,
    holder: str,
    store: PostgresStateStore,
    github: GitHubClient,
    namespaces: NamespaceList,
    enqueuer: Enqueuer,
    clock: Clock,
    poll_deliveries: bool,
) -> AsyncIterator[Sweeper]:
    """A sweeper over what its process has opened; at the end acknowledgements that have begun may finish."""
    app = settings.app
    # A further process that writes as the App does: it takes the share of one.
    budget = Budget(per_minute=app.comments_per_minute, per_hour=app.comments_per_hour, replicas=app.replicas + 1, now=clock.boottime)
    acknowledger = Acknowledger(github, budget)
    handler = Handler(github=github, enqueuer=enqueuer, acknowledger=acknowledger, settings=app, github_host=settings.github.host)
    rules = make_rules(
        settings.sweeper,
        store=store,
        github=github,
        namespaces=namespaces,
        enqueuer=enqueuer,
        door=AppDoor(handler, github_host=settings.github.host),
        is_configured=lambda repo: settings_for(settings, repo) is not None,
        clock=clock,
        github_host=settings.github.host,
        poll_deliveries=poll_deliveries,
    )
    try:
        yield Sweeper(holder=holder, leases=store, rules=rules)
    finally:
        await acknowledger.drain(DRAIN_SECONDS)


def make_waiting(settings: Settings, store: PostgresStateStore, enqueuer: Enqueuer) -> WaitingSweeper:
    """Protocol rule 1."""
    limits = settings.deployer
    return WaitingSweeper(
        store=store, enqueuer=enqueuer, interval_seconds=limits.sweep_interval_seconds, quiet_seconds=limits.sweep_quiet_seconds
    )


def make_drainer(settings: Settings, store: PostgresStateStore, github: GitHubClient, holder: str) -> OutboxDrainer:
    """Protocol rule 4."""
    limits = settings.deployer
    writes = OutboxLimits(per_minute=limits.comments_per_minute, per_hour=limits.comments_per_hour)
    return OutboxDrainer(holder=holder, outbox=store, github=github, limits=writes)


@asynccontextmanager
async def build(settings: Settings, *, poll_deliveries: bool = False) -> AsyncIterator[SweeperProcess]:
    """Open every backend.

    Raises:
        ConfigError: a setting is wrong, or the schema is another version's.
        OutageError: the database or the cluster cannot be reached.
    """
    clock, holder = SystemClock(), new_holder()
    await check_schema(settings.statestore.url)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(
            PostgresStateStore.open(settings.statestore.url, claim_limits(settings), cluster_name=settings.cluster.name)
        )
        enqueuer = await stack.enter_async_context(open_enqueuer(settings.queue))
        github = await stack.enter_async_context(GitHubClient.open(settings.github))
        cluster = await stack.enter_async_context(KubernetesCluster.open(settings.cluster))
        sweeper = await stack.enter_async_context(
            open_sweeper(
                settings,
                holder=holder,
                store=store,
                github=github,
                namespaces=cluster,
                enqueuer=enqueuer,
                clock=clock,
                poll_deliveries=poll_deliveries,
            )
        )
        log.info("sweeper starts", action="sweeper_started", holder=holder, poll_deliveries=poll_deliveries)
        yield SweeperProcess(
            sweeper=sweeper, waiting=make_waiting(settings, store, enqueuer), drainer=make_drainer(settings, store, github, holder)
        )


async def serve(settings: Settings, *, poll_deliveries: bool = False) -> None:
    """Run until SIGTERM or SIGINT. A part that ends or fails stops the process: it is restarted whole."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with build(settings, poll_deliveries=poll_deliveries) as process:

        def on_signal() -> None:
            stop.set()
            process.drainer.wake()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(side_task(process.sweeper.run(stop), stop), name="sweeper")
            tasks.create_task(side_task(process.waiting.run(stop), stop), name="waiting")
            tasks.create_task(side_task(process.drainer.run(stop), stop), name="outbox")
        log.info("sweeper stopped", action="sweeper_stopped")


async def side_task(run: Awaitable[None], until: asyncio.Event) -> None:
    """`run`, which may not end before `until` is set."""
    await run
    if not until.is_set():
        raise RuntimeError("a part of the process ended before it was asked to stop")


def run(settings: Settings, *, poll_deliveries: bool = False) -> None:
    """The process: uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(settings, poll_deliveries=poll_deliveries))
    else:
        uvloop.run(serve(settings, poll_deliveries=poll_deliveries))
