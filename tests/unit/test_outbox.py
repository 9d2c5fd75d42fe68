"""The outbox's drainer over the fakes: GitHub's limit is obeyed, a crash after a POST leaves one comment, late writers lose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from prevue.github import comments
from prevue.model import Message
from prevue.statestore.port import OutboxItem
from prevue.sweeper.outbox import OutboxDrainer, OutboxLimits
from prevue.testing.clock import FakeClock
from prevue.testing.github.records import Fault
from prevue.testing.statestore import FakeStateStore
from prevue.testing.world import REPO, FakeDeployer, World


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def world(tmp_path: Path, clock: FakeClock) -> World:
    return World(key_file=tmp_path / "key.pem", clock=clock)


@pytest.fixture
async def deployer(world: World) -> AsyncIterator[FakeDeployer]:
    async with world.deployer() as made:
        yield made


async def outcome(world: World, deployer: FakeDeployer) -> Message:
    """A preview that is ready, and not told yet."""
    message = world.command(world.open_pull_request())
    await deployer.worker.handle(message)
    return message


def writes_seen(world: World) -> int:
    return sum(len(world.our_comments(number)) for number in world.repository.issues)


async def test_githubs_patience_holds_for_the_whole_installation_and_every_process(
    world: World, deployer: FakeDeployer, clock: FakeClock
) -> None:
    for _ in range(3):
        await outcome(world, deployer)
    world.github.faults.append(Fault(path=f"/repos/{REPO}/issues", method="POST", status=403, times=1, headers={"retry-after": "90"}))
    await deployer.drainer.drain()
    assert world.github.faults == []
    asked = world.github.requests_answered
    async with world.deployer("two") as other:
        for _ in range(8):
            clock.advance(10)
            await deployer.drainer.drain()
            await other.drainer.drain()
        assert world.github.requests_answered == asked, "nobody asks before GitHub's time is over"
        clock.advance(11)
        await other.drainer.drain()
    assert writes_seen(world) == 3


class DiesAfterPost(FakeStateStore):
    """The process ends right after GitHub's answer."""

    async def sent(self, item: OutboxItem, *, comment_id: int) -> None:
        raise asyncio.CancelledError


async def test_crash_between_post_and_record_leaves_one_comment(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    message = await outcome(world, deployer)
    dying = DiesAfterPost(world.store, limits=world.limits, clock=clock)
    with pytest.raises(asyncio.CancelledError):
        await OutboxDrainer(holder="dying", outbox=dying, github=deployer.github, limits=OutboxLimits()).drain()
    assert len(world.our_comments(message.pr_number)) == 1
    clock.advance(31)  # the lane's lease of the one that is gone
    await deployer.drainer.drain()
    (comment,) = world.our_comments(message.pr_number)
    assert "Preview ready" in comment.body
    assert world.store.outbox[1, "status"].sent_version == world.store.outbox[1, "status"].version


async def test_late_writer_does_not_turn_ready_back(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    """A writer that was stopped inside its PATCH finishes with the acknowledgement after "ready" was written: the verify pass mends it."""
    message = await outcome(world, deployer)
    await deployer.drainer.drain()
    (comment,) = world.our_comments(message.pr_number)
    old = comments.acknowledgement(
        marker=comment.body.partition("\n")[0], commit_sha=message.commit_sha, requested_by=message.requested_by, repo=REPO
    )
    world.github.edit_comment(REPO, comment.id, old)
    clock.advance(61)
    await deployer.drainer.drain()
    assert ["Preview ready" in one.body for one in world.our_comments(message.pr_number)] == [True]


async def test_only_the_newest_text_is_written(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    """Acknowledgement and outcome are one row: a drainer that comes late writes once."""
    message = await outcome(world, deployer)
    clock.advance(30)
    await deployer.drainer.drain()
    (comment,) = world.our_comments(message.pr_number)
    assert comment.created_at == comment.updated_at
    assert "Preview ready" in comment.body
    assert len(world.store.writes[world.request(message).message.installation_id]) == 1
