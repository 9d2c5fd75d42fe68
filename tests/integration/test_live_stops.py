"""A worker is stopped (SIGSTOP) with Helm's wrapper and Helm in the middle of its work, the preview is taken over, then they go on.

Under a fence not one object may change. Without one (no policy, no impersonation, no tokens: `lease`) the wrapper's absolute deadline is
what ends the stale Helm, whether it fires while Helm is stopped or when the wrapper itself goes on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import msgspec
import pytest
import yaml
from tests.integration import helm_worker
from tests.integration.helm_worker import Order

from prevue.cluster.api import METADATA_LIST_ONLY, Api, load_access
from prevue.cluster.choice import manifest
from prevue.cluster.objects import MetadataList
from prevue.cluster.port import LABEL_COMMIT, Fence, FenceKind
from prevue.config import ClusterSettings
from prevue.helm.port import HelmRun, ReleaseSpec
from prevue.testing.contracts.live import LiveCluster, LiveWorld, descendants, live_cluster, open_world
from prevue.testing.contracts.worlds import RELEASE, raised

__all__ = ["live_cluster"]
# The time limit is the test's own: on a new machine the first one also waits while the cluster is built.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180, func_only=True)]

A, B, C = "a" * 40, "b" * 40, "c" * 40
MANY = 150
"""ConfigMaps: a Helm that applies or deletes them is long enough at it to be stopped in the middle."""
HELM_SECONDS = 120
DEADLINE_SECONDS = 8.0
"""Where the deadline is what ends Helm: longer than it needs to come to its middle."""
IN_FLIGHT_MAX = MANY // 4
"""What a Helm may send in the millisecond until its wrapper kills it. It was a few at most in every run."""
Verb = Literal["upgrade", "uninstall", "rollback"]
KINDS = "configmaps,secrets,services,deployments,jobs,serviceaccounts,rolebindings,pods"
FENCED = [FenceKind.IDENTITY, FenceKind.TOKEN]
VERBS: list[Verb] = ["upgrade", "uninstall", "rollback"]


@pytest.fixture
async def admin(live_cluster: LiveCluster) -> AsyncIterator[Api]:
    """Who looks on."""
    async with Api.open(load_access(ClusterSettings(kubeconfig=str(live_cluster.handle.kubeconfig)))) as api:
        yield api


async def commits(admin: Api, namespace: str) -> dict[str, str]:
    """The release's ConfigMaps, and the commit that each is of."""
    found = await admin.call("GET", f"/api/v1/namespaces/{namespace}/configmaps", accept=METADATA_LIST_ONLY)
    items = msgspec.json.decode(found, type=MetadataList).items or ()
    return {item.metadata.name: item.metadata.labels.get("commit", "") for item in items if item.metadata.name.startswith("many-")}


def versions(world: LiveWorld, namespace: str) -> dict[str, str]:
    """Every object and its resourceVersion: no write of whatever kind leaves it."""
    found = msgspec.json.decode(world.live.kubectl("get", KINDS, "-n", namespace, "-o", "json"))["items"]
    return {f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["resourceVersion"] for item in found}


def deployed(world: LiveWorld, namespace: str) -> int:
    """How many revisions say that they are deployed."""
    found = world.live.kubectl("get", "secrets", "-n", namespace, "-l", "owner=helm,status=deployed", "-o", "name")
    return len(found.split())


class Worker:
    """A deployer's part in one Helm run, in a process of its own."""

    def __init__(self, world: LiveWorld, process: asyncio.subprocess.Process, order: bytes) -> None:
        self._program = world.live.helm
        self._process = process
        self._done = asyncio.create_task(process.communicate(order))

    @classmethod
    async def start(cls, world: LiveWorld, fence: Fence, verb: Verb, commit: str, *, seconds: float) -> Worker:
        order = Order(
            helm=world.live.helm,
            verb=verb,
            spec=spec_of(world, fence, commit),
            kubeconfig=world.cluster.kubeconfig(fence),
            deadline=world.deadline(seconds),
        )
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, helm_worker.__file__, stdin=pipe, stdout=pipe)
        return cls(world, process, msgspec.json.encode(order, enc_hook=str))

    def helms(self) -> list[int]:
        """The wrapper and its Helm; fewer before they have started."""
        return descendants(self._process.pid, self._program) if self._process.returncode is None else []

    def pids(self) -> list[int]:
        """Worker, wrapper, Helm."""
        return [self._process.pid, *self.helms()]

    async def run(self) -> HelmRun:
        """How it ended."""
        output, _ = await asyncio.wait_for(self._done, HELM_SECONDS)
        return msgspec.json.decode(output, type=HelmRun)


def spec_of(world: LiveWorld, fence: Fence, commit: str) -> ReleaseSpec:
    """The many ConfigMaps of a commit."""
    objects = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"many-{number:04}", "labels": {"commit": commit[:7]}},
            "data": {"commit": commit},
        }
        for number in range(MANY)
    ]
    return world.spec_of(fence.namespace, commit, fence.token, objects)


