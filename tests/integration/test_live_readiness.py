"""Readiness on a real cluster: what is waited for, what fails fast, what is said, and how few watches it takes."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import pytest

from prevue.cluster.port import Fence, ReadyLimits
from prevue.errors import NotReady
from prevue.testing.contracts.live import IMAGE, LiveWorld, live_cluster, live_world, web_objects
from prevue.testing.contracts.worlds import RELEASE, install, raised

__all__ = ["live_cluster", "live_world"]
# The time limit is the test's own: on a new machine the first one also waits while the cluster is built.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120, func_only=True)]

A, B = "a" * 40, "b" * 40
LIMITS = ReadyLimits(readiness_timeout_seconds=60, image_wait_seconds=60, commit_sha=A)


async def apply(world: LiveWorld, objects: list[dict[str, Any]], fence: Fence | None = None) -> tuple[Fence, str]:
    """A release of these objects; its fence and manifest."""
    fence = fence or await raised(world, world.new_key(), 5)
    spec = world.spec_of(fence.namespace, A, fence.token, objects)
    run = await world.helm.upgrade_install(spec, kubeconfig=world.cluster.kubeconfig(fence), deadline=world.deadline(45))
    assert run.exit_code == 0, run.error
    return fence, run.manifest


def workload(kind: str, container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """A workload of one container."""
    labels = {"app": "other"}
    pod = {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent"} | container],
    }
    if kind == "Job":
        template = {"spec": pod | {"restartPolicy": "Never"}}
        return {"apiVersion": "batch/v1", "kind": kind, "metadata": {"name": "other"}, "spec": {"template": template} | spec}
    body = {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}
    if kind == "StatefulSet":
        body["serviceName"] = "other"
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "other"}, "spec": body | spec}


SLEEP = {"command": ["busybox", "sleep", "1000"]}


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet"])
async def test_each_kind_is_waited_for(live_world: LiveWorld, kind: str) -> None:
    """Not ready before its probe says so, ready within a second or two after it."""
    probe = {"exec": {"command": ["busybox", "test", "-e", "/tmp/ready"]}, "periodSeconds": 1}
    slow = {"command": ["busybox", "sh", "-c", "busybox mkdir -p /tmp; busybox sleep 3; busybox touch /tmp/ready; busybox sleep 1000"]}
    fence, manifest = await apply(live_world, [workload(kind, {"readinessProbe": probe} | slow)])
    began = time.monotonic()
    await live_world.cluster.wait_ready(fence, manifest, LIMITS)
    assert 2 < time.monotonic() - began < 15
    rollout = live_world.live.kubectl("rollout", "status", f"{kind}/other", "-n", fence.namespace, "--timeout=1s")
    assert "success" in rollout or "complete" in rollout


async def test_upgrade_is_waited_for_until_the_old_pods_are_gone(live_world: LiveWorld) -> None:
    """The watch still holds the old revision's "ready": only a status of the new generation counts."""
    world = live_world
    fence, manifest = await apply(world, web_objects(A))
    await world.cluster.wait_ready(fence, manifest, LIMITS)
    fence, manifest = await apply(world, web_objects(B), fence)
    await world.cluster.wait_ready(fence, manifest, LIMITS)
    pods = world.live.kubectl(
        "get", "pods", "-n", fence.namespace, "-o", "jsonpath={.items[?(@.status.phase=='Running')].spec.containers[0].env[0].value}"
    )
    assert pods.split() == [B]


async def test_crash_loop_is_told_with_its_last_lines(live_world: LiveWorld) -> None:
    script = "echo starting; echo 'password=hunter2 token: abc123def456'; echo 'cannot reach the database' >&2; exit 3"
    fence, manifest = await apply(live_world, web_objects(A, command=["busybox", "sh", "-c", script]))
    began = time.monotonic()
    with pytest.raises(NotReady, match="keeps crashing: it exits with code 3") as failure:
        await live_world.cluster.wait_ready(fence, manifest, LIMITS)
    assert time.monotonic() - began < 40
    assert "cannot reach the database" in failure.value.details
    assert "hunter2" not in failure.value.details
    assert "abc123def456" not in failure.value.details


