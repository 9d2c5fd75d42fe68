"""A cluster without I/O: namespaces under a fence, releases, objects, and rules by which workloads fail.

`FakeClusterState` is the disk: it outlives the objects that act on it, so a test may throw away a `FakeCluster` or `FakeHelm` (a crash)
and open another one. `FakeHelm` (`testing/helm.py`) writes through `FakeClusterState.write`, which checks the fence as the admission
policy does, and every write stands in `journal`: the invariants of the simulation are questions to it. Time is `clock` and the event
loop's; nothing else decides an outcome, so a run is repeatable.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prevue.clock import Clock, SystemClock
from prevue.cluster.port import (
    Cluster,
    ClusterInspector,
    Fence,
    FenceKind,
    Finding,
    NamespaceList,
    OwnedNamespace,
    ReadyLimits,
    ReleaseRecord,
    UrlProbe,
    UrlSource,
)
from prevue.errors import ClusterUnavailable, NamespaceForeign, NamespaceTerminating, NotReady, StaleClaim
from prevue.model import PreviewKey

Step = Callable[[str], Awaitable[None]]
"""Called before every write and every call of the port: a test stops, delays or breaks the caller there."""

HISTORY_MAX = 3


class FenceRefused(Exception):
    """The fake API server's answer to a stale token."""


@dataclass(kw_only=True)
class FakeObject:
    """One object of a release, with what its last write was about."""

    kind: str
    name: str
    commit: str
    values: str
    token: int


@dataclass(kw_only=True)
class FakeRevision:
    """One release Secret."""

    revision: int
    status: str
    labels: dict[str, str]
    objects: list[tuple[str, str]]
    commit: str
    values: str


@dataclass(kw_only=True)
class FakeNamespace:
    """A namespace, what is in it, and which value of the annotation the policy's cache still has."""

    name: str
    key: PreviewKey | None
    uid: str
    resource_version: int
    fence: int
    seen_fence: int
    seen_after: float = 0.0
    gone_at: float | None = None
    releases: dict[str, list[FakeRevision]] = field(default_factory=dict)
    objects: dict[tuple[str, str], FakeObject] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Write:
    """One accepted write."""

    at: float
    namespace: str
    token: int
    verb: str
    kind: str
    name: str
    commit: str


@dataclass(kw_only=True)
class Rule:
    """What a test wants to happen; the first one that fits a namespace (empty: any) and commit (empty: any) is used, `times` times."""

    what: str
    namespace: str = ""
    commit: str = ""
    times: int = 1_000_000
    reason: str = ""
    details: str = ""
    seconds: float = 0.0
    after_writes: int = 0


