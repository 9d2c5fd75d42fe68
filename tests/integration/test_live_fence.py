"""The fence on a real API server: whoever lost its claim changes nothing, wherever it was stopped."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
import yaml

from prevue.cluster.api import Api, ApiError, as_claim, load_access
from prevue.cluster.choice import manifest
from prevue.cluster.fence import LABEL_MANAGED
from prevue.cluster.install import MANIFESTS, TOKENS_MANIFEST, apply_manifests
from prevue.cluster.port import FENCE_ANNOTATION, FENCED_BY_ANNOTATION, FenceKind
from prevue.config import ClusterSettings
from prevue.testing.contracts.live import LiveCluster, LiveWorld, live_cluster, live_token_world, live_world, open_world, web_objects
from prevue.testing.contracts.worlds import RELEASE, install, namespace_of, raised

__all__ = ["live_cluster", "live_token_world", "live_world"]
# The time limit is the test's own: on a new machine the first one also waits while the cluster is built.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120, func_only=True)]

A = "a" * 40


async def test_stale_writes_of_every_kind_are_refused(live_world: LiveWorld) -> None:
    """Create, update, patch, delete and deletecollection in the name of a lost claim; all pass for the holder."""
    world = live_world
    key = world.new_key()
    stale = await raised(world, key, 5)
    await install(world, stale, A)
    holder = await raised(world, key, 6)
    one = f"/api/v1/namespaces/{stale.namespace}/configmaps/{RELEASE}"
    all_ = f"/api/v1/namespaces/{stale.namespace}/configmaps"
    patch = {"data": {"commit": "changed"}}
    body = {"metadata": {"name": "new"}}
    calls = [("POST", all_, body, "application/json"), ("PATCH", one, patch, "application/merge-patch+json"), ("DELETE", one, None, "")]
    access = load_access(ClusterSettings(kubeconfig=str(world.live.kubeconfig)))
    before = await world.snapshot(stale.namespace)
    async with Api.open(access) as api:
        for method, path, content, type_ in [*calls, ("DELETE", all_, None, "")]:
            with pytest.raises(ApiError, match="stale fencing token"):
                await api.call(method, path, body=content, content_type=type_, headers=as_claim(stale.namespace, stale.token))
        nameless = {"Impersonate-User": as_claim(stale.namespace, 0)["Impersonate-User"]}
        with pytest.raises(ApiError, match="stale fencing token"):
            await api.call("POST", all_, body=body, headers=nameless)
        assert await world.snapshot(stale.namespace) == before
        for method, path, content, type_ in calls:
            await api.call(method, path, body=content, content_type=type_, headers=as_claim(holder.namespace, holder.token))


async def test_deployers_account_touches_nothing_inside_a_preview_by_itself(live_world: LiveWorld) -> None:
    """Least privilege: no Secrets, no writes, no other identities; whatever is inside is reached in the name of a claim alone."""
    world = live_world
    fence = await raised(world, world.new_key(), 5)
    access = load_access(ClusterSettings(kubeconfig=str(world.live.kubeconfig)))
    in_namespace = f"/api/v1/namespaces/{fence.namespace}"
    async with Api.open(access) as api:
        for method, path in (("GET", "secrets"), ("GET", "configmaps"), ("DELETE", "pods/x"), ("GET", "pods/x/log")):
            with pytest.raises(ApiError, match="forbidden"):
                await api.call(method, f"{in_namespace}/{path}")
        for user in ("system:admin", "system:serviceaccount:kube-system:default"):
            with pytest.raises(ApiError, match="forbidden"):
                await api.call("GET", f"{in_namespace}/configmaps", headers={"Impersonate-User": user})
        admin = {"kind": "ClusterRole", "name": "cluster-admin", "apiGroup": "rbac.authorization.k8s.io"}
        body = {"metadata": {"name": "more"}, "roleRef": admin, "subjects": []}
        with pytest.raises(ApiError, match="forbidden"):
            await api.call("POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{fence.namespace}/rolebindings", body=body)


async def test_deployers_account_changes_previews_namespaces_alone(live_world: LiveWorld) -> None:
    """RBAC cannot say so, a policy can: else its token could bind the preview's role to itself in kube-system."""
    world = live_world
    fence = await raised(world, world.new_key(), 5)
    world.make_foreign_namespace(namespace_of(foreign := world.new_key()))
    other = namespace_of(foreign)
    own, somebody = ({"kind": "ServiceAccount", "name": "deployer", "namespace": name} for name in (fence.namespace, other))
    role = {"kind": "ClusterRole", "name": "prevue-preview", "apiGroup": "rbac.authorization.k8s.io"}
    bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings"
    merge = "application/merge-patch+json"
    calls: list[tuple[str, str, object, str]] = [
        ("POST", bindings.format(other), {"metadata": {"name": "x"}, "roleRef": role, "subjects": [somebody]}, "application/json"),
        (
            "POST",
            bindings.format(fence.namespace),
            {"metadata": {"name": "x"}, "roleRef": role, "subjects": [somebody]},
            "application/json",
        ),
        ("PATCH", f"/api/v1/namespaces/{other}", {"metadata": {"labels": {LABEL_MANAGED: "true"}}}, merge),
        ("DELETE", f"/api/v1/namespaces/{other}", None, ""),
        ("POST", "/api/v1/namespaces", {"metadata": {"name": f"{other}-x"}}, "application/json"),
    ]
    async with Api.open(load_access(ClusterSettings(kubeconfig=str(world.live.kubeconfig)))) as api:
        for method, path, body, type_ in calls:
            with pytest.raises(ApiError, match="prevue-deployer may"):
                await api.call(method, path, body=body, content_type=type_)
        body = {"metadata": {"name": "x"}, "roleRef": role, "subjects": [own]}
        await api.call("POST", bindings.format(fence.namespace), body=body, parameters={"dryRun": "All"})


