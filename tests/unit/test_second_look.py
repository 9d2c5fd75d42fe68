"""Requests of our own, a sweep, an expiry and a replay: they repeat an order, and a sweep or expiry looks again under its claim."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from prevue.lifecycle import Reason
from prevue.model import Message, Order, PreviewState, RequestState, Source, destroy_request, replay_of
from prevue.testing.contracts.statestore_harness import command
from prevue.testing.world import REPO, FakeDeployer, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(key_file=tmp_path / "key.pem")


@pytest.fixture
async def deployer(world: World) -> AsyncIterator[FakeDeployer]:
    async with world.deployer() as made:
        yield made


def ours(message: Message, source: Source, source_id: str, order: Order | None = None) -> Message:
    return destroy_request(
        message.key,
        repo=REPO,
        installation_id=message.installation_id,
        source=source,
        source_id=source_id,
        order=order or message.order,
    )


def outcome(world: World, message: Message) -> tuple[RequestState, str]:
    row = world.request(message)
    return row.state, row.reason


async def deployed(world: World, deployer: FakeDeployer) -> Message:
    message = world.command(world.open_pull_request())
    await deployer.worker.handle(message)
    assert world.state(message) is RequestState.DEPLOYED
    return message


async def test_sweep_of_a_closed_pull_request_removes_the_preview_without_a_word(world: World, deployer: FakeDeployer) -> None:
    message = await deployed(world, deployer)
    world.github.close_pull_request(REPO, message.pr_number)
    sweep = ours(message, Source.SWEEP, "uid@order")
    await deployer.worker.handle(sweep)
    assert outcome(world, sweep) == (RequestState.DESTROYED, Reason.TORN_DOWN)
    assert world.store.previews[message.key].state is PreviewState.DESTROYED
    assert world.cluster.namespaces == {}
    await deployer.drainer.drain()
    assert len(world.our_comments(message.pr_number)) == 1  # the command's own


async def test_sweep_looks_again_and_leaves_what_is_rightful(world: World, deployer: FakeDeployer) -> None:
    message = await deployed(world, deployer)
    sweep = ours(message, Source.SWEEP, "uid@order")
    await deployer.worker.handle(sweep)
    assert outcome(world, sweep) == (RequestState.SUPERSEDED, Reason.PULL_REQUEST_OPEN)
    row = world.store.previews[message.key]
    assert (row.state, world.cluster.served_commit(row.namespace)) == (PreviewState.READY, message.commit_sha)


async def test_sweep_of_a_tombstones_namespace_removes_it_though_the_pull_request_is_open(world: World, deployer: FakeDeployer) -> None:
    message = await deployed(world, deployer)
    close = world.close(message.pr_number)
    await deployer.worker.handle(close)
    world.github.reopen_pull_request(REPO, message.pr_number)
    row = world.store.previews[message.key]
    world.cluster.add_namespace(row.namespace, key=message.key, fence=1)  # by a worker that was stopped before step 3
    sweep = ours(message, Source.SWEEP, "uid@order", close.order)
    await deployer.worker.handle(sweep)
    assert outcome(world, sweep) == (RequestState.DESTROYED, Reason.TORN_DOWN)
    assert world.cluster.namespaces == {}


async def test_sweep_where_the_row_was_lost_removes_the_namespace(world: World, deployer: FakeDeployer) -> None:
    message = await deployed(world, deployer)
    world.store.previews.clear()
    world.store.requests.clear()
    long_ago = Order(message.order.at - timedelta(days=700_000), 0, 0)
    sweep = ours(message, Source.SWEEP, "uid@never", long_ago)
    await deployer.worker.handle(sweep)
    assert outcome(world, sweep) == (RequestState.DESTROYED, Reason.TORN_DOWN)
    assert world.cluster.namespaces == {}


async def test_expiry_removes_an_expired_preview_and_says_so(world: World, deployer: FakeDeployer) -> None:
    world.ttl_seconds = 100
    message = await deployed(world, deployer)
    deployer.store.advance(101)
    expiry = ours(message, Source.EXPIRY, "1@order")
    await deployer.worker.handle(expiry)
    assert outcome(world, expiry) == (RequestState.DESTROYED, Reason.EXPIRED)
    assert world.cluster.namespaces == {}
    await deployer.drainer.drain()
    assert "time to live" in world.our_comments(message.pr_number)[-1].body


async def test_expiry_looks_again_after_a_deploy_of_equal_order(world: World, deployer: FakeDeployer) -> None:
    """A replay repeats the order that the expiry has, so only `expires_at` tells that there is a new preview."""
    world.ttl_seconds = 100
    message = await deployed(world, deployer)
    deployer.store.advance(101)
    await deployer.worker.handle(replay_of(1, message))
    expiry = ours(message, Source.EXPIRY, "1@order")
    await deployer.worker.handle(expiry)
    assert outcome(world, expiry) == (RequestState.SUPERSEDED, Reason.NOT_EXPIRED)
    assert world.store.previews[message.key].state is PreviewState.READY
    await deployer.drainer.drain()
    assert len(world.our_comments(message.pr_number)) == 2  # command and replay


async def test_expiry_that_was_interrupted_goes_on(world: World, deployer: FakeDeployer) -> None:
    """Its own begin made live unknown; looking again must not take that for a reason to stop half-way."""
    world.ttl_seconds = 100
    message = await deployed(world, deployer)
    deployer.store.advance(101)
    row = world.store.previews[message.key]
    row.live, row.state, row.expires_at = None, PreviewState.DESTROYING, None
    expiry = ours(message, Source.EXPIRY, "1@order")
    await deployer.worker.handle(expiry)
    assert outcome(world, expiry) == (RequestState.DESTROYED, Reason.EXPIRED)


async def test_expiry_of_what_is_gone_is_nothing(world: World, deployer: FakeDeployer) -> None:
    message = await deployed(world, deployer)
    close = world.close(message.pr_number)
    await deployer.worker.handle(close)
    expiry = ours(message, Source.EXPIRY, "1@order", close.order)
    await deployer.worker.handle(expiry)
    assert outcome(world, expiry) == (RequestState.SUPERSEDED, Reason.NOT_EXPIRED)


async def test_replay_needs_the_askers_right_as_it_is_now(world: World, deployer: FakeDeployer) -> None:
    message = world.command(world.open_pull_request())
    world.github.set_permission(REPO, "writer", "read")
    replay = replay_of(1, message)
    await deployer.worker.handle(replay)
    assert outcome(world, replay) == (RequestState.REJECTED, Reason.PERMISSION_LOST)


async def test_replay_is_carried_out_and_told_by_a_comment_of_its_own(world: World, deployer: FakeDeployer) -> None:
    message = world.command(world.open_pull_request())
    replay = replay_of(1, message)
    await deployer.worker.handle(replay)
    assert outcome(world, replay) == (RequestState.DEPLOYED, Reason.READY)
    await deployer.drainer.drain()
    (comment,) = world.our_comments(message.pr_number)
    assert "Preview ready" in comment.body


def test_order_and_identity_of_our_own_requests() -> None:
    order = Order(command(5).order.at, 1, 7)
    for source in (Source.SWEEP, Source.EXPIRY):
        message = ours(command(5), source, "x", order)
        assert (message.order, message.effective_source_id, message.is_complete) == (order, "x", True)
    replay = replay_of(9, command(5))
    assert (replay.order, replay.effective_source_id) == (command(5).order, "9")
    assert replay_of(10, replay).order == command(5).order
