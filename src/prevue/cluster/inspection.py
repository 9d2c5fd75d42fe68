"""What `doctor` and a starting deployer want to know of a cluster: version, rights one by one, and whether the fence bites."""

from __future__ import annotations

import asyncio

import msgspec

from prevue.cluster.api import Api, ApiError
from prevue.cluster.fence import CHECK_NAMESPACE, POLICY, ROLE, Fences
from prevue.cluster.objects import K8s
from prevue.cluster.port import FENCE_ANNOTATION, FenceKind, Finding
from prevue.errors import ClusterUnavailable

# (group, resource, subresource, name, verbs): what manifests/deployer.yaml grants.
RIGHTS: tuple[tuple[str, str, str, str, tuple[str, ...]], ...] = (
    ("", "namespaces", "", "", ("get", "list", "watch", "create", "patch", "delete")),
    ("rbac.authorization.k8s.io", "rolebindings", "", "", ("create",)),
    ("rbac.authorization.k8s.io", "clusterroles", "", ROLE, ("bind",)),
    ("", "serviceaccounts", "", "deployer", ("impersonate",)),
    ("authentication.k8s.io", "userextras", FENCE_ANNOTATION, "", ("impersonate",)),
    ("apps", "deployments", "", "", ("get", "list", "watch")),
    ("apps", "statefulsets", "", "", ("get", "list", "watch")),
    ("apps", "daemonsets", "", "", ("get", "list", "watch")),
    ("batch", "jobs", "", "", ("get", "list", "watch")),
    ("", "pods", "", "", ("get", "list", "watch")),
)


class _Version(K8s, frozen=True):
    git_version: str = ""


class _ReviewStatus(K8s, frozen=True):
    allowed: bool = False
    reason: str = ""


class _Review(K8s, frozen=True):
    status: _ReviewStatus = _ReviewStatus()


async def inspect(api: Api, fences: Fences) -> list[Finding]:
    """Everything, whatever fails; an API server that does not answer is a finding, not an error."""
    try:
        version = await api.get("/version", _Version)
    except (ApiError, ClusterUnavailable) as exc:
        return [Finding(name="cluster", ok=False, text=f"the API server cannot be asked: {exc}")]
    findings = [Finding(name="cluster", ok=True, text=f"Kubernetes {version.git_version}")]
    checks = [(verb, *right[:4]) for right in RIGHTS for verb in right[4]]
    findings += await asyncio.gather(*(_right(api, *check) for check in checks))
    findings.append(await _role(api))
    findings.append(await _fence(fences))
    return findings


async def _right(api: Api, verb: str, group: str, resource: str, subresource: str, name: str) -> Finding:
    attributes = {"verb": verb, "group": group, "resource": resource, "subresource": subresource, "name": name}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}},
    }
    what = " ".join(item for item in (verb, f"{resource}/{subresource}" if subresource else resource, name) if item)
    try:
        answer = await api.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=body)
    except (ApiError, ClusterUnavailable) as exc:
        return Finding(name=f"right: {what}", ok=False, text=str(exc))
    status = msgspec.json.decode(answer, type=_Review).status
    text = "allowed" if status.allowed else "missing: apply prevue/cluster/manifests/deployer.yaml, or bind its ClusterRole prevue-deployer"
    return Finding(name=f"right: {what}", ok=status.allowed, text=text)


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


async def _fence(fences: Fences) -> Finding:
    try:
        kind = await fences.kind()
    except ClusterUnavailable as exc:
        return Finding(name="fence", ok=False, text=str(exc))
    if kind is FenceKind.POLICY:
        return Finding(name="fence", ok=True, text=f"the admission policy {POLICY} refuses stale tokens (tried in {CHECK_NAMESPACE})")
    text = (
        f"no admission policy refuses stale tokens (tried in {CHECK_NAMESPACE}): lease, token and Helm's absolute deadline hold, "
        "except against a machine that was paused as a whole. Apply prevue/cluster/manifests/fence-policy.yaml"
    )
    return Finding(name="fence", ok=False, text=text)