async def upgrade(world: LiveWorld, fence: Fence, commit: str) -> HelmRun:
    kubeconfig = world.cluster.kubeconfig(fence)
    return await world.helm.upgrade_install(spec_of(world, fence, commit), kubeconfig=kubeconfig, deadline=world.deadline(HELM_SECONDS))


async def uninstall(world: LiveWorld, fence: Fence) -> HelmRun:
    kubeconfig = world.cluster.kubeconfig(fence)
    return await world.helm.uninstall(fence.namespace, RELEASE, kubeconfig=kubeconfig, deadline=world.deadline(HELM_SECONDS))


async def rollback(world: LiveWorld, fence: Fence) -> HelmRun:
    kubeconfig = world.cluster.kubeconfig(fence)
    return await world.helm.rollback(fence.namespace, RELEASE, kubeconfig=kubeconfig, deadline=world.deadline(HELM_SECONDS))


async def started(world: LiveWorld, admin: Api, fence: Fence, verb: Verb, *, seconds: float = HELM_SECONDS) -> Worker:
    """A worker begins what is to be interrupted."""
    if verb != "upgrade":
        assert (await upgrade(world, fence, A)).exit_code == 0
    if verb == "rollback":  # that is how a pending upgrade is recovered: to the last revision that was deployed
        killed = await Worker.start(world, fence, "upgrade", B, seconds=HELM_SECONDS)
        await in_the_middle(admin, fence.namespace, killed)
        os.kill(killed.helms()[-1], signal.SIGKILL)
        await killed.run()
    return await Worker.start(world, fence, verb, A, seconds=seconds)


async def in_the_middle(admin: Api, namespace: str, worker: Worker) -> None:
    """Return when its Helm has changed something."""
    before = await commits(admin, namespace)
    while len(worker.helms()) < 2 or await commits(admin, namespace) == before:  # noqa: ASYNC110  the API server is asked
        await asyncio.sleep(0.002)


async def stopped(world: LiveWorld, admin: Api, fence: Fence, verb: Verb, worker: Worker) -> list[int]:
    """Stop Helm in the middle, then its wrapper and the worker; their ids, Helm's last."""
    await in_the_middle(admin, fence.namespace, worker)
    pids = worker.pids()
    for pid in reversed(pids):
        os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(0.5)  # what was on its way arrives
    middle = list((await commits(admin, fence.namespace)).values()).count(A[:7])
    assert 0 < middle < MANY, f"{verb} was not stopped in its middle: {middle} of {MANY} are of {A[:7]}"
    record = await world.cluster.release(fence, RELEASE)
    assert record is not None
    assert record.status == {"upgrade": "pending-install", "rollback": "pending-rollback", "uninstall": "uninstalling"}[verb]
    return pids


