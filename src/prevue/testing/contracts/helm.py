# ruff: noqa: S101  a contract is made of assertions
"""What every Helm does, with the fence of a cluster around it: the fake and the real command."""

from __future__ import annotations

import asyncio

import pytest

from prevue.cluster.port import LABEL_COMMIT, LABEL_TOKEN
from prevue.testing.contracts.worlds import RELEASE, World, install, namespace_of, raised

A, B, C = "a" * 40, "b" * 40, "c" * 40


class HelmContract:
    """Subclass it where a fixture `world` is."""

    async def test_install_leaves_a_deployed_release_with_our_labels(self, world: World) -> None:
        fence = await raised(world, world.new_key(), 5)
        run = await install(world, fence, A)
        assert (run.exit_code, run.error, run.deadline_passed) == (0, "", False)
        assert "Deployment" in run.manifest
        record = await world.cluster.release(fence, RELEASE)
        assert record is not None
        assert (record.status, record.revision, record.labels) == ("deployed", 1, {LABEL_COMMIT: A, LABEL_TOKEN: "5"})
        assert await world.cluster.manifest(fence, RELEASE) == run.manifest

    async def test_upgrade_replaces_labels_and_manifest(self, world: World) -> None:
        key = world.new_key()
        await install(world, await raised(world, key, 5), A)
        fence = await raised(world, key, 6)
        run = await install(world, fence, B)
        assert run.exit_code == 0, run.error
        record = await world.cluster.release(fence, RELEASE)
        assert record is not None
        assert (record.status, record.revision, record.labels) == ("deployed", 2, {LABEL_COMMIT: B, LABEL_TOKEN: "6"})
        assert B in run.manifest

    async def test_stale_helm_changes_nothing(self, world: World) -> None:
        """Upgrade, rollback and uninstall with a token below the fence: refused by the API server, whatever Helm thinks of it."""
        key = world.new_key()
        stale = await raised(world, key, 5)
        await install(world, stale, A)
        await install(world, stale, B)
        await raised(world, key, 6)
        before = await world.snapshot(stale.namespace)
        kubeconfig, deadline = world.cluster.kubeconfig(stale), world.deadline(45)
        upgrade = await install(world, stale, C)
        rollback = await world.helm.rollback(stale.namespace, RELEASE, kubeconfig=kubeconfig, deadline=deadline)
        await world.helm.uninstall(stale.namespace, RELEASE, kubeconfig=kubeconfig, deadline=deadline)
        assert world.stale_error in upgrade.error
        assert rollback.exit_code != 0
        assert await world.snapshot(stale.namespace) == before

    async def test_helm_reaches_no_other_namespace(self, world: World) -> None:
        """A claim's identity has rights in its own preview alone, also where the other one's fence is lower."""
        other = await raised(world, world.new_key(), 1)
        fence = await raised(world, world.new_key(), 5)
        before = await world.snapshot(other.namespace)
        spec = world.spec(other.namespace, A, fence.token)
        run = await world.helm.upgrade_install(spec, kubeconfig=world.cluster.kubeconfig(fence), deadline=world.deadline(45))
        assert run.exit_code != 0
        assert "forbidden" in run.error
        assert await world.snapshot(other.namespace) == before

    async def test_helm_is_not_started_past_its_deadline(self, world: World) -> None:
        fence = await raised(world, world.new_key(), 5)
        run = await install(world, fence, A, seconds=-1)
        assert run.deadline_passed
        assert run.exit_code < 0
        assert await world.cluster.release(fence, RELEASE) is None

    async def test_uninstall_removes_the_release(self, world: World) -> None:
        fence = await raised(world, world.new_key(), 5)
        await install(world, fence, A)
        run = await world.helm.uninstall(fence.namespace, RELEASE, kubeconfig=world.cluster.kubeconfig(fence), deadline=world.deadline(45))
        assert run.exit_code == 0, run.error
        assert await world.cluster.release(fence, RELEASE) is None
        assert await world.snapshot(fence.namespace) == {}

    async def test_uninstall_of_nothing_is_a_success(self, world: World) -> None:
        fence = await raised(world, world.new_key(), 5)
        run = await world.helm.uninstall(fence.namespace, RELEASE, kubeconfig=world.cluster.kubeconfig(fence), deadline=world.deadline(45))
        assert run.exit_code == 0, run.error

    async def test_killed_install_is_read_back_as_pending_and_recovered(self, world: World) -> None:
        """The deadline kills Helm in mid-apply; the next holder uninstalls, then installs."""
        key = world.new_key()
        fence = await raised(world, key, 5)
        run = await install(world, fence, A, slow=True, seconds=world.midway_seconds)
        assert run.deadline_passed
        record = await world.cluster.release(fence, RELEASE)
        assert record is not None
        assert (record.status, record.revision) == ("pending-install", 1)
        fence = await raised(world, key, 6)
        blocked = await install(world, fence, A)
        assert blocked.exit_code != 0, "a pending release blocks every install: that is why it is recovered"
        await world.helm.uninstall(fence.namespace, RELEASE, kubeconfig=world.cluster.kubeconfig(fence), deadline=world.deadline(45))
        assert (await install(world, fence, A)).exit_code == 0

    async def test_killed_upgrade_is_rolled_back_then_upgraded(self, world: World) -> None:
        key = world.new_key()
        fence = await raised(world, key, 5)
        await install(world, fence, A)
        await install(world, fence, B, slow=True, seconds=world.midway_seconds)
        record = await world.cluster.release(fence, RELEASE)
        assert record is not None
        assert (record.status, record.revision) == ("pending-upgrade", 2)
        fence = await raised(world, key, 6)
        run = await world.helm.rollback(fence.namespace, RELEASE, kubeconfig=world.cluster.kubeconfig(fence), deadline=world.deadline(45))
        assert run.exit_code == 0, run.error
        record = await world.cluster.release(fence, RELEASE)
        assert record is not None
        assert (record.status, record.revision, record.labels[LABEL_COMMIT]) == ("deployed", 3, A)
        assert (await install(world, fence, C)).exit_code == 0
        record = await world.cluster.release(fence, RELEASE)
        assert record is not None
        assert (record.status, record.labels) == ("deployed", {LABEL_COMMIT: C, LABEL_TOKEN: "6"})

    async def test_cancelled_helm_leaves_no_process_and_no_pending_release(self, world: World) -> None:
        """Helm writes `failed` on SIGTERM; when the cancellation arrives at the caller, nothing runs any more."""
        fence = await raised(world, world.new_key(), 5)
        task = asyncio.create_task(install(world, fence, A, slow=True))
        await asyncio.sleep(world.midway_seconds)
        assert world.helms_running() > 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert world.helms_running() == 0
        record = await world.cluster.release(fence, RELEASE)
        assert record is not None
        assert record.status == "failed"

    async def test_version_is_a_version(self, world: World) -> None:
        assert (await world.helm.version()).startswith("v")

    async def test_render_writes_nothing(self, world: World) -> None:
        key = world.new_key()
        run = await world.helm.render(world.spec(namespace_of(key), A, 1), timeout_seconds=20)
        assert run.exit_code == 0, run.error
        assert "Service" in run.output
        assert await world.snapshot(namespace_of(key)) == {}
