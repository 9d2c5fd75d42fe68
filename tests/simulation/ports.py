"""The ports as a simulated process sees them: the fakes, behind latency and the seed's faults.

The fakes pass the ports' contract suites and decide what a call does; here is only whether it is done, whether its answer comes back,
and how long both take. Every call is also an opportunity for its process to be killed or stopped a few awaits later.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import httpx2
from tests.simulation.loop import Process, SimulatedClock

from prevue.cluster.port import LABEL_COMMIT, Fence, ReadyLimits
from prevue.errors import ClusterUnavailable, QueueUnavailable, StateStoreUnavailable
from prevue.helm.port import HelmRun, ReleaseSpec
from prevue.model import Message
from prevue.queue.port import AlreadyEnqueued, Enqueued
from prevue.testing.cluster import FakeCluster, FakeProbe
from prevue.testing.github.records import Fault, Request
from prevue.testing.helm import KILLED, FakeHelm
from prevue.testing.queue import Entry, FakeQueue
from prevue.testing.statestore import FakeStateStore

if TYPE_CHECKING:
    from tests.simulation.world import World

SLOW_SECONDS = 8.0
"""How long a request to GitHub can be under way: longer than its client waits."""


class _Answer:
    """What the GitHub client reads of a response."""

    __slots__ = ("content", "headers", "links", "status_code")

    def __init__(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.status_code = status
        self.headers = headers
        self.content = content
        self.links: dict[str, dict[str, str]] = {}
        for part in headers.get("link", "").split(", "):
            if '; rel="' in part:
                address, _, rel = part.partition("; rel=")
                self.links[rel.strip('"')] = {"url": address.strip("<>")}

    @property
    def is_success(self) -> bool:
        return 200 <= self.status_code < 300


class GitHubWire:
    """Stands in for the HTTP client: production's own client, with its tokens, retries and errors, sits on top of it."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    async def request(self, method: str, url: str, *, headers: dict[str, str], content: bytes | None) -> _Answer:
        """One request; the fake answers as it stands when the request arrives."""
        world, faults = self._world, self._world.faults
        world.opportunity(self._process)
        await world.loop.sleep(world.random.uniform(0.01, 0.12))
        if faults.is_out("github") or faults.draw("github_no_answer"):
            await world.loop.sleep(world.random.uniform(0.1, SLOW_SECONDS))
            raise httpx2.ConnectError("the simulated network broke the connection")
        path, _, query = url.removeprefix("https://api.github.com").partition("?")
        for kind, status in (("401", 401), ("403", 403), ("422", 422), ("429", 429), ("5xx", world.random.choice((500, 502, 503)))):
            if faults.draw(f"github_{kind}"):
                retry = {"retry-after": str(world.random.randint(1, 40))} if kind == "429" else {}
                world.github.faults.insert(0, Fault(path=path, status=status, times=1, headers=retry))
                break
        request = Request(method=method, path=path, query=query, headers=headers, body=content or b"")
        if faults.draw("github_slow"):
            seconds = world.random.uniform(1, SLOW_SECONDS)
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                # The caller has given up, but the request is on its way: GitHub carries it out all the same.
                world.loop.call_later(world.random.uniform(0, SLOW_SECONDS - seconds), self._handle, request)
                raise
        answer = self._handle(request)
        await world.loop.sleep(world.random.uniform(0.01, 0.12))
        if faults.draw("github_lost_answer"):
            raise httpx2.ReadError("the simulated network lost the answer")
        return answer

    def _handle(self, request: Request) -> _Answer:
        world = self._world
        stale = world.people.is_lagging(request.path) and world.faults.draw(
            "github_stale_read_app" if self._process.name.startswith("app") else "github_stale_read_worker"
        )
        with world.people.as_it_was(request.path if stale else ""):
            answer = world.github.handle(request)
        world.trace(f"github {self._process.name} {request.method} {request.path} {answer.status}")
        if request.method == "POST" and 400 <= answer.status < 500 and answer.status != 429:
            world.wire.give_up(request.path)
        headers = {**answer.headers, "date": _http_date(world.github.now())}
        return _Answer(answer.status, headers, answer.body)


@lru_cache(maxsize=10_000)
def _http_date(moment: datetime) -> str:
    return moment.strftime("%a, %d %b %Y %H:%M:%S GMT")


