# ruff: noqa: S101  a contract is made of assertions
"""The small world in which the contracts of Helm and the cluster are played: the same questions to the fakes and to a real cluster."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from prevue.cluster.port import LABEL_COMMIT, LABEL_TOKEN, Cluster, Fence, FenceKind, NamespaceList, UrlProbe
from prevue.helm.port import Helm, HelmRun, ReleaseSpec
from prevue.model import PreviewKey, preview_namespace, release_name
from prevue.testing.cluster import FakeCluster, FakeClusterState, FakeProbe
from prevue.testing.helm import FakeHelm

HOST = "contract.test"
"""A GitHub host of its own: no sweeper takes these namespaces for orphans of its pull requests."""
RELEASE = release_name(1)


STALE_ERRORS = {
    FenceKind.IDENTITY: "stale fencing token",
    FenceKind.TOKEN: "provide credentials",
    FenceKind.LEASE: "nobody refuses",
}
"""What a stale Helm hears, by the kind of the fence."""


class FullCluster(Cluster, NamespaceList, Protocol):
    """Both protocols, as a deployer opens them."""


class World(Protocol):
    """What a contract needs beside the ports."""

    helm: Helm
    cluster: FullCluster
    probe: UrlProbe
    stale_error: str
    """Part of what a stale Helm hears."""
    midway_seconds: float
    """A Helm of a `slow` spec has begun and not finished after so long."""

    def new_key(self) -> PreviewKey:
        """A preview that nobody has used."""
        ...

    def spec(self, namespace: str, commit: str, token: int, *, slow: bool = False) -> ReleaseSpec:
        """A chart with a ConfigMap, a Deployment and a Service that answers; `slow`: with a hook that takes half a minute."""
        ...

    def deadline(self, seconds: float) -> float:
        """An absolute deadline."""
        ...

    async def snapshot(self, namespace: str) -> dict[str, str]:
        """Every object in the namespace that a chart may have made, release Secrets included, with its version."""
        ...

    def make_foreign_namespace(self, namespace: str) -> None:
        """Somebody's namespace that is not ours."""
        ...

    def break_pods(self, spec: ReleaseSpec) -> ReleaseSpec:
        """The same, with an image (not the commit's own) that does not exist."""
        ...

    def helms_running(self) -> int:
        """Helm processes, wrappers included."""
        ...


def namespace_of(key: PreviewKey) -> str:
    """As the statestore derives it."""
    return preview_namespace(key, "acme/contract")


def new_key() -> PreviewKey:
    """Random, so that runs at the same time share a cluster."""
    return PreviewKey(HOST, secrets.randbelow(2**40), 1)


def labels(commit: str, token: int) -> dict[str, str]:
    """What the pipeline puts on a release."""
    return {LABEL_COMMIT: commit, LABEL_TOKEN: str(token)}


async def raised(world: World, key: PreviewKey, token: int) -> Fence:
    """A fence that bites."""
    fence = await world.cluster.raise_fence(key, namespace_of(key), token, create=True)
    assert fence is not None
    await world.cluster.fence_bites(fence)
    return fence


async def install(world: World, fence: Fence, commit: str, *, slow: bool = False, seconds: float = 45) -> HelmRun:
    """`upgrade --install` under the fence's claim."""
    spec = world.spec(fence.namespace, commit, fence.token, slow=slow)
    return await world.helm.upgrade_install(spec, kubeconfig=world.cluster.kubeconfig(fence), deadline=world.deadline(seconds))


class FakeWorld:
    """The fakes."""

    midway_seconds = 0.3

    def __init__(self, kind: FenceKind = FenceKind.IDENTITY) -> None:
        self.stale_error = STALE_ERRORS[kind]
        self.state = FakeClusterState(kind=kind)
        self.state.delete_seconds = 0.05
        self._helm = FakeHelm(self.state)
        self.helm: Helm = self._helm
        self.cluster: FullCluster = FakeCluster(self.state)
        self.probe: UrlProbe = FakeProbe(self.state)

    def new_key(self) -> PreviewKey:
        return new_key()

    def spec(self, namespace: str, commit: str, token: int, *, slow: bool = False) -> ReleaseSpec:
        self._helm.step_seconds = 0.1 if slow else 0.0
        return ReleaseSpec(
            namespace=namespace,
            name=RELEASE,
            chart=Path("chart"),
            values={"commit": commit},
            labels=labels(commit, token),
            hooks_timeout_seconds=40,
        )

    def deadline(self, seconds: float) -> float:
        return self.state.clock.boottime() + seconds

    async def snapshot(self, namespace: str) -> dict[str, str]:
        found = self.state.find(namespace)
        if found is None:
            return {}
        objects = {f"{kind}/{name}": f"{item.commit} {item.token}" for (kind, name), item in found.objects.items()}
        revisions = {f"{name}.v{item.revision}": item.status for name, all_ in found.releases.items() for item in all_}
        return objects | revisions

    def make_foreign_namespace(self, namespace: str) -> None:
        self.state.add_namespace(namespace)

    def break_pods(self, spec: ReleaseSpec) -> ReleaseSpec:
        self.state.fail_ready("The image nobody/has:this cannot be pulled", namespace=spec.namespace)
        return spec

    def helms_running(self) -> int:
        return len(self.state.helms_running)


if TYPE_CHECKING:
    _: type[World] = FakeWorld
