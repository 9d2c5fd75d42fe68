"""A whole deployer over the fakes, in one process: production's worker, pipeline, sweeper and outbox, nothing else made up.

The disks (GitHub, queue, statestore, cluster) outlive the deployers, so a test crashes one and starts another.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from prevue.clock import Clock, SystemClock
from prevue.cluster.port import ReadyLimits, UrlSource
from prevue.config import AppSettings, GitHubSettings, SweeperSettings
from prevue.deployer.pipeline import Pipeline, PipelineLimits
from prevue.deployer.plan import Plan
from prevue.deployer.worker import Worker, WorkerLimits
from prevue.github.client import GitHubClient
from prevue.github.port import PullRequest
from prevue.github_app.acknowledge import Acknowledger
from prevue.github_app.budget import Budget
from prevue.github_app.handle import Handler
from prevue.model import GITHUB_COM, Action, Claim, Message, RequestState, Source, format_time, idempotency_key
from prevue.statestore.port import ClaimLimits
from prevue.sweeper.outbox import OutboxDrainer, OutboxLimits
from prevue.sweeper.rules import make_rules
from prevue.sweeper.run import Sweeper
from prevue.sweeper.waiting import WaitingSweeper
from prevue.testing.cluster import FakeCluster, FakeClusterState, FakeProbe
from prevue.testing.github.records import Comment
from prevue.testing.github.rest import FakeGitHub
from prevue.testing.github.transport import FakeGitHubTransport
from prevue.testing.helm import FakeHelm
from prevue.testing.queue import FakeQueue, QueueDisk
from prevue.testing.statestore import FakeStateStore
from prevue.testing.statestore_disk import RequestRow, StateStoreDisk
from prevue.wiring.commands import AppDoor

REPO = "acme/hello"


@dataclass
class FakeDeployer:
    """One deployer process: what it is made of, and its running tasks."""

    name: str
    worker: Worker
    drainer: OutboxDrainer
    sweeper: WaitingSweeper
    queue: FakeQueue
    helm: FakeHelm
    store: FakeStateStore
    github: GitHubClient
    rules: Sweeper
    """The sweeper's other rules, under its lease; `rule` runs one turn of one."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    def start(self, *, slots: int = 4) -> None:
        """As the process's task group does."""
        self.tasks = [
            asyncio.create_task(self.queue.run(self.worker.handle, slots=slots, stop=self.stop), name=f"{self.name}-consumer"),
            asyncio.create_task(self.drainer.run(self.stop), name=f"{self.name}-outbox"),
            asyncio.create_task(self.sweeper.run(self.stop), name=f"{self.name}-sweeper"),
            asyncio.create_task(self.rules.run(self.stop), name=f"{self.name}-rules"),
        ]

    async def rule(self, name: str) -> int:
        """One turn of a rule, whoever holds the lease; what it did, counted."""
        counted = await next(rule for rule in self.rules.rules if rule.name == name).sweep()
        return counted if isinstance(counted, int) else 0

    async def crash(self) -> None:
        """As SIGKILL: Helm dies with it, nothing is given back."""
        self.helm.crash()
        self.queue.crash()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def shut_down(self, *, grace_seconds: float = 5) -> None:
        """As SIGTERM, with the grace."""
        self.stop.set()
        self.drainer.wake()
        done, _ = await asyncio.wait(self.tasks, timeout=grace_seconds)
        if len(done) < len(self.tasks):
            self.worker.halt()
        await asyncio.gather(*self.tasks)


