"""The deployer's process: settings become running objects, and one task group runs them until SIGTERM.

Stopping is a request first: no further message is taken and running requests may finish within the grace; then their claims are given
back, without counting an attempt. A second signal shortens the grace to nothing.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog

from prevue.clock import SystemClock
from prevue.cluster.kubernetes import KubernetesCluster, demand_fence
from prevue.cluster.probe import HttpProbe
from prevue.config import DeployerSettings, Settings
from prevue.deployer.pipeline import Pipeline, PipelineLimits
from prevue.deployer.plan import Plan, make_plan
from prevue.deployer.worker import Worker, WorkerLimits
from prevue.errors import ConfigError, OutageError
from prevue.github.client import GitHubClient
from prevue.github.port import PullRequest
from prevue.helm.command import HelmCommand
from prevue.model import Claim
from prevue.postgres import check_schema
from prevue.queue.port import Consumer
from prevue.statestore.postgres import PostgresStateStore
from prevue.sweeper.alarms import raise_tokens_above_cluster
from prevue.sweeper.outbox import OutboxDrainer
from prevue.sweeper.run import Sweeper
from prevue.sweeper.waiting import WaitingSweeper
from prevue.wiring.health import serve_health
from prevue.wiring.metrics import Metrics, MetricsPage
from prevue.wiring.queues import open_consumer, open_enqueuer, open_gauge, warn_of_doubts
from prevue.wiring.sweeper import claim_limits, make_drainer, make_waiting, new_holder, open_sweeper, side_task

log = structlog.get_logger(__name__)

START_TRIES, START_PAUSE_SECONDS = 15, 2.0
"""Longer than PostgreSQL takes to recover on one machine; then the process ends, and whoever started it starts it again."""


@dataclass(frozen=True, kw_only=True)
class Deployer:
    """What one deployer process runs."""

    consumer: Consumer
    worker: Worker
    metrics: Metrics
    drainer: OutboxDrainer
    waiting: WaitingSweeper
    sweeper: Sweeper | None
    """None: a sweeper runs elsewhere."""


@asynccontextmanager
async def build(settings: Settings, *, poll_deliveries: bool = False) -> AsyncIterator[Deployer]:
    """Open every backend and check what must hold before a message is taken.

    Raises:
        ConfigError: a setting is wrong, the schema is another version's, Helm is missing or too old, or the fence that is required is not
            in force.
    """
    clock = SystemClock()
    holder = new_holder()
    limits = settings.deployer
    await _when_reachable(lambda: check_schema(settings.statestore.url))
    async with AsyncExitStack() as stack:
        helm = await stack.enter_async_context(HelmCommand.open(settings.cluster.helm))
        version = await helm.version()
        store = await stack.enter_async_context(
            PostgresStateStore.open(settings.statestore.url, claim_limits(settings), cluster_name=settings.cluster.name)
        )
        consumer = await stack.enter_async_context(open_consumer(settings.queue))
        enqueuer = await stack.enter_async_context(open_enqueuer(settings.queue))
        github = await stack.enter_async_context(GitHubClient.open(settings.github))
        cluster = await stack.enter_async_context(KubernetesCluster.open(settings.cluster))
        probe = await stack.enter_async_context(HttpProbe.open())
        fence = await cluster.fence_kind()
        demand_fence(settings.cluster, fence, ConfigError)
        log.info("deployer starts", action="deployer_started", holder=holder, helm=version, fence=fence, slots=limits.slots)
        # Before anybody claims: a restored database would give tokens out again (protocol section 1).
        await _when_reachable(lambda: raise_tokens_above_cluster(store, cluster))
        drainer = make_drainer(settings, store, github, holder)
        pipeline = Pipeline(
            store=store,
            github=github,
            helm=helm,
            cluster=cluster,
            probe=probe,
            plan=_planner(settings),
            limits=_pipeline_limits(limits),
            clock=clock,
        )
        metrics = Metrics(slots=limits.slots)
        worker = Worker(
            holder=holder,
            store=store,
            github=github,
            enqueuer=enqueuer,
            pipeline=pipeline,
            limits=_worker_limits(limits),
            clock=clock,
            on_told=drainer.wake,
            on_verdict=metrics.verdict,
            on_finished=metrics.finished,
        )
        sweeper = None
        if limits.sweeper:
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
        waiting = make_waiting(settings, store, enqueuer)
        yield Deployer(consumer=consumer, worker=worker, metrics=metrics, drainer=drainer, waiting=waiting, sweeper=sweeper)


async def _when_reachable(step: Callable[[], Awaitable[object]]) -> None:
    """Take a step of the start, and wait a moment for a database or cluster that is just being restarted."""
    tries = START_TRIES
    while True:
        try:
            await step()
        except OutageError as exc:
            tries -= 1
            if not tries:
                raise
            log.warning("not reachable yet", action="start_delayed", error=str(exc))
            await asyncio.sleep(START_PAUSE_SECONDS)
        else:
            return


def _pipeline_limits(limits: DeployerSettings) -> PipelineLimits:
    return PipelineLimits(
        helm_deadline_seconds=limits.helm_deadline_seconds,
        helm_deadline_grace_seconds=limits.helm_deadline_grace_seconds,
        helm_parallel=limits.helm_parallel,
    )


def _worker_limits(limits: DeployerSettings) -> WorkerLimits:
    return WorkerLimits(
        lease_seconds=limits.lease_seconds, backoff_seconds=limits.backoff_seconds, backoff_max_seconds=limits.backoff_max_seconds
    )


async def serve(settings: Settings, *, poll_deliveries: bool = False) -> None:
    """Run until SIGTERM or SIGINT. A side task that ends or fails stops the process: it is restarted whole."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        deployer = await stack.enter_async_context(build(settings, poll_deliveries=poll_deliveries))
        await warn_of_doubts(settings.queue)

        def on_signal() -> None:
            if stop.is_set():
                deployer.worker.halt()
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        drained = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(side_task(deployer.drainer.run(drained), drained), name="outbox")
            tasks.create_task(side_task(deployer.waiting.run(stop), stop), name="waiting")
            if deployer.sweeper is not None:
                tasks.create_task(side_task(deployer.sweeper.run(stop), stop), name="sweeper")
            if settings.deployer.health_port:
                host, port = settings.deployer.health_host, settings.deployer.health_port
                page = MetricsPage(deployer.metrics, await stack.enter_async_context(open_gauge(settings.queue)))
                tasks.create_task(serve_health(host, port, page=page, stopping=stop, until=drained), name="health")
            tasks.create_task(_halt_after_grace(deployer, stop, settings.deployer.shutdown_grace_seconds, drained), name="grace")
            handle = deployer.metrics.busy(deployer.worker.handle)
            await deployer.consumer.run(handle, slots=settings.deployer.slots, stop=stop)
            drained.set()
            deployer.drainer.wake()
        log.info("deployer stopped", action="deployer_stopped")


async def _halt_after_grace(deployer: Deployer, stop: asyncio.Event, grace_seconds: float, drained: asyncio.Event) -> None:
    await stop.wait()
    log.info("stopping", action="deployer_stopping", grace_seconds=grace_seconds)
    try:
        async with asyncio.timeout(grace_seconds):
            await drained.wait()
    except TimeoutError:
        deployer.worker.halt()


def _planner(settings: Settings) -> Callable[[Claim, PullRequest], Plan]:
    def plan(claim: Claim, pull: PullRequest) -> Plan:
        return make_plan(
            settings,
            repo=pull.repo,
            pr_number=claim.key.pr_number,
            commit_sha=claim.message.commit_sha,
            branch=pull.head_ref,
            namespace=claim.namespace,
            release=claim.releases[0],
        )

    return plan


def run(settings: Settings, *, poll_deliveries: bool = False) -> None:
    """The process: uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(settings, poll_deliveries=poll_deliveries))
    else:
        uvloop.run(serve(settings, poll_deliveries=poll_deliveries))
