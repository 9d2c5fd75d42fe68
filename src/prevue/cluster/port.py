"""The cluster port: namespaces under a fence, the truth about releases, readiness, URLs.

Every write is made under a claim's token. The namespace's annotation `prevue.dev/fence` is the fence: the API server refuses each write
of the impersonated `deployer` whose token is smaller (protocol section 8). Errors: `ClusterUnavailable`, `StaleClaim`,
`NamespaceTerminating`, `NamespaceForeign`, `NotReady`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

import msgspec

from prevue.model import PreviewKey

FENCE_ANNOTATION = "prevue.dev/fence"
FENCED_BY_ANNOTATION = "prevue.dev/fenced-by"
"""The `FenceKind` of the last raise."""
LABEL_REQUEST = "prevue.dev/request"
LABEL_COMMIT = "prevue.dev/commit"
LABEL_DIGEST = "prevue.dev/digest"
LABEL_CHART = "prevue.dev/chart"
LABEL_TOKEN = "prevue.dev/token"  # noqa: S105  the name of a label


class FenceKind(StrEnum):
    """How a stale Helm is kept from writing, the strongest first; `doctor` and every claim's ledger say which is in force (ADR 0006)."""

    IDENTITY = "identity"
    """The admission policy compares the impersonated identity's token with the namespace's annotation."""
    TOKEN = "token"  # noqa: S105  a kind
    """Each claim has a service-account token of its own; the next holder has it revoked, and waits until it is refused."""
    LEASE = "lease"
    """Lease, token and the child's absolute deadline hold, except against a paused machine."""

    @property
    def meaning(self) -> str:
        """What an operator may rely on, in one sentence."""
        return _MEANINGS[self]


_MEANINGS = {
    FenceKind.IDENTITY: "the API server refuses every write of a worker that lost its claim",
    FenceKind.TOKEN: (
        "a worker that lost its claim is refused once its token's revocation is known to the API server, some ten seconds, "
        "and the next worker waits for that"
    ),
    FenceKind.LEASE: "nothing but lease and deadline stops a worker that lost its claim: a paused machine can still write once it wakes",
}


class Fence(msgspec.Struct, frozen=True, kw_only=True):
    """A namespace raised to a claim's token; `uid` and `resource_version` are the preconditions of its deletion."""

    namespace: str
    token: int
    uid: str
    resource_version: str
    kind: FenceKind
    created: bool = False
    """The namespace was made by this raise: it is empty, there can be no release in it yet."""


class ReleaseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the newest release Secret says: Helm's own truth."""

    name: str
    revision: int
    status: str
    """`deployed`, `failed`, `pending-install`, `pending-upgrade`, `pending-rollback`, `uninstalling`, `superseded`."""
    labels: dict[str, str]


class ReadyLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait; seconds."""

    readiness_timeout_seconds: float = 300
    image_wait_seconds: float = 600
    """For the commit's own image, that CI may not have pushed yet."""
    commit_sha: str = ""
    """An image whose reference contains this commit is the commit's own."""


class UrlSource(StrEnum):
    """Where a preview's URL comes from."""

    TEMPLATE = "template"
    NODE_PORT = "node_port"
    INGRESS = "ingress"
    LOAD_BALANCER = "load_balancer"


class Cluster(Protocol):
    """One Kubernetes cluster."""

    async def raise_fence(self, key: PreviewKey, namespace: str, token: int, *, create: bool) -> Fence | None:
        """Protocol step 3: annotation := token by compare-and-swap; absent: created in one call with labels and fence (`create`), or None.

        The rights of the namespace's `deployer` identity are bound here too.

        Raises:
            StaleClaim: the annotation is higher already. NamespaceTerminating: it is being deleted.
            NamespaceForeign: it exists without this preview's ownership labels.
        """
        ...

    async def fence_bites(self, fence: Fence) -> None:
        """Protocol step 4: return once a stale worker's server dry-run write is refused: that of the impersonated deployer with
        token - 1 by the policy, or those with the tokens of earlier claims. With `FenceKind.LEASE` at once."""
        ...

    def kubeconfig(self, fence: Fence) -> str:
        """The claim's kubeconfig, for Helm: this cluster, in the name of the claim. It holds a credential: never on a disk or in a log."""
        ...

    async def release(self, fence: Fence, name: str) -> ReleaseRecord | None:
        """Protocol step 7: the newest revision's record, read from the API server, not a cache; None: there is no such release."""
        ...

    async def wait_ready(self, fence: Fence, manifest: str, limits: ReadyLimits) -> None:
        """Protocol step 8: return when every workload of the rendered `manifest` has rolled out completely, confirmed by a fresh read.

        Waits on watches that all previews share, one per kind. Fails fast.

        Raises:
            NotReady: crash loop, an image error of another image than the commit's own, quota, scheduling, a failed Job or a time-out;
                with the reason and, in `details`, the last log lines.
        """
        ...

    async def url(self, fence: Fence, manifest: str, source: UrlSource, *, host: str, timeout_seconds: float) -> str:
        """Such as `http://127.0.0.1:31234/`, from the manifest's first Service or Ingress as the cluster has it now.

        Raises:
            NotReady: the manifest has no such object, or it got no address in time.
        """
        ...

    async def delete_namespace(self, fence: Fence, *, timeout_seconds: float) -> None:
        """Protocol step 9: DELETE with preconditions uid and resourceVersion of the raise; wait for 404. A new resourceVersion under the
        same token is read and retried.

        Raises:
            StaleClaim: the annotation is another claim's by now. NamespaceTerminating: still there when the time was over.
        """
        ...

    async def manifest(self, fence: Fence, name: str) -> str:
        """The manifest that the newest revision's Secret holds: what `wait_ready` looks at for a release that is live already."""
        ...


class OwnedNamespace(msgspec.Struct, frozen=True, kw_only=True):
    """A namespace with our label, as a list shows it: nothing may be changed on this alone."""

    name: str
    uid: str
    key: PreviewKey
    fence: int
    """The annotation; 0 where it is absent or no number."""
    is_terminating: bool


class NamespaceList(Protocol):
    """What the sweeper and a start after a restore read of the whole cluster."""

    async def owned(self, github_host: str) -> list[OwnedNamespace]:
        """Every namespace with our labels that is about a pull request on `github_host`."""
        ...

    async def highest_fence(self) -> int:
        """The largest annotation of any namespace with our label, whatever its host; 0: there is none."""
        ...


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One fact that `doctor` found."""

    name: str
    ok: bool
    text: str


class ClusterInspector(Protocol):
    """What `doctor` and the start of a deployer ask."""

    async def fence_kind(self) -> FenceKind:
        """Which fence is in force, found by trying it (server dry-run), not by its presence alone."""
        ...

    async def inspect(self) -> list[Finding]:
        """Version, rights (SelfSubjectAccessReview), policy."""
        ...


class UrlProbe(Protocol):
    """Ask a preview's URL whether it answers."""

    async def probe(self, url: str, *, statuses: frozenset[int], timeout_seconds: float) -> int:
        """Return once the URL answers with one of `statuses`, and with which; redirects are not followed.

        Raises:
            NotReady: it did not in `timeout_seconds`; the text has the last answer.
        """
        ...