_READS = frozenset({"due_installations", "seconds_until_due", "due", "unheld", "waiting", "note"})
"""Mostly idle polls: their answers come at once, which saves a fifth of the time."""


class _Forwarding(ABC):
    """A port whose every method goes through `_call`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        method = self.__dict__[name] = partial(self._call, name)
        return method

    @abstractmethod
    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any: ...


class PromptStore(FakeStateStore):
    """The fake without a wait of its own: there was one on the way to it."""

    async def _begin_transaction(self) -> datetime:
        return self.clock.now() + self.disk.offset


class SimulatedStore(_Forwarding):
    """All protocols of the statestore, for one process."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self._store = PromptStore(world.store, limits=world.limits, clock=world.clock)

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        world, faults = self._world, self._world.faults
        world.opportunity(self._process)
        await world.loop.sleep(world.random.uniform(0.001, 0.01))
        if faults.is_out("store") or faults.draw("store_error"):
            world.oracle.excuse(self._process)
            raise StateStoreUnavailable("the simulated statestore did not do it")
        for kind, seconds in (("store_slow", 5.0), ("store_hangs", 40.0)):
            if faults.draw(kind):
                world.oracle.excuse(self._process)
                await world.loop.sleep(world.random.uniform(0.5, seconds))
        is_done = False
        try:
            result = await getattr(self._store, method)(*args, **kwargs)
            is_done = True
        finally:
            # Between the transaction's last write and here nobody else has run.
            if method not in _READS:
                world.oracle.after_transaction(self._process, method, args, kwargs, is_done=is_done)
        if faults.draw("store_lost_answer"):
            world.oracle.excuse(self._process)
            raise StateStoreUnavailable("the simulated statestore did it, and its answer was lost")
        if method not in _READS:
            await world.loop.sleep(world.random.uniform(0.001, 0.01))
        return result


class SimulatedQueue(FakeQueue):
    """Enqueuer and Consumer, for one process."""

    def __init__(self, world: World, process: Process) -> None:
        super().__init__(world.queue, lease_seconds=world.numbers.queue_lease_seconds)
        self._world = world
        self._process = process

    async def enqueue(self, message: Message) -> Enqueued | AlreadyEnqueued:
        world, faults = self._world, self._world.faults
        world.opportunity(self._process)
        world.oracle.enqueues(message)
        await world.loop.sleep(world.random.uniform(0.001, 0.02))
        if faults.is_out("queue") or faults.draw("queue_error"):
            raise QueueUnavailable("the simulated queue did not do it")
        if faults.draw("queue_slow"):
            await world.loop.sleep(world.random.uniform(1, 6))
        result = await super().enqueue(message)
        world.trace(f"enqueue {self._process.name} {message.effective_source}/{message.effective_source_id} {type(result).__name__}")
        if isinstance(result, Enqueued):
            self._disturb(self.disk.entries[-1], message)
        if faults.draw("queue_lost_answer"):
            raise QueueUnavailable("the simulated queue did it, and its answer was lost")
        return result

    def _disturb(self, entry: Entry, message: Message) -> None:
        world, faults, now = self._world, self._world.faults, self.disk.now()
        if faults.draw("queue_duplicate"):
            self.disk.entries.append(Entry(entry.identity, entry.body, now + world.random.uniform(0, 30), entry.enqueued_at))
        if faults.draw("queue_delay"):
            entry.available_at = now + world.random.uniform(5, 60)
        elif faults.draw("queue_reorder"):
            entry.available_at = now + world.random.uniform(0.5, 8)
        if world.oracle.is_registered(message) and faults.draw("queue_drop"):
            # The port promises at least once; what is registered lives in the statestore, so only such a message may get lost.
            self.disk.entries.remove(entry)

    def _take(self) -> Entry | None:
        if self._world.faults.is_out("queue"):
            return None
        entry = super()._take()
        if entry is not None and self._world.faults.draw("queue_repeats_while_running"):
            again = self.disk.now() + self._world.random.uniform(0.1, 20)
            self.disk.entries.append(Entry(entry.identity, entry.body, again, entry.enqueued_at))
        return entry

    async def _pause(self, *, has_room: bool) -> None:
        if self._world.faults.outages.get("queue", 0.0) > self._world.loop.time():
            await asyncio.sleep(2)
        else:
            await super()._pause(has_room=has_room)


