"""A worker is stopped (SIGSTOP) with Helm's wrapper and Helm in the middle of its work, the preview is taken over, then they go on.

Under a fence not one object may change. Without one (no policy, no impersonation, no tokens: `lease`) the wrapper's absolute deadline is
what ends the stale Helm, whether it fires while Helm is stopped or when the wrapper itself goes on.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import httpx2
import msgspec
import pytest
import yaml
from tests.integration import helm_worker
from tests.integration.gate import Gate
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
MANY = 40
"""ConfigMaps; the gate holds Helm when it has written some of them."""
SOME = 10
WRITE_SECONDS = 0.02
HELM_SECONDS = 120
DEADLINE_SECONDS = 25.0
"""Where the deadline is what ends Helm: longer than it needs to come to its middle on a busy machine."""
Verb = Literal["upgrade", "uninstall", "rollback"]
KINDS = (
    *(f"/api/v1/namespaces/{{}}/{kind}" for kind in ("configmaps", "secrets", "services", "serviceaccounts", "pods")),
    "/apis/apps/v1/namespaces/{}/deployments",
    "/apis/batch/v1/namespaces/{}/jobs",
    "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
)
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


async def versions(admin: Api, namespace: str) -> dict[str, str]:
    """Every object and its resourceVersion: no write of whatever kind leaves it."""
    found: dict[str, str] = {}
    for kind in KINDS:
        listed = await admin.call("GET", kind.format(namespace), accept=METADATA_LIST_ONLY)
        for item in msgspec.json.decode(listed, type=MetadataList).items or ():
            found[f"{kind}/{item.metadata.name}"] = item.metadata.resource_version
    return found


async def deployed(admin: Api, namespace: str) -> int:
    """How many revisions say that they are deployed."""
    parameters = {"labelSelector": "owner=helm,status=deployed"}
    found = await admin.call("GET", f"/api/v1/namespaces/{namespace}/secrets", parameters=parameters, accept=METADATA_LIST_ONLY)
    return len(msgspec.json.decode(found, type=MetadataList).items or ())


class Worker:
    """A deployer's part in one Helm run, in a process of its own."""

    def __init__(self, world: LiveWorld, process: asyncio.subprocess.Process, order: bytes) -> None:
        self._program = world.live.helm
        self._process = process
        self._done = asyncio.create_task(process.communicate(order))

    @classmethod
    async def start(cls, world: LiveWorld, gate: Gate, fence: Fence, verb: Verb, commit: str, *, seconds: float) -> Worker:
        """Its Helm comes to the API server through the gate."""
        kubeconfig = msgspec.json.decode(world.cluster.kubeconfig(fence))
        kubeconfig["clusters"][0]["cluster"] = {"server": gate.url, "insecure-skip-tls-verify": True}
        order = Order(
            helm=world.live.helm,
            verb=verb,
            spec=spec_of(world, fence, commit),
            kubeconfig=msgspec.json.encode(kubeconfig).decode(),
            deadline=world.deadline(seconds),
        )
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, helm_worker.__file__, stdin=pipe, stdout=pipe)
        return cls(world, process, msgspec.json.encode(order, enc_hook=str))

    @property
    def has_ended(self) -> bool:
        """Whether `run` returns at once."""
        return self._done.done()

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


async def started(world: LiveWorld, gate: Gate, admin: Api, fence: Fence, verb: Verb, *, seconds: float = HELM_SECONDS) -> Worker:
    """A worker begins what is to be interrupted."""
    if verb != "upgrade":
        assert (await upgrade(world, fence, A)).exit_code == 0
    if verb == "rollback":  # that is how a pending upgrade is recovered: to the last revision that was deployed
        killed = await Worker.start(world, gate, fence, "upgrade", B, seconds=HELM_SECONDS)
        await in_the_middle(gate, admin, fence.namespace, killed, objects=2 * SOME)
        os.kill(killed.helms()[-1], signal.SIGKILL)
        await killed.run()
        gate.open()
        await let_through(gate)
    return await Worker.start(world, gate, fence, verb, A, seconds=seconds)


async def in_the_middle(gate: Gate, admin: Api, namespace: str, worker: Worker, *, objects: int = SOME) -> None:
    """Return when Helm has changed so many objects; the gate is shut then."""
    before = (await commits(admin, namespace)).items()
    while len(before ^ (await commits(admin, namespace)).items()) < objects:
        assert not worker.has_ended, await worker.run()
        await asyncio.sleep(0.01)
    gate.shut()


async def let_through(gate: Gate) -> None:
    """Return when nothing waits at the gate."""
    while gate.waiting:  # noqa: ASYNC110  a few times 20 ms
        await asyncio.sleep(0.02)


async def stopped(world: LiveWorld, gate: Gate, admin: Api, fence: Fence, verb: Verb, worker: Worker) -> list[int]:
    """Stop Helm in the middle, then its wrapper and the worker; their ids, Helm's last. What Helm has sent may wait at the gate."""
    await in_the_middle(gate, admin, fence.namespace, worker)
    pids = worker.pids()
    assert len(pids) == 3
    for pid in reversed(pids):
        os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(0.2)  # the one that was through the gate arrives
    middle = list((await commits(admin, fence.namespace)).values()).count(A[:7])
    assert 0 < middle < MANY, f"{verb} was not stopped in its middle: {middle} of {MANY} are of {A[:7]}"
    record = await world.cluster.release(fence, RELEASE)
    assert record is not None
    assert record.status == {"upgrade": "pending-install", "rollback": "pending-rollback", "uninstall": "uninstalling"}[verb]
    return pids