@pytest.mark.parametrize(
    "kind", ["Role", "RoleBinding", "NetworkPolicy", "ResourceQuota", "ClusterRoleBinding", "ConfigMap elsewhere", "Pod security"]
)
async def test_chart_cannot_leave_its_namespace_or_loosen_it(live_world: LiveWorld, kind: str) -> None:
    world = live_world
    fence = await raised(world, world.new_key(), 5)
    rbac = "rbac.authorization.k8s.io/v1"
    role = {"kind": "ClusterRole", "name": "cluster-admin", "apiGroup": "rbac.authorization.k8s.io"}
    objects: dict[str, dict[str, Any]] = {
        "Role": {"apiVersion": rbac, "rules": []},
        "RoleBinding": {"apiVersion": rbac, "roleRef": role, "subjects": []},
        "ClusterRoleBinding": {"apiVersion": rbac, "roleRef": role, "subjects": []},
        "NetworkPolicy": {"apiVersion": "networking.k8s.io/v1", "spec": {"podSelector": {}}},
        "ResourceQuota": {"apiVersion": "v1", "spec": {"hard": {"pods": "100"}}},
        "ConfigMap elsewhere": {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "evil", "namespace": "default"}},
        "Pod security": {
            "apiVersion": "v1",
            "kind": "Pod",
            "spec": {"hostNetwork": True, "containers": [{"name": "a", "image": "a", "securityContext": {"privileged": True}}]},
        },
    }
    name = f"evil-{fence.namespace}"
    object_: dict[str, Any] = {
        "kind": kind.removesuffix(" security").capitalize() if kind == "Pod security" else kind,
        "metadata": {"name": name},
    }
    spec = world.spec_of(fence.namespace, A, fence.token, [object_ | objects[kind]])
    run = await world.helm.upgrade_install(spec, kubeconfig=world.cluster.kubeconfig(fence), deadline=world.deadline(45))
    assert run.exit_code != 0
    assert "forbidden" in run.error


async def test_unknown_field_in_a_chart_is_refused(live_world: LiveWorld) -> None:
    """Helm's own schema check is off, since it costs a third of its CPU time: the API server must find the mistake."""
    world = live_world
    if (await world.helm.version()).startswith("v3."):
        pytest.skip("Helm 3 applies on its own side, keeps its schema check, and only warns")
    fence = await raised(world, world.new_key(), 5)
    objects = web_objects(A)
    objects[2]["spec"]["replicaz"] = 1
    spec = world.spec_of(fence.namespace, A, fence.token, objects)
    run = await world.helm.upgrade_install(spec, kubeconfig=world.cluster.kubeconfig(fence), deadline=world.deadline(45))
    assert run.exit_code != 0
    assert "replicaz" in run.error


