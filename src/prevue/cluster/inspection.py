"""What `doctor` and a starting deployer want to know of a cluster: version, rights one by one, and whether the fence bites."""

from __future__ import annotations

import asyncio

from prevue.cluster.api import Api, ApiError
from prevue.cluster.choice import IMPERSONATION, FenceChoice
from prevue.cluster.fence import CHECK_NAMESPACE, POLICY
from prevue.cluster.objects import K8s
from prevue.cluster.port import FenceKind, Finding
from prevue.cluster.rights import GROUP, ISSUER_ROLE, ROLE, Right, may
from prevue.errors import ClusterUnavailable, OutageError

RIGHTS: tuple[Right, ...] = (
    *(Right(verb, "", "namespaces") for verb in ("get", "list", "watch", "create", "patch", "delete")),
    Right("create", GROUP, "rolebindings"),
    Right("bind", GROUP, "clusterroles", "", ROLE),
    *(Right(verb, "apps", kind) for kind in ("deployments", "statefulsets", "daemonsets") for verb in ("get", "list", "watch")),
    *(Right(verb, "batch", "jobs") for verb in ("get", "list", "watch")),
    *(Right(verb, "", "pods") for verb in ("get", "list", "watch")),
)
"""What manifests/deployer.yaml grants beside impersonation."""
ISSUING = (Right("bind", GROUP, "clusterroles", "", ISSUER_ROLE),)
"""What manifests/tokens.yaml grants."""


class _Version(K8s, frozen=True):
    git_version: str = ""


async def inspect(api: Api, choice: FenceChoice) -> list[Finding]:
    """Everything, whatever fails; an API server that does not answer is a finding, not an error."""
    try:
        version = await api.get("/version", _Version)
        kind = await choice.find()
    except (ApiError, ClusterUnavailable) as exc:
        return [Finding(name="cluster", ok=False, text=f"the API server cannot be asked: {exc}")]
    findings = [Finding(name="cluster", ok=True, text=f"Kubernetes {version.git_version}")]
    needed = {FenceKind.IDENTITY: IMPERSONATION, FenceKind.TOKEN: ISSUING, FenceKind.LEASE: choice.missed}[kind]
    findings += await asyncio.gather(*(_right(api, right) for right in (*RIGHTS, *needed)))
    findings.append(await _role(api))
    findings.append(await _fence(kind, choice))
    return findings


async def _right(api: Api, right: Right) -> Finding:
    try:
        allowed = await may(api, right)
    except (ApiError, ClusterUnavailable) as exc:
        return Finding(name=f"right: {right}", ok=False, text=str(exc))
    text = "allowed" if allowed else "missing: apply prevue/cluster/manifests/deployer.yaml, or bind its ClusterRole prevue-deployer"
    return Finding(name=f"right: {right}", ok=allowed, text=text)


async def _role(api: Api) -> Finding:
    """Whether the role that is bound in each namespace exists: tried by binding it, without writing."""
    body = {
        "metadata": {"name": "prevue-role-check"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ROLE},
        "subjects": [],
    }
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{CHECK_NAMESPACE}/rolebindings"
    try:
        await api.call("POST", path, body=body, parameters={"dryRun": "All"})
    except (ApiError, ClusterUnavailable) as exc:
        return Finding(name="role", ok=False, text=f"the ClusterRole {ROLE} cannot be bound: {exc}")
    return Finding(name="role", ok=True, text=f"the ClusterRole {ROLE} can be bound")


async def _fence(kind: FenceKind, choice: FenceChoice) -> Finding:
    text = f"{kind}: {kind.meaning}"
    if kind is FenceKind.IDENTITY:
        return Finding(name="fence", ok=True, text=f"{text} (the admission policy {POLICY}, tried in {CHECK_NAMESPACE})")
    if kind is FenceKind.TOKEN:
        try:
            seconds = await choice.measure_revocation()
        except (ApiError, OutageError) as exc:
            return Finding(name="fence", ok=False, text=f"{text}; a revocation could not be measured: {exc}")
        return Finding(name="fence", ok=True, text=f"{text} (a token in use was refused {seconds:.1f} s after its revocation)")
    return Finding(name="fence", ok=False, text=f"{text}. Apply prevue/cluster/manifests/fence-policy.yaml, or tokens.yaml")
