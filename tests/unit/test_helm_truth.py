"""What became of a release is read from its Secret's labels; Helm's exit code and text decide nothing (protocol, steps 6 and 7)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from prevue.helm.port import HelmRun, ReleaseSpec
from prevue.model import Message, RequestState
from prevue.testing.cluster import FakeRevision
from prevue.testing.world import FakeDeployer, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(key_file=tmp_path / "key.pem")


@pytest.fixture
async def deployer(world: World) -> AsyncIterator[FakeDeployer]:
    async with world.deployer() as made:
        yield made


class Verbs:
    """Helm, with the order of its verbs kept, and lies told about its end."""

    def __init__(self, deployer: FakeDeployer, monkeypatch: pytest.MonkeyPatch, *, exit_code: int | None = None) -> None:
        self.called: list[str] = []
        helm = deployer.helm
        upgrade, rollback, uninstall = helm.upgrade_install, helm.rollback, helm.uninstall

        async def upgrade_install(spec: ReleaseSpec, *, kubeconfig: str, deadline: float) -> HelmRun:
            self.called.append("upgrade")
            run = await upgrade(spec, kubeconfig=kubeconfig, deadline=deadline)
            if exit_code is None:
                return run
            return msgspec.structs.replace(run, exit_code=exit_code, error="Error: another operation is in progress")

        async def rolled_back(namespace: str, name: str, *, kubeconfig: str, deadline: float) -> HelmRun:
            self.called.append("rollback")
            return await rollback(namespace, name, kubeconfig=kubeconfig, deadline=deadline)

        async def uninstalled(namespace: str, name: str, *, kubeconfig: str, deadline: float) -> HelmRun:
            self.called.append("uninstall")
            return await uninstall(namespace, name, kubeconfig=kubeconfig, deadline=deadline)

        monkeypatch.setattr(helm, "upgrade_install", upgrade_install)
        monkeypatch.setattr(helm, "rollback", rolled_back)
        monkeypatch.setattr(helm, "uninstall", uninstalled)


def revisions(world: World, message: Message) -> list[FakeRevision]:
    """The release's, the oldest first."""
    namespace = world.cluster.namespaces[world.store.previews[message.key].namespace]
    return namespace.releases["preview-pr-1"]


@pytest.mark.parametrize(
    ("revision", "status", "verbs"),
    [
        (1, "pending-install", ["uninstall", "upgrade"]),
        (2, "pending-upgrade", ["rollback", "upgrade"]),
        (2, "pending-rollback", ["rollback", "upgrade"]),
        (2, "uninstalling", ["uninstall", "upgrade"]),
        (2, "failed", ["upgrade"]),
        (2, "deployed", ["upgrade"]),
    ],
)
async def test_interrupted_release_is_recovered_by_its_status(
    world: World, deployer: FakeDeployer, monkeypatch: pytest.MonkeyPatch, revision: int, status: str, verbs: list[str]
) -> None:
    number = world.open_pull_request()
    first = world.command(number)
    await deployer.worker.handle(first)
    for _ in range(revision - 1):
        world.values = {"changed": world.values}
        await deployer.worker.handle(world.command(number))
    revisions(world, first)[-1].status = status
    calls = Verbs(deployer, monkeypatch)
    world.values = {"changed": "again"}
    again = world.command(number)
    await deployer.worker.handle(again)
    assert calls.called == verbs
    assert world.state(again) is RequestState.DEPLOYED
    assert [one.status for one in revisions(world, again)].count("deployed") == 1


@pytest.mark.parametrize("exit_code", [1, -9])
async def test_release_that_is_deployed_and_ours_is_a_success_whatever_helm_says(
    world: World, deployer: FakeDeployer, monkeypatch: pytest.MonkeyPatch, exit_code: int
) -> None:
    number = world.open_pull_request()
    Verbs(deployer, monkeypatch, exit_code=exit_code)
    message = world.command(number)
    await deployer.worker.handle(message)
    assert world.state(message) is RequestState.DEPLOYED


@pytest.mark.parametrize("status", ["pending-install", "superseded", "unknown"])
async def test_helm_that_exits_0_and_left_anything_but_deployed_is_no_success(
    world: World, deployer: FakeDeployer, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    number = world.open_pull_request()
    upgrade = deployer.helm.upgrade_install

    async def lies(spec: ReleaseSpec, *, kubeconfig: str, deadline: float) -> HelmRun:
        run = await upgrade(spec, kubeconfig=kubeconfig, deadline=deadline)
        world.cluster.namespaces[spec.namespace].releases[spec.name][-1].status = status
        assert run.exit_code == 0
        return run

    monkeypatch.setattr(deployer.helm, "upgrade_install", lies)
    message = world.command(number)
    await deployer.worker.handle(message)
    assert world.state(message) is RequestState.WAITING
    assert status in world.request(message).error


@pytest.mark.parametrize("label", ["prevue.dev/request", "prevue.dev/commit", "prevue.dev/digest", "prevue.dev/token"])
async def test_deployed_release_with_another_label_is_not_ours(
    world: World, deployer: FakeDeployer, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    """Somebody else's Helm came after ours: deployed is true, and not of this request, commit, values or claim."""
    number = world.open_pull_request()
    upgrade = deployer.helm.upgrade_install

    async def overtaken(spec: ReleaseSpec, *, kubeconfig: str, deadline: float) -> HelmRun:
        run = await upgrade(spec, kubeconfig=kubeconfig, deadline=deadline)
        world.cluster.namespaces[spec.namespace].releases[spec.name][-1].labels[label] = "0"
        return run

    monkeypatch.setattr(deployer.helm, "upgrade_install", overtaken)
    message = world.command(number)
    await deployer.worker.handle(message)
    assert world.state(message) is RequestState.WAITING


async def test_claims_ledger_says_which_fence_was_in_force(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    message = world.command(number)
    await deployer.worker.handle(message)
    await deployer.worker.handle(world.close(number))
    noted = [entry.details for entry in world.store.ledger if entry.event == "fence"]
    assert [details["fence"] for details in noted] == ["identity", "identity"], "the deploy's claim and the close's"
    assert all("refuses every write" in str(details["fence_means"]) for details in noted)
