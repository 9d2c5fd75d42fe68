"""A worker is stopped (SIGSTOP) with Helm's wrapper and Helm in the middle of its work, the preview is taken over, then they go on.

Under a fence not one object may change. Without one (no policy, no impersonation, no tokens: `lease`) the wrapper's absolute deadline is
what ends the stale Helm, whether it fires while Helm is stopped or when the wrapper itself goes on; what is left is what Helm had sent.

Nothing here waits for a time to pass but the deadline: the gate says when Helm is in its middle, and the kernel when it is stopped or gone.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import signal
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import httpx2
import msgspec
import pytest
import yaml
from tests.integration.gate import Gate
from tests.integration.helm_worker import Order
from tests.integration.workers import LOOK_SECONDS, Worker, Workers, ended, is_asleep, send, state

from prevue.cluster.api import METADATA_LIST_ONLY, Api, load_access
from prevue.cluster.choice import manifest
from prevue.cluster.fence import CHECK_NAMESPACE
from prevue.cluster.install import ACCOUNT_NAMESPACE, TOKENS_MANIFEST
from prevue.cluster.objects import MetadataList
from prevue.cluster.port import LABEL_COMMIT, Fence, FenceKind
from prevue.config import ClusterSettings
from prevue.helm.port import HelmRun, ReleaseSpec
from prevue.model import PreviewKey
from prevue.testing.contracts.live import LiveCluster, LiveWorld, live_cluster, open_world
from prevue.testing.contracts.worlds import RELEASE, raised

__all__ = ["live_cluster"]
# The time limit is the test's own: on a new machine the first one also waits while the cluster is built.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240, func_only=True)]

A, B, C = "a" * 40, "b" * 40, "c" * 40
MANY = 12
"""ConfigMaps of a release."""
SOME = 4
"""So many writes of them go through before the gate shuts."""
HELM_SECONDS = 120
DEADLINES = (4.0, 8.0, 16.0, 32.0, 64.0)
"""Where the deadline is what ends Helm: the first one that leaves it the time to come to its middle on this machine, now."""
GRACE_SECONDS = 5.0
"""`deployer.helm_deadline_grace_seconds`: nobody takes over before deadline and grace are over."""
LOOKS = 5
"""So many looks in a row must find Helm waiting."""
EACH, ALL_BUT_WRAPPER, HELM = slice(None), slice(None, None, 2), 2
JSONPATH = "{.items[?(@.subjects[0].name=='%s')].metadata.name}"
Verb = Literal["upgrade", "uninstall", "rollback"]
KINDS = (
    *(f"/api/v1/namespaces/{{}}/{kind}" for kind in ("configmaps", "secrets", "services", "serviceaccounts", "pods")),
    "/apis/apps/v1/namespaces/{}/deployments",
    "/apis/batch/v1/namespaces/{}/jobs",
    "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
)
PENDING: dict[Verb, str] = {"upgrade": "pending-install", "rollback": "pending-rollback", "uninstall": "uninstalling"}
VERBS = list(PENDING)


@pytest.fixture
async def gate(live_cluster: LiveCluster, tmp_path: Path) -> AsyncIterator[Gate]:
    """Before the API server, for Helms alone; it has no credentials of its own."""
    access = load_access(ClusterSettings(kubeconfig=str(live_cluster.kubeconfig)))
    context = ssl.create_default_context(cadata=base64.b64decode(access.cluster["certificate-authority-data"]).decode())
    async with (
        httpx2.AsyncClient(base_url=access.cluster["server"], verify=context, timeout=30) as client,
        Gate.before(client, tmp_path) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def own_kubeconfig(live_cluster: LiveCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of an account with the deployer's rights but for impersonation, gone after the tests.

    Its name is new: no policy for the deployer's account, of whatever version another stack applies meanwhile, looks at it.
    """
    name = f"prevue-stops-{secrets.token_hex(4)}"
    documents = [one for file in ("deployer.yaml", TOKENS_MANIFEST) for one in yaml.safe_load_all(manifest(file))]
    rules = [
        rule
        for one in documents
        if one["kind"] == "ClusterRole" and one["metadata"]["name"] in ("prevue-deployer", "prevue-deployer-tokens")
        for rule in one["rules"]
        if "impersonate" not in rule["verbs"]
    ]
    live_cluster.kubectl("create", "serviceaccount", name, "-n", ACCOUNT_NAMESPACE)
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}
    live_cluster.kubectl("apply", "-f", "-", text=yaml.safe_dump(role))
    live_cluster.kubectl("create", "clusterrolebinding", name, f"--clusterrole={name}", f"--serviceaccount={ACCOUNT_NAMESPACE}:{name}")
    access = load_access(ClusterSettings(kubeconfig=str(live_cluster.kubeconfig)))
    document = {
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": access.cluster}],
        "users": [{"name": "c", "user": {"token": live_cluster.kubectl("create", "token", name, "-n", ACCOUNT_NAMESPACE).strip()}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    }
    path = tmp_path_factory.mktemp("own") / "kubeconfig"
    path.write_bytes(msgspec.json.encode(document))
    yield path
    live_cluster.kubectl("delete", f"clusterrolebinding/{name}", f"clusterrole/{name}")
    live_cluster.kubectl("delete", "serviceaccount", name, "-n", ACCOUNT_NAMESPACE)
    bindings = live_cluster.kubectl("get", "rolebindings", "-n", CHECK_NAMESPACE, "-o", f"jsonpath={JSONPATH % name}")
    if bindings:
        live_cluster.kubectl("delete", "-n", CHECK_NAMESPACE, "rolebindings", *bindings.split())


@pytest.fixture
async def scene(live_cluster: LiveCluster, gate: Gate, own_kubeconfig: Path) -> AsyncIterator[Scene]:
    """Nothing of it is left afterwards."""
    access = load_access(ClusterSettings(kubeconfig=str(live_cluster.handle.kubeconfig)))
    async with Api.open(access) as admin, Workers.open() as workers:
        yield Scene(live_cluster, gate, admin, workers, own_kubeconfig)


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


@dataclass(frozen=True)
class Scene:
    """What every test has beside its world."""

    live: LiveCluster
    gate: Gate
    admin: Api
    workers: Workers
    own_kubeconfig: Path

    @asynccontextmanager
    async def world(self, kind: FenceKind) -> AsyncIterator[LiveWorld]:
        """Under `identity` the deployer's account, else one that may not impersonate."""
        async with open_world(self.live, kind, kubeconfig=None if kind is FenceKind.IDENTITY else self.own_kubeconfig) as world:
            yield world

    async def start(self, world: LiveWorld, fence: Fence, verb: Verb, commit: str, *, seconds: float) -> Worker:
        """A worker whose Helm comes to the API server through the gate."""
        kubeconfig = msgspec.json.decode(world.cluster.kubeconfig(fence))
        kubeconfig["clusters"][0]["cluster"] = {"server": self.gate.url, "insecure-skip-tls-verify": True}
        text = msgspec.json.encode(kubeconfig).decode()
        spec, deadline = spec_of(world, fence, commit), world.deadline(seconds)
        return await self.workers.start(Order(helm=world.live.helm, verb=verb, spec=spec, kubeconfig=text, deadline=deadline))

    async def of_first_commit(self, fence: Fence) -> int:
        """How many ConfigMaps are of commit A."""
        return list((await commits(self.admin, fence.namespace)).values()).count(A[:7])


@dataclass(frozen=True)
class Stopped:
    """Whoever was stopped in the middle."""

    key: PreviewKey
    fence: Fence
    worker: Worker
    pids: list[int]
    """Worker, wrapper, Helm."""


async def before_it(scene: Scene, world: LiveWorld, fence: Fence, verb: Verb) -> None:
    """What there is before the Helm that is to be interrupted: it is on its way to commit A, or to nothing."""
    if verb != "upgrade":
        assert (await upgrade(world, fence, A)).exit_code == 0
    if verb == "rollback":  # that is how a pending upgrade is recovered: to the last revision that was deployed
        scene.gate.shut_after(2 * SOME)
        killed = await scene.start(world, fence, "upgrade", B, seconds=HELM_SECONDS)
        assert await in_the_middle(scene.gate, killed)
        send(signal.SIGKILL, killed.pids[-1])
        await killed.run()
        scene.gate.open()
        await scene.gate.emptied()


async def in_the_middle(gate: Gate, worker: Worker) -> bool:
    """Return when all that Helm sends before it gets another answer waits at the gate; False: it has ended before."""
    looks, waiting = 0, 0
    while looks < LOOKS:
        if worker.has_ended:
            return False
        quiet = gate.is_shut and not gate.reading and gate.waiting == waiting and all(map(is_asleep, worker.pids[1:]))
        looks, waiting = looks + 1 if quiet else 0, gate.waiting
        await asyncio.sleep(LOOK_SECONDS)
    return True


async def try_to_stop(scene: Scene, world: LiveWorld, verb: Verb, which: slice, *, seconds: float) -> Stopped | None:
    """None: the deadline came first."""
    key = world.new_key()
    fence = await raised(world, key, 5)
    await before_it(scene, world, fence, verb)
    first, last = await scene.of_first_commit(fence), 0 if verb == "uninstall" else MANY
    scene.gate.shut_after(SOME)
    worker = await scene.start(world, fence, verb, A, seconds=seconds)
    if not await in_the_middle(scene.gate, worker):
        run = await worker.run()
        assert run.deadline_passed, run
        return None
    pids = worker.pids
    send(signal.SIGSTOP, *reversed(pids[which]))
    if len(pids) != 3 or not await are_stopped(pids[which]):
        return None
    middle = await scene.of_first_commit(fence)
    assert min(first, last) < middle < max(first, last), f"{verb} was not stopped in its middle: {middle} are of {A[:7]}"
    record = await world.cluster.release(fence, RELEASE)
    assert record is not None
    assert record.status == PENDING[verb]
    return Stopped(key, fence, worker, pids)


async def stop_in_the_middle(
    scene: Scene, world: LiveWorld, verb: Verb, *, which: slice = EACH, deadlines: Sequence[float] = (HELM_SECONDS,)
) -> Stopped:
    """Worker, wrapper and Helm, or those of `which`, are stopped; what Helm has sent waits at the gate."""
    for seconds in deadlines:
        stopped = await try_to_stop(scene, world, verb, which, seconds=seconds)
        if stopped is not None:
            return stopped
        scene.gate.open()
        await scene.gate.emptied()
    raise AssertionError(f"no Helm came to its middle in {deadlines[-1]:g} s")


async def are_stopped(pids: list[int]) -> bool:
    """Return when the kernel has stopped all; False: one has ended."""
    while not all(state(pid) == "T" for pid in pids):
        if any(state(pid) in ("", "Z") for pid in pids):
            return False
        await asyncio.sleep(LOOK_SECONDS)
    return True


def plain_writes_are_refused(world: LiveWorld, stale: Fence, folder: Path) -> None:
    """kubectl with the stale claim's own kubeconfig."""
    file = folder / "stale.json"
    file.write_text(world.cluster.kubeconfig(stale))
    name = "configmap/kube-root-ca.crt"
    for arguments in (["patch", name, "--type=merge", "-p", '{"metadata":{"labels":{"stale":"yes"}}}'], ["delete", name]):
        with pytest.raises(AssertionError, match=r"stale fencing token|must be logged in|provide credentials|Unauthorized"):
            world.live.kubectl("--kubeconfig", str(file), "-n", stale.namespace, *arguments)


async def holder_recovers(world: LiveWorld, fence: Fence, *, may_be_done: bool = False) -> None:
    """What the pipeline does with what it finds (protocol step 6); `may_be_done`: the stale Helm may have come to its end."""
    record = await world.cluster.release(fence, RELEASE)
    if may_be_done and (record is None or record.status == "deployed"):
        return
    assert record is not None
    assert record.status.startswith("pending-") or record.status == "uninstalling", record
    recovery = uninstall if record.revision == 1 or record.status == "uninstalling" else rollback
    run = await recovery(world, fence)
    assert run.exit_code == 0, run.error


async def holder_applies(scene: Scene, world: LiveWorld, fence: Fence, commit: str) -> None:
    """An upgrade of the holder's own, and its truth read back."""
    run = await upgrade(world, fence, commit)
    assert run.exit_code == 0, run.error
    assert await deployed(scene.admin, fence.namespace) == 1
    assert list((await commits(scene.admin, fence.namespace)).values()) == [commit[:7]] * MANY
    await release_is_of(world, fence, commit)


async def release_is_of(world: LiveWorld, fence: Fence, commit: str) -> None:
    """What the pipeline's read-back looks at (protocol step 7)."""
    record = await world.cluster.release(fence, RELEASE)
    assert record is not None
    assert (record.status, record.labels[LABEL_COMMIT]) == ("deployed", commit)


async def holder_recovers_and_goes_on(scene: Scene, world: LiveWorld, fence: Fence, *, may_be_done: bool = False) -> None:
    """Recovery, then upgrades, a rollback and an uninstall of the holder's own."""
    await holder_recovers(world, fence, may_be_done=may_be_done)
    await holder_applies(scene, world, fence, B)
    await holder_applies(scene, world, fence, C)
    run = await rollback(world, fence)
    assert run.exit_code == 0, run.error
    assert await deployed(scene.admin, fence.namespace) == 1
    run = await uninstall(world, fence)
    assert run.exit_code == 0, run.error
    assert await world.snapshot(fence.namespace) == {}


@pytest.mark.parametrize("kind", [FenceKind.IDENTITY, FenceKind.TOKEN])
@pytest.mark.parametrize("verb", VERBS)
async def test_stale_helm_that_goes_on_changes_nothing(scene: Scene, tmp_path: Path, verb: Verb, kind: FenceKind) -> None:
    async with scene.world(kind) as world:
        stale = await stop_in_the_middle(scene, world, verb)
        newer = await raised(world, stale.key, 6)
        before = await versions(scene.admin, newer.namespace)
        plain_writes_are_refused(world, stale.fence, tmp_path)
        passed = len(scene.gate.answers)
        send(signal.SIGCONT, *stale.pids)
        scene.gate.open()
        run = await stale.worker.run()
        await scene.gate.emptied()
        assert run.exit_code > 0, "it ended by itself: the fence is to be seen at work, not the deadline"
        assert set(scene.gate.answers[passed:]) == {403 if kind is FenceKind.IDENTITY else 401}
        assert await versions(scene.admin, newer.namespace) == before
        await holder_recovers_and_goes_on(scene, world, newer)


async def test_token_of_a_claim_is_refused_at_once_where_a_newer_one_is_fenced_by_identity(scene: Scene) -> None:
    """The kind changes while somebody is paused: the policy refuses claims with tokens of their own, whose Secrets nobody deletes then."""
    async with scene.world(FenceKind.TOKEN) as old, scene.world(FenceKind.IDENTITY) as world:
        key = world.new_key()
        stale = await raised(old, key, 5)
        assert (await upgrade(old, stale, A)).exit_code == 0
        await raised(world, key, 6)
        before = await versions(scene.admin, stale.namespace)
        run = await upgrade(old, stale, B)
        assert run.exit_code != 0
        assert "stale fencing token" in run.error
        assert await versions(scene.admin, stale.namespace) == before


@pytest.mark.parametrize("verb", VERBS)
async def test_without_a_fence_the_deadline_ends_a_stopped_helm(scene: Scene, verb: Verb) -> None:
    """Worker and Helm are stopped, the wrapper lives: it kills Helm before anybody may take over, and nothing is sent after."""
    async with scene.world(FenceKind.LEASE) as world:
        stale = await stop_in_the_middle(scene, world, verb, which=ALL_BUT_WRAPPER, deadlines=DEADLINES)
        before = await versions(scene.admin, stale.fence.namespace)
        passed, sent = len(scene.gate.answers), scene.gate.waiting
        await ended(stale.pids[HELM])
        assert world.deadline(0) < stale.worker.order.deadline + GRACE_SECONDS
        newer = await raised(world, stale.key, 6)
        send(signal.SIGCONT, *stale.pids)
        assert (await stale.worker.run()).deadline_passed
        assert await versions(scene.admin, newer.namespace) == before
        # What Helm had sent before it was stopped may still arrive; here it does so before the holder's own apply.
        scene.gate.open()
        await scene.gate.emptied()
        assert len(scene.gate.answers) - passed <= sent
        await holder_recovers_and_goes_on(scene, world, newer)


@pytest.mark.parametrize("is_answered", [False, True], ids=["held", "answered"])
@pytest.mark.parametrize("verb", VERBS)
async def test_without_a_fence_a_machine_that_wakes_ends_its_helm_at_once(scene: Scene, verb: Verb, is_answered: bool) -> None:
    """All are stopped until somebody else has taken over, and go on, Helm first: its wrapper kills it as soon as it runs itself.

    What was in flight is held until then, and nothing more is sent; or it was answered meanwhile, and Helm may send what follows until the
    kill, its last write too. Either way the holder's own apply comes last.
    """
    async with scene.world(FenceKind.LEASE) as world:
        stale = await stop_in_the_middle(scene, world, verb, deadlines=DEADLINES)
        passed, sent = len(scene.gate.answers), scene.gate.waiting
        if is_answered:
            scene.gate.open()
            await scene.gate.emptied()
        await asyncio.sleep(max(stale.worker.order.deadline - world.deadline(0), 0))
        newer = await raised(world, stale.key, 6)
        send(signal.SIGCONT, *reversed(stale.pids))
        await ended(stale.pids[HELM])
        assert (await stale.worker.run()).deadline_passed
        scene.gate.open()
        await scene.gate.emptied()
        assert is_answered or len(scene.gate.answers) - passed <= sent
        await holder_recovers_and_goes_on(scene, world, newer, may_be_done=is_answered)


@pytest.mark.parametrize("verb", VERBS)
async def test_without_a_fence_what_arrives_after_the_holders_apply_stays_until_its_next_one(scene: Scene, verb: Verb) -> None:
    """The limit of `lease` (ADR 0006): the release is the holder's, so nobody notices; at most what was in flight, and not for ever."""
    async with scene.world(FenceKind.LEASE) as world:
        stale = await stop_in_the_middle(scene, world, verb)
        send(signal.SIGKILL, *reversed(stale.pids))
        sent = scene.gate.waiting
        newer = await raised(world, stale.key, 6)
        await holder_recovers(world, newer)
        await holder_applies(scene, world, newer, B)
        scene.gate.open()
        await scene.gate.emptied()
        after = await commits(scene.admin, newer.namespace)
        intact = [name for name, commit in after.items() if commit == B[:7]]
        assert 0 < MANY - len(intact) <= sent
        await release_is_of(world, newer, B)
        await holder_applies(scene, world, newer, C)


async def test_nothing_is_left_of_a_test_that_fails_while_all_are_stopped(scene: Scene) -> None:
    pids: list[int] = []

    async def failing(world: LiveWorld) -> None:
        async with Workers.open() as workers:
            pids.extend((await stop_in_the_middle(replace(scene, workers=workers), world, "upgrade")).pids)
            raise RuntimeError("in the middle")

    async with scene.world(FenceKind.IDENTITY) as world:
        with pytest.raises(RuntimeError, match="in the middle"):
            await failing(world)
    assert [state(pid) for pid in pids[:1]] == [""]
    assert {state(pid) for pid in pids[1:]} <= {"", "Z"}