class SimulatedCluster(_Forwarding):
    """The cluster port, for one process."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self._cluster = FakeCluster(world.cluster)
        self.kubeconfig = self._cluster.kubeconfig

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        world, faults = self._world, self._world.faults
        world.opportunity(self._process)
        await world.loop.sleep(world.random.uniform(0.002, 0.03))
        if faults.is_out("cluster") or faults.draw("cluster_error"):
            raise ClusterUnavailable("the simulated API server did not do it")
        if faults.draw("cluster_429"):
            raise ClusterUnavailable("the simulated API server asks for patience", retry_after=world.random.randint(1, 20))
        if faults.draw("cluster_slow"):
            await world.loop.sleep(world.random.uniform(0.5, 2 * world.limits.lease_seconds))
        if method == "delete_namespace" and faults.draw("namespace_slow_to_go"):
            world.oracle.excuse_namespace(args[0].namespace)
            world.cluster.delete_seconds = world.random.uniform(1, 2 * world.numbers.namespace_gone_seconds)
        result = await getattr(self._cluster, method)(*args, **kwargs)
        world.cluster.delete_seconds = world.numbers.delete_seconds
        if faults.draw("cluster_lost_answer"):
            raise ClusterUnavailable("the simulated API server did it, and its answer was lost")
        return result

    async def wait_ready(self, fence: Fence, manifest: str, limits: ReadyLimits) -> None:
        if self._world.faults.draw("ready_slowly"):
            seconds = self._world.random.uniform(1, 1.2 * limits.readiness_timeout_seconds)
            self._world.cluster.ready_after(seconds, namespace=fence.namespace, times=1)
        await self._call("wait_ready", fence, manifest, limits)


class SimulatedProbe:
    """The URL's probe, for one process."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self._probe = FakeProbe(world.cluster)

    async def probe(self, url: str, *, statuses: frozenset[int], timeout_seconds: float) -> int:
        self._world.opportunity(self._process)
        if self._world.faults.draw("probe_fails"):
            self._world.cluster.fail_probe("it answered 502", times=1)
        await self._world.loop.sleep(self._world.random.uniform(0.01, 0.5))
        return await self._probe.probe(url, statuses=statuses, timeout_seconds=timeout_seconds)


class HelmChild:
    """One Helm with its wrapper: processes of their own, which die with the worker but are not stopped with it."""

    def __init__(self, *, namespace: str, token: int, process: Process) -> None:
        self.namespace = namespace
        self.token = token
        self.process = process
        self.is_killed = False
        self.late_seconds: float | None = None
        """A write that was on its way when the child was killed arrives after this time."""

    async def step(self, _name: str) -> None:
        """Before each write; a killed Helm makes no more, but for the one that is under way."""
        if not self.is_killed:
            return
        late, self.late_seconds = self.late_seconds, None
        if late is None:
            raise _KilledError
        await asyncio.sleep(late)


class _KilledError(Exception):
    """SIGKILL."""


