"""The sweeper's rules over the fakes: what was lost is found, what should not stand is removed, and nothing rightful is touched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import patch

import pytest

from prevue.errors import GitHubUnavailable
from prevue.github.comments import RefusalReason, acknowledgement, refusal
from prevue.github.port import Comment as FoundComment
from prevue.lifecycle import Reason
from prevue.model import Message, PreviewState, RequestState, Source, comment_marker
from prevue.statestore.rules import VERIFIED
from prevue.sweeper.alarms import raise_tokens_above_cluster
from prevue.sweeper.outbox import LANE_SECONDS
from prevue.sweeper.repositories import KNOWN_SECONDS, RETRY_SECONDS
from prevue.sweeper.run import Rule, Sweeper
from prevue.testing.clock import FakeClock
from prevue.testing.cluster import FakeCluster
from prevue.testing.cluster import Rule as ClusterRule
from prevue.testing.github.records import DeliveryResponse, Fault
from prevue.testing.statestore_disk import RequestRow
from prevue.testing.world import REPO, FakeDeployer, World, eventually


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


async def carry_out(world: World, deployer: FakeDeployer) -> list[Message]:
    """Handle what is in the queue, oldest first, and settle it."""
    messages = world.queue.messages()
    for message in messages:
        await deployer.worker.handle(message)
    world.queue.entries.clear()
    return messages


async def deployed(world: World, deployer: FakeDeployer) -> Message:
    message = world.command(world.open_pull_request())
    await deployer.worker.handle(message)
    assert world.state(message) is RequestState.DEPLOYED
    return message


def answer_deliveries(world: World, status: int) -> None:
    """What the App answered to every delivery that is on its way."""
    for delivery in world.github.webhooks.take():
        response = DeliveryResponse(status_code=status, headers={}, payload="", duration_seconds=0.1, error="" if status else "refused")
        world.github.webhooks.record_response(delivery, response)


# -- rule 2: closed pull requests ------------------------------------------------------------------------------------------------------


async def test_close_that_no_delivery_brought_is_carried_out_once(world: World, deployer: FakeDeployer) -> None:
    message = await deployed(world, deployer)
    assert await deployer.rule("closed") == 0
    real = world.close(message.pr_number)
    assert await deployer.rule("closed") == 1
    (close,) = await carry_out(world, deployer)
    assert (close.effective_source, close.effective_source_id, close.order) == (Source.CLOSE, real.source_id, real.order)
    assert world.store.previews[message.key].state is PreviewState.DESTROYED
    await deployer.worker.handle(real)
    assert len(world.store.requests) == 2
    assert await deployer.rule("closed") == 0
    await deployer.drainer.drain()
    assert "Preview removed" in world.our_comments(message.pr_number)[-1].body


async def test_open_pull_requests_cost_one_list_a_repository(world: World, deployer: FakeDeployer) -> None:
    for _ in range(3):
        await deployed(world, deployer)
    await deployer.rule("closed")
    before = world.github.requests_answered
    await deployer.rule("closed")
    assert world.github.requests_answered == before + 1


async def test_repository_that_cannot_be_read_closes_nothing(world: World, deployer: FakeDeployer) -> None:
    message = await deployed(world, deployer)
    world.close(message.pr_number)
    world.github.faults.append(Fault(path="/repos", status=503, times=1))
    assert await deployer.rule("closed") == 0
    assert await deployer.rule("closed") == 1


async def test_row_that_never_began_ends_too_where_its_close_is_over(world: World, deployer: FakeDeployer) -> None:
    """The close ended as superseded, its newer command as rejected: rule 3 finds no namespace, and GitHub would be asked for ever."""
    pr_number = world.open_pull_request()
    message = world.command(pr_number)
    world.github.set_permission(REPO, "writer", "read")
    await deployer.worker.handle(message)
    await deployer.drainer.drain()
    told = [comment.body for comment in world.our_comments(pr_number)]
    assert world.store.previews[message.key].state is PreviewState.REQUESTED
    close, now = world.close(pr_number), world.clock.now()
    world.store.requests[99] = RequestRow(99, close, now, now, state=RequestState.SUPERSEDED)
    assert await deployer.rule("closed") == 1
    (sweep,) = await carry_out(world, deployer)
    assert (sweep.effective_source, world.state(sweep)) == (Source.SWEEP, RequestState.DESTROYED)
    assert world.store.previews[message.key].state is PreviewState.DESTROYED
    assert await deployer.rule("closed") == 0
    await deployer.drainer.drain()
    assert [comment.body for comment in world.our_comments(pr_number)] == told


# -- rule 3: orphans -------------------------------------------------------------------------------------------------------------------


async def test_rightful_namespaces_are_left_alone(world: World, deployer: FakeDeployer) -> None:
    await deployed(world, deployer)
    assert await deployer.rule("orphans") == 0
    assert world.queue.entries == []


async def test_namespace_after_a_teardown_is_removed(world: World, deployer: FakeDeployer) -> None:
    """A worker that was stopped before step 3 goes on and makes an empty namespace: the tombstone stands, and nothing else would look."""
    message = await deployed(world, deployer)
    await deployer.worker.handle(world.close(message.pr_number))
    world.cluster.add_namespace(world.store.previews[message.key].namespace, key=message.key, fence=1)
    assert await deployer.rule("orphans") == 1
    (sweep,) = await carry_out(world, deployer)
    assert sweep.effective_source is Source.SWEEP
    assert world.state(sweep) is RequestState.DESTROYED
    assert world.cluster.namespaces == {}
    assert await deployer.rule("orphans") == 0


async def test_second_orphan_of_the_same_tombstone_is_removed_too(world: World, deployer: FakeDeployer) -> None:
    message = await deployed(world, deployer)
    await deployer.worker.handle(world.close(message.pr_number))
    for _ in range(2):
        world.cluster.add_namespace(world.store.previews[message.key].namespace, key=message.key, fence=1)
        assert await deployer.rule("orphans") == 1
        await carry_out(world, deployer)
        assert world.cluster.namespaces == {}


async def test_namespace_of_a_closed_pull_request_whose_close_is_over_is_removed(world: World, deployer: FakeDeployer) -> None:
    """The close ended as superseded, its newer command died: rule 2 finds its request done, rule 3 finds the namespace."""
    message = await deployed(world, deployer)
    close = world.close(message.pr_number)
    now = world.clock.now()
    world.store.requests[99] = RequestRow(99, close, now, now, state=RequestState.SUPERSEDED)
    assert await deployer.rule("closed") == 0
    assert await deployer.rule("orphans") == 1
    await carry_out(world, deployer)
    assert world.cluster.namespaces == {}
    assert world.store.previews[message.key].state is PreviewState.DESTROYED


async def test_close_that_was_never_seen_goes_before_the_sweep(world: World, deployer: FakeDeployer) -> None:
    """A sweep says nothing: whichever rule looks first, the pull request hears that its preview was removed."""
    message = await deployed(world, deployer)
    close = world.close(message.pr_number)
    assert await deployer.rule("orphans") == 1
    assert [one.effective_source for one in await carry_out(world, deployer)] == [Source.CLOSE]
    assert world.state(close) is RequestState.DESTROYED
    await deployer.drainer.drain()
    assert "Preview removed" in world.our_comments(message.pr_number)[-1].body


async def test_lost_row_is_known_by_the_namespace(world: World, deployer: FakeDeployer) -> None:
    message = await deployed(world, deployer)
    world.store.previews.clear()
    world.store.requests.clear()
    assert await deployer.rule("orphans") == 1
    (sweep,) = await carry_out(world, deployer)
    assert world.state(sweep) is RequestState.DESTROYED
    assert world.cluster.namespaces == {}
    await deployer.worker.handle(world.command(message.pr_number))
    assert world.store.previews[message.key].state is PreviewState.READY


async def test_namespace_of_another_prevue_is_left_alone(world: World, deployer: FakeDeployer) -> None:
    """Same cluster, other database: its repository is none of our App's."""
    message = world.command(world.open_pull_request())
    other = message.key._replace(repository_id=999_999)
    world.cluster.add_namespace("pv-other-1", key=other, fence=1)
    assert await deployer.rule("orphans") == 0
    assert await deployer.rule("orphans") == 0


