# ruff: noqa: S101  a contract is made of assertions
"""What every cluster does: namespaces under a fence, the truth about releases, readiness, URLs, and an end."""

from __future__ import annotations

import asyncio

import pytest

from prevue.cluster.port import Fence, ReadyLimits, UrlSource
from prevue.errors import NamespaceForeign, NamespaceTerminating, NotReady, StaleClaim
from prevue.model import PreviewKey
from prevue.testing.contracts.worlds import RELEASE, World, install, namespace_of, raised

A = "a" * 40
LIMITS = ReadyLimits(readiness_timeout_seconds=60, image_wait_seconds=60, commit_sha=A)


class ClusterContract:
    """Subclass it where a fixture `world` is."""

    async def test_raise_creates_raises_and_repeats(self, world: World) -> None:
        key = world.new_key()
        first = await raised(world, key, 5)
        again = await raised(world, key, 5)
        higher = await raised(world, key, 7)
        assert first.uid == again.uid == higher.uid
        assert (first.token, higher.token) == (5, 7)
        assert (first.created, again.created, higher.created) == (True, False, False)
        assert higher.resource_version != first.resource_version

    async def test_lower_token_is_stale(self, world: World) -> None:
        key = world.new_key()
        await raised(world, key, 5)
        for create in (True, False):
            with pytest.raises(StaleClaim):
                await world.cluster.raise_fence(key, namespace_of(key), 4, create=create)

    async def test_of_many_raises_at_once_the_highest_stays(self, world: World) -> None:
        key = world.new_key()
        raises = [world.cluster.raise_fence(key, namespace_of(key), token, create=True) for token in range(1, 9)]
        results = await asyncio.gather(*raises, return_exceptions=True)
        assert all(isinstance(result, (Fence, StaleClaim)) for result in results)
        assert isinstance(results[-1], Fence)
        with pytest.raises(StaleClaim):
            await world.cluster.raise_fence(key, namespace_of(key), 7, create=True)

    async def test_destroy_of_nothing_creates_nothing(self, world: World) -> None:
        key = world.new_key()
        assert await world.cluster.raise_fence(key, namespace_of(key), 5, create=False) is None
        assert await world.cluster.raise_fence(key, namespace_of(key), 5, create=False) is None

    async def test_foreign_namespace_is_left_alone(self, world: World) -> None:
        key = world.new_key()
        world.make_foreign_namespace(namespace_of(key))
        for create in (True, False):
            with pytest.raises(NamespaceForeign):
                await world.cluster.raise_fence(key, namespace_of(key), 5, create=create)

    async def test_namespace_of_another_preview_is_left_alone(self, world: World) -> None:
        key = world.new_key()
        await raised(world, key, 5)
        for other in (key._replace(pr_number=2), key._replace(github_host="other.test"), key._replace(repository_id=1)):
            with pytest.raises(NamespaceForeign):
                await world.cluster.raise_fence(other, namespace_of(key), 9, create=True)

    async def test_fence_of_a_lost_claim_does_not_bite_for_it(self, world: World) -> None:
        """It may bite for the larger token; the loser's own writes are refused then, and it learns of it here or at its next write."""
        key = world.new_key()
        stale = await raised(world, key, 5)
        await raised(world, key, 6)
        run = await install(world, stale, A)
        assert world.stale_error in run.error

    async def test_our_namespaces_are_listed_with_their_fences(self, world: World) -> None:
        key, other = world.new_key(), world.new_key()
        first = await raised(world, key, 5)
        await raised(world, other, 7)
        found = {one.key: one for one in await world.cluster.owned(key.github_host)}
        assert (found[key].name, found[key].uid, found[key].fence) == (namespace_of(key), first.uid, 5)
        assert found[other].fence == 7
        assert not found[key].is_terminating
        assert key not in {one.key for one in await world.cluster.owned("other.test")}
        assert await world.cluster.highest_fence() >= 7

    async def test_foreign_namespace_is_not_listed(self, world: World) -> None:
        key = world.new_key()
        world.make_foreign_namespace(namespace_of(key))
        assert namespace_of(key) not in {one.name for one in await world.cluster.owned(key.github_host)}

    async def test_no_release_is_none(self, world: World) -> None:
        fence = await raised(world, world.new_key(), 5)
        assert await world.cluster.release(fence, RELEASE) is None
        assert await world.cluster.manifest(fence, RELEASE) == ""

    async def test_ready_then_url_then_answer(self, world: World) -> None:
        fence = await raised(world, world.new_key(), 5)
        run = await install(world, fence, A)
        assert run.exit_code == 0, run.error
        await world.cluster.wait_ready(fence, run.manifest, LIMITS)
        url = await world.cluster.url(fence, run.manifest, UrlSource.NODE_PORT, host="127.0.0.1", timeout_seconds=10)
        assert await world.probe.probe(url, statuses=frozenset({200}), timeout_seconds=20) == 200

    async def test_missing_foreign_image_fails_fast(self, world: World) -> None:
        fence = await raised(world, world.new_key(), 5)
        spec = world.break_pods(world.spec(fence.namespace, A, fence.token))
        run = await world.helm.upgrade_install(spec, kubeconfig=world.cluster.kubeconfig(fence), deadline=world.deadline(45))
        assert run.exit_code == 0, run.error
        with pytest.raises(NotReady, match="cannot be pulled"):
            await world.cluster.wait_ready(fence, run.manifest, LIMITS)

    async def test_chart_without_a_service_has_no_url(self, world: World) -> None:
        fence = await raised(world, world.new_key(), 5)
        with pytest.raises(NotReady):
            await world.cluster.url(fence, "", UrlSource.NODE_PORT, host="127.0.0.1", timeout_seconds=0.1)

    async def test_delete_waits_until_it_is_gone(self, world: World) -> None:
        key = world.new_key()
        fence = await raised(world, key, 5)
        await install(world, fence, A)
        await world.cluster.delete_namespace(fence, timeout_seconds=60)
        assert await world.cluster.raise_fence(key, namespace_of(key), 6, create=False) is None
        await world.cluster.delete_namespace(fence, timeout_seconds=60)

    async def test_delete_by_a_lost_claim_is_stale(self, world: World) -> None:
        """The DELETE carries uid and resourceVersion of the raise: a newer claim's namespace stays."""
        key = world.new_key()
        stale = await raised(world, key, 5)
        newer = await raised(world, key, 6)
        with pytest.raises(StaleClaim):
            await world.cluster.delete_namespace(stale, timeout_seconds=60)
        again = await world.cluster.raise_fence(key, namespace_of(key), 6, create=False)
        assert again is not None
        assert again.uid == newer.uid

    async def test_delete_takes_a_new_version_under_the_same_token(self, world: World) -> None:
        """A raise that was repeated, or a controller's write, moves the resourceVersion; that is no reason to give up."""
        key = world.new_key()
        old = await raised(world, key, 5)
        fence = Fence(namespace=old.namespace, token=6, uid=old.uid, resource_version=old.resource_version, kind=old.kind)
        await raised(world, key, 6)
        await world.cluster.delete_namespace(fence, timeout_seconds=60)

    async def test_namespace_made_anew_is_not_the_one_to_delete(self, world: World) -> None:
        key: PreviewKey = world.new_key()
        old = await raised(world, key, 5)
        await world.cluster.delete_namespace(old, timeout_seconds=60)
        new = await raised(world, key, 6)
        with pytest.raises(StaleClaim):
            await world.cluster.delete_namespace(old, timeout_seconds=60)
        again = await world.cluster.raise_fence(key, namespace_of(key), 6, create=False)
        assert again is not None
        assert again.uid == new.uid

    async def test_namespace_being_deleted_is_transient(self, world: World) -> None:
        """It may take a pod's whole grace; then whoever comes next finds it gone."""
        key = world.new_key()
        fence = await raised(world, key, 5)
        run = await install(world, fence, A)
        await world.cluster.wait_ready(fence, run.manifest, LIMITS)
        task = asyncio.create_task(world.cluster.delete_namespace(fence, timeout_seconds=60))
        await asyncio.sleep(world.midway_seconds / 10)
        with pytest.raises(NamespaceTerminating):
            await world.cluster.raise_fence(key, namespace_of(key), 6, create=True)
        await task
