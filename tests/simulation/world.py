"""One simulated world: GitHub, queue, statestore and cluster as disks, two Apps and three deployers as processes, a wire and people.

Everything of Prevue in it is production code: the App's ASGI door, handler and acknowledger, GitHub's client, worker, pipeline, holding,
outbox drainer and sweeper. What stands around them (this module) starts, kills and restarts processes as an operating system does.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, cast

import httpx2
import jwt
from tests.simulation.faults import Faults, Swarm
from tests.simulation.invariants import Oracle
from tests.simulation.loop import Process, SimulatedClock, SimulatedLoop
from tests.simulation.people import People
from tests.simulation.ports import SLOW_SECONDS, GitHubWire, SimulatedCluster, SimulatedHelm, SimulatedProbe, SimulatedQueue, SimulatedStore
from tests.simulation.wire import SimulatedGitHub, WebhookWire

from prevue.cluster.port import Cluster, NamespaceList, ReadyLimits, UrlProbe, UrlSource
from prevue.config import AppSettings, SweeperSettings
from prevue.deployer.pipeline import Pipeline, PipelineLimits
from prevue.deployer.plan import Plan
from prevue.deployer.worker import Worker, WorkerLimits
from prevue.github.client import GitHubClient
from prevue.github.connections import Connections
from prevue.github.port import PullRequest
from prevue.github.tokens import JWT_BACKDATED, JWT_LIFETIME, AppIdentity
from prevue.github_app.acknowledge import Acknowledger
from prevue.github_app.asgi import create_app
from prevue.github_app.budget import Budget
from prevue.github_app.handle import Handler
from prevue.model import GITHUB_COM, Claim
from prevue.statestore.port import ClaimLimits, ClaimStore, LeaseStore, Outbox, SweepStore
from prevue.sweeper.outbox import OutboxDrainer, OutboxLimits
from prevue.sweeper.rules import SweeperStore, make_rules
from prevue.sweeper.run import Sweeper
from prevue.sweeper.waiting import WaitingSweeper
from prevue.testing.cluster import FakeClusterState
from prevue.testing.github.app_key import AppKey
from prevue.testing.queue import QueueDisk
from prevue.testing.statestore_disk import StateStoreDisk
from prevue.wiring.commands import AppDoor

SECRET = "simulated-secret"
GRACE_SECONDS = 5.0
LANE_SECONDS = 9.0
REQUEST_SECONDS = 6.0
VERIFY_SECONDS = LANE_SECONDS + SLOW_SECONDS
"""The lane's lease and the longest that a request to GitHub can be under way."""
UNREACHABLE_SECONDS = 60.0
POLL_SECONDS = 10.0
"""An idle outbox is most of a quiet world's work."""
SWEEPER = SweeperSettings(
    deliveries_seconds=30,
    poll_seconds=3,
    comments_seconds=30,
    previews_seconds=30,
    expiry_seconds=15,
    alarm_seconds=60,
    overdue_seconds=3600,
)

_STRIKES_APP = ("crash_app", "pause_app")
_STRIKES_DEPLOYER = ("crash_deployer", "pause_deployer", "pause_deployer_and_helm", "graceful_stop")
_key: list[AppKey] = []


def app_key() -> AppKey:
    """One key pair for all seeds of a run: making one costs a tenth of a second."""
    if not _key:
        _key.append(AppKey.generate())
    return _key[0]


@lru_cache(maxsize=20_000)
def _signed(issued: int, expires: int, app_id: int) -> str:
    claims = {"iat": issued, "exp": expires, "iss": str(app_id)}
    return jwt.encode(claims, app_key().private, algorithm="RS256")


class _Identity(AppIdentity):
    """Production's claims; each signature is computed once a run."""

    def __init__(self, clock: SimulatedClock) -> None:
        super().__init__(app_id=1, private_key="", clock=clock)

    def jwt(self) -> str:
        issued = self._clock.now() - JWT_BACKDATED
        return _signed(int(issued.timestamp()), int((issued + JWT_LIFETIME).timestamp()), self._app_id)


