"""The lifecycle's tables, fired at a statestore: each event in each state does what `prevue.lifecycle` says, or changes nothing."""
# ruff: noqa: S101 (these are tests: they assert)

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import pytest

from prevue import lifecycle
from prevue.errors import ImpossibleEvent, StaleClaim
from prevue.lifecycle import PREVIEW, REQUEST, Finish, LiveAfter, PreviewEvent, Reason, RequestEvent
from prevue.model import Claim, Live, Message, PreviewState, RequestState
from prevue.statestore.port import Dead, Granted
from prevue.testing.contracts.statestore_harness import (
    ATTEMPTS_MAX,
    DEADLINE_SECONDS,
    LEASE_SECONDS,
    StateStoreHarness,
    Store,
    claim_of,
    command,
    live_of,
)

TORN_DOWN = lifecycle.torn_down(RequestState.DESTROYED, Reason.TORN_DOWN, tell=True)
ENDS: dict[RequestEvent, Finish] = {
    RequestEvent.DEPLOYED: lifecycle.already_live("http://x/"),
    RequestEvent.DESTROYED: TORN_DOWN,
    RequestEvent.SUPERSEDED: lifecycle.superseded(),
    RequestEvent.REJECTED: lifecycle.rejected(Reason.PERMISSION_LOST, "no"),
    RequestEvent.FAILED: lifecycle.failed(Reason.CHART_INVALID, "no", began=False),
}


class Seen(NamedTuple):
    """What an event may change of a request."""

    state: str
    attempts: int
    version: int
    """Of its outbox row."""


async def request_of(store: Store, message: Message) -> Seen:
    """The request as it is stored."""
    case, view = await store.audit(message.key), await store.preview(message.repo, message.pr_number)
    assert case is not None
    assert view is not None
    (audited,) = [one for one in case.requests if one.message == message]
    (shown,) = [one for one in view.requests if one.id == audited.id]
    return Seen(shown.state, shown.attempts, audited.told_version or 0)


async def spend(store: Store, claim: Claim, *, leave: int) -> Claim:
    """Fail attempt after attempt, until so many are left beside the one of the claim that is returned."""
    while claim.attempt < ATTEMPTS_MAX - leave:
        await store.give_back(claim, delay=0, counted=True, error="")
        claim = await claim_of(store, claim.message)
    return claim


async def die(store: Store, claim: Claim) -> None:
    """Verdict 6: the last attempt has failed, and there is no other."""
    await store.give_back(await spend(store, claim, leave=0), delay=0, counted=True, error="")
    assert await store.register_and_claim(claim.message, holder="worker-2") == Dead()


async def request_in(store: Store, state: RequestState, message: Message, *, leave: int) -> Claim:
    """Bring a new request into a state, with so many attempts left; returns its last claim."""
    claim = await spend(store, await claim_of(store, message), leave=leave)
    match state:
        case RequestState.WAITING:
            await store.give_back(claim, delay=0, counted=True, error="")
        case RequestState.DEAD:
            await die(store, claim)
        case RequestState.CLAIMED:
            pass
        case _:
            await store.finish(claim, ENDS[RequestEvent(state.value)])
    return claim


async def let_happen(store: Store, harness: StateStoreHarness, claim: Claim, event: RequestEvent) -> None:
    """Do to the request what brings the event about, as far as the store lets it."""
    match event:
        case RequestEvent.GRANTED | RequestEvent.SPENT | RequestEvent.OVERTAKEN:
            await harness.let_time_pass(LEASE_SECONDS + DEADLINE_SECONDS)  # T1 takes nothing away from a holder
            if event is RequestEvent.OVERTAKEN:
                newer = await claim_of(store, command(9, pr_number=claim.key.pr_number))
                await store.give_back(newer, delay=0, counted=True, error="")
            await store.register_and_claim(claim.message, holder="worker-2")
        case RequestEvent.ATTEMPT_FAILED | RequestEvent.GIVEN_BACK:
            await store.give_back(claim, delay=0, counted=event is RequestEvent.ATTEMPT_FAILED, error="")
        case _:
            await store.finish(claim, ENDS[event])