async def test_new_namespace_is_born_fenced(live_world: LiveWorld) -> None:
    key = live_world.new_key()
    await raised(live_world, key, 5)
    raw = live_world.live.kubectl("get", "namespace", namespace_of(key), "-o", "json")
    meta = msgspec.json.decode(raw)["metadata"]
    assert meta["annotations"][FENCE_ANNOTATION] == "5"
    assert meta["annotations"][FENCED_BY_ANNOTATION] == "identity"
    assert meta["labels"][LABEL_MANAGED] == "true"
    assert meta["labels"]["prevue.dev/repository-id"] == str(key.repository_id)
    assert meta["labels"]["prevue.dev/pull-request"] == "1"
    assert meta["labels"]["pod-security.kubernetes.io/enforce"] == "baseline"


async def test_fence_is_found_by_trying_it(live_world: LiveWorld) -> None:
    assert await live_world.kubernetes.fence_kind() is FenceKind.IDENTITY
    findings = await live_world.kubernetes.inspect()
    assert all(finding.ok for finding in findings), [finding for finding in findings if not finding.ok]
    assert len(findings) > 20


async def test_stacks_and_claims_change_nothing_that_others_share(live_cluster: LiveCluster) -> None:
    """Each stack applies the manifests as it starts, and each claim switches the fence of its own namespace alone."""
    admin = live_cluster.handle.kubeconfig

    def shared() -> list[Any]:
        """Whatever the manifests say of what stands in the cluster, and what was added."""
        documents = [one for name in (*MANIFESTS, TOKENS_MANIFEST) for one in yaml.safe_load_all(manifest(name))]
        found = json.loads(live_cluster.kubectl("get", "-o", "json", "-f", "-", text=yaml.safe_dump_all(documents)))["items"]
        for item in found:
            item.pop("status", None)  # the API server's own
            for name in ("resourceVersion", "managedFields"):
                item["metadata"].pop(name, None)
        assert len(found) == len(documents)
        return list(found)

    apply_manifests(admin, optional=(TOKENS_MANIFEST,))
    before = shared()
    apply_manifests(admin)
    for kind in FenceKind:
        async with open_world(live_cluster, kind) as world:
            await raised(world, world.new_key(), 5)
    assert shared() == before


async def test_doctor_measures_how_long_a_revoked_token_is_accepted(live_token_world: LiveWorld) -> None:
    findings = await live_token_world.kubernetes.inspect()
    assert all(finding.ok for finding in findings), [finding for finding in findings if not finding.ok]
    (fence,) = [finding for finding in findings if finding.name == "fence"]
    found = re.search(r"^token: .* \(a token in use was refused ([0-9.]+) s after its revocation\)$", fence.text)
    assert found is not None, fence.text
    print(fence.text)
    assert 0 < float(found[1]) < 30


async def test_missing_rights_are_found_one_by_one(live_cluster: LiveCluster) -> None:
    """An account without rights: each one that is missing is named."""
    from prevue.cluster.kubernetes import KubernetesCluster

    live_cluster.kubectl(
        "apply", "-f", "-", text="apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: nobody, namespace: prevue-system}\n"
    )
    token = live_cluster.kubectl("create", "token", "nobody", "-n", "prevue-system").strip()
    access = load_access(ClusterSettings(kubeconfig=str(live_cluster.kubeconfig)))
    document = {
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": access.cluster}],
        "users": [{"name": "c", "user": {"token": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    }
    kubeconfig = live_cluster.folder / "nobody.yaml"
    kubeconfig.write_bytes(msgspec.json.encode(document))
    async with KubernetesCluster.open(ClusterSettings(kubeconfig=str(kubeconfig))) as cluster:
        assert await cluster.fence_kind() is FenceKind.LEASE
        missing = {finding.name for finding in await cluster.inspect() if not finding.ok}
    assert {
        "right: create namespaces",
        "right: impersonate serviceaccounts deployer",
        "right: bind clusterroles prevue-preview",
        "fence",
    } <= missing
