"""The other half of the statestore's contract: outbox, sweeper and reader. Subclass `OutboxContract` with a fixture `harness`."""
# ruff: noqa: S101 (these are tests: they assert)

from __future__ import annotations

import asyncio

import pytest

from prevue import lifecycle
from prevue.lifecycle import Reason
from prevue.model import Action, PreviewState, RequestState, Source
from prevue.statestore.port import InProgress, Superseded
from prevue.testing.contracts.statestore_harness import (
    DEADLINE_SECONDS,
    INSTALLATION,
    LEASE_SECONDS,
    LIMITS,
    StateStoreHarness,
    Store,
    claim_of,
    close,
    command,
    due_items,
    live_of,
)

TORN_DOWN = lifecycle.torn_down(RequestState.DESTROYED, Reason.TORN_DOWN, tell=True)


async def deploy(store: Store, number: int, *, pr_number: int = 1) -> None:
    """A command that is carried out, and told."""
    claim = await claim_of(store, command(number, pr_number=pr_number))
    await store.begin(claim, preview_state=PreviewState.DEPLOYING, deadline_seconds=DEADLINE_SECONDS)
    await store.finish(claim, lifecycle.deployed(live_of(claim), f"http://{number}"))


async def tell_all(store: Store) -> None:
    """Send whatever is due."""
    for item in await due_items(store):
        await store.sent(item, comment_id=99)


