"""What every statestore backend, the fake too, must keep of the claim protocol: verdicts, claims, writes under a claim.

A backend's test module subclasses `ClaimContract` and provides the fixture `harness`; `outbox.py` has the other half of the port.
"""
# ruff: noqa: S101 (these are tests: they assert)

from __future__ import annotations

import asyncio

import pytest

from prevue import lifecycle
from prevue.errors import StaleClaim, StateStoreUnavailable
from prevue.lifecycle import Reason
from prevue.model import Action, PreviewState, RequestState
from prevue.statestore.port import Began, Dead, Done, Granted, InProgress, Later, NewerDesired, Superseded
from prevue.testing.contracts.statestore_harness import (
    ATTEMPTS_MAX,
    DEADLINE_SECONDS,
    LEASE_SECONDS,
    StateStoreHarness,
    claim_of,
    close,
    command,
    due_items,
    live_of,
    push,
)


class ClaimContract:
    """To be subclassed with a fixture `harness`."""

    # -- T1: the verdicts in their order -----------------------------------------------------------------------------------------------

    async def test_first_request_is_granted(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
        assert claim.attempt == 1
        assert claim.message == command(1)
        assert claim.order == command(1).order
        assert claim.key == command(1).key
        assert (claim.cluster, claim.releases) == ("test-cluster", ("preview-pr-1",))
        assert claim.namespace.endswith("-1")
        assert (claim.preview_state, claim.live, claim.url) == (PreviewState.REQUESTED, None, "")
        assert claim.granted_at_boottime > 0

    async def test_incomplete_message_is_a_mistake(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            with pytest.raises(ValueError, match="complete"):
                await store.register_and_claim(command(1, repository_id=0), holder="worker-1")

    async def test_repeated_request_is_recognised_by_its_identity(self, harness: StateStoreHarness) -> None:
        """Verdict 2; and what was first registered is what is carried out."""
        async with harness.open() as store:
            await claim_of(store, command(1))
            before = await harness.rows()
            assert await store.register_and_claim(command(1, delivery_id="again", commit_sha="f" * 40), holder="worker-2") == InProgress()
        assert await harness.rows() == before

    async def test_redelivery_of_a_finished_request_is_done_and_changes_nothing(self, harness: StateStoreHarness) -> None:
        """Verdict 1."""
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            await store.finish(claim, lifecycle.rejected(Reason.PERMISSION_LOST, "no"))
            before = await harness.rows()
            assert await store.register_and_claim(command(1), holder="worker-2") == Done(RequestState.REJECTED)
        assert await harness.rows() == before

    async def test_done_is_said_before_anything_else(self, harness: StateStoreHarness) -> None:
        """Verdict 1 before 3 and 4: superseded, older than desired, and the preview is busy."""
        async with harness.open() as store:
            await claim_of(store, command(2))
            assert await store.register_and_claim(command(1), holder="worker-1") == Superseded()
            assert await store.register_and_claim(command(1), holder="worker-1") == Done(RequestState.SUPERSEDED)

    async def test_holder_of_an_older_request_is_in_progress_before_superseded(self, harness: StateStoreHarness) -> None:
        """Verdict 2 before 3: whoever holds finishes its request itself."""
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            assert await store.register_and_claim(command(2), holder="worker-2") == InProgress()
            assert await store.register_and_claim(command(1), holder="worker-2") == InProgress()
            await store.finish(claim, lifecycle.superseded())

    async def test_older_request_is_superseded_though_busy(self, harness: StateStoreHarness) -> None:
        """Verdict 3 before 4."""
        async with harness.open() as store:
            await claim_of(store, command(2))
            assert await store.register_and_claim(command(1), holder="worker-2") == Superseded()

    async def test_newer_request_waits_while_the_preview_is_busy(self, harness: StateStoreHarness) -> None:
        """Verdict 4: durable, and granted when the preview is free."""
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            assert await store.register_and_claim(command(2), holder="worker-2") == InProgress()
            await store.finish(claim, lifecycle.superseded())
            assert await store.waiting(claim.key) == [command(2)]
            assert (await claim_of(store, command(2))).attempt == 1

    async def test_busy_is_said_before_later(self, harness: StateStoreHarness) -> None:
        """Verdict 4 before 5."""
        async with harness.open() as store:
            await store.give_back(await claim_of(store, push(1, "one")), delay=100, counted=True, error="")
            assert isinstance(await store.register_and_claim(push(1, "one"), holder="worker-1"), Later)
            await claim_of(store, push(1, "two"))
            assert await store.register_and_claim(push(1, "one"), holder="worker-1") == InProgress()

    async def test_later_until_the_delay_has_passed(self, harness: StateStoreHarness) -> None:
        """Verdict 5."""
        async with harness.open() as store:
            await store.give_back(await claim_of(store, command(1)), delay=100, counted=True, error="try later")
            verdict = await store.register_and_claim(command(1), holder="worker-1")
            assert isinstance(verdict, Later)
            assert 50 < verdict.delay <= 100
            await harness.let_time_pass(101)
            assert (await claim_of(store, command(1))).attempt == 2

    async def test_deploy_is_dead_after_its_attempts(self, harness: StateStoreHarness) -> None:
        """Verdict 6, with the preview's state and the announcement."""
        async with harness.open() as store:
            for attempt in range(1, ATTEMPTS_MAX + 1):
                claim = await claim_of(store, command(1))
                assert claim.attempt == attempt
                await store.give_back(claim, delay=0, counted=True, error="helm was killed")
            assert await store.register_and_claim(command(1), holder="worker-1") == Dead()
            assert await store.register_and_claim(command(1), holder="worker-1") == Done(RequestState.DEAD)
            view = await store.preview("acme/hello", 1)
            assert view is not None
            assert (view.state, view.error, view.attempts) == ("failed", "helm was killed", ATTEMPTS_MAX)
            [letter] = await store.dead_letters()
            assert (letter.state, letter.reason, letter.error) == ("dead", "attempts_spent", "helm was killed")
            assert await store.dead_letter(letter.id) == letter
            [item] = await due_items(store)
            assert (item.notice.state, item.version) == (RequestState.DEAD, 2)

    async def test_request_that_kills_its_worker_dies_too(self, harness: StateStoreHarness) -> None:
        """Attempts are counted with the claim, not at the failure."""
        async with harness.open() as store:
            for _ in range(ATTEMPTS_MAX):
                await claim_of(store, command(1))
                await harness.let_time_pass(LEASE_SECONDS + 1)
            assert await store.register_and_claim(command(1), holder="worker-1") == Dead()

    async def test_destroy_is_never_dead(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            for attempt in range(1, 2 * ATTEMPTS_MAX + 1):
                claim = await claim_of(store, close(1))
                assert claim.attempt == attempt
                await store.give_back(claim, delay=0, counted=True, error="")

    async def test_only_one_claim_wins(self, harness: StateStoreHarness) -> None:
        """Twenty deliveries of one request at once."""
        async with harness.open() as first, harness.open() as second:
            calls = [store.register_and_claim(command(1), holder="worker") for store in (first, second) for _ in range(10)]
            verdicts = await asyncio.gather(*calls)
            assert sorted(type(verdict).__name__ for verdict in verdicts) == ["Granted"] + ["InProgress"] * 19
            view = await first.preview("acme/hello", 1)
            assert view is not None
            assert len(view.requests) == 1

    async def test_one_claim_at_a_time_whatever_comes_at_once(self, harness: StateStoreHarness) -> None:
        async with harness.open() as first, harness.open() as second:
            calls = [store.register_and_claim(command(number), holder="worker") for number in range(1, 11) for store in (first, second)]
            verdicts = await asyncio.gather(*calls)
            assert sum(isinstance(verdict, Granted) for verdict in verdicts) == 1
            previews = [first.register_and_claim(command(number, pr_number=number), holder="worker") for number in range(20, 30)]
            assert all(isinstance(verdict, Granted) for verdict in await asyncio.gather(*previews))

    # -- order -------------------------------------------------------------------------------------------------------------------------

    async def test_older_close_does_not_beat_a_newer_command(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            await claim_of(store, command(2))
            assert await store.register_and_claim(close(1), holder="worker-2") == Superseded()

    async def test_close_wins_at_an_equal_time(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            assert (await claim_of(store, close(5))).message.action is Action.DESTROY
            assert await store.register_and_claim(command(9, at=5), holder="worker-2") == Superseded()

    async def test_larger_comment_id_wins_at_an_equal_time(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            await claim_of(store, command(9, at=5))
            assert await store.register_and_claim(command(8, at=5), holder="worker-2") == Superseded()
            assert await store.register_and_claim(command(10, at=5), holder="worker-2") == InProgress()

    async def test_order_is_the_askers_time_not_arrival(self, harness: StateStoreHarness) -> None:
        """Redelivered late: the older one that waited, and what it supersedes."""
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            await store.give_back(claim, delay=0, counted=False, error="")
            await store.finish(await claim_of(store, command(3)), lifecycle.rejected(Reason.OTHER, ""))
            assert await store.register_and_claim(command(1), holder="worker-1") == Superseded()
            assert await store.register_and_claim(command(2), holder="worker-1") == Superseded()

    # -- under the claim ---------------------------------------------------------------------------------------------------------------

    async def test_heartbeat_extends_and_tells_what_is_desired(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            for _ in range(3):
                await harness.let_time_pass(LEASE_SECONDS * 0.7)
                assert await store.heartbeat(claim) == claim.order
            await store.register_and_claim(command(2), holder="worker-2")
            assert await store.heartbeat(claim) == command(2).order

    async def test_heartbeat_after_the_lease_has_lapsed_is_stale(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            await harness.let_time_pass(LEASE_SECONDS + 1)
            before = await harness.rows()
            with pytest.raises(StaleClaim):
                await store.heartbeat(claim)
        assert await harness.rows() == before

    async def test_expired_claim_can_be_taken_over_and_its_holder_writes_nothing(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            old = await claim_of(store, command(1))
            await store.begin(old, preview_state=PreviewState.DEPLOYING, deadline_seconds=DEADLINE_SECONDS)
            await harness.let_time_pass(DEADLINE_SECONDS + 1)
            new = await claim_of(store, command(1), holder="worker-2")
            assert new.token > old.token
            assert new.attempt == 2
            before = await harness.rows()
            with pytest.raises(StaleClaim):
                await store.heartbeat(old)
            with pytest.raises(StaleClaim):
                await store.begin(old, preview_state=PreviewState.DEPLOYING, deadline_seconds=DEADLINE_SECONDS)
            with pytest.raises(StaleClaim):
                await store.finish(old, lifecycle.deployed(live_of(old), "http://stale"))
            for counted in (True, False):
                with pytest.raises(StaleClaim):
                    await store.give_back(old, delay=0, counted=counted, error="stale")
            assert await harness.rows() == before
            await store.begin(new, preview_state=PreviewState.DEPLOYING, deadline_seconds=DEADLINE_SECONDS)
            await store.finish(new, lifecycle.deployed(live_of(new), "http://new"))

    async def test_token_grows_with_every_claim_of_any_preview(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            tokens = [(await claim_of(store, command(number, pr_number=number))).token for number in (1, 2, 3)]
        assert tokens == sorted(set(tokens))

    async def test_lease_that_lapsed_is_not_free_before_helms_deadline(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            assert await store.begin(claim, preview_state=PreviewState.DEPLOYING, deadline_seconds=DEADLINE_SECONDS) == Began()
            await harness.let_time_pass(LEASE_SECONDS + 1)
            with pytest.raises(StaleClaim):
                await store.heartbeat(claim)
            assert await store.register_and_claim(command(2), holder="worker-2") == InProgress()
            await harness.let_time_pass(DEADLINE_SECONDS - LEASE_SECONDS)
            await claim_of(store, command(2), holder="worker-2")

    async def test_begin_makes_live_unknown(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            first = await claim_of(store, command(1))
            await store.begin(first, preview_state=PreviewState.DEPLOYING, deadline_seconds=DEADLINE_SECONDS)
            await store.finish(first, lifecycle.deployed(live_of(first), "http://one"))
            second = await claim_of(store, command(2))
            assert (second.preview_state, second.live, second.url) == (PreviewState.READY, live_of(first), "http://one")
            await store.begin(second, preview_state=PreviewState.DEPLOYING, deadline_seconds=DEADLINE_SECONDS, values_digest="digest")
            await store.give_back(second, delay=0, counted=True, error="")
            third = await claim_of(store, command(2))
            assert (third.preview_state, third.live) == (PreviewState.DEPLOYING, None)

    async def test_begin_after_a_newer_request_is_newer_desired(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            await store.register_and_claim(command(2), holder="worker-2")
            answer = await store.begin(claim, preview_state=PreviewState.DEPLOYING, deadline_seconds=DEADLINE_SECONDS)
            assert answer == NewerDesired()
            await store.finish(claim, lifecycle.superseded())
            assert (await claim_of(store, command(2))).preview_state is PreviewState.REQUESTED

    async def test_begin_after_the_lease_has_lapsed_is_stale(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            await harness.let_time_pass(LEASE_SECONDS + 1)
            with pytest.raises(StaleClaim):
                await store.begin(claim, preview_state=PreviewState.DEPLOYING, deadline_seconds=DEADLINE_SECONDS)

    async def test_equal_order_may_begin(self, harness: StateStoreHarness) -> None:
        """A replay equals what it repeats: orders are compared, not requests."""
        async with harness.open() as store:
            await store.finish(await claim_of(store, command(1)), lifecycle.rejected(Reason.OTHER, ""))
            await store.finish(await claim_of(store, push(2, "one")), lifecycle.rejected(Reason.OTHER, ""))
            claim = await claim_of(store, push(2, "two"))
            assert await store.begin(claim, preview_state=PreviewState.DEPLOYING, deadline_seconds=DEADLINE_SECONDS) == Began()

    # -- finish and give back ------------------------------------------------------------------------------------------------------------

    async def test_finish_records_the_outcome_and_frees_the_preview(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await claim_of(store, command(1, delivery_id="first"))
            await store.begin(claim, preview_state=PreviewState.DEPLOYING, deadline_seconds=DEADLINE_SECONDS)
            await store.finish(claim, lifecycle.deployed(live_of(claim), "http://one"))
            view = await store.preview("acme/hello", 1)
            assert view is not None
            assert (view.state, view.url, view.commit_sha, view.token) == ("ready", "http://one", command(1).commit_sha, claim.token)
            [request] = view.requests
            assert (request.state, request.reason, request.url) == ("deployed", "ready", "http://one")
            assert request.delivery_id == claim.message.delivery_id == "first"
            assert request.finished_at is not None
            await claim_of(store, command(2))

    async def test_finish_twice_is_stale_and_changes_nothing(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            await store.finish(claim, lifecycle.rejected(Reason.PERMISSION_LOST, "no"))
            before = await harness.rows()
            with pytest.raises(StaleClaim):
                await store.finish(claim, lifecycle.deployed(live_of(claim), "http://one"))
            with pytest.raises(StaleClaim):
                await store.give_back(claim, delay=0, counted=True, error="")
        assert await harness.rows() == before

    async def test_request_that_ended_under_its_token_stays_as_it_ended(self, harness: StateStoreHarness) -> None:
        """A lapsed claim's request is superseded by T1; the token is still the preview's, the request is not claimed any more."""
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            assert await store.register_and_claim(command(2), holder="worker-2") == InProgress()
            await harness.let_time_pass(LEASE_SECONDS + 1)
            assert await store.register_and_claim(command(1), holder="worker-2") == Superseded()
            before = await harness.rows()
            with pytest.raises(StaleClaim):
                await store.finish(claim, lifecycle.deployed(live_of(claim), "http://one"))
            assert await harness.rows() == before

    async def test_finish_without_a_preview_state_keeps_what_is_live(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            first = await claim_of(store, command(1))
            await store.begin(first, preview_state=PreviewState.DEPLOYING, deadline_seconds=DEADLINE_SECONDS)
            await store.finish(first, lifecycle.deployed(live_of(first), "http://one"))
            await store.finish(await claim_of(store, command(2)), lifecycle.already_live("http://one"))
            third = await claim_of(store, command(3))
            assert (third.preview_state, third.live, third.url) == (PreviewState.READY, live_of(first), "http://one")

    async def test_failure_and_teardown_leave_nothing_live(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            first = await claim_of(store, command(1))
            await store.begin(first, preview_state=PreviewState.DEPLOYING, deadline_seconds=DEADLINE_SECONDS)
            await store.finish(first, lifecycle.deployed(live_of(first), "http://one"))
            second = await claim_of(store, command(2))
            await store.begin(second, preview_state=PreviewState.DEPLOYING, deadline_seconds=DEADLINE_SECONDS)
            await store.finish(second, lifecycle.failed(Reason.NOT_READY, "crashed", began=True))
            third = await claim_of(store, close(3))
            assert (third.preview_state, third.live, third.url) == (PreviewState.FAILED, None, "")
            await store.finish(third, lifecycle.torn_down(RequestState.DESTROYED, Reason.TORN_DOWN, tell=True))
            fourth = await claim_of(store, command(4))
            assert (fourth.preview_state, fourth.live) == (PreviewState.DESTROYED, None)
            assert fourth.namespace == first.namespace

    async def test_claim_given_back_is_not_an_attempt(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            for _ in range(2 * ATTEMPTS_MAX):
                claim = await claim_of(store, command(1))
                assert claim.attempt == 1
                await store.give_back(claim, delay=0, counted=False, error="GitHub is down")
            view = await store.preview("acme/hello", 1)
            assert view is not None
            assert (view.attempts, view.error, view.requests[0].state) == (0, "GitHub is down", "waiting")

    async def test_waiting_holds_only_what_may_run_now(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            await store.register_and_claim(command(2), holder="worker-2")
            await store.register_and_claim(command(3), holder="worker-2")
            await store.register_and_claim(command(4, pr_number=4), holder="worker-2")
            await store.give_back(claim, delay=100, counted=True, error="")
            assert await store.waiting(claim.key) == [command(3), command(2)]
            await harness.let_time_pass(101)
            assert await store.waiting(claim.key) == [command(3), command(2), command(1)]

    async def test_what_a_stale_worker_saw_is_still_noted(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            old = await claim_of(store, command(1))
            await harness.let_time_pass(LEASE_SECONDS + 1)
            new = await claim_of(store, command(1))
            await store.note(old, "helm_killed", {"exit": -9, "pid": "1", "late": True, "seconds": 0.5})
            await store.finish(new, lifecycle.superseded())
            rows = await store.ledger("acme/hello", 1)
            assert [row["event"] for row in rows] == ["registered", "granted", "granted", "helm_killed", "finished"]
            assert [row["token"] for row in rows] == [None, old.token, new.token, old.token, new.token]
            assert {name: rows[3][name] for name in ("exit", "pid", "late", "seconds")} == {
                "exit": -9,
                "pid": "1",
                "late": True,
                "seconds": 0.5,
            }
            assert (rows[2]["attempt"], rows[4]["outcome"]) == (2, "superseded")

    async def test_text_that_no_database_holds_ends_nothing(self, harness: StateStoreHarness) -> None:
        """The last log lines of a pod may hold NULs, and half a character where they were cut."""
        wild = "exit\x00 1 \ud800."
        async with harness.open() as store:
            await store.give_back(await claim_of(store, command(1)), delay=0, counted=True, error=wild)
            claim = await claim_of(store, command(1))
            await store.note(claim, "log", {"line": wild})
            await store.finish(claim, lifecycle.failed(Reason.NOT_READY, wild, began=False))
            view = await store.preview("acme/hello", 1)
            assert view is not None
            assert view.error == "exit 1 ?."
            assert (await store.ledger("acme/hello", 1))[-1]["error"] == "exit 1 ?.", "the evidence has the last log lines too"

    async def test_outage_is_said(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            async with harness.outage():
                with pytest.raises(StateStoreUnavailable):
                    await store.register_and_claim(command(2), holder="worker-1")
                with pytest.raises(StateStoreUnavailable):
                    await store.heartbeat(claim)
                with pytest.raises(StateStoreUnavailable):
                    await store.finish(claim, lifecycle.superseded())
            async with asyncio.timeout(20):
                while True:  # a pooled connection may still have to be found broken
                    try:
                        await store.heartbeat(claim)
                    except StateStoreUnavailable:
                        continue
                    break
