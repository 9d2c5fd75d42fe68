"""A Kubernetes cluster behind the cluster port.

lightkube gives kubeconfig and credentials; the parts have a module each: the fence (`fence.py`), which kind of it is in force
(`choice.py`), the claims' own tokens (`claims.py`), in whose name is acted (`actors.py`), release Secrets (`releases.py`), shared watches
(`watches.py`), readiness (`readiness.py`, `rollout.py`, `diagnosis.py`), URLs (`urls.py`), doctor's questions (`inspection.py`).

Rights: Prevue's own account makes, fences and deletes namespaces, binds one role, and watches workloads and pods. Whatever is inside a
preview's namespace (Secrets, logs, Services) is read and written in the name of the claim, wherever claims can have a name of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import structlog

from prevue.cluster import inspection
from prevue.cluster.actors import Actors
from prevue.cluster.api import METADATA_ONLY, Access, Api, ApiError, load_access
from prevue.cluster.choice import AUTO, FenceChoice
from prevue.cluster.claims import Claims
from prevue.cluster.fence import LABEL_MANAGED, Fences, fence_of, list_owned, namespace_path, owned_namespace
from prevue.cluster.objects import Metadata
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
    UrlSource,
)
from prevue.cluster.readiness import Readiness
from prevue.cluster.releases import Releases
from prevue.cluster.rights import bind
from prevue.cluster.urls import Urls
from prevue.cluster.watches import Watches
from prevue.config import ClusterSettings
from prevue.errors import ClusterUnavailable, ConfigError
from prevue.model import PreviewKey

log = structlog.get_logger(__name__)


class KubernetesCluster:
    """One cluster; one object a process."""

    def __init__(self, access: Access, api: Api, bare: Api, watches: Watches, settings: ClusterSettings) -> None:
        self._api = api
        self._settings = settings
        self._claims = Claims(api, bare)
        self._actors = Actors(access, api, self._claims)
        self._fences = Fences(api, watches, settle_seconds=settings.fence_settle_seconds)
        self._choice = FenceChoice(settings.fence, api, self._fences, self._claims, self._actors)
        self._releases = Releases(self._actors)
        self._readiness = Readiness(api, watches, self._actors)
        self._urls = Urls(self._actors)
        self._bound: set[str] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: ClusterSettings) -> AsyncIterator[KubernetesCluster]:
        """Connect, and find out which fence is in force; install its policy where our account may.

        Raises:
            ConfigError: the kubeconfig is wrong. ClusterUnavailable: the API server does not answer.
        """
        access = load_access(settings)
        async with Api.open(access) as api, Api.open(access, as_nobody=True) as bare:
            watches = Watches(api)
            cluster = cls(access, api, bare, watches, settings)
            try:
                kind = await cluster.fence_kind()
                report = log.warning if kind is FenceKind.LEASE else log.info
                report("fence in force", action="fence", fence=kind.value, meaning=kind.meaning)
                yield cluster
            finally:
                await watches.close()

    async def raise_fence(self, key: PreviewKey, namespace: str, token: int, *, create: bool) -> Fence | None:
        with _translated(f"the namespace {namespace} cannot be fenced"):
            kind = await self._choice.known()
            demand_fence(self._settings, kind, ClusterUnavailable)
            bindings = self._actors.bindings(namespace, kind)
            fence = await self._fences.raise_(key, namespace, token, create=create, kind=kind, bindings=bindings)
            if fence is not None and kind is FenceKind.TOKEN:
                await self._claims.issue(namespace, token)
            return fence

    async def fence_bites(self, fence: Fence) -> None:
        if fence.kind is FenceKind.LEASE:
            return
        with _translated(f"the fence of {fence.namespace} cannot be tried"):
            try:
                if fence.kind is FenceKind.IDENTITY:
                    await self._fences.bites(fence)
                elif await self._claims.see_refused(fence):
                    await self._fences.settle()
            except ClusterUnavailable:
                self._choice.doubt()  # somebody may have removed the policy, or the rights
                raise

    def kubeconfig(self, fence: Fence) -> str:
        return self._actors.kubeconfig(fence)

    async def release(self, fence: Fence, name: str) -> ReleaseRecord | None:
        if self._actors.acts_by_itself:
            await self._bind_for_reading(fence)
        return await self._releases.newest(fence, name)

    async def manifest(self, fence: Fence, name: str) -> str:
        with _translated(f"the release {name} cannot be read"):
            return await self._releases.manifest(fence, name)

    async def wait_ready(self, fence: Fence, manifest: str, limits: ReadyLimits) -> None:
        with _translated(f"the workloads of {fence.namespace} cannot be read"):
            await self._readiness.wait(fence, manifest, limits)

    async def url(self, fence: Fence, manifest: str, source: UrlSource, *, host: str, timeout_seconds: float) -> str:
        with _translated(f"the URL of {fence.namespace} cannot be read"):
            return await self._urls.find(fence, manifest, source, host=host, timeout_seconds=timeout_seconds)

    async def delete_namespace(self, fence: Fence, *, timeout_seconds: float) -> None:
        with _translated(f"the namespace {fence.namespace} cannot be deleted"):
            await self._fences.delete(fence, timeout_seconds=timeout_seconds)

    async def owned(self, github_host: str) -> list[OwnedNamespace]:
        with _translated("the namespaces cannot be listed"):
            found = [owned_namespace(meta, github_host) for meta in await list_owned(self._api)]
        return [one for one in found if one is not None]

    async def highest_fence(self) -> int:
        with _translated("the namespaces cannot be listed"):
            return max((fence_of(meta) for meta in await list_owned(self._api)), default=0)

    async def fence_kind(self) -> FenceKind:
        with _translated("the fence cannot be tried"):
            return await self._choice.find()

    async def _bind_for_reading(self, fence: Fence) -> None:
        """Before a claim's raise, and for `verify`, a release is read by our own account, which a raise of another kind has not bound.

        Only where the namespace is a preview's: whose it is, the raise checks before anything is changed.
        """
        if fence.namespace in self._bound:
            return
        with _translated(f"the namespace {fence.namespace} cannot be read"):
            found = await self._api.find(namespace_path(fence.namespace), Metadata, accept=METADATA_ONLY)
            if found is None or found.metadata.labels.get(LABEL_MANAGED) != "true" or found.metadata.deletion_timestamp:
                return
            for binding in self._actors.bindings(fence.namespace, await self._choice.known()):
                await bind(self._api, fence.namespace, binding)
        self._bound.add(fence.namespace)

    async def inspect(self) -> list[Finding]:
        return await inspection.inspect(self._api, self._choice)


def demand_fence(settings: ClusterSettings, kind: FenceKind, error: type[ClusterUnavailable | ConfigError]) -> None:
    """Raise `error` where the settings ask for a stronger fence than `kind`."""
    wish = settings.fence
    if wish != kind if wish != AUTO else settings.require_fence and kind is FenceKind.LEASE:
        wanted = f"cluster.fence is {wish}" if wish != AUTO else "cluster.require_fence is true"
        raise error(f"{wanted}, but what is in force is {kind}: {kind.meaning}; see `prevue doctor`")


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """A refusal that no step expects is the operator's matter (a missing right, say): the claim is given back, no attempt is spent."""
    try:
        yield
    except ApiError as exc:
        raise ClusterUnavailable(f"{what}: {exc}") from exc


if TYPE_CHECKING:
    _cluster: type[Cluster] = KubernetesCluster
    _inspector: type[ClusterInspector] = KubernetesCluster
    _list: type[NamespaceList] = KubernetesCluster