class SimulatedHelm:
    """The Helm port, for one worker."""

    def __init__(self, world: World, process: Process, helm_process: Process) -> None:
        self._world = world
        self._process = process
        self._helm_process = helm_process
        self._clock = SimulatedClock(world.loop)
        self.children: list[HelmChild] = []

    def crash(self) -> None:
        """The worker was killed: its Helms die at once."""
        for child in list(self.children):
            self._kill(child)

    async def upgrade_install(self, spec: ReleaseSpec, *, kubeconfig: str, deadline: float) -> HelmRun:
        commit = spec.labels.get(LABEL_COMMIT, "")
        if commit in self._world.poisoned:
            self._world.strike_soon(self._process, "poison")

        def start(helm: FakeHelm) -> Awaitable[HelmRun]:
            self._break("upgrade", spec.namespace, commit)
            return helm.upgrade_install(spec, kubeconfig=kubeconfig, deadline=math.inf)

        return await self._run(spec.namespace, kubeconfig, deadline, start)

    async def rollback(self, namespace: str, name: str, *, kubeconfig: str, deadline: float) -> HelmRun:
        def start(helm: FakeHelm) -> Awaitable[HelmRun]:
            self._break("rollback", namespace, "")
            return helm.rollback(namespace, name, kubeconfig=kubeconfig, deadline=math.inf)

        return await self._run(namespace, kubeconfig, deadline, start)

    async def uninstall(self, namespace: str, name: str, *, kubeconfig: str, deadline: float) -> HelmRun:
        def start(helm: FakeHelm) -> Awaitable[HelmRun]:
            self._break("uninstall", namespace, "")
            return helm.uninstall(namespace, name, kubeconfig=kubeconfig, deadline=math.inf)

        return await self._run(namespace, kubeconfig, deadline, start)

    async def render(self, spec: ReleaseSpec, *, timeout_seconds: float) -> HelmRun:
        return await FakeHelm(self._world.cluster).render(spec, timeout_seconds=timeout_seconds)

    async def version(self) -> str:
        return "v4.3.1"

    def _break(self, verb: str, namespace: str, commit: str) -> None:
        """Rules for the run that begins with the very next call: the fake takes them at its start, so no other run meets them."""
        faults, random, cluster = self._world.faults, self._world.random, self._world.cluster
        if faults.draw("helm_killed"):
            self._world.oracle.excuse(self._process)
            cluster.kill_helm(after_writes=random.randint(0, 7), namespace=namespace, commit=commit)
        elif verb == "upgrade" and faults.draw("helm_lies"):
            # Taken at the run's end: one that is killed before leaves the rule to the next.
            self._world.oracle.excuse_namespace(namespace)
            cluster.lie_helm(namespace=namespace, commit=commit)
        elif verb == "upgrade" and faults.draw("helm_fails"):
            self._world.oracle.excuse(self._process)
            cluster.fail_helm("the cluster refused an object", after_writes=random.randint(0, 4), namespace=namespace, commit=commit)

    async def _run(self, namespace: str, kubeconfig: str, deadline: float, start: Callable[[FakeHelm], Awaitable[HelmRun]]) -> HelmRun:
        world = self._world
        world.opportunity(self._process)
        await world.loop.sleep(world.random.uniform(0.01, 0.1))
        seconds_left = self._seconds_left(deadline)
        if seconds_left <= 0:
            # As the wrapper: a worker that was stopped after its begin starts nothing any more.
            world.oracle.excuse(self._process)
            return HelmRun(exit_code=KILLED, output="", error="Helm's deadline had passed", deadline_passed=True)
        child = HelmChild(namespace=namespace, token=world.oracle.token_of(kubeconfig), process=self._process)
        seconds = world.numbers.helm_step_seconds
        if world.faults.draw("helm_slow"):
            seconds = world.random.uniform(1, world.numbers.helm_deadline_seconds / 3)
        helm = FakeHelm(world.cluster, step=child.step, step_seconds=seconds)
        ended: asyncio.Future[HelmRun] = world.loop.create_future()
        self.children.append(child)
        world.oracle.helm_started(child)
        task = self._helm_process.spawn(self._live(child, lambda: start(helm), ended), name="helm")
        timer = self._helm_process.call_at(world.loop.time() + seconds_left, partial(self._kill, child, ended, deadline_passed=True))
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            # As HelmCommand: SIGTERM, so that Helm writes `failed`, and no return before it is reaped.
            task.cancel()
            while not ended.done():
                try:
                    await asyncio.wait({ended})
                except asyncio.CancelledError:
                    continue
            raise
        finally:
            timer.cancel()

    def _seconds_left(self, deadline: float) -> float:
        """Looked at where Helm starts."""
        return deadline - self._clock.boottime()

    async def _live(self, child: HelmChild, start: Callable[[], Awaitable[HelmRun]], ended: asyncio.Future[HelmRun]) -> None:
        result = HelmRun(exit_code=KILLED, output="", error="Helm was killed", deadline_passed=False)
        try:
            result = await start()
        except _KilledError:
            pass
        except asyncio.CancelledError:
            self._world.trace(f"helm of {child.token} ended by SIGTERM")
        if child in self.children:
            self.children.remove(child)
        if not ended.done():
            ended.set_result(result)

    def _kill(self, child: HelmChild, ended: asyncio.Future[HelmRun] | None = None, *, deadline_passed: bool = False) -> None:
        if child.is_killed or child not in self.children:
            return
        child.is_killed = True
        self.children.remove(child)
        self._world.trace(f"helm of {child.token} killed")
        if self._world.faults.draw("helm_late_write"):
            child.late_seconds = self._world.random.uniform(0.01, 2 * self._world.limits.lease_seconds)
        if deadline_passed:
            self._world.oracle.excuse(self._process)
        if ended is not None and not ended.done():
            ended.set_result(HelmRun(exit_code=KILLED, output="", error="Helm was killed", deadline_passed=deadline_passed))