@dataclass(kw_only=True)
class Numbers:
    """The protocol's numbers, in proportion to a shorter lease: less virtual time, the same races."""

    lease_seconds: float = 10.0
    helm_deadline_seconds: float = 12.0
    helm_deadline_grace_seconds: float = 2.0
    helm_step_seconds: float = 0.3
    attempts_max: int = 4
    backoff_seconds: float = 2.0
    backoff_max_seconds: float = 15.0
    sweep_seconds: float = 8.0
    queue_lease_seconds: float = 15.0
    namespace_gone_seconds: float = 20.0
    delete_seconds: float = 0.5
    readiness_seconds: float = 20.0
    url_seconds: float = 4.0
    ttl_seconds: float = 0.0

    @classmethod
    def draw(cls, random: Random) -> Numbers:
        """What may differ between installations."""
        return cls(
            helm_step_seconds=random.choice((0.05, 0.3, 1.0)),
            attempts_max=random.choice((2, 3)),
            delete_seconds=random.choice((0.0, 0.5, 3.0)),
            ttl_seconds=random.choice((0.0, 0.0, 0.0, 25.0, 60.0)),
        )


@dataclass(kw_only=True)
class Settings:
    """What of a world is not drawn from its seed."""

    apps: int = 2
    deployers: int = 3
    has_sweeper_rules: bool = True
    """Rules 2, 3, 5 and 6; without them failed deliveries are sent again by hand, and what only these rules repair is off."""
    only: frozenset[str] | None = None
    """The fault kinds that are on; None: the seed draws them."""
    policy: bool | None = None
    numbers: Numbers | None = None
    boost: float = 1.0
    """How many times more often each fault happens than elsewhere: for a world of few kinds."""
    pushes_before_commands: bool = False
    """Every command is about a commit of its own: none finds its preview there already."""
    crowded: bool = False
    """Everybody acts on the first pull request."""
    fence_lag_seconds: float | None = None
    """How far the policy's cache lags; None: the seed draws it."""
    keep_trace: bool = False


@dataclass(kw_only=True)
class App:
    """One App process."""

    process: Process
    door: Any
    acknowledger: Acknowledger


@dataclass(kw_only=True)
class Deployer:
    """One deployer process."""

    process: Process
    helm_process: Process
    worker: Worker
    drainer: OutboxDrainer
    sweeper: WaitingSweeper
    rules: Sweeper
    acknowledger: Acknowledger
    queue: SimulatedQueue
    helm: SimulatedHelm
    stop: asyncio.Event
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)


