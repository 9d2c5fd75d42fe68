"""Real Helm where it is interrupted in ways that the contract does not name."""

from __future__ import annotations

import pytest

from prevue.testing.contracts.live import LiveWorld, live_cluster, live_world
from prevue.testing.contracts.worlds import RELEASE, install, raised

__all__ = ["live_cluster", "live_world"]
# The time limit is the test's own: on a new machine the first one also waits while the cluster is built.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120, func_only=True)]

A = "a" * 40


async def test_interrupted_uninstall_can_be_repeated(live_world: LiveWorld) -> None:
    """Killed while it waits for a deletion, it leaves `uninstalling`: the next one uninstalls again, then installs."""
    world = live_world
    fence = await raised(world, world.new_key(), 5)
    held = {"name": "held", "finalizers": ["test.prevue.dev/hold"]}
    spec = world.spec_of(fence.namespace, A, 5, [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": held}])
    kubeconfig = world.cluster.kubeconfig(fence)
    assert (await world.helm.upgrade_install(spec, kubeconfig=kubeconfig, deadline=world.deadline(45))).exit_code == 0
    run = await world.helm.uninstall(fence.namespace, RELEASE, kubeconfig=kubeconfig, deadline=world.deadline(1.0))
    assert run.deadline_passed
    record = await world.cluster.release(fence, RELEASE)
    assert record is not None
    assert record.status == "uninstalling"
    world.live.kubectl("patch", "configmap", "held", "-n", fence.namespace, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    run = await world.helm.uninstall(fence.namespace, RELEASE, kubeconfig=kubeconfig, deadline=world.deadline(45))
    assert run.exit_code == 0, run.error
    assert await world.cluster.release(fence, RELEASE) is None
    assert (await install(world, fence, A)).exit_code == 0


async def test_failed_first_install_is_upgraded(live_world: LiveWorld) -> None:
    """A chart that was refused, corrected by the next commit: no recovery is needed for `failed`."""
    world = live_world
    fence = await raised(world, world.new_key(), 5)
    wrong = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "Not_A_Name"}}
    spec = world.spec_of(fence.namespace, A, 5, [wrong])
    run = await world.helm.upgrade_install(spec, kubeconfig=world.cluster.kubeconfig(fence), deadline=world.deadline(45))
    assert run.exit_code == 1
    assert "Not_A_Name" in run.error
    record = await world.cluster.release(fence, RELEASE)
    assert record is not None
    assert record.status == "failed"
    assert (await install(world, fence, A)).exit_code == 0


async def test_secret_in_a_refusal_is_masked(live_world: LiveWorld) -> None:
    """What Helm quotes of a manifest may hold a secret of the operator's values."""
    world = live_world
    fence = await raised(world, world.new_key(), 5)
    wrong = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "Not_A_Name"}, "stringData": {"password": "hunter2secret"}}
    spec = world.spec_of(fence.namespace, A, 5, [wrong])
    run = await world.helm.upgrade_install(spec, kubeconfig=world.cluster.kubeconfig(fence), deadline=world.deadline(45))
    assert run.exit_code == 1
    assert "hunter2secret" not in run.error


async def test_history_stays_short(live_world: LiveWorld) -> None:
    """Each revision is a Secret of its own, of up to 1 MiB."""
    world = live_world
    fence = await raised(world, world.new_key(), 5)
    for number in range(5):
        assert (await install(world, fence, f"{number}" * 40)).exit_code == 0
    revisions = [name for name in await world.snapshot(fence.namespace) if name.startswith("Secret/sh.helm.release")]
    assert len(revisions) == 3
    record = await world.cluster.release(fence, RELEASE)
    assert record is not None
    assert record.revision == 5