def go_on(pids: list[int]) -> None:
    """SIGCONT to those that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def plain_writes_are_refused(world: LiveWorld, stale: Fence, folder: Path) -> None:
    """kubectl with the stale claim's own kubeconfig."""
    file = folder / "stale.json"
    file.write_text(world.cluster.kubeconfig(stale))
    name = "configmap/kube-root-ca.crt"
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
        assert await deployed(admin, fence.namespace) == 1
        assert list((await commits(admin, fence.namespace)).values()) == [commit[:7]] * MANY
    record = await world.cluster.release(fence, RELEASE)
    assert record is not None
    assert (record.status, record.labels[LABEL_COMMIT]) == ("deployed", C)
    run = await rollback(world, fence)
    assert run.exit_code == 0, run.error
    assert await deployed(admin, fence.namespace) == 1
    run = await uninstall(world, fence)
    assert run.exit_code == 0, run.error
    assert await world.snapshot(fence.namespace) == {}


@pytest.mark.parametrize("kind", FENCED)
@pytest.mark.parametrize("verb", VERBS)
async def test_stale_helm_that_goes_on_changes_nothing(
    live_cluster: LiveCluster, gate: Gate, admin: Api, tmp_path: Path, verb: Verb, kind: FenceKind
) -> None:
    async with open_world(live_cluster, kind) as world:
        key = world.new_key()
        stale = await raised(world, key, 5)
        worker = await started(world, gate, admin, stale, verb)
        pids = await stopped(world, gate, admin, stale, verb, worker)
        newer = await raised(world, key, 6)
        before = await versions(admin, stale.namespace)
        plain_writes_are_refused(world, stale, tmp_path)
        go_on(pids)
        gate.open()
        run = await worker.run()
        await let_through(gate)
        assert run.exit_code > 0, "it ended by itself: the fence is to be seen at work, not the deadline"
        assert await versions(admin, stale.namespace) == before
        await holder_recovers_and_goes_on(world, admin, newer)


async def test_token_of_a_claim_is_refused_at_once_where_a_newer_one_is_fenced_by_identity(live_cluster: LiveCluster, admin: Api) -> None:
    """The kind changes while somebody is paused: the policy refuses claims with tokens of their own, whose Secrets nobody deletes then."""
    async with open_world(live_cluster, FenceKind.TOKEN) as old, open_world(live_cluster, FenceKind.IDENTITY) as world:
        key = world.new_key()
        stale = await raised(old, key, 5)
        assert (await upgrade(old, stale, A)).exit_code == 0
        await raised(world, key, 6)
        before = await versions(admin, stale.namespace)
        run = await upgrade(old, stale, B)
        assert run.exit_code != 0
        assert "stale fencing token" in run.error
        assert await versions(admin, stale.namespace) == before


@pytest.fixture
async def gate(live_cluster: LiveCluster, tmp_path: Path) -> AsyncIterator[Gate]:
    """Before the API server, for Helms alone; it has no credentials of its own."""
    access = load_access(ClusterSettings(kubeconfig=str(live_cluster.kubeconfig)))
    context = ssl.create_default_context(cadata=base64.b64decode(access.cluster["certificate-authority-data"]).decode())
    async with (
        httpx2.AsyncClient(base_url=access.cluster["server"], verify=context, timeout=30) as client,
        Gate.before(client, tmp_path, write_seconds=WRITE_SECONDS) as made,
    ):
        yield made


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
    live_cluster: LiveCluster, gate: Gate, admin: Api, plain_kubeconfig: Path, verb: Verb
) -> None:
    """Worker and Helm are stopped, the wrapper lives: it kills Helm at the deadline, and nothing is written after."""
    async with open_world(live_cluster, FenceKind.LEASE, kubeconfig=plain_kubeconfig) as world:
        key = world.new_key()
        stale = await raised(world, key, 5)
        worker = await started(world, gate, admin, stale, verb, seconds=DEADLINE_SECONDS)
        pids = await stopped(world, gate, admin, stale, verb, worker)
        before = await versions(admin, stale.namespace)
        go_on(pids[1:2])
        await gone(pids[2])
        newer = await raised(world, key, 6)
        go_on(pids)
        assert (await worker.run()).deadline_passed
        assert await versions(admin, stale.namespace) == before
        gate.open()  # what Helm had sent before it was stopped arrives last: before the holder's own apply all the same
        await let_through(gate)
        await holder_recovers_and_goes_on(world, admin, newer)


@pytest.mark.parametrize("verb", VERBS)
async def test_without_a_fence_the_holders_apply_comes_after_what_was_in_flight(
    live_cluster: LiveCluster, gate: Gate, admin: Api, plain_kubeconfig: Path, verb: Verb
) -> None:
    """All are stopped until the deadline is over, and go on, Helm first, when the next holder has taken over and not applied yet.

    The wrapper kills Helm as soon as it runs; what Helm has sent until then, the holder's own apply comes after.
    """
    async with open_world(live_cluster, FenceKind.LEASE, kubeconfig=plain_kubeconfig) as world:
        key = world.new_key()
        stale = await raised(world, key, 5)
        worker = await started(world, gate, admin, stale, verb, seconds=DEADLINE_SECONDS)
        pids = await stopped(world, gate, admin, stale, verb, worker)
        await asyncio.sleep(DEADLINE_SECONDS)
        newer = await raised(world, key, 6)
        gate.open()
        go_on(pids[::-1])
        assert (await worker.run()).deadline_passed
        await let_through(gate)
        assert not any(program_of(pid) for pid in pids[1:])
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