class World:
    """The disks, one GitHub with `acme/hello` and its users, and deployers that come and go."""

    def __init__(self, *, key_file: Path, clock: Clock | None = None, limits: ClaimLimits | None = None) -> None:
        self.clock = clock or SystemClock()
        self.limits = limits or ClaimLimits(lease_seconds=2, acknowledge_after_seconds=0.05, verify_after_seconds=0.2)
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        key_file.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
        )
        public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.github = FakeGitHub(now=self.clock.now, public_key=public)
        self.repository = self.github.add_repository(REPO)
        for login in ("writer", "reader"):
            self.github.add_user(login)
        self.github.set_permission(REPO, "writer", "write")
        self.github.set_permission(REPO, "reader", "read")
        self.queue = QueueDisk()
        self.store = StateStoreDisk()
        self.cluster = FakeClusterState(clock=self.clock)
        self.values: dict[str, Any] = {}
        self.plan_error: Exception | None = None
        self.ttl_seconds = 0.0
        self.chart_name = "hello"
        self.sweeper_settings = SweeperSettings(
            deliveries_seconds=0.1, poll_seconds=0.1, comments_seconds=0.1, previews_seconds=0.1, expiry_seconds=0.1, alarm_seconds=0.1
        )
        self._settings = GitHubSettings(app_id=1, private_key_file=str(key_file))

    # -- what people do -----------------------------------------------------------------------------------------------

    def open_pull_request(self) -> int:
        """By `writer`; returns its number."""
        return self.github.open_pull_request(REPO, "writer").number

    def command(self, number: int, *, user: str = "writer", body: str = "/preview") -> Message:
        """Comment on the pull request, and what the App makes of it."""
        comment = self.github.comment(REPO, number, user, body)
        _, _, pull = self.github.pull(REPO, number)
        return Message(
            idempotency_key=idempotency_key(REPO, number, pull.head_sha),
            repo=REPO,
            pr_number=number,
            commit_sha=pull.head_sha,
            installation_id=self._installation_id(),
            comment_id=comment.id,
            repository_id=self.repository.id,
            requested_by=user,
            requested_at=comment.created_at,
            source=Source.COMMENT,
            source_id=str(comment.id),
        )

    def close(self, number: int) -> Message:
        """Close the pull request, and what the App makes of it."""
        closed_at = self.github.close_pull_request(REPO, number).closed_at
        assert closed_at is not None  # noqa: S101  just closed
        return Message(
            idempotency_key=idempotency_key(REPO, number, ""),
            repo=REPO,
            pr_number=number,
            commit_sha="",
            installation_id=self._installation_id(),
            comment_id=0,
            action=Action.DESTROY,
            repository_id=self.repository.id,
            requested_by="writer",
            requested_at=closed_at,
            source=Source.CLOSE,
            source_id=format_time(closed_at),
        )

    def _installation_id(self) -> int:
        installation = self.github.installation_of(self.repository)
        assert installation is not None  # noqa: S101  added with the App installed
        return installation.id

    # -- deployers ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def deployer(
        self, name: str = "one", *, pipeline_limits: PipelineLimits | None = None, poll_deliveries: bool = False
    ) -> AsyncIterator[FakeDeployer]:
        """A deployer process, not started: call `start`, or hand messages to its worker."""
        async with GitHubClient.open(self._settings, clock=self.clock, transport=FakeGitHubTransport(self.github)) as github:
            store = FakeStateStore(self.store, limits=self.limits, clock=self.clock)
            queue = FakeQueue(self.queue)
            helm = FakeHelm(self.cluster)
            drainer = OutboxDrainer(holder=name, outbox=store, github=github, limits=OutboxLimits(), clock=self.clock)
            pipeline = Pipeline(
                store=store,
                github=github,
                helm=helm,
                cluster=FakeCluster(self.cluster),
                probe=FakeProbe(self.cluster),
                plan=self._plan,
                limits=pipeline_limits or PipelineLimits(helm_deadline_seconds=2, helm_deadline_grace_seconds=0.2),
                clock=self.clock,
            )
            worker = Worker(
                holder=name,
                store=store,
                github=github,
                enqueuer=queue,
                pipeline=pipeline,
                limits=WorkerLimits(lease_seconds=self.limits.lease_seconds, backoff_seconds=0.05, backoff_max_seconds=0.2),
                clock=self.clock,
                on_told=drainer.wake,
                rng=random.Random(0),  # noqa: S311  jitter
            )
            cluster = FakeCluster(self.cluster)
            acknowledger = Acknowledger(github, Budget(per_minute=80, per_hour=500, replicas=1, now=self.clock.boottime))
            handler = Handler(github=github, enqueuer=queue, acknowledger=acknowledger, settings=AppSettings(), github_host=GITHUB_COM)
            rules = make_rules(
                self.sweeper_settings,
                store=store,
                github=github,
                namespaces=cluster,
                enqueuer=queue,
                door=AppDoor(handler, github_host=GITHUB_COM),
                is_configured=lambda repo: repo.lower() == REPO,
                clock=self.clock,
                github_host=GITHUB_COM,
                poll_deliveries=poll_deliveries,
            )
            sweeper = WaitingSweeper(store=store, enqueuer=queue, interval_seconds=0.1, quiet_seconds=0.2)
            made = FakeDeployer(
                name=name,
                worker=worker,
                drainer=drainer,
                sweeper=sweeper,
                queue=queue,
                helm=helm,
                store=store,
                github=github,
                rules=Sweeper(holder=name, leases=store, rules=rules, lease_seconds=self.limits.lease_seconds),
            )
            try:
                yield made
            finally:
                for task in made.tasks:
                    task.cancel()
                await asyncio.gather(*made.tasks, return_exceptions=True)
                await acknowledger.drain(1)

    def _plan(self, claim: Claim, pull: PullRequest) -> Plan:
        if self.plan_error is not None:
            raise self.plan_error
        digest = f"{abs(hash(msgspec.json.encode(self.values, order='sorted'))):016x}"[:16]
        return Plan(
            commit_sha=claim.message.commit_sha,
            chart=Path("chart"),
            chart_name=self.chart_name,
            values={"branch": pull.head_ref, **self.values},
            digest=digest,
            helm_timeout_seconds=1,
            ready=ReadyLimits(readiness_timeout_seconds=2, image_wait_seconds=2, commit_sha=claim.message.commit_sha),
            url="",
            url_source=UrlSource.NODE_PORT,
            url_host="127.0.0.1",
            url_path="/",
            url_statuses=frozenset({200}),
            url_timeout_seconds=1,
            ttl_seconds=self.ttl_seconds,
        )

    # -- what can be seen ----------------------------------------------------------------------------------------------

    def request(self, message: Message) -> RequestRow:
        """The request's row."""
        identity = (message.key, message.effective_source, message.effective_source_id)
        rows = self.store.requests.values()
        return next(row for row in rows if (row.message.key, row.message.effective_source, row.message.effective_source_id) == identity)

    def state(self, message: Message) -> RequestState | None:
        """The request's state; None before it is registered."""
        try:
            return self.request(message).state
        except StopIteration:
            return None

    def our_comments(self, number: int) -> list[Comment]:
        """The App's own comments on the pull request, oldest first."""
        return [comment for comment in self.github.issue(REPO, number).comments.values() if comment.author.login.endswith("[bot]")]

    def commit(self, number: int) -> str:
        """The pull request's head."""
        return self.github.pull(REPO, number)[2].head_sha


async def eventually(condition: Callable[[], bool], *, seconds: float = 5) -> None:
    """Return once `condition` holds.

    Raises:
        TimeoutError: it did not within `seconds`.
    """
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  the condition is about the fakes' disks, which set no event
            await asyncio.sleep(0.01)