class FakeClusterState:
    """The cluster's etcd, and the rules of the test."""

    def __init__(
        self, *, clock: Clock | None = None, policy: bool = True, fence_lag_seconds: float = 0.0, kind: FenceKind | None = None
    ) -> None:
        self.clock = clock or SystemClock()
        self.kind = kind or (FenceKind.IDENTITY if policy else FenceKind.LEASE)
        self.fence_lag_seconds = fence_lag_seconds
        self.delete_seconds = 0.0
        self.namespaces: dict[str, FakeNamespace] = {}
        self.rules: list[Rule] = []
        self.journal: list[Write] = []
        self.helms_running: list[tuple[str, int]] = []
        """(namespace, token) of every Helm that has not been reaped."""
        self.chart_objects: list[tuple[str, str]] = [("ConfigMap", "{release}"), ("Deployment", "{release}"), ("Service", "{release}")]
        self._numbers = itertools.count(1)

    # What a test says -------------------------------------------------------------------------------------------------

    def fail_ready(self, reason: str, *, details: str = "", namespace: str = "", commit: str = "", times: int = 1_000_000) -> None:
        """`wait_ready` raises NotReady(reason)."""
        self.rules.append(Rule(what="fail_ready", reason=reason, details=details, namespace=namespace, commit=commit, times=times))

    def ready_after(self, seconds: float, *, namespace: str = "", commit: str = "", times: int = 1_000_000) -> None:
        """Workloads need that long; more than the limit is a time-out."""
        self.rules.append(Rule(what="ready_after", seconds=seconds, namespace=namespace, commit=commit, times=times))

    def fail_probe(self, reason: str, *, namespace: str = "", times: int = 1_000_000) -> None:
        """The URL does not answer well."""
        self.rules.append(Rule(what="fail_probe", reason=reason, namespace=namespace, times=times))

    def fail_helm(self, error: str, *, after_writes: int = 0, namespace: str = "", commit: str = "", times: int = 1) -> None:
        """Helm ends with exit code 1 after so many writes, and writes `failed` if it had begun."""
        self.rules.append(Rule(what="fail_helm", reason=error, after_writes=after_writes, namespace=namespace, commit=commit, times=times))

    def kill_helm(self, *, after_writes: int, namespace: str = "", commit: str = "", times: int = 1) -> None:
        """Helm is killed by SIGKILL after so many writes: a pending release stays (0: nothing was written)."""
        self.rules.append(Rule(what="kill_helm", after_writes=after_writes, namespace=namespace, commit=commit, times=times))

    def lie_helm(self, *, namespace: str = "", commit: str = "", times: int = 1) -> None:
        """Helm says exit 0, but its last write, `deployed`, is missing."""
        self.rules.append(Rule(what="lie_helm", namespace=namespace, commit=commit, times=times))

    def unavailable(self, *, times: int = 1, namespace: str = "") -> None:
        """The API server does not answer the next calls of the cluster port."""
        self.rules.append(Rule(what="unavailable", namespace=namespace, times=times))

    def take(self, what: str, namespace: str, commit: str = "") -> Rule | None:
        """The first rule that fits, one use of it spent."""
        for rule in self.rules:
            if rule.what == what and rule.times > 0 and rule.namespace in ("", namespace) and (not rule.commit or rule.commit == commit):
                rule.times -= 1
                return rule
        return None

    # What the cluster does --------------------------------------------------------------------------------------------

    def number(self) -> int:
        """A new resourceVersion or uid."""
        return next(self._numbers)

    def find(self, name: str) -> FakeNamespace | None:
        """The namespace as the API server answers now."""
        namespace = self.namespaces.get(name)
        if namespace is not None and namespace.gone_at is not None and namespace.gone_at <= self.clock.boottime():
            del self.namespaces[name]
            return None
        return namespace

    def add_namespace(self, name: str, *, key: PreviewKey | None = None, fence: int = 0) -> FakeNamespace:
        """As somebody created it; without `key` it is not ours."""
        made = FakeNamespace(name=name, key=key, uid=f"uid-{self.number()}", resource_version=self.number(), fence=fence, seen_fence=fence)
        self.namespaces[name] = made
        return made

    def admitted_fence(self, namespace: FakeNamespace) -> int:
        """The fence as the API server sees it, the annotation or the revoked tokens: from a cache that lags (protocol, section 8)."""
        return namespace.fence if namespace.seen_after <= self.clock.boottime() else namespace.seen_fence

    def set_fence(self, namespace: FakeNamespace, token: int) -> None:
        """A raise that has been committed."""
        namespace.seen_fence = self.admitted_fence(namespace)
        namespace.seen_after = self.clock.boottime() + self.fence_lag_seconds
        namespace.fence = token
        namespace.resource_version = self.number()

    def admit(self, name: str, token: int) -> FakeNamespace:
        """What stands before every write of a claim's identity.

        Raises:
            FenceRefused: a fence is in force and the token is stale, or the namespace is not there or not to be written to.
        """
        namespace = self.find(name)
        if namespace is None:
            raise FenceRefused(f'namespaces "{name}" not found')
        if namespace.gone_at is not None:
            raise FenceRefused(f"namespace {name} is being terminated")
        if namespace.key is None:
            raise FenceRefused(f"forbidden in the namespace {name}")
        if token < self.admitted_fence(namespace):
            if self.kind is FenceKind.IDENTITY:
                raise FenceRefused("denied request: stale fencing token")
            if self.kind is FenceKind.TOKEN:
                raise FenceRefused("the server has asked for the client to provide credentials")
        return namespace

    def write(self, name: str, token: int, verb: str, kind: str, object_name: str, commit: str = "") -> FakeNamespace:
        """Admit a write and put it into the journal."""
        namespace = self.admit(name, token)
        entry = Write(at=self.clock.boottime(), namespace=name, token=token, verb=verb, kind=kind, name=object_name, commit=commit)
        self.journal.append(entry)
        return namespace

    def served_commit(self, name: str) -> str | None:
        """The commit that the namespace's URL serves: that of the last write to its Deployment; None: nothing is served."""
        namespace = self.find(name)
        if namespace is None or namespace.gone_at is not None or not any(kind == "Service" for kind, _ in namespace.objects):
            return None
        return next((item.commit for (kind, _), item in namespace.objects.items() if kind == "Deployment"), None)


