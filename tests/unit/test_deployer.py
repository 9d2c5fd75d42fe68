"""The deployer over the fakes: what each message leads to, and what is left when something fails in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from prevue.cluster.port import LABEL_COMMIT, LABEL_TOKEN
from prevue.deployer.pipeline import PipelineLimits
from prevue.errors import NotConfigured
from prevue.lifecycle import Reason
from prevue.model import Message, PreviewState, RequestState
from prevue.queue.port import Done, Release, RetryAfter
from prevue.testing.github.records import Fault
from prevue.testing.world import REPO, FakeDeployer, World, eventually


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(key_file=tmp_path / "key.pem")


@pytest.fixture
async def deployer(world: World) -> AsyncIterator[FakeDeployer]:
    async with world.deployer() as made:
        yield made


def preview_of(world: World, message: Message):  # type: ignore[no-untyped-def]  # the fake's own row
    return world.store.previews[message.key]


async def test_command_becomes_a_ready_preview_and_one_comment(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    message = world.command(number)
    assert await deployer.worker.handle(message) == Done()
    assert world.state(message) is RequestState.DEPLOYED
    row = preview_of(world, message)
    assert (row.state, row.live.sha, row.holder) == (PreviewState.READY, world.commit(number), None)
    assert world.cluster.served_commit(row.namespace) == world.commit(number)
    release = world.cluster.namespaces[row.namespace].releases["preview-pr-1"][-1]
    assert (release.labels[LABEL_COMMIT], release.labels[LABEL_TOKEN]) == (world.commit(number), str(row.token))
    await deployer.drainer.drain()
    (comment,) = world.our_comments(number)
    assert row.url in comment.body
    assert "Preview ready" in comment.body


async def test_redelivery_changes_nothing(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    message = world.command(number)
    await deployer.worker.handle(message)
    await deployer.drainer.drain()
    before = (len(world.cluster.journal), len(world.our_comments(number)))
    for _ in range(3):
        assert await deployer.worker.handle(message) == Done()
    await deployer.drainer.drain()
    assert (len(world.cluster.journal), len(world.our_comments(number))) == before


async def test_second_command_on_the_live_commit_runs_no_helm(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    await deployer.worker.handle(world.command(number))
    writes = len(world.cluster.journal)
    again = world.command(number)
    assert await deployer.worker.handle(again) == Done()
    assert len(world.cluster.journal) == writes
    assert world.request(again).reason == Reason.ALREADY_LIVE
    await deployer.drainer.drain()
    assert "Preview already exists" in world.our_comments(number)[-1].body
    assert len(world.our_comments(number)) == 2


async def test_changed_values_deploy_the_same_commit_again(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    await deployer.worker.handle(world.command(number))
    writes = len(world.cluster.journal)
    world.values = {"replicas": 2}
    again = world.command(number)
    await deployer.worker.handle(again)
    assert len(world.cluster.journal) > writes
    assert world.request(again).reason == Reason.READY


async def test_forced_push_back_to_an_older_commit_deploys_it(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    first = world.commit(number)
    await deployer.worker.handle(world.command(number))
    world.github.push(REPO, number)
    await deployer.worker.handle(world.command(number))
    world.github.push(REPO, number, sha=first)
    message = world.command(number)
    await deployer.worker.handle(message)
    assert world.request(message).reason == Reason.READY
    assert world.cluster.served_commit(preview_of(world, message).namespace) == first


async def test_close_removes_everything_and_says_so(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    command = world.command(number)
    await deployer.worker.handle(command)
    close = world.close(number)
    assert await deployer.worker.handle(close) == Done()
    assert world.state(close) is RequestState.DESTROYED
    assert preview_of(world, command).state is PreviewState.DESTROYED
    assert world.cluster.find(preview_of(world, command).namespace) is None
    await deployer.drainer.drain()
    assert "Preview removed" in world.our_comments(number)[-1].body


async def test_close_of_a_pull_request_without_preview_says_nothing(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    close = world.close(number)
    await deployer.worker.handle(close)
    await deployer.drainer.drain()
    assert world.state(close) is RequestState.DESTROYED
    assert world.our_comments(number) == []


async def test_command_that_finds_the_pull_request_closed_tears_down(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    first = world.command(number)
    await deployer.worker.handle(first)
    world.github.push(REPO, number)
    late = world.command(number)
    world.github.close_pull_request(REPO, number)
    await deployer.worker.handle(late)
    assert world.state(late) is RequestState.SUPERSEDED
    assert world.request(late).reason == Reason.PULL_REQUEST_CLOSED
    assert world.cluster.find(preview_of(world, first).namespace) is None


async def test_reopened_pull_request_gets_its_preview_back(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    await deployer.worker.handle(world.command(number))
    close = world.close(number)
    await deployer.worker.handle(close)
    world.github.reopen_pull_request(REPO, number)
    # GitHub's times have whole seconds: within the same second the close would win.
    again = world.command(number)
    assert again.requested_at is not None
    again = msgspec.structs.replace(again, requested_at=again.requested_at.replace(year=again.requested_at.year + 1))
    await deployer.worker.handle(again)
    assert world.state(again) is RequestState.DEPLOYED
    assert preview_of(world, again).state is PreviewState.READY


async def test_permission_lost_meanwhile_is_refused_under_the_claim(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    message = world.command(number)
    world.github.set_permission(REPO, "writer", "read")
    await deployer.worker.handle(message)
    assert world.state(message) is RequestState.REJECTED
    assert world.cluster.journal == []
    await deployer.drainer.drain()
    assert "no write access" in world.our_comments(number)[0].body


async def test_unconfigured_repository_is_told_so(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    message = world.command(number)
    world.plan_error = NotConfigured("acme/hello is not listed in Prevue's configuration (repositories)")
    await deployer.worker.handle(message)
    assert (world.state(message), world.request(message).reason) == (RequestState.REJECTED, Reason.NOT_CONFIGURED)
    await deployer.drainer.drain()
    assert "not listed" in world.our_comments(number)[0].body


async def test_pods_that_never_become_ready_fail_with_the_reason(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    world.cluster.fail_ready("Pod web is in a crash loop", details="boom line 1\nboom line 2")
    message = world.command(number)
    assert await deployer.worker.handle(message) == Done()
    assert world.state(message) is RequestState.FAILED
    assert preview_of(world, message).live is None
    await deployer.drainer.drain()
    body = world.our_comments(number)[0].body
    assert "crash loop" in body
    assert "boom line 2" in body


async def test_chart_that_does_not_render_fails_without_another_attempt(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    world.cluster.fail_helm("parse error at line 3", times=2)
    message = world.command(number)
    await deployer.worker.handle(message)
    assert (world.state(message), world.request(message).reason) == (RequestState.FAILED, Reason.CHART_INVALID)
    await deployer.drainer.drain()
    assert "parse error at line 3" in world.our_comments(number)[0].body


async def test_release_that_helm_marked_failed_is_the_charts_fault(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    world.cluster.fail_helm("hook failed", after_writes=2)
    message = world.command(number)
    await deployer.worker.handle(message)
    assert (world.state(message), world.request(message).reason) == (RequestState.FAILED, Reason.RELEASE_FAILED)


async def test_killed_helm_is_an_attempt_and_the_next_one_recovers_the_pending_release(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    world.cluster.kill_helm(after_writes=2)
    message = world.command(number)
    settled = await deployer.worker.handle(message)
    assert isinstance(settled, RetryAfter)
    assert (world.state(message), world.request(message).attempts) == (RequestState.WAITING, 1)
    await asyncio.sleep(settled.delay)
    assert await deployer.worker.handle(message) == Done()
    assert (world.state(message), world.request(message).attempts) == (RequestState.DEPLOYED, 2)


async def test_helm_that_exits_0_with_a_pending_release_is_noticed(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    world.cluster.lie_helm()
    message = world.command(number)
    settled = await deployer.worker.handle(message)
    assert isinstance(settled, RetryAfter)
    assert world.state(message) is RequestState.WAITING
    await asyncio.sleep(settled.delay)
    await deployer.worker.handle(message)
    assert world.state(message) is RequestState.DEPLOYED


async def test_attempts_end_as_a_dead_letter_that_is_announced(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    world.cluster.kill_helm(after_writes=1, times=99)
    message = world.command(number)
    for _ in range(world.limits.attempts_max):
        settled = await deployer.worker.handle(message)
        assert isinstance(settled, RetryAfter)
        await asyncio.sleep(settled.delay)
    assert await deployer.worker.handle(message) == Done()
    assert world.state(message) is RequestState.DEAD
    await deployer.drainer.drain()
    assert "given up" in world.our_comments(number)[0].body


async def test_outage_of_the_cluster_counts_no_attempt(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    world.cluster.unavailable()
    message = world.command(number)
    assert isinstance(await deployer.worker.handle(message), RetryAfter)
    assert (world.state(message), world.request(message).attempts) == (RequestState.WAITING, 0)


async def test_outage_of_github_counts_no_attempt(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    message = world.command(number)
    world.github.faults.append(Fault(path=f"/repos/{REPO}/pulls", status=502, times=5))
    assert isinstance(await deployer.worker.handle(message), RetryAfter)
    assert (world.state(message), world.request(message).attempts) == (RequestState.WAITING, 0)


async def test_newer_command_ends_the_running_one_as_superseded(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    world.cluster.ready_after(30, commit=world.commit(number))
    older = world.command(number)
    running = asyncio.create_task(deployer.worker.handle(older))
    await eventually(lambda: bool(world.store.previews) and preview_of(world, older).state is PreviewState.DEPLOYING)
    world.github.push(REPO, number)
    newer = world.command(number)
    assert await deployer.worker.handle(newer) == Done()  # busy: it waits in the statestore
    assert await running == Done()
    assert world.state(older) is RequestState.SUPERSEDED
    (woken,) = world.queue.messages()
    await deployer.worker.handle(woken)
    assert world.state(newer) is RequestState.DEPLOYED
    await deployer.drainer.drain()
    texts = [comment.body for comment in world.our_comments(number)]
    assert any("Superseded" in text for text in texts)
    assert any("Preview ready" in text for text in texts)


async def test_lost_claim_writes_nothing_and_says_nothing(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    world.cluster.ready_after(30)
    message = world.command(number)
    running = asyncio.create_task(deployer.worker.handle(message))
    await eventually(lambda: bool(world.store.previews) and preview_of(world, message).state is PreviewState.DEPLOYING)
    deployer.store.advance(3600)
    async with world.deployer("two") as other:
        world.cluster.rules.clear()
        assert await other.worker.handle(message) == Done()
        assert isinstance(await running, RetryAfter)
        assert world.state(message) is RequestState.DEPLOYED
        outcomes = [row for row in world.store.ledger if row.event == "finished"]
        assert len(outcomes) == 1
        await other.drainer.drain()
    assert len(world.our_comments(number)) == 1


async def test_graceful_stop_gives_back_without_counting(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    world.cluster.ready_after(30)
    message = world.command(number)
    running = asyncio.create_task(deployer.worker.handle(message))
    await eventually(lambda: bool(world.store.previews) and preview_of(world, message).state is PreviewState.DEPLOYING)
    deployer.worker.halt()
    assert await running == Release()
    assert (world.state(message), world.request(message).attempts) == (RequestState.WAITING, 0)
    assert world.cluster.helms_running == []


async def test_crashed_deployer_loses_nothing(world: World) -> None:
    number = world.open_pull_request()
    world.cluster.ready_after(30, times=1)
    message = world.command(number)
    async with world.deployer("one") as first:
        await first.queue.enqueue(message)
        first.start()
        await eventually(lambda: bool(world.store.previews) and preview_of(world, message).state is PreviewState.DEPLOYING)
        await first.crash()
    limits = PipelineLimits(helm_deadline_seconds=2, helm_deadline_grace_seconds=0.2)
    async with world.deployer("two", pipeline_limits=limits) as second:
        second.start()
        await eventually(lambda: world.state(message) is RequestState.DEPLOYED, seconds=20)
        await eventually(lambda: len(world.our_comments(number)) == 1 and "Preview ready" in world.our_comments(number)[0].body)
        await second.shut_down()
    assert world.request(message).attempts == 2


async def test_acknowledgement_that_the_app_skipped_is_written_by_the_outbox(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    world.cluster.ready_after(1)
    message = world.command(number)
    await deployer.queue.enqueue(message)
    deployer.start()
    await eventually(lambda: any("Deployment requested!" in comment.body for comment in world.our_comments(number)))
    await eventually(lambda: "Preview ready" in world.our_comments(number)[0].body)
    assert len(world.our_comments(number)) == 1


async def test_duplicate_comments_are_healed_by_the_verify_pass(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    message = world.command(number)
    await deployer.worker.handle(message)
    await deployer.drainer.drain()
    issue = world.github.issue(REPO, number)
    # A drainer that was stopped inside its POST finishes after the other one has marked the row.
    world.github.write_comment(world.repository, issue, world.github.app.bot, world.our_comments(number)[0].body, via_app=True)
    assert len(world.our_comments(number)) == 2
    deployer.store.advance(60)
    await deployer.drainer.drain()
    assert len(world.our_comments(number)) == 1


async def test_message_of_an_older_app_is_completed_from_github(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    message = world.command(number)
    bare = msgspec.structs.replace(message, repository_id=0, requested_by="", requested_at=None, source=None, source_id="")
    assert await deployer.worker.handle(bare) == Done()
    assert world.state(message) is RequestState.DEPLOYED


async def test_release_that_is_not_ours_is_left_alone(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    message = world.command(number)
    await deployer.worker.handle(message)
    namespace = world.cluster.namespaces[preview_of(world, message).namespace]
    for revision in namespace.releases["preview-pr-1"]:
        revision.labels.clear()
    world.values = {"changed": True}
    before = len(world.cluster.journal)
    again = world.command(number)
    await deployer.worker.handle(again)
    assert (world.state(again), world.request(again).reason) == (RequestState.FAILED, Reason.NAMESPACE_FOREIGN)
    assert len(world.cluster.journal) == before
    assert preview_of(world, message).live is not None  # nothing was begun, so what is live is still known


async def test_release_of_another_chart_is_not_upgraded(world: World, deployer: FakeDeployer) -> None:
    number = world.open_pull_request()
    await deployer.worker.handle(world.command(number))
    world.chart_name, world.values = "other", {"changed": True}
    before = len(world.cluster.journal)
    again = world.command(number)
    await deployer.worker.handle(again)
    assert (world.state(again), world.request(again).reason) == (RequestState.FAILED, Reason.NAMESPACE_FOREIGN)
    assert "made from the chart hello" in world.request(again).error
    assert len(world.cluster.journal) == before
    await deployer.worker.handle(world.close(number))
    assert world.cluster.namespaces == {}