class World:
    """See the module."""

    def __init__(self, seed: int, settings: Settings | None = None) -> None:
        self.seed = seed
        self.settings = settings or Settings()
        self.loop = SimulatedLoop(seed)
        self.random = self.loop.random
        self.digest = sha256()
        self.lines: list[str] = []
        swarm = Swarm.draw(
            self.random,
            has_sweeper_rules=self.settings.has_sweeper_rules,
            only=self.settings.only,
            policy=self.settings.policy,
            boost=self.settings.boost,
        )
        self.numbers = self.settings.numbers or Numbers.draw(self.random)
        self.limits = ClaimLimits(
            lease_seconds=self.numbers.lease_seconds,
            attempts_max=self.numbers.attempts_max,
            acknowledge_after_seconds=5,
            verify_after_seconds=VERIFY_SECONDS,
        )
        self.clock = SimulatedClock(self.loop)
        self.faults = Faults(swarm=swarm, random=self.random, now=self.loop.time, trace=self.trace)
        self.github = SimulatedGitHub(now=self.clock.now, public_key=app_key().public_pem, webhook_secret=SECRET, seed=seed)
        self.queue = QueueDisk()
        self.store = StateStoreDisk()
        lag = self.random.choice((0.0, 0.02, 0.3, 1.5))
        if self.settings.fence_lag_seconds is not None:
            lag = self.settings.fence_lag_seconds
        self.cluster = FakeClusterState(clock=self.clock, policy=swarm.has_policy, fence_lag_seconds=lag)
        self.cluster.delete_seconds = self.numbers.delete_seconds
        if lag:
            self.faults.swarm.rates.setdefault("fence_lag", 0.0)
        self.values_version = 1
        self.poisoned: set[str] = set()
        self.never_ready: set[str] = set()
        self.oracle = Oracle(self)
        self.people = People(self)
        self.wire = WebhookWire(self)
        self.apps: list[App] = []
        self.deployers: list[Deployer] = []
        self._strikes_app, self._strikes_deployer = (
            [kind for kind in kinds if kind in swarm.rates] for kinds in (_STRIKES_APP, _STRIKES_DEPLOYER)
        )
        self.on_start: Callable[[str, Process], None] = lambda *_: None
        """Called with each App and deployer that starts."""
        self._outside = contextvars.copy_context()
        self._generation = 0
        self.loop.after_step = self.oracle.after_step

    def trace(self, line: str) -> None:
        """One event: part of the digest by which a replay is compared."""
        text = f"{self.loop.time():.4f} {line}"
        self.digest.update(text.encode())
        if self.settings.keep_trace:
            self.lines.append(text)

    def outside(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run `work` as part of no process."""
        return self.loop.create_task(work, name=name, context=self._outside.copy())

    # -- processes ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """All of them."""
        for index in range(self.settings.apps):
            self._start_app(index)
        for index in range(self.settings.deployers):
            self._start_deployer(index)

    def _process(self, name: str) -> Process:
        self._generation += 1
        process = Process(self.loop, f"{name}.{self._generation}")
        if self.faults.draw("clock_jump"):
            process.wall_offset_seconds = self.random.uniform(-600, 600)
        self.trace(f"start {process.name}")
        return process

    def _github(self, process: Process) -> GitHubClient:
        clock = SimulatedClock(self.loop, process)
        wire = cast("httpx2.AsyncClient", GitHubWire(self, process))
        return GitHubClient(Connections(lambda: wire), api_url="https://api.github.com", identity=_Identity(clock), clock=clock)

    def _start_app(self, index: int) -> None:
        process = self._process(f"app{index}")
        settings = AppSettings(replicas=self.settings.apps)
        github = self._github(process)
        budget = Budget(per_minute=30, per_hour=100, replicas=settings.replicas, now=self.clock.boottime)
        acknowledger = Acknowledger(github, budget)
        door = create_app(
            github=github,
            enqueuer=SimulatedQueue(self, process),
            acknowledger=acknowledger,
            settings=settings,
            secrets=[SECRET.encode()],
            github_host=GITHUB_COM,
        )
        app = App(process=process, door=door, acknowledger=acknowledger)
        self.apps[index : index + 1] = [app]
        self.on_start("app", process)

    def _start_deployer(self, index: int) -> None:
        process = self._process(f"deployer{index}")
        helm_process = Process(self.loop, f"helm{index}.{self._generation}")
        clock = SimulatedClock(self.loop, process)
        store = SimulatedStore(self, process)
        queue = SimulatedQueue(self, process)
        github = self._github(process)
        helm = SimulatedHelm(self, process, helm_process)
        numbers = self.numbers
        drainer = OutboxDrainer(holder=process.name, outbox=cast("Outbox", store), github=github, limits=OutboxLimits(), clock=clock)
        pipeline = Pipeline(
            store=cast("ClaimStore", store),
            github=github,
            helm=helm,
            cluster=cast("Cluster", SimulatedCluster(self, process)),
            probe=cast("UrlProbe", SimulatedProbe(self, process)),
            plan=self.plan,
            limits=PipelineLimits(
                helm_deadline_seconds=numbers.helm_deadline_seconds,
                helm_deadline_grace_seconds=numbers.helm_deadline_grace_seconds,
                helm_parallel=2,
                namespace_gone_seconds=numbers.namespace_gone_seconds,
            ),
            clock=clock,
        )
        worker = Worker(
            holder=process.name,
            store=cast("ClaimStore", store),
            github=github,
            enqueuer=queue,
            pipeline=pipeline,
            limits=WorkerLimits(
                lease_seconds=numbers.lease_seconds,
                backoff_seconds=numbers.backoff_seconds,
                backoff_max_seconds=numbers.backoff_max_seconds,
            ),
            clock=clock,
            on_told=drainer.wake,
            rng=self.random,
        )
        sweeper = WaitingSweeper(
            store=cast("SweepStore", store), enqueuer=queue, interval_seconds=numbers.sweep_seconds, quiet_seconds=numbers.sweep_seconds
        )
        rules, acknowledger = self._rules(process, store, queue, github)
        deployer = Deployer(
            process=process,
            helm_process=helm_process,
            worker=worker,
            drainer=drainer,
            sweeper=sweeper,
            rules=rules,
            acknowledger=acknowledger,
            queue=queue,
            helm=helm,
            stop=asyncio.Event(),
        )
        self.deployers[index : index + 1] = [deployer]
        self.on_start("deployer", process)
        process.spawn(self._serve(index, deployer), name="main")

    def _rules(self, process: Process, store: SimulatedStore, queue: SimulatedQueue, github: GitHubClient) -> tuple[Sweeper, Acknowledger]:
        """As `wiring.sweeper.open_sweeper`."""
        budget = Budget(per_minute=30, per_hour=100, replicas=self.settings.apps + 1, now=self.clock.boottime)
        acknowledger = Acknowledger(github, budget)
        handler = Handler(github=github, enqueuer=queue, acknowledger=acknowledger, settings=AppSettings(), github_host=GITHUB_COM)
        rules = make_rules(
            SWEEPER,
            store=cast("SweeperStore", store),
            github=github,
            namespaces=cast("NamespaceList", SimulatedCluster(self, process)),
            enqueuer=queue,
            door=AppDoor(handler, github_host=GITHUB_COM),
            is_configured=lambda _: True,
            clock=SimulatedClock(self.loop, process),
            github_host=GITHUB_COM,
        )
        leases = cast("LeaseStore", store)
        return Sweeper(holder=process.name, leases=leases, rules=rules, lease_seconds=1.5 * self.numbers.lease_seconds), acknowledger

    async def _serve(self, index: int, deployer: Deployer) -> None:
        """As `wiring.deployer.serve`: consumer, outbox, sweeper and the grace, until the stop; then the process ends and another starts."""
        drained = asyncio.Event()
        side = [asyncio.create_task(deployer.drainer.run(drained), name="outbox"), asyncio.create_task(self._halt(deployer), name="grace")]
        if self.settings.has_sweeper_rules:
            side.append(asyncio.create_task(deployer.rules.run(deployer.stop), name="rules"))
        side.append(asyncio.create_task(deployer.sweeper.run(deployer.stop), name="sweeper"))
        try:
            await deployer.queue.run(deployer.worker.handle, slots=3, stop=deployer.stop)
            drained.set()
            deployer.drainer.wake()
            await asyncio.gather(*side)
        except Exception as exc:  # noqa: BLE001  whatever it was: nothing but a stop may end a deployer
            self.oracle.report("no_unexpected_error", f"{deployer.process.name} ended: {exc!r}")
        self.outside(self._restart(index, deployer), "restart")

    async def _halt(self, deployer: Deployer) -> None:
        await deployer.stop.wait()
        await asyncio.sleep(GRACE_SECONDS)
        deployer.worker.halt()

    async def _restart(self, index: int, deployer: Deployer) -> None:
        if deployer.process.is_dead:
            return
        self.trace(f"end {deployer.process.name}")
        deployer.process.kill()
        deployer.helm.crash()
        await asyncio.sleep(1)
        self._start_deployer(index)

    # -- strikes ------------------------------------------------------------------------------------------------------

    def opportunity(self, process: Process) -> None:
        """A call of a port by `process`: perhaps something happens to it a few awaits later."""
        if not self.faults.is_active or process.strike_at >= process.steps:
            return
        for kind in self._strikes_app if process.name.startswith("app") else self._strikes_deployer:
            if self.faults.draw(kind):
                self.strike_soon(process, kind)
                return
        if self.faults.draw("clock_jump"):
            process.wall_offset_seconds = self.random.uniform(-600, 600)

    def strike_soon(self, process: Process, kind: str) -> None:
        """`kind` hits `process` after some more of its callbacks."""
        process.strike_at = process.steps + self.random.randint(1, 12)
        process.strike = lambda: self.strike(process, kind)

    def strike(self, process: Process, kind: str) -> None:
        """A crash, a stop or the request to stop."""
        self.trace(f"strike {kind} {process.name}")
        self.oracle.excuse(process)
        process.strike_at = -1
        for index, app in enumerate(self.apps):
            if app.process is process:
                self._strike_app(index, app, kind)
        for index, deployer in enumerate(self.deployers):
            if deployer.process is process:
                self._strike_deployer(index, deployer, kind)

    def _strike_app(self, index: int, app: App, kind: str) -> None:
        if kind == "crash_app":
            app.process.kill()
            self.outside(self._later(self.random.uniform(0.5, 20), self._start_app, index), "restart")
        else:
            app.process.stop()
            self.outside(self._later(self.random.uniform(1, 15), self._go_on, app.process), "continue")

    def _strike_deployer(self, index: int, deployer: Deployer, kind: str) -> None:
        if kind in ("crash_deployer", "poison"):
            deployer.process.kill()
            deployer.helm.crash()
            self.outside(self._later(self.random.uniform(0.5, 20), self._start_deployer, index), "restart")
        elif kind == "graceful_stop":
            # The signal arrives in the process's own loop.
            deployer.process.call_at(self.loop.time(), deployer.stop.set)
        else:
            processes = [deployer.process, deployer.helm_process] if kind == "pause_deployer_and_helm" else [deployer.process]
            for process in processes:
                process.stop()
            lease = self.numbers.lease_seconds
            seconds = self.random.uniform(0.2 * lease, lease) if self.random.random() < 0.3 else self.random.uniform(lease, 4 * lease)
            self.outside(self._later(seconds, self._go_on, *processes), "continue")

    async def _later(self, seconds: float, what: Any, *args: Any) -> None:
        await asyncio.sleep(seconds)
        what(*args)

    def _go_on(self, *processes: Process) -> None:
        for process in processes:
            if process.is_stopped and not process.is_dead:
                self.trace(f"continue {process.name}")
                self.oracle.excuse(process)
                process.go_on()

    def heal(self) -> None:
        """The faults are over: nothing new goes wrong, and clocks are set right."""
        self.faults.stop()
        for process in [*(app.process for app in self.apps), *(deployer.process for deployer in self.deployers)]:
            process.wall_offset_seconds = 0.0

    # -- what is deployed ---------------------------------------------------------------------------------------------

    def plan(self, claim: Claim, pull: PullRequest) -> Plan:
        """As the operator's configuration says now."""
        return Plan(
            commit_sha=claim.message.commit_sha,
            chart=Path("chart"),
            chart_name="hello",
            values={"branch": pull.head_ref},
            digest=f"values-{self.values_version}",
            helm_timeout_seconds=5,
            ready=ReadyLimits(
                readiness_timeout_seconds=self.numbers.readiness_seconds,
                image_wait_seconds=self.numbers.readiness_seconds,
                commit_sha=claim.message.commit_sha,
            ),
            url="",
            url_source=UrlSource.NODE_PORT,
            url_host="127.0.0.1",
            url_path="/",
            url_statuses=frozenset({200}),
            url_timeout_seconds=self.numbers.url_seconds,
            ttl_seconds=self.numbers.ttl_seconds,
        )