async def test_busy_preview_is_no_orphan(world: World, deployer: FakeDeployer) -> None:
    message = await deployed(world, deployer)
    world.close(message.pr_number)
    await deployer.store.register_and_claim(world.command(message.pr_number), holder="another")
    assert await deployer.rule("orphans") == 0


async def test_sweep_superseded_by_a_command_that_came_meanwhile(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    message = await deployed(world, deployer)
    world.close(message.pr_number)
    await deployer.rule("orphans")
    clock.advance(2)
    world.github.reopen_pull_request(REPO, message.pr_number)
    command = world.command(message.pr_number)
    await deployer.worker.handle(command)
    (sweep,) = await carry_out(world, deployer)
    assert world.state(sweep) is RequestState.SUPERSEDED
    assert world.store.previews[message.key].state is PreviewState.READY


async def test_namespace_whose_sweep_was_superseded_is_asked_for_again(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    """A command that was read as if the pull request were open supersedes the sweep, and dies: the same namespace stands on."""
    message = await deployed(world, deployer)
    close = world.close(message.pr_number)
    now = world.clock.now()
    world.store.requests[99] = RequestRow(99, close, now, now, state=RequestState.SUPERSEDED)
    assert await deployer.rule("orphans") == 1
    clock.advance(2)
    late = world.command(message.pr_number)
    world.store.requests[98] = RequestRow(98, late, now, now, attempts=1000)
    await deployer.worker.handle(late)
    assert world.state(late) is RequestState.DEAD
    (sweep,) = await carry_out(world, deployer)
    assert world.state(sweep) is RequestState.SUPERSEDED
    assert await deployer.rule("orphans") == 1
    await carry_out(world, deployer)
    assert world.cluster.namespaces == {}


# -- rule 5: expiry --------------------------------------------------------------------------------------------------------------------


async def test_preview_expires_and_comes_back_and_expires_again(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    world.ttl_seconds = 100
    message = await deployed(world, deployer)
    for _ in range(2):
        assert await deployer.rule("expiry") == 0
        clock.advance(101)
        assert await deployer.rule("expiry") == 1
        assert await deployer.rule("expiry") == 1  # not registered yet: the queue knows it
        assert len(world.queue.entries) == 1
        (expiry,) = await carry_out(world, deployer)
        assert (world.state(expiry), world.request(expiry).reason) == (RequestState.DESTROYED, Reason.EXPIRED)
        assert world.cluster.namespaces == {}
        assert await deployer.rule("expiry") == 0
        await deployer.worker.handle(world.command(message.pr_number))
        assert world.store.previews[message.key].state is PreviewState.READY


async def test_what_a_failed_deploy_left_expires_too(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    world.ttl_seconds = 100
    world.cluster.fail_ready("crash loop")
    message = world.command(world.open_pull_request())
    await deployer.worker.handle(message)
    assert world.store.previews[message.key].state is PreviewState.FAILED
    clock.advance(101)
    assert await deployer.rule("expiry") == 1
    await carry_out(world, deployer)
    assert world.cluster.namespaces == {}


# -- rule 2: failed deliveries -----------------------------------------------------------------------------------------------------------


async def test_failed_delivery_is_sent_again_until_one_succeeds(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    number = world.open_pull_request()
    answer_deliveries(world, 202)
    world.command(number)
    answer_deliveries(world, 503)
    (failed,) = [one for one in world.github.webhooks.log() if one.event == "issue_comment"]
    assert await deployer.rule("deliveries") == 0  # a moment's patience
    clock.advance(16)
    assert await deployer.rule("deliveries") == 1
    assert await deployer.rule("deliveries") == 0  # on its way
    (again,) = world.github.webhooks.take()
    assert (again.guid, again.redelivery) == (failed.guid, True)
    world.github.webhooks.record_response(again, DeliveryResponse(status_code=202, headers={}, payload="", duration_seconds=0.1))
    clock.advance(1000)
    assert await deployer.rule("deliveries") == 0
    assert world.store.cursors["deliveries"] == str(again.id)


async def test_deliveries_that_ask_for_nothing_are_not_sent_again(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    number = world.open_pull_request()
    world.github.push(REPO, number)
    answer_deliveries(world, 503)
    clock.advance(1000)
    assert await deployer.rule("deliveries") == 0


async def test_app_that_is_down_is_asked_ever_more_rarely_and_at_once_when_it_is_back(
    world: World, deployer: FakeDeployer, clock: FakeClock
) -> None:
    number = world.open_pull_request()
    for _ in range(3):
        world.command(number)
    answer_deliveries(world, 0)
    tries = 0
    for _ in range(60):
        clock.advance(30)
        tries += await deployer.rule("deliveries")
        answer_deliveries(world, 0)
    assert 15 <= tries <= 27  # three commands, half an hour: 15, 30, 60, … seconds apart, then every ten minutes
    world.github.push(REPO, number)
    clock.advance(1)
    answer_deliveries(world, 202)
    assert await deployer.rule("deliveries") == 3


async def test_delivery_that_is_refused_for_ever_is_given_up(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    world.command(world.open_pull_request())
    answer_deliveries(world, 401)
    tries = 0
    for _ in range(40):
        clock.advance(601)
        tries += await deployer.rule("deliveries")
        answer_deliveries(world, 401)
    assert tries == 11


async def test_cursor_stays_before_what_is_not_settled(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    number = world.open_pull_request()
    answer_deliveries(world, 202)
    world.command(number)
    answer_deliveries(world, 503)
    world.github.push(REPO, number)
    answer_deliveries(world, 200)
    clock.advance(60)
    await deployer.rule("deliveries")
    (failed, *_) = [one for one in reversed(world.github.webhooks.log()) if one.event == "issue_comment"]
    assert int(world.store.cursors["deliveries"]) < failed.id
    async with world.deployer("two") as other:  # another process goes on where this one was
        clock.advance(1000)
        assert await other.rule("deliveries") == 1


# -- rule 2: the scan of comments --------------------------------------------------------------------------------------------------------


async def test_command_that_no_delivery_brought_is_carried_out_once(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    number = world.open_pull_request()
    command = world.command(number)
    assert await deployer.rule("comments") == 0  # its webhook may be on its way
    clock.advance(30)
    assert await deployer.rule("comments") == 1
    (found,) = await carry_out(world, deployer)
    assert (found.key, found.effective_source_id, found.order) == (command.key, command.effective_source_id, command.order)
    assert (found.commit_sha, found.requested_by) == (command.commit_sha, "writer")
    assert world.state(command) is RequestState.DEPLOYED
    await deployer.worker.handle(command)
    clock.advance(30)
    assert await deployer.rule("comments") == 0
    assert len(world.store.requests) == 1


async def test_scan_sees_what_the_app_would_see(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    number = world.open_pull_request()
    issue = world.github.open_issue(REPO, "writer").number
    world.github.comment(REPO, issue, "writer", "/preview")
    for body in ("> /preview", "```\n/preview\n```", "/preview later", "please"):
        world.github.comment(REPO, number, "writer", body)
    world.github.comment(REPO, number, "helper[bot]", "/preview")
    comment = world.github.comment(REPO, number, "writer", "hello")
    clock.advance(2)
    world.github.edit_comment(REPO, comment.id, "/preview")
    clock.advance(30)
    assert await deployer.rule("comments") == 0
    assert world.queue.entries == []


async def test_refused_command_is_told_once_and_not_asked_about_again(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    number = world.open_pull_request()
    world.command(number, user="reader")
    clock.advance(30)
    assert await deployer.rule("comments") == 0
    await eventually(lambda: len(world.our_comments(number)) == 1)
    assert "needs write access" in world.our_comments(number)[0].body
    before = world.github.requests_answered
    assert await deployer.rule("comments") == 0
    assert world.github.requests_answered == before + 1  # the list alone
    assert world.queue.entries == []


async def test_two_apps_that_refuse_one_command_at_once_leave_one_refusal(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    number = world.open_pull_request()
    command = world.command(number, user="reader")
    marker = comment_marker(command.key, Source.COMMENT, command.source_id)
    body = refusal(marker=marker, requested_by="reader", reason=RefusalReason.PERMISSION, detail="read")
    repository, issue, _ = world.github.pull(REPO, number)
    first = world.github.write_comment(repository, issue, world.github.app.bot, body, via_app=True)
    world.github.write_comment(repository, issue, world.github.app.bot, body, via_app=True)
    quoted = world.github.comment(REPO, number, "helper[bot]", body)
    clock.advance(60)
    assert await deployer.rule("comments") == 0
    assert [comment.id for comment in world.our_comments(number)] == [first.id, quoted.id]
    before = world.github.requests_answered
    assert await deployer.rule("comments") == 0
    assert world.github.requests_answered == before + 1  # the list alone


async def test_command_that_was_refused_does_not_come_back_when_its_asker_may(
    world: World, deployer: FakeDeployer, clock: FakeClock
) -> None:
    """Another process told the refusal: its comment is all that is known of it here."""
    number = world.open_pull_request()
    command = world.command(number, user="reader")
    body = refusal(
        marker=comment_marker(command.key, Source.COMMENT, command.source_id),
        requested_by="reader",
        reason=RefusalReason.PERMISSION,
        detail="read",
    )
    repository, issue, _ = world.github.pull(REPO, number)
    world.github.write_comment(repository, issue, world.github.app.bot, body, via_app=True)
    world.github.set_permission(REPO, "reader", "write")
    clock.advance(60)
    assert await deployer.rule("comments") == 0
    assert world.queue.messages() == []


async def test_command_is_found_again_where_github_did_not_answer(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    number = world.open_pull_request()
    world.command(number)
    clock.advance(30)
    world.github.faults.append(Fault(path=f"/repos/{REPO}/collaborators", status=503, times=1))
    assert await deployer.rule("comments") == 0
    clock.advance(3600)
    assert await deployer.rule("comments") == 1


@pytest.mark.parametrize("status", [404, 500])
async def test_installation_that_does_not_answer_once_is_asked_again_soon(
    world: World, deployer: FakeDeployer, clock: FakeClock, status: int
) -> None:
    """A short list was once taken for the whole one, and kept for five minutes (simulation, seed 15163)."""
    world.command(world.open_pull_request())
    clock.advance(30)
    refuse_lists(world, status)
    with pytest.raises(GitHubUnavailable, match="installations do not answer"):
        await deployer.rule("comments")
    world.github.faults.clear()
    clock.advance(RETRY_SECONDS)
    assert await deployer.rule("comments") == 1


async def test_installation_that_does_not_answer_keeps_what_was_known_of_it(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    assert await deployer.rule("comments") == 0
    world.command(world.open_pull_request())
    clock.advance(KNOWN_SECONDS)
    refuse_lists(world, 403)
    assert await deployer.rule("comments") == 1


def refuse_lists(world: World, status: int) -> None:
    world.github.faults.append(Fault(path="/installation/repositories", status=status, times=100))


async def test_commands_of_before_the_first_scan_are_not_carried_out(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    world.command(world.open_pull_request())
    clock.advance(3600)
    assert await deployer.rule("comments") == 0


async def test_commands_that_a_restored_database_lost_are_found_again(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    number = world.open_pull_request()
    clock.advance(30)
    await deployer.rule("comments")
    dump = dict(world.store.cursors)
    command = world.command(number)
    clock.advance(30)
    assert await deployer.rule("comments") == 1
    await carry_out(world, deployer)
    clock.advance(600)
    await deployer.rule("comments")
    world.store.requests.clear()
    world.store.previews.clear()
    world.store.cursors = dump
    assert await deployer.rule("comments") == 1
    await carry_out(world, deployer)
    assert world.state(command) is RequestState.DEPLOYED


# -- without a webhook address ---------------------------------------------------------------------------------------------------------


async def test_deliveries_are_carried_without_an_address(world: World, clock: FakeClock) -> None:
    number = world.open_pull_request()
    command = world.command(number)
    answer_deliveries(world, 0)
    async with world.deployer(poll_deliveries=True) as deployer:
        assert await deployer.rule("poll-deliveries") == 1
        assert await deployer.rule("poll-deliveries") == 0
        (message,) = await carry_out(world, deployer)
        assert (message.key, message.effective_source_id, message.order) == (command.key, command.effective_source_id, command.order)
        await eventually(lambda: len(world.our_comments(number)) == 1)  # acknowledged as by the App
        close = world.close(number)
        answer_deliveries(world, 0)
        assert await deployer.rule("poll-deliveries") == 1
        await carry_out(world, deployer)
        assert world.state(close) is RequestState.DESTROYED


async def test_poll_waits_where_the_queue_is_down(world: World) -> None:
    number = world.open_pull_request()
    world.command(number)
    answer_deliveries(world, 0)
    async with world.deployer(poll_deliveries=True) as deployer:
        world.queue.outage = True
        assert await deployer.rule("poll-deliveries") == 0
        world.queue.outage = False
        assert await deployer.rule("poll-deliveries") == 1


# -- rule 6 and restores -----------------------------------------------------------------------------------------------------------------


async def test_tokens_are_raised_above_the_cluster_after_a_restore(world: World, deployer: FakeDeployer) -> None:
    message = await deployed(world, deployer)
    world.cluster.set_fence(world.cluster.namespaces[world.store.previews[message.key].namespace], 77)
    assert await deployer.rule("alarms") == 1
    assert world.store.last_token > 77
    assert await deployer.rule("alarms") == 0
    again = world.command(message.pr_number)
    world.values = {"changed": True}
    await deployer.worker.handle(again)
    assert world.state(again) is RequestState.DEPLOYED


async def test_start_gives_out_no_token_that_a_restore_may_have_lost(world: World, deployer: FakeDeployer) -> None:
    """Claims of the lost time whose namespaces are gone left no annotation: nothing shows that there were any."""
    message = await deployed(world, deployer)
    kept = world.store.last_token
    other = await deployed(world, deployer)
    await deployer.worker.handle(world.close(other.pr_number))
    lost = world.store.last_token
    world.store.last_token = kept
    cluster = FakeCluster(world.cluster)
    assert await cluster.highest_fence() <= kept
    await raise_tokens_above_cluster(deployer.store, cluster)
    world.values = {"changed": True}
    again = world.command(message.pr_number)
    await deployer.worker.handle(again)
    assert (world.request(again).token or 0) > lost


async def test_request_that_is_open_for_too_long_is_an_alarm(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    await deployer.store.register_and_claim(world.command(world.open_pull_request()), holder="gone")
    assert await deployer.rule("alarms") == 0
    clock.advance(3601)
    assert await deployer.rule("alarms") == 1


# -- the lease ---------------------------------------------------------------------------------------------------------------------------


async def test_one_sweeper_is_active_and_another_takes_over(tmp_path: Path) -> None:
    world = World(key_file=tmp_path / "key.pem")
    async with world.deployer("one") as one, world.deployer("two") as two:
        one.start()
        await eventually(lambda: one.rules.is_active)
        two.start()
        await asyncio.sleep(0.3)
        assert not two.rules.is_active
        await one.crash()
        await eventually(lambda: two.rules.is_active, seconds=10)
        await two.shut_down()
        assert "sweeper" not in world.store.leases


async def test_rule_that_fails_stops_no_other_and_is_tried_again(tmp_path: Path) -> None:
    world = World(key_file=tmp_path / "key.pem")
    async with world.deployer() as deployer:
        number = world.open_pull_request()
        message = world.command(number)
        await deployer.worker.handle(message)
        world.github.close_pull_request(REPO, number)
        world.cluster.rules.append(ClusterRule(what="unavailable", times=2))
        deployer.start()
        await eventually(lambda: world.cluster.namespaces == {})


async def test_stop_ends_rules_whose_turns_do_not_wait(world: World, deployer: FakeDeployer) -> None:
    """GitHub's cached error, say, is raised without an await: the rule must not keep the loop for itself."""

    async def at_once() -> int:
        return 0

    stop = asyncio.Event()
    rule = Rule(name="at-once", interval_seconds=0.01, sweep=at_once)
    running = asyncio.create_task(Sweeper(holder="one", leases=deployer.store, rules=[rule], lease_seconds=0.3).run(stop))
    await asyncio.sleep(0.05)
    stop.set()
    await asyncio.wait_for(running, 2)


# -- rule 4: the outbox ----------------------------------------------------------------------------------------------------------------


async def test_text_that_was_read_is_not_written_after_the_lanes_lease(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    """A drainer is stopped between its reading and its PATCH; meanwhile another writes the outcome, and verifies it."""
    message = world.command(world.open_pull_request())
    clock.advance(10)
    async with world.deployer("slow") as slow:
        find = slow.github.find_comments

        async def stopped(*where: int | str, marker: str) -> list[FoundComment]:
            with patch.object(slow.github, "find_comments", find):
                await deployer.worker.handle(message)
                clock.advance(LANE_SECONDS)
                await deployer.drainer.drain()
                clock.advance(world.limits.verify_after_seconds + LANE_SECONDS)
                await deployer.drainer.drain()
            return await find(*where, marker=marker)  # type: ignore[arg-type]

        await slow.store.register_and_claim(message, holder="crashed")
        clock.advance(world.limits.lease_seconds + 10)
        with patch.object(slow.github, "find_comments", stopped):
            await slow.drainer.drain()
    (told,) = world.our_comments(message.pr_number)
    assert "Preview ready" in told.body


async def test_late_write_of_a_dead_drainer_is_mended(world: World, deployer: FakeDeployer, clock: FakeClock) -> None:
    """It was stopped behind its last check, for longer than the verify pass waits; then it wrote, and never came to mark it."""
    message = await deployed(world, deployer)
    await deployer.drainer.drain()
    clock.advance(60)
    await deployer.drainer.drain()
    (told,) = world.our_comments(message.pr_number)
    ready = told.body
    marker = comment_marker(message.key, Source.COMMENT, message.source_id)
    clock.advance(60)
    old = acknowledgement(marker=marker, commit_sha=message.commit_sha, requested_by="writer", repo=REPO)
    world.github.edit_comment(REPO, told.id, old)
    clock.advance(60)
    await deployer.rule("comments")
    await deployer.drainer.drain()
    assert [comment.body for comment in world.our_comments(message.pr_number)] == [ready]
    for _ in range(2):  # the verify that mended ended within the clocks' margin of its own write: one more, and then no other
        clock.advance(60)
        await deployer.rule("comments")
        await deployer.drainer.drain()
    verified = [row for row in world.store.ledger if row.event == VERIFIED]
    assert len(verified) == 3