async def test_old_revisions_crash_loop_is_no_failure_of_the_new_one(live_world: LiveWorld) -> None:
    world = live_world
    fence, manifest = await apply(world, web_objects(A, command=["busybox", "sh", "-c", "exit 3"]))
    with pytest.raises(NotReady):
        await world.cluster.wait_ready(fence, manifest, LIMITS)
    fence, manifest = await apply(world, web_objects(B), fence)
    await world.cluster.wait_ready(fence, manifest, LIMITS)


async def test_own_image_is_waited_for_and_then_used(live_world: LiveWorld) -> None:
    """CI has not pushed it yet: no failure, and the readiness time-out does not run meanwhile."""
    world = live_world
    own = f"prevue.test/own-{world.new_key().repository_id}:{A}"
    objects = web_objects(A, image=own)
    objects[2]["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = "Never"
    fence, manifest = await apply(world, objects)
    limits = ReadyLimits(readiness_timeout_seconds=4, image_wait_seconds=100, commit_sha=A)
    task = asyncio.create_task(world.cluster.wait_ready(fence, manifest, limits))
    await asyncio.sleep(8)
    assert not task.done()
    world.live.load_image(own)
    await task


async def test_pod_that_waits_for_the_commits_image_is_made_anew(live_world: LiveWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kubelet's own next try may be minutes away by then."""
    world = live_world
    monkeypatch.setattr("prevue.cluster.readiness.HURRY_SECONDS", 1.0)
    monkeypatch.setattr("prevue.cluster.readiness.IMAGE_LOOK_SECONDS", 0.5)
    own = f"127.0.0.1:1/own:{A}"
    fence, manifest = await apply(world, web_objects(A, image=own))
    task = asyncio.create_task(world.cluster.wait_ready(fence, manifest, LIMITS))
    seen: set[str] = set()
    for _ in range(60):
        seen.update(world.live.kubectl("get", "pods", "-n", fence.namespace, "-o", "name").split())
        if len(seen) > 1:
            break
        await asyncio.sleep(0.5)
    assert len(seen) > 1
    world.live.load_image(own)
    await task


async def test_own_image_is_not_waited_for_for_ever(live_world: LiveWorld) -> None:
    objects = web_objects(A, image=f"127.0.0.1:1/has:{A}")
    objects[2]["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = "Never"
    fence, manifest = await apply(live_world, objects)
    limits = ReadyLimits(readiness_timeout_seconds=60, image_wait_seconds=2, commit_sha=A)
    with pytest.raises(NotReady, match=f"The commit's image 127.0.0.1:1/has:{A} cannot be pulled.*waited 2 s"):
        await live_world.cluster.wait_ready(fence, manifest, limits)


async def test_image_that_cannot_be_pulled_fails_fast(live_world: LiveWorld) -> None:
    """Of another image than the commit's own; by a registry that does not answer."""
    fence, manifest = await apply(live_world, [workload("Deployment", {"image": "127.0.0.1:1/nothing:1"})])
    began = time.monotonic()
    with pytest.raises(NotReady, match=r"The image 127.0.0.1:1/nothing:1 of container main cannot be pulled"):
        await live_world.cluster.wait_ready(fence, manifest, LIMITS)
    assert time.monotonic() - began < 40


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
async def test_quota_fails_fast(live_world: LiveWorld, kind: str) -> None:
    world = live_world
    fence = await raised(world, world.new_key(), 5)
    quota = f"apiVersion: v1\nkind: ResourceQuota\nmetadata: {{name: q, namespace: {fence.namespace}}}\nspec: {{hard: {{pods: '0'}}}}\n"
    world.live.kubectl("apply", "-f", "-", text=quota)
    fence, manifest = await apply(world, [workload(kind, SLEEP)], fence)
    began = time.monotonic()
    with pytest.raises(NotReady, match=f"{kind} other cannot create its pods: .*exceeded quota"):
        await world.cluster.wait_ready(fence, manifest, LIMITS)
    assert time.monotonic() - began < 20


async def test_pod_without_a_node_fails(live_world: LiveWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prevue.cluster.diagnosis.UNSCHEDULABLE_SECONDS", 2.0)
    fence, manifest = await apply(live_world, [workload("Deployment", SLEEP | {"resources": {"requests": {"cpu": "1000"}}})])
    with pytest.raises(NotReady, match=r"No node can run pod other-.*Insufficient cpu"):
        await live_world.cluster.wait_ready(fence, manifest, LIMITS)


async def test_job_must_complete(live_world: LiveWorld) -> None:
    fence, manifest = await apply(live_world, [workload("Job", {"command": ["busybox", "sleep", "2"]})])
    began = time.monotonic()
    await live_world.cluster.wait_ready(fence, manifest, LIMITS)
    assert time.monotonic() - began > 1.5


async def test_failed_job_fails(live_world: LiveWorld) -> None:
    fence, manifest = await apply(live_world, [workload("Job", {"command": ["busybox", "sh", "-c", "exit 1"]}, backoffLimit=0)])
    with pytest.raises(NotReady, match="Job other failed"):
        await live_world.cluster.wait_ready(fence, manifest, LIMITS)


async def test_time_out_says_what_is_missing(live_world: LiveWorld) -> None:
    fence, manifest = await apply(live_world, web_objects(A, probe_path="/nothing-here"))
    limits = ReadyLimits(readiness_timeout_seconds=5, image_wait_seconds=60, commit_sha=A)
    with pytest.raises(NotReady, match=f"Not ready after 5 s: Deployment {RELEASE}: 0 of 1 replicas are available; .*readiness probe"):
        await live_world.cluster.wait_ready(fence, manifest, limits)


async def test_missing_config_map_fails_after_a_while(live_world: LiveWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prevue.cluster.readiness.CONFIG_SECONDS", 3.0)
    env = {"envFrom": [{"configMapRef": {"name": "absent"}}]}
    fence, manifest = await apply(live_world, [workload("Deployment", SLEEP | env)])
    with pytest.raises(NotReady, match=r"cannot start \(CreateContainerConfigError\).*absent"):
        await live_world.cluster.wait_ready(fence, manifest, LIMITS)


async def test_deleted_workload_is_told(live_world: LiveWorld) -> None:
    fence, manifest = await apply(live_world, web_objects(A, probe_path="/nothing-here"))
    task = asyncio.create_task(live_world.cluster.wait_ready(fence, manifest, LIMITS))
    await asyncio.sleep(2)
    live_world.live.kubectl("delete", "deployment", RELEASE, "-n", fence.namespace)
    with pytest.raises(NotReady, match="is not there any more"):
        await task


def watches(world: LiveWorld) -> dict[str, int]:
    """How many watches each kind has, as the API server counts them."""
    metrics = world.live.kubectl("get", "--raw", "/metrics")
    found: dict[str, int] = {}
    for line in metrics.splitlines():
        if line.startswith("apiserver_longrunning_requests{") and 'verb="WATCH"' in line and 'scope="cluster"' in line:
            resource = re.search(r'resource="(\w+)"', line)
            assert resource is not None
            found[resource[1]] = found.get(resource[1], 0) + int(float(line.rsplit(" ", 1)[1]))
    return found


async def test_one_watch_a_kind_for_all_previews(live_world: LiveWorld) -> None:
    """Ten previews wait at the same time; the API server sees one more watch of Deployments and one of Pods."""
    world = live_world
    before = watches(world)
    fences = [await raised(world, world.new_key(), 5) for _ in range(10)]
    runs = await asyncio.gather(*(install(world, fence, A) for fence in fences))
    waits = [asyncio.create_task(world.cluster.wait_ready(fence, run.manifest, LIMITS)) for fence, run in zip(fences, runs, strict=True)]
    await asyncio.sleep(0.5)
    during = watches(world)
    await asyncio.gather(*waits)
    # Other users of the cluster may come and go meanwhile: fewer than one a preview is what can be said of it.
    assert during["deployments"] - before.get("deployments", 0) <= 2
    assert during["pods"] - before.get("pods", 0) <= 2
