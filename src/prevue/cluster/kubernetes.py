"""A Kubernetes cluster behind the cluster port.

lightkube gives kubeconfig and credentials; the parts have a module each: the fence (`fence.py`), release Secrets (`releases.py`), shared
watches (`watches.py`), readiness (`readiness.py`, `rollout.py`, `diagnosis.py`), URLs (`urls.py`), doctor's questions (`inspection.py`).

Rights: Prevue's own account makes, fences and deletes namespaces, binds one role, and watches workloads and pods. Whatever is inside a
preview's namespace (Secrets, logs, Services) is read and written in the name of that namespace's `deployer`, with the claim's token.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import structlog

from prevue.cluster import inspection
from prevue.cluster.api import Access, Api, ApiError, claim_kubeconfig, load_access
from prevue.cluster.fence import Fences, fence_of, list_owned, owned_namespace
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
from prevue.cluster.urls import Urls
from prevue.cluster.watches import Watches
from prevue.config import ClusterSettings
from prevue.errors import ClusterUnavailable, ConfigError
from prevue.model import PreviewKey

log = structlog.get_logger(__name__)

RECHECK_SECONDS = 60.0
"""How often a cluster without the policy is asked again whether it has it now; and one with it, whether it still has."""


class KubernetesCluster:
    """One cluster; one object a process."""

    def __init__(self, access: Access, api: Api, watches: Watches, *, settle_seconds: float) -> None:
        self._access = access
        self._api = api
        self._fences = Fences(api, watches, settle_seconds=settle_seconds)
        self._releases = Releases(api)
        self._readiness = Readiness(api, watches)
        self._urls = Urls(api)
        self._kind: FenceKind | None = None
        self._kind_until = 0.0

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: ClusterSettings) -> AsyncIterator[KubernetesCluster]:
        """Connect, and find out which fence is in force.

        Raises:
            ConfigError: the kubeconfig is wrong, or `require_fence` is set and the policy is not in force.
            ClusterUnavailable: the API server does not answer.
        """
        access = load_access(settings)
        async with Api.open(access) as api:
            watches = Watches(api)
            cluster = cls(access, api, watches, settle_seconds=settings.fence_settle_seconds)
            try:
                if await cluster.fence_kind() is FenceKind.NONE:
                    text = "no admission policy refuses stale tokens in this cluster; `prevue doctor` says what to apply"
                    if settings.require_fence:
                        raise ConfigError(f"cluster.require_fence: {text}")
                    log.warning(text, action="fence")
                yield cluster
            finally:
                await watches.close()

    async def raise_fence(self, key: PreviewKey, namespace: str, token: int, *, create: bool) -> Fence | None:
        with _translated(f"the namespace {namespace} cannot be fenced"):
            return await self._fences.raise_(key, namespace, token, create=create, kind=await self._known_kind())

    async def fence_bites(self, fence: Fence) -> None:
        if fence.kind is FenceKind.NONE:
            return
        with _translated(f"the fence of {fence.namespace} cannot be tried"):
            try:
                await self._fences.bites(fence)
            except ClusterUnavailable:
                self._kind_until = 0.0  # somebody may have removed the policy: ask again before the next claim
                raise

    def kubeconfig(self, fence: Fence) -> str:
        return claim_kubeconfig(self._access, fence)

    async def release(self, fence: Fence, name: str) -> ReleaseRecord | None:
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
        kind = await self._fences.kind()
        self._kind, self._kind_until = kind, time.monotonic() + RECHECK_SECONDS
        return kind

    async def _known_kind(self) -> FenceKind:
        if self._kind is None or time.monotonic() >= self._kind_until:
            return await self.fence_kind()
        return self._kind

    async def inspect(self) -> list[Finding]:
        return await inspection.inspect(self._api, self._fences)


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