class OutboxContract:
    """To be subclassed with a fixture `harness`."""

    # -- which rows are written --------------------------------------------------------------------------------------------------------

    async def test_acknowledgement_of_a_new_command_is_due_later(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            await claim_of(store, command(1))
            assert await store.register_and_claim(command(2), holder="worker-2") == InProgress()
            assert await due_items(store) == []
            seconds = await store.seconds_until_due()
            assert seconds is not None
            assert 0 < seconds <= LIMITS.acknowledge_after_seconds
            await harness.let_time_pass(LIMITS.acknowledge_after_seconds + 1)
            assert await store.due_installations() == [INSTALLATION]
            items = await due_items(store)
            assert [(item.notice.comment_id, item.notice.state, item.version) for item in items] == [
                (1, RequestState.CLAIMED, 1),
                (2, RequestState.WAITING, 1),
            ]

    async def test_repeat_adds_no_acknowledgement(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await claim_of(store, close(1))
            await store.give_back(claim, delay=0, counted=True, error="")
            await claim_of(store, close(1))
            await harness.let_time_pass(60)
            assert await due_items(store) == []

    async def test_outcome_is_a_newer_version_of_the_same_row(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            await harness.let_time_pass(LIMITS.acknowledge_after_seconds + 1)
            [acknowledgement] = await due_items(store)
            await store.sent(acknowledgement, comment_id=55)
            assert await due_items(store) == []
            await store.begin(claim, preview_state=PreviewState.DEPLOYING, deadline_seconds=DEADLINE_SECONDS)
            await store.finish(claim, lifecycle.deployed(live_of(claim), "http://one"))
            [outcome] = await due_items(store)
            assert (outcome.kind, outcome.version, outcome.known_comment_id) == (acknowledgement.kind, 2, 55)
            assert outcome.is_verify is False
            notice = outcome.notice
            assert (notice.state, notice.reason, notice.url) == (RequestState.DEPLOYED, "ready", "http://one")
            assert (notice.attempts, notice.repo, notice.requested_by) == (1, "acme/hello", "writer")

    async def test_superseded_command_is_told_at_once_with_the_newer_commit(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            await claim_of(store, command(2))
            assert await store.register_and_claim(command(1), holder="worker-2") == Superseded()
            [item] = await due_items(store)
            assert (item.notice.comment_id, item.notice.state, item.version) == (1, RequestState.SUPERSEDED, 1)
            assert (item.notice.reason, item.notice.superseded_by_sha) == ("newer_request", command(2).commit_sha)

    async def test_superseded_command_is_told_the_same_when_a_still_newer_one_comes(self, harness: StateStoreHarness) -> None:
        """Else each verify pass, long after, would change what stands there."""
        async with harness.open() as store:
            await claim_of(store, command(2))
            assert await store.register_and_claim(command(1), holder="worker-2") == Superseded()
            await harness.let_time_pass(1)
            assert await store.register_and_claim(command(3), holder="worker-3") == InProgress()
            told = {item.notice.comment_id: item.notice for item in await due_items(store)}
            assert told[1].superseded_by_sha == command(2).commit_sha

    async def test_command_on_a_closed_pull_request_names_no_newer_commit(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            finish = lifecycle.torn_down(RequestState.SUPERSEDED, Reason.PULL_REQUEST_CLOSED, tell=True)
            await store.finish(claim, finish)
            [item] = await due_items(store)
            assert (item.notice.reason, item.notice.superseded_by_sha) == ("pull_request_closed", "")

    async def test_superseded_close_is_silent(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            await deploy(store, 2)
            await tell_all(store)
            assert await store.register_and_claim(close(1), holder="worker-1") == Superseded()
            held = await claim_of(store, close(3))
            await store.register_and_claim(command(4), holder="worker-2")
            await store.finish(held, lifecycle.superseded())
            await harness.let_time_pass(10)
            assert [item.notice.comment_id for item in await due_items(store)] == [4]

    async def test_destroy_of_a_preview_that_never_began_is_silent(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await claim_of(store, close(1))
            await store.finish(claim, lifecycle.torn_down(RequestState.DESTROYED, Reason.NOTHING_TO_DESTROY, tell=True))
            assert await store.due_installations() == []
            assert await store.seconds_until_due() is None
            view = await store.preview("acme/hello", 1)
            assert view is not None
            assert view.state == "destroyed"

    async def test_destroy_of_a_preview_is_told(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            await deploy(store, 1)
            await tell_all(store)
            claim = await claim_of(store, close(2))
            await store.begin(claim, preview_state=PreviewState.DESTROYING, deadline_seconds=DEADLINE_SECONDS)
            await store.finish(claim, TORN_DOWN)
            [item] = await due_items(store)
            assert (item.notice.action, item.notice.state) == (Action.DESTROY, RequestState.DESTROYED)

    async def test_sweep_is_silent(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            await deploy(store, 1)
            await tell_all(store)
            await store.finish(await claim_of(store, close(2, source=Source.SWEEP, source_id="uid @ order")), TORN_DOWN)
            assert await due_items(store) == []

    async def test_finish_may_be_silent(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            await deploy(store, 1)
            await tell_all(store)
            await store.finish(await claim_of(store, close(2)), lifecycle.torn_down(RequestState.DESTROYED, Reason.TORN_DOWN, tell=False))
            assert await due_items(store) == []

    async def test_stale_finish_tells_nothing(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            old = await claim_of(store, command(1))
            await harness.let_time_pass(LEASE_SECONDS + 1)
            await claim_of(store, command(1))
            with pytest.raises(Exception, match="token"):
                await store.finish(old, lifecycle.failed(Reason.NOT_READY, "stale", began=True))
            assert [item.version for item in await due_items(store)] == [1]

    # -- sending and verifying ---------------------------------------------------------------------------------------------------------

    async def test_outcomes_come_before_acknowledgements_then_the_oldest(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            await claim_of(store, command(1, pr_number=1))
            await harness.let_time_pass(10)
            for number in (2, 3):
                await deploy(store, number, pr_number=number)
            items = await due_items(store)
            assert [item.notice.comment_id for item in items] == [2, 3, 1]
            assert [item.notice.comment_id for item in await due_items(store, limit=2)] == [2, 3]

    async def test_sent_row_is_verified_once(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            await deploy(store, 1)
            await tell_all(store)
            assert await due_items(store) == []
            await harness.let_time_pass(LIMITS.verify_after_seconds + 1)
            assert await store.due_installations() == [INSTALLATION]
            [item] = await due_items(store)
            assert (item.is_verify, item.known_comment_id) == (True, 99)
            await store.sent(item, comment_id=100)
            await harness.let_time_pass(1000)
            assert await due_items(store) == []
            assert await store.seconds_until_due() is None

    async def test_verification_comes_after_what_is_to_be_sent(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            await deploy(store, 1)
            await tell_all(store)
            await harness.let_time_pass(LIMITS.verify_after_seconds + 1)
            await deploy(store, 2, pr_number=2)
            items = await due_items(store)
            assert [(item.notice.comment_id, item.is_verify) for item in items] == [(2, False), (1, True)]
            assert [item.notice.comment_id for item in await due_items(store, limit=1)] == [2]

    async def test_version_that_came_meanwhile_is_still_sent(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            await harness.let_time_pass(10)
            [acknowledgement] = await due_items(store)
            await store.finish(claim, lifecycle.rejected(Reason.PERMISSION_LOST, "no"))
            await store.sent(acknowledgement, comment_id=55)
            [outcome] = await due_items(store)
            assert (outcome.version, outcome.is_verify, outcome.known_comment_id) == (2, False, 55)
            await store.sent(outcome, comment_id=55)
            await store.sent(acknowledgement, comment_id=54)  # a drainer that was overtaken
            assert await due_items(store) == []
            await harness.let_time_pass(LIMITS.verify_after_seconds + 1)
            [verify] = await due_items(store)
            assert (verify.version, verify.known_comment_id) == (2, 55)

    async def test_verification_that_was_overtaken_ends_nothing(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            await harness.let_time_pass(10)
            await tell_all(store)
            await harness.let_time_pass(LIMITS.verify_after_seconds + 1)
            [verify] = await due_items(store)
            again = await claim_of(store, command(1))
            assert again.token > claim.token
            await store.finish(again, lifecycle.rejected(Reason.PERMISSION_LOST, "no"))
            await store.sent(verify, comment_id=55)
            [outcome] = await due_items(store)
            assert (outcome.version, outcome.is_verify) == (2, False)
            await store.sent(outcome, comment_id=55)
            await store.sent(verify, comment_id=54)  # and once more, after the newer text was sent
            await harness.let_time_pass(LIMITS.verify_after_seconds + 1)
            assert [item.is_verify for item in await due_items(store)] == [True]

    async def test_postponed_row_is_due_later_and_never_given_up(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            await deploy(store, 1)
            for _ in range(20):
                [item] = await due_items(store)
                await store.postpone(item, delay=100, error="GitHub is down")
                assert await due_items(store) == []
                await harness.let_time_pass(101)
            await tell_all(store)
            await harness.let_time_pass(LIMITS.verify_after_seconds + 1)
            [verify] = await due_items(store)
            await store.postpone(verify, delay=100, error="GitHub is down")
            assert await due_items(store) == []
            await harness.let_time_pass(101)
            assert [item.is_verify for item in await due_items(store)] == [True]

    async def test_newer_version_is_not_postponed_with_an_older_one(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            await harness.let_time_pass(10)
            [acknowledgement] = await due_items(store)
            await store.finish(claim, lifecycle.rejected(Reason.PERMISSION_LOST, "no"))
            await store.postpone(acknowledgement, delay=100, error="GitHub is down")
            assert [item.version for item in await due_items(store)] == [2]

    # -- lanes and the budget of writes ------------------------------------------------------------------------------------------------

    async def test_lane_has_one_holder(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            holders = [f"drainer-{number}" for number in range(10)]
            taken = await asyncio.gather(*(store.acquire_lane(1, holder=holder, seconds=30) for holder in holders))
            assert sum(taken) == 1
            owner = holders[taken.index(True)]
            other = holders[taken.index(False)]
            assert await store.acquire_lane(1, holder=owner, seconds=30)
            assert await store.acquire_lane(2, holder=other, seconds=30)
            await store.release_lane(1, holder=other)
            assert not await store.acquire_lane(1, holder=other, seconds=30)
            await store.release_lane(1, holder=owner)
            assert await store.acquire_lane(1, holder=other, seconds=30)
            await harness.let_time_pass(31)
            assert await store.acquire_lane(1, holder=owner, seconds=30)

    async def test_writes_stay_within_both_limits(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            for _ in range(2):
                assert await store.reserve_write(1, per_minute=2, per_hour=3) == 0
            wait = await store.reserve_write(1, per_minute=2, per_hour=3)
            assert 50 < wait <= 60
            assert await store.reserve_write(2, per_minute=2, per_hour=3) == 0
            await harness.let_time_pass(61)
            assert await store.reserve_write(1, per_minute=2, per_hour=3) == 0
            wait = await store.reserve_write(1, per_minute=2, per_hour=3)
            assert 3400 < wait <= 3540
            await harness.let_time_pass(3600)
            assert await store.reserve_write(1, per_minute=2, per_hour=3) == 0

    async def test_writes_reserved_at_once_never_exceed_the_limit(self, harness: StateStoreHarness) -> None:
        async with harness.open() as first, harness.open() as second:
            calls = [store.reserve_write(1, per_minute=5, per_hour=100) for store in (first, second) for _ in range(10)]
            assert sorted(await asyncio.gather(*calls))[:6].count(0) == 5

    # -- sweeper: rule 1 ---------------------------------------------------------------------------------------------------------------

    async def test_request_of_a_dead_worker_is_unheld_after_lease_and_deadline(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            await store.begin(claim, preview_state=PreviewState.DEPLOYING, deadline_seconds=DEADLINE_SECONDS)
            await harness.let_time_pass(LEASE_SECONDS + 1)
            assert await store.unheld(quiet_seconds=5, limit=10) == []
            await harness.let_time_pass(DEADLINE_SECONDS - LEASE_SECONDS)
            assert await store.unheld(quiet_seconds=5, limit=10) == [command(1)]
            assert await store.unheld(quiet_seconds=5, limit=10) == []
            await harness.let_time_pass(6)
            assert await store.unheld(quiet_seconds=5, limit=10) == [command(1)]

    async def test_waiting_request_is_unheld_when_the_preview_is_free(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            await store.register_and_claim(command(2), holder="worker-2")
            await harness.let_time_pass(6)
            assert await store.unheld(quiet_seconds=5, limit=10) == []
            await store.finish(claim, lifecycle.superseded())
            assert await store.unheld(quiet_seconds=5, limit=10) == [command(2)]

    async def test_unheld_respects_not_before_and_the_quiet_time(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            await store.give_back(await claim_of(store, command(1)), delay=100, counted=True, error="")
            await harness.let_time_pass(50)
            assert await store.unheld(quiet_seconds=5, limit=10) == []
            await harness.let_time_pass(51)
            assert await store.unheld(quiet_seconds=500, limit=10) == []
            assert await store.unheld(quiet_seconds=5, limit=10) == [command(1)]

    async def test_unheld_is_bounded_and_starts_with_the_quietest(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            for number in range(1, 6):
                await store.give_back(await claim_of(store, command(number, pr_number=number)), delay=0, counted=True, error="")
                await harness.let_time_pass(1)
            await harness.let_time_pass(10)
            numbers = [[message.pr_number for message in await store.unheld(quiet_seconds=5, limit=2)] for _ in range(4)]
            assert numbers == [[1, 2], [3, 4], [5], []]

    async def test_finished_request_is_never_unheld(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            await deploy(store, 1)
            await harness.let_time_pass(1000)
            assert await store.unheld(quiet_seconds=5, limit=10) == []

    # -- reader ------------------------------------------------------------------------------------------------------------------------

    async def test_previews_are_listed_by_their_last_change(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            for number in (1, 2, 3):
                await deploy(store, number, pr_number=number)
                await harness.let_time_pass(1)
            await claim_of(store, command(9, pr_number=1))
            await claim_of(store, command(4, pr_number=4, repo="acme/other", repository_id=43))
            assert [view.pr_number for view in await store.previews()] == [4, 1, 3, 2]
            assert [view.pr_number for view in await store.previews(limit=1)] == [4]
            views = await store.previews(repo="Acme/Hello")
            assert [view.pr_number for view in views] == [1, 3, 2]
            assert [len(view.requests) for view in views] == [1, 1, 1]
            assert (views[0].requests[0].commit_sha, views[0].commit_sha) == (command(9).commit_sha, command(1).commit_sha)

    async def test_preview_of_which_something_newer_is_desired_has_changed(self, harness: StateStoreHarness) -> None:
        """Though it is held and nothing was granted."""
        async with harness.open() as store:
            await claim_of(store, command(1, pr_number=1))
            await claim_of(store, command(2, pr_number=2))
            await store.register_and_claim(command(3, pr_number=1), holder="worker-2")
            assert [view.pr_number for view in await store.previews()] == [1, 2]

    async def test_one_preview_has_its_requests_newest_first(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            await deploy(store, 2)
            await store.register_and_claim(command(1), holder="worker-1")
            await store.finish(await claim_of(store, close(3)), TORN_DOWN)
            view = await store.preview("ACME/hello", 1)
            assert view is not None
            assert [(each.action, each.source, each.state) for each in view.requests] == [
                ("destroy", "close", "destroyed"),
                ("deploy", "comment", "deployed"),
                ("deploy", "comment", "superseded"),
            ]
            assert (view.state, view.url, view.commit_sha, view.release) == ("destroyed", "", "", "preview-pr-1")
            assert (view.github_host, view.repository_id, view.cluster) == ("github.com", 42, "test-cluster")
            assert await store.preview("acme/hello", 99) is None

    async def test_renamed_repository_keeps_preview_and_namespace(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            first = await claim_of(store, command(1))
            await store.finish(first, lifecycle.superseded())
            second = await claim_of(store, command(2, repo="acme/renamed"))
            assert second.namespace == first.namespace
            assert await store.preview("acme/hello", 1) is None
            view = await store.preview("acme/renamed", 1)
            assert view is not None
            assert len(view.requests) == 2

    async def test_nothing_is_no_error(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            assert (await store.previews(), await store.dead_letters(), await store.ledger("acme/hello", 1)) == ([], [], [])
            assert await store.dead_letter(1) is None
            assert await store.waiting(command(1).key) == []
            await store.release_lane(1, holder="nobody")