async def preview_in(store: Store, state: PreviewState, pr_number: int) -> None:
    """Bring a new preview into a state; nobody holds it then."""
    claim = await claim_of(store, command(1, pr_number=pr_number))
    begun = PreviewState.DESTROYING if state in (PreviewState.DESTROYING, PreviewState.DESTROYED) else PreviewState.DEPLOYING
    if state is not PreviewState.REQUESTED:
        await store.begin(claim, preview_state=begun, deadline_seconds=DEADLINE_SECONDS)
    match state:
        case PreviewState.READY:
            await store.finish(claim, lifecycle.deployed(live_of(claim), "http://x/"))
        case PreviewState.FAILED:
            await store.finish(claim, lifecycle.failed(Reason.NOT_READY, "no", began=True))
        case PreviewState.DESTROYED:
            await store.finish(claim, TORN_DOWN)
        case _:
            await store.give_back(claim, delay=0, counted=True, error="")


async def happens_to_preview(store: Store, claim: Claim, event: PreviewEvent) -> None:
    """Let the claim's holder do it."""
    match event:
        case PreviewEvent.DEPLOY_BEGUN:
            await store.begin(claim, preview_state=PreviewState.DEPLOYING, deadline_seconds=DEADLINE_SECONDS)
        case PreviewEvent.DESTROY_BEGUN:
            await store.begin(claim, preview_state=PreviewState.DESTROYING, deadline_seconds=DEADLINE_SECONDS)
        case PreviewEvent.FOUND_READY:
            await store.finish(claim, lifecycle.deployed(live_of(claim), "http://y/"))
        case PreviewEvent.FAILED:
            await store.finish(claim, lifecycle.failed(Reason.NOT_READY, "no", began=True))
        case PreviewEvent.GONE:
            await store.finish(claim, TORN_DOWN)
        case PreviewEvent.KEPT:
            await store.finish(claim, lifecycle.superseded())
        case _:
            await die(store, claim)


async def preview_of(store: Store, message: Message) -> tuple[PreviewState, Live | None]:
    """State, and what is known to be live."""
    case = await store.audit(message.key)
    assert case is not None
    return case.preview.state, case.live


class LifecycleContract:
    """The tables against one backend."""

    @pytest.mark.parametrize("state", list(RequestState))
    async def test_every_event_does_to_a_request_what_the_table_says(self, harness: StateStoreHarness, state: RequestState) -> None:
        events = [event for event in RequestEvent if event is not RequestEvent.REGISTERED]
        async with harness.open() as store:
            for pr_number, event in enumerate(events, start=1):
                message = command(1, pr_number=pr_number)
                claim = await request_in(store, state, message, leave=0 if event is RequestEvent.SPENT else 1)
                before = await request_of(store, message)
                assert before.state == state
                step = REQUEST.get((state, event))
                if step is None:
                    with suppress(StaleClaim):  # or the verdict Done
                        await let_happen(store, harness, claim, event)
                    assert await request_of(store, message) == before, event
                    continue
                await let_happen(store, harness, claim, event)
                after = Seen(step.to, before.attempts + step.attempts, before.version + step.is_told)
                assert await request_of(store, message) == after, event
                newer = await store.register_and_claim(command(10, pr_number=pr_number), holder="worker-3")
                assert isinstance(newer, Granted) is (step.frees or step.to.is_terminal), event

    @pytest.mark.parametrize("state", list(PreviewState))
    async def test_every_event_does_to_a_preview_what_the_table_says(self, harness: StateStoreHarness, state: PreviewState) -> None:
        events = [event for event in PreviewEvent if event is not PreviewEvent.REGISTERED]
        async with harness.open() as store:
            for pr_number, event in enumerate(events, start=1):
                await preview_in(store, state, pr_number)
                claim = await claim_of(store, command(2, pr_number=pr_number))
                before, live = await preview_of(store, claim.message)
                assert before is state
                step = PREVIEW.get((state, event))
                if step is None:
                    stored = await harness.rows()
                    with pytest.raises(ImpossibleEvent):
                        await happens_to_preview(store, claim, event)
                    assert await harness.rows() == stored, event
                    continue
                await happens_to_preview(store, claim, event)
                found = {LiveAfter.AS_BEFORE: live, LiveAfter.UNKNOWN: None, LiveAfter.FOUND: live_of(claim)}
                assert await preview_of(store, claim.message) == (step.to, found[step.live]), event

    async def test_what_is_registered_begins_at_the_begin(self, harness: StateStoreHarness) -> None:
        async with harness.open() as store:
            holder = await claim_of(store, command(2))
            assert (await preview_of(store, holder.message))[0] is PREVIEW[None, PreviewEvent.REGISTERED].to
            await store.register_and_claim(command(3), holder="worker-2")
            assert (await request_of(store, command(3))).state == REQUEST[None, RequestEvent.REGISTERED].to