def fake_manifest(objects: list[tuple[str, str]], commit: str) -> str:
    """The objects as YAML documents, one JSON object each."""
    documents = [{"kind": kind, "metadata": {"name": name, "annotations": {"commit": commit}}} for kind, name in objects]
    return "".join(f"---\n{json.dumps(document)}\n" for document in documents)


def _documents(manifest: str) -> Iterator[tuple[str, str]]:
    for line in manifest.splitlines():
        if line.startswith("{"):
            document = json.loads(line)
            yield document["kind"], document["metadata"]["name"]


class FakeCluster:
    """One worker's view of the state; `step` is called with `cluster.METHOD` before each call does anything."""

    def __init__(self, state: FakeClusterState, *, step: Step | None = None) -> None:
        self._state = state
        self._step = step

    async def _begin(self, method: str, namespace: str) -> None:
        await asyncio.sleep(0)
        if self._step is not None:
            await self._step(f"cluster.{method}")
        if self._state.take("unavailable", namespace):
            raise ClusterUnavailable("the API server does not answer")

    async def raise_fence(self, key: PreviewKey, namespace: str, token: int, *, create: bool) -> Fence | None:
        await self._begin("raise_fence", namespace)
        found = self._state.find(namespace)
        if found is None:
            if not create:
                return None
            found = self._state.add_namespace(namespace, key=key, fence=token)
            return self._fence(found, created=True)
        if found.key != key:
            raise NamespaceForeign(f"the namespace {namespace} is not this preview's")
        if found.fence > token:
            raise StaleClaim(f"the fence of {namespace} is at {found.fence}, above {token}")
        if found.gone_at is not None:
            raise NamespaceTerminating(f"the namespace {namespace} is still being deleted")
        if found.fence != token:
            self._state.set_fence(found, token)
        return self._fence(found)

    def _fence(self, found: FakeNamespace, *, created: bool = False) -> Fence:
        version, kind = str(found.resource_version), self._state.kind
        return Fence(namespace=found.name, token=found.fence, uid=found.uid, resource_version=version, kind=kind, created=created)

    async def fence_bites(self, fence: Fence) -> None:
        await self._begin("fence_bites", fence.namespace)
        while self._state.kind is not FenceKind.LEASE:
            found = self._state.find(fence.namespace)
            if found is None or found.gone_at is not None or found.uid != fence.uid:
                raise NamespaceTerminating(f"the namespace {fence.namespace} is gone or being deleted")
            if found.fence > fence.token:
                raise StaleClaim(f"the fence of {fence.namespace} is at {found.fence}, above {fence.token}")
            if self._state.admitted_fence(found) >= fence.token:
                return
            await asyncio.sleep(0.005)

    def kubeconfig(self, fence: Fence) -> str:
        return json.dumps({"namespace": fence.namespace, "token": fence.token})

    async def release(self, fence: Fence, name: str) -> ReleaseRecord | None:
        await self._begin("release", fence.namespace)
        found = self._state.find(fence.namespace)
        revisions = found.releases.get(name) if found else None
        if not revisions:
            return None
        newest = revisions[-1]
        return ReleaseRecord(name=name, revision=newest.revision, status=newest.status, labels=dict(newest.labels))

    async def manifest(self, fence: Fence, name: str) -> str:
        await self._begin("manifest", fence.namespace)
        found = self._state.find(fence.namespace)
        revisions = found.releases.get(name) if found else None
        return fake_manifest(revisions[-1].objects, revisions[-1].commit) if revisions else ""

    async def wait_ready(self, fence: Fence, manifest: str, limits: ReadyLimits) -> None:
        await self._begin("wait_ready", fence.namespace)
        rule = self._state.take("fail_ready", fence.namespace, limits.commit_sha)
        if rule is not None:
            raise NotReady(rule.reason, details=rule.details)
        slow = self._state.take("ready_after", fence.namespace, limits.commit_sha)
        if slow is not None:
            await asyncio.sleep(min(slow.seconds, limits.readiness_timeout_seconds))
            if slow.seconds > limits.readiness_timeout_seconds:
                raise NotReady(f"not ready after {limits.readiness_timeout_seconds:g} s")
        found = self._state.find(fence.namespace)
        for kind, name in _documents(manifest):
            if found is None or (kind, name) not in found.objects:
                raise NotReady(f"{kind} {name} is not there")

    async def url(self, fence: Fence, manifest: str, source: UrlSource, *, host: str, timeout_seconds: float) -> str:
        await self._begin("url", fence.namespace)
        found = self._state.find(fence.namespace)
        service = next((name for kind, name in _documents(manifest) if kind == "Service"), None)
        if found is None or service is None or ("Service", service) not in found.objects:
            raise NotReady(f"the chart has no {source} to take a URL from, or it got no address in {timeout_seconds:g} s")
        return f"http://{host}/{fence.namespace}/"

    async def delete_namespace(self, fence: Fence, *, timeout_seconds: float) -> None:
        await self._begin("delete_namespace", fence.namespace)
        found = self._state.find(fence.namespace)
        if found is None:
            return
        if found.uid != fence.uid or found.fence != fence.token:
            raise StaleClaim(f"the namespace {fence.namespace} is another claim's by now")
        if found.gone_at is None:
            found.gone_at = self._state.clock.boottime() + self._state.delete_seconds
            found.releases.clear()
            found.objects.clear()
            at = self._state.clock.boottime()
            entry = Write(at=at, namespace=found.name, token=fence.token, verb="delete", kind="Namespace", name=found.name, commit="")
            self._state.journal.append(entry)
        await asyncio.sleep(min(max(found.gone_at - self._state.clock.boottime(), 0), timeout_seconds))
        if self._state.find(fence.namespace) is found:
            raise NamespaceTerminating(f"the namespace {fence.namespace} is still being deleted")

    async def owned(self, github_host: str) -> list[OwnedNamespace]:
        await self._begin("owned", "")
        found = [self._state.find(name) for name in sorted(self._state.namespaces)]
        return [
            OwnedNamespace(name=one.name, uid=one.uid, key=one.key, fence=one.fence, is_terminating=one.gone_at is not None)
            for one in found
            if one is not None and one.key is not None and one.key.github_host == github_host
        ]

    async def highest_fence(self) -> int:
        await self._begin("highest_fence", "")
        found = [self._state.find(name) for name in sorted(self._state.namespaces)]
        return max((one.fence for one in found if one is not None and one.key is not None), default=0)

    async def fence_kind(self) -> FenceKind:
        await self._begin("fence_kind", "")
        return self._state.kind

    async def inspect(self) -> list[Finding]:
        kind = await self.fence_kind()
        return [Finding(name="fence", ok=kind is not FenceKind.LEASE, text=f"{kind}: {kind.meaning}")]


class FakeProbe:
    """Asks the state whether a URL of `FakeCluster.url` would answer."""

    def __init__(self, state: FakeClusterState, *, step: Step | None = None) -> None:
        self._state = state
        self._step = step

    async def probe(self, url: str, *, statuses: frozenset[int], timeout_seconds: float) -> int:
        await asyncio.sleep(0)
        if self._step is not None:
            await self._step("probe")
        namespace = url.rstrip("/").rsplit("/", 1)[-1]
        rule = self._state.take("fail_probe", namespace)
        if rule is not None:
            raise NotReady(rule.reason)
        if self._state.served_commit(namespace) is None or 200 not in statuses:
            raise NotReady(f"{url} did not answer in {timeout_seconds:g} s")
        return 200


if TYPE_CHECKING:
    _cluster: type[Cluster] = FakeCluster
    _inspector: type[ClusterInspector] = FakeCluster
    _list: type[NamespaceList] = FakeCluster
    _probe: type[UrlProbe] = FakeProbe