def go_on(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def plain_writes_are_refused(world: LiveWorld, stale: Fence, folder: Path) -> None:
    """kubectl with the stale claim's own kubeconfig."""
    file = folder / "stale.json"
    file.write_text(world.cluster.kubeconfig(stale))
    name = next(iter(versions(world, stale.namespace)))
    for arguments in (["patch", name, "--type=merge", "-p", '{"metadata":{"labels":{"stale":"yes"}}}'], ["delete", name]):
        with pytest.raises(AssertionError, match=r"stale fencing token|must be logged in|provide credentials|Unauthorized"):
            world.live.kubectl("--kubeconfig", str(file), "-n", stale.namespace, *arguments)


async def holder_recovers_and_goes_on(world: LiveWorld, admin: Api, fence: Fence) -> None:
    """What the pipeline does with what it finds, then an upgrade, a rollback and an uninstall of the holder's own."""
    record = await world.cluster.release(fence, RELEASE)
    assert record is not None
    assert record.status.startswith("pending-") or record.status == "uninstalling", record
    recovery = uninstall if record.revision == 1 or record.status == "uninstalling" else rollback
    run = await recovery(world, fence)
    assert run.exit_code == 0, run.error
    for commit in (B, C):
        run = await upgrade(world, fence, commit)
        assert run.exit_code == 0, run.error
        assert deployed(world, fence.namespace) == 1
        assert list((await commits(admin, fence.namespace)).values()) == [commit[:7]] * MANY
    record = await world.cluster.release(fence, RELEASE)
    assert record is not None
    assert (record.status, record.labels[LABEL_COMMIT]) == ("deployed", C)
    run = await rollback(world, fence)
    assert run.exit_code == 0, run.error
    assert deployed(world, fence.namespace) == 1
    run = await uninstall(world, fence)
    assert run.exit_code == 0, run.error
    assert await world.snapshot(fence.namespace) == {}


@pytest.mark.parametrize("kind", FENCED)
@pytest.mark.parametrize("verb", VERBS)
async def test_stale_helm_that_goes_on_changes_nothing(
    live_cluster: LiveCluster, admin: Api, tmp_path: Path, verb: Verb, kind: FenceKind
) -> None:
    async with open_world(live_cluster, kind) as world:
        key = world.new_key()
        stale = await raised(world, key, 5)
        worker = await started(world, admin, stale, verb)
        pids = await stopped(world, admin, stale, verb, worker)
        newer = await raised(world, key, 6)
        before = versions(world, stale.namespace)
        plain_writes_are_refused(world, stale, tmp_path)
        go_on(pids)
        run = await worker.run()
        assert not run.deadline_passed, "the fence is to be seen at work, not the deadline"
        assert world.stale_error in run.error
        assert versions(world, stale.namespace) == before
        await holder_recovers_and_goes_on(world, admin, newer)


async def test_token_of_a_claim_is_refused_at_once_where_a_newer_one_is_fenced_by_identity(live_cluster: LiveCluster) -> None:
    """The kind changes while somebody is paused: the policy refuses claims with tokens of their own, whose Secrets nobody deletes then."""
    async with open_world(live_cluster, FenceKind.TOKEN) as old, open_world(live_cluster, FenceKind.IDENTITY) as world:
        key = world.new_key()
        stale = await raised(old, key, 5)
        assert (await upgrade(old, stale, A)).exit_code == 0
        await raised(world, key, 6)
        before = versions(world, stale.namespace)
        run = await upgrade(old, stale, B)
        assert run.exit_code != 0
        assert "stale fencing token" in run.error
        assert versions(world, stale.namespace) == before


@pytest.fixture
def plain_kubeconfig(live_cluster: LiveCluster, tmp_path: Path) -> Path:
    """Of an account with the deployer's rights but for impersonation: it acts by itself, and no policy looks at it."""
    documents = [one for one in yaml.safe_load_all(manifest("deployer.yaml")) if one["kind"] != "Namespace"]
    for document in documents:
        document["metadata"]["name"] = "prevue-plain"
        document["rules"] = [rule for rule in document.get("rules", []) if rule["verbs"] != ["impersonate"]]
        for part in (document.get("roleRef"), *document.get("subjects", [])):
            if part:
                part["name"] = "prevue-plain"
        if document["kind"] != "ClusterRole":
            del document["rules"]
    live_cluster.kubectl("apply", "-f", "-", text=yaml.safe_dump_all(documents))
    access = load_access(ClusterSettings(kubeconfig=str(live_cluster.kubeconfig)))
    token = live_cluster.kubectl("create", "token", "prevue-plain", "-n", "prevue-system").strip()
    document = {
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": access.cluster}],
        "users": [{"name": "c", "user": {"token": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    }
    path = tmp_path / "plain.yaml"
    path.write_bytes(msgspec.json.encode(document))
    return path


@pytest.mark.parametrize("verb", VERBS)
async def test_without_a_fence_the_deadline_ends_a_stopped_helm(
    live_cluster: LiveCluster, admin: Api, plain_kubeconfig: Path, verb: Verb
) -> None:
    """Worker and Helm are stopped, the wrapper lives: it kills Helm at the deadline, and nothing is written after."""
    async with open_world(live_cluster, FenceKind.LEASE, kubeconfig=plain_kubeconfig) as world:
        key = world.new_key()
        stale = await raised(world, key, 5)
        worker = await started(world, admin, stale, verb, seconds=DEADLINE_SECONDS)
        pids = await stopped(world, admin, stale, verb, worker)
        before = versions(world, stale.namespace)
        go_on(pids[1:2])
        await gone(pids[2])
        newer = await raised(world, key, 6)
        go_on(pids)
        assert (await worker.run()).deadline_passed
        assert versions(world, stale.namespace) == before
        await holder_recovers_and_goes_on(world, admin, newer)


@pytest.mark.parametrize("verb", VERBS)
async def test_without_a_fence_the_holders_apply_comes_after_what_was_in_flight(
    live_cluster: LiveCluster, admin: Api, plain_kubeconfig: Path, verb: Verb
) -> None:
    """All are stopped until the deadline is over, and go on, Helm first, when the next holder has taken over and not applied yet.

    The wrapper kills Helm as soon as it runs; what Helm has sent until then, the holder's own apply comes after.
    """
    async with open_world(live_cluster, FenceKind.LEASE, kubeconfig=plain_kubeconfig) as world:
        key = world.new_key()
        stale = await raised(world, key, 5)
        worker = await started(world, admin, stale, verb, seconds=DEADLINE_SECONDS)
        pids = await stopped(world, admin, stale, verb, worker)
        await asyncio.sleep(DEADLINE_SECONDS)
        newer = await raised(world, key, 6)
        before = await commits(admin, stale.namespace)
        go_on(pids[::-1])
        assert (await worker.run()).deadline_passed
        after = await commits(admin, stale.namespace)
        changed = sum(before.get(name) != after.get(name) for name in before.keys() | after.keys())
        assert changed < IN_FLIGHT_MAX, f"{changed} of {MANY} objects changed between going on and the kill"
        await holder_recovers_and_goes_on(world, admin, newer)


def program_of(pid: int) -> str:
    """Empty where it is gone, or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


async def gone(pid: int) -> None:
    """Return when a process has ended."""
    while program_of(pid):  # noqa: ASYNC110  nobody tells of another's child
        await asyncio.sleep(0.02)
