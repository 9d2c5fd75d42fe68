"""What every statestore backend, the fake too, must keep for the sweeper and the operator (protocol, sections 1 and 6)."""
# ruff: noqa: S101 (these are tests: they assert)

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import msgspec

from prevue import lifecycle
from prevue.lifecycle import Reason
from prevue.model import Claim, Message, PreviewState, RequestState, Source, destroy_request, replay_of
from prevue.statestore.port import Dead, Done, Granted, InProgress, Superseded
from prevue.statestore.rules import DROPPED, REPLAYED
from prevue.testing.contracts.statestore_harness import (
    ATTEMPTS_MAX,
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

LONG_AGO, FAR = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
TORN_DOWN = lifecycle.torn_down(RequestState.DESTROYED, Reason.TORN_DOWN, tell=True)


async def deployed(store: Store, number: int, *, pr_number: int = 1, ttl_seconds: float = 0) -> Claim:
    """A preview that is ready."""
    claim = await claim_of(store, command(number, pr_number=pr_number))
    await store.begin(claim, preview_state=PreviewState.DEPLOYING, deadline_seconds=DEADLINE_SECONDS)
    await store.finish(claim, lifecycle.deployed(live_of(claim), "http://x/", ttl_seconds=ttl_seconds))
    return claim


async def dead(store: Store, number: int) -> Message:
    """A command whose attempts are spent."""
    message = command(number)
    for _ in range(ATTEMPTS_MAX):
        await store.give_back(await claim_of(store, message), delay=0, counted=True, error="helm was killed")
    assert await store.register_and_claim(message, holder="worker-1") == Dead()
    return message


def ours(claim: Claim, source: Source, source_id: str = "id") -> Message:
    """A sweep or an expiry with the order of what is desired."""
    return destroy_request(
        claim.key, repo="acme/hello", installation_id=INSTALLATION, source=source, source_id=source_id, order=claim.order
    )


class SweepContract:
    """To be subclassed with a fixture `harness`."""

    # -- requests of our own -------------------------------------------------------------------------------------------------------------

    async def test_sweep_of_equal_order_is_granted_and_may_begin(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            first = await deployed(store, 1)
            claim = await claim_of(store, ours(first, Source.SWEEP))
            assert claim.order == first.order
            await store.begin(claim, preview_state=PreviewState.DESTROYING, deadline_seconds=1)
            await store.finish(claim, TORN_DOWN)
            row = await store.find(first.key)
            assert row is not None
            assert (row.state, row.order) == (PreviewState.DESTROYED, first.order)

    async def test_sweep_and_expiry_that_are_superseded_tell_nobody(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            first = await deployed(store, 1)
            await deployed(store, 2)
            before = len(await due_items(store))
            for source in (Source.SWEEP, Source.EXPIRY):
                assert await store.register_and_claim(ours(first, source), holder="worker-1") == Superseded()
            assert len(await due_items(store)) == before

    async def test_expiry_that_removed_a_preview_is_told(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            first = await deployed(store, 1)
            await store.finish(await claim_of(store, ours(first, Source.EXPIRY)), TORN_DOWN)
            sources = {item.notice.source for item in await due_items(store)}
            assert sources == {Source.COMMENT, Source.EXPIRY}

    async def test_comment_that_was_written_after_its_verification_is_verified_again(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await deployed(store, 1)
            for is_verify in (False, True):
                [item] = await due_items(store)
                assert item.is_verify is is_verify
                await store.sent(item, comment_id=7)
                await store.verify_again(claim.key, Source.COMMENT, "1", written_at=FAR)
                if not is_verify:
                    assert await due_items(store) == []
                    await harness.let_time_pass(LIMITS.verify_after_seconds + 1)
            [item] = await due_items(store)
            assert item.is_verify
            await store.verify_again(claim.key, Source.COMMENT, "1", written_at=FAR)
            await store.sent(item, comment_id=7)  # it may have looked before the late write: it ends what it read and no more
            [item] = await due_items(store)
            assert item.is_verify
            await store.sent(item, comment_id=7)
            for source_id, written_at in (("1", LONG_AGO), ("2", FAR)):
                await store.verify_again(claim.key, Source.COMMENT, source_id, written_at=written_at)
            assert await due_items(store) == []

    async def test_replay_of_a_dead_letter_is_a_new_request_of_the_same_order(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            await dead(store, 1)
            [letter] = await store.dead_letters()
            message = await store.dead_message(letter.id)
            assert message == command(1)
            claim = await claim_of(store, replay_of(letter.id, message))
            assert (claim.attempt, claim.order, claim.request_id != letter.id) == (1, command(1).order, True)
            await store.begin(claim, preview_state=PreviewState.DEPLOYING, deadline_seconds=DEADLINE_SECONDS)
            await store.finish(claim, lifecycle.deployed(live_of(claim), "http://x/"))
            assert await store.register_and_claim(replay_of(letter.id, message), holder="worker-1") == Done(RequestState.DEPLOYED)

    async def test_replay_does_not_beat_a_newer_command(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            message = await dead(store, 1)
            await deployed(store, 2)
            assert await store.register_and_claim(replay_of(1, message), holder="worker-1") == Superseded()

    async def test_dead_letter_that_was_replayed_or_dropped_is_not_listed(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            for event in (REPLAYED, DROPPED):
                await dead(store, 1 if event == REPLAYED else 2)
                [letter] = await store.dead_letters()
                await store.settle_dead_letter(letter.id, event)
                await store.settle_dead_letter(letter.id, event)
                assert await store.dead_letters() == []
                assert await store.dead_letter(letter.id) == letter
            events = [row["event"] for row in await store.ledger("acme/hello", 1)]
            assert (events.count(REPLAYED), events.count(DROPPED)) == (2, 2)

    async def test_only_a_dead_request_has_a_dead_message(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await deployed(store, 1)
            assert await store.dead_message(claim.request_id) is None
            assert await store.dead_message(10_000) is None

    # -- what stands ---------------------------------------------------------------------------------------------------------------------

    async def test_previews_stand_until_they_are_destroyed(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            keys = [(await deployed(store, number, pr_number=number)).key for number in (1, 2, 3)]
            await store.finish(await claim_of(store, close(99, pr_number=2)), TORN_DOWN)
            assert [one.key for one in await store.standing(limit=10)] == [keys[0], keys[2]]
            assert [one.key for one in await store.standing(limit=1)] == [keys[0]]
            assert [one.key for one in await store.standing(after=keys[0], limit=10)] == [keys[2]]
            gone = await store.find(keys[1])
            assert gone is not None
            assert (gone.state, gone.live_request, gone.order) == (PreviewState.DESTROYED, None, close(99).order)
            assert await store.find(keys[0]._replace(pr_number=77)) is None

    async def test_row_says_what_is_live_and_desired(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await deployed(store, 1)
            [one] = await store.standing(limit=10)
            assert (one.key, one.namespace, one.repo) == (claim.key, claim.namespace, "acme/hello")
            assert (one.installation_id, one.order, one.token) == (INSTALLATION, claim.order, claim.token)
            assert (one.live_request, one.state, one.is_idle) == (claim.request_id, PreviewState.READY, True)

    async def test_preview_is_idle_when_nothing_runs_and_nothing_waits(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:

            async def is_idle() -> bool:
                [one] = await store.standing(limit=1)
                return one.is_idle

            claim = await claim_of(store, command(1))
            assert not await is_idle()
            await harness.let_time_pass(LEASE_SECONDS + 1)
            assert not await is_idle()  # the lease has lapsed, and the request is still to be carried out
            claim = await claim_of(store, command(1))
            await store.begin(claim, preview_state=PreviewState.DEPLOYING, deadline_seconds=LEASE_SECONDS * 3)
            await store.finish(claim, lifecycle.failed(Reason.NOT_READY, "no", began=True))
            assert await is_idle()
            assert isinstance(await store.register_and_claim(command(2), holder="worker-1"), Granted)
            assert not await is_idle()

    async def test_registered_is_known_by_identity_in_any_state(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            key = command(1).key
            assert not await store.is_registered(key, Source.COMMENT, "1")
            await claim_of(store, command(1))
            assert await store.is_registered(key, Source.COMMENT, "1")
            assert not await store.is_registered(key, Source.CLOSE, "1")
            assert not await store.is_registered(key._replace(pr_number=2), Source.COMMENT, "1")

    # -- time to live --------------------------------------------------------------------------------------------------------------------

    async def test_preview_expires_after_its_time_to_live(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            await deployed(store, 1, pr_number=1)
            claim = await deployed(store, 2, pr_number=2, ttl_seconds=100)
            assert await store.expired(limit=10) == []
            await harness.let_time_pass(101)
            assert [one.key for one in await store.expired(limit=10)] == [claim.key]
            expiry = await claim_of(store, ours(claim, Source.EXPIRY))
            assert await store.is_expired(expiry)
            assert await store.expired(limit=10) == []  # somebody is at it
            await store.finish(expiry, TORN_DOWN)
            await harness.let_time_pass(1000)
            assert await store.expired(limit=10) == []

    async def test_each_deploy_extends_the_time_to_live(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await deployed(store, 1, ttl_seconds=100)
            await harness.let_time_pass(90)
            again = await claim_of(store, command(2))
            await store.finish(again, lifecycle.already_live("http://x/", ttl_seconds=100))
            await harness.let_time_pass(90)
            assert await store.expired(limit=10) == []
            expiry = await claim_of(store, msgspec.structs.replace(ours(again, Source.EXPIRY)))
            assert not await store.is_expired(expiry)
            await store.finish(expiry, lifecycle.superseded(Reason.NOT_EXPIRED, tell=False))
            await harness.let_time_pass(20)
            [one] = await store.expired(limit=10)
            assert one.live_request == claim.request_id

    async def test_rejected_command_moves_no_time_to_live(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            await deployed(store, 1, ttl_seconds=100)
            await store.finish(await claim_of(store, command(2)), lifecycle.rejected(Reason.PERMISSION_LOST, "no"))
            await harness.let_time_pass(101)
            assert len(await store.expired(limit=10)) == 1

    # -- leases, cursors, tokens, alarms -------------------------------------------------------------------------------------------------

    async def test_lease_has_one_holder(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            assert await store.acquire_lease("sweeper", holder="one", seconds=30)
            assert not await store.acquire_lease("sweeper", holder="two", seconds=30)
            assert await store.acquire_lease("another", holder="two", seconds=30)
            assert await store.acquire_lease("sweeper", holder="one", seconds=30)
            await harness.let_time_pass(31)
            assert await store.acquire_lease("sweeper", holder="two", seconds=30)
            await store.release_lease("sweeper", holder="one")
            assert not await store.acquire_lease("sweeper", holder="one", seconds=30)
            await store.release_lease("sweeper", holder="two")
            assert await store.acquire_lease("sweeper", holder="one", seconds=30)

    async def test_cursor_survives(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            assert await store.cursor("deliveries") is None
            for value in ("1", "2", "2", "1"):
                await store.set_cursor("deliveries", value)
            await store.set_cursor("comments/42", "2026-01-01T00:00:00Z")
        async with harness.open() as store:
            assert (await store.cursor("deliveries"), await store.cursor("comments/42")) == ("1", "2026-01-01T00:00:00Z")

    async def test_tokens_after_a_raise_are_larger_and_none_is_given_twice(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            assert await store.last_token() == 0
            first = await claim_of(store, command(1))
            assert await store.last_token() == first.token
            assert not await store.raise_tokens(above=first.token)
            raised = await asyncio.gather(*(store.raise_tokens(above=above) for above in (40, 20, 50, 30)))
            assert any(raised)
            assert await store.last_token() == 50
            assert (await claim_of(store, command(2, pr_number=2))).token == 51
            assert not await store.raise_tokens(above=50)

    async def test_raise_before_the_first_token(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            assert not await store.raise_tokens(above=0)
            assert await store.raise_tokens(above=1)
            assert (await claim_of(store, command(1))).token == 2

    async def test_overdue_is_what_is_open_for_too_long(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            await deployed(store, 1, pr_number=1)
            await claim_of(store, command(2, pr_number=2))
            assert await store.register_and_claim(command(3, pr_number=2), holder="worker-1") == InProgress()
            assert await store.overdue(older_than_seconds=60, limit=10) == []
            await harness.let_time_pass(61)
            await claim_of(store, command(4, pr_number=4))
            assert [one.requested_by for one in await store.overdue(older_than_seconds=60, limit=1)] == ["writer"]
            assert [one.pr_number for one in await store.overdue(older_than_seconds=60, limit=10)] == [2, 2]

    # -- audit ---------------------------------------------------------------------------------------------------------------------------

    async def test_audit_has_all_of_a_preview(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            claim = await claim_of(store, command(1))
            await store.begin(claim, preview_state=PreviewState.DEPLOYING, deadline_seconds=1)
            await store.finish(claim, lifecycle.deployed(live_of(claim), "http://x/"))
            await claim_of(store, command(2))
            await deployed(store, 3, pr_number=3)
            case = await store.audit(claim.key)
            assert case is not None
            assert (case.live, case.url, case.release) == (live_of(claim), "http://x/", "preview-pr-1")
            assert (case.preview.order, case.preview.is_idle, case.preview.namespace) == (command(2).order, False, claim.namespace)
            first, second = case.requests
            assert (first.message, first.state, first.reason, first.token) == (command(1), RequestState.DEPLOYED, "ready", claim.token)
            assert (first.told_version, first.is_sent, second.state) == (2, False, RequestState.CLAIMED)
            events = [(one.event, one.token, one.state) for one in case.events if one.request_id == first.id]
            assert events[0] == ("registered", None, "")
            assert ("began", claim.token, "deploying") in events
            for item in await due_items(store):
                await store.sent(item, comment_id=9)
            case = await store.audit(claim.key)
            assert case is not None
            assert (case.requests[0].is_sent, case.requests[0].is_verified) == (True, False)

    async def test_audit_goes_through_all_previews(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            assert await store.audit(command(1).key) is None
            keys = [(await deployed(store, number, pr_number=number)).key for number in (1, 2, 3)]
            await store.finish(await claim_of(store, close(99, pr_number=2)), TORN_DOWN)
            assert await store.audit_keys(limit=2) == keys[:2]
            assert await store.audit_keys(after=keys[1], limit=2) == keys[2:]
