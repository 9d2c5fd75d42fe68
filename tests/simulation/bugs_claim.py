"""Planted bugs in the claim, the order of requests and their identity; see `bugs.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from datetime import timedelta
from typing import Any
from unittest.mock import patch

from tests.simulation.planting import UNFENCED, bug, world_of
from tests.simulation.ports import PromptStore, SimulatedHelm
from tests.simulation.world import Numbers

from prevue import lifecycle
from prevue.cluster.port import Fence
from prevue.deployer import worker
from prevue.deployer.worker import Worker
from prevue.errors import StaleClaim
from prevue.lifecycle import Reason
from prevue.model import Action, Order, PreviewState, RequestState
from prevue.statestore.port import Done
from prevue.testing import queue as queue_fake
from prevue.testing import statestore as fake
from prevue.testing.cluster import FakeCluster
from prevue.testing.statestore import FakeStateStore
from prevue.testing.statestore_disk import is_busy

# -- the claim ----------------------------------------------------------------------------------------------------------

_verdict = FakeStateStore._verdict
_grant = FakeStateStore._grant
_end = FakeStateStore._end
_begin = FakeStateStore.begin
_finish = FakeStateStore.finish
_give_back = FakeStateStore.give_back
_register = FakeStateStore.register_and_claim
_is_busy = is_busy


@bug("the claim is on the commit, not on the preview", settings=UNFENCED, breaks=("one_mutating_worker_per_release",))
def claim_per_key() -> list[Any]:
    def verdict(self: Any, request: Any, preview: Any, now: Any) -> Any:
        holder = self.disk.requests.get(preview.holder_request)
        if holder is not None and holder.message.commit_sha != request.message.commit_sha:
            with patch.object(fake, "is_busy", lambda *_: False):
                return _verdict(self, request, preview, now)
        return _verdict(self, request, preview, now)

    return [patch.object(FakeStateStore, "_verdict", verdict)]


@bug(
    "the claim looks at the lease alone, not at Helm's stored deadline",
    settings=world_of("pause_deployer", "helm_slow", "store_hangs", policy=False, boost=4.0),
    breaks=("one_mutating_worker_per_release",),
)
def no_helm_deadline() -> list[Any]:
    return [patch.object(fake, "is_busy", lambda preview, now: preview.lease_until > now)]


@bug("the claim is released while Helm still runs", settings=UNFENCED, breaks=("one_mutating_worker_per_release",))
def release_running() -> list[Any]:
    async def run(self: Any, holding: Any) -> Any:
        work = asyncio.ensure_future(self._pipeline(holding.claim))
        signals = [asyncio.create_task(event.wait()) for event in (holding.lost, holding.newer, self._halt)]
        await asyncio.wait([work, *signals], return_when=asyncio.FIRST_COMPLETED)
        for task in signals:
            task.cancel()
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        if holding.is_lost:
            raise StaleClaim
        return work.result() if work.done() else lifecycle.superseded()

    return [patch.object(Worker, "_run", run)]


@bug(
    "a graceful stop gives the claim back while Helm still runs",
    settings=world_of("graceful_stop", "helm_slow", "store_slow", "pause_deployer", policy=False, boost=4.0),
    breaks=("one_mutating_worker_per_release",),
)
def give_back_running() -> list[Any]:
    original = Worker._run

    async def run(self: Any, holding: Any) -> Any:
        blind = copy(self)
        blind._halt = asyncio.Event()  # it does not end its Helm at the stop
        work = asyncio.ensure_future(original(blind, holding))
        halted = asyncio.create_task(self._halt.wait())
        await asyncio.wait([work, halted], return_when=asyncio.FIRST_COMPLETED)
        halted.cancel()
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        if work.done():
            return work.result()
        raise worker._HaltedError

    return [patch.object(Worker, "_run", run)]


@bug(
    "Helm's deadline counts from its start, not from the begin",
    settings=world_of("pause_deployer", "helm_slow", "cluster_slow", policy=False, crowded=True),
    breaks=("one_mutating_worker_per_release",),
)
def relative_deadline() -> list[Any]:
    return [patch.object(SimulatedHelm, "_seconds_left", lambda self, _: self._world.numbers.helm_deadline_seconds)]


@bug(
    "Helm runs before the fence is seen to bite",
    settings=world_of("crash_deployer", "helm_late_write", "helm_slow", policy=True, boost=3.0, fence_lag_seconds=4.0),
    breaks=("one_mutating_worker_per_release",),
)
def no_confirm() -> list[Any]:
    async def fence_bites(self: Any, fence: Fence) -> None:
        await asyncio.sleep(0)

    return [patch.object(FakeCluster, "fence_bites", fence_bites)]


@bug(
    "leases by the deployer's own wall clock, not by the database's (A21)",
    settings=world_of("clock_jump", "helm_slow", policy=False, boost=2.0, numbers=Numbers()),
    breaks=("one_mutating_worker_per_release", "no_write_after_lost_claim"),
)
def lease_by_own_clock() -> list[Any]:
    original = PromptStore._begin_transaction

    async def begin_transaction(self: Any) -> Any:
        from tests.simulation.loop import current_process

        process = current_process()
        return await original(self) + timedelta(seconds=process.wall_offset_seconds if process else 0)

    return [patch.object(PromptStore, "_begin_transaction", begin_transaction)]


@bug("writes under a claim do not present the token", breaks=("no_write_after_lost_claim",))
def no_token() -> list[Any]:
    return [
        patch.object(FakeStateStore, "_held", lambda self, claim: self.disk.previews[claim.key]),
        patch.object(FakeStateStore, "_claimed", lambda self, claim: self.disk.requests[claim.request_id]),
    ]


@bug("a finish looks at the token, not also at the request's state", breaks=("one_outcome_per_request",))
def finish_by_token_only() -> list[Any]:
    return [patch.object(FakeStateStore, "_claimed", lambda self, claim: self.disk.requests[claim.request_id])]


@bug(
    "a give-back does not present the token",
    settings=world_of("pause_deployer", "github_5xx", "cluster_error", "graceful_stop"),
    breaks=("no_write_after_lost_claim",),
)
def give_back_unguarded() -> list[Any]:
    async def give_back(self: Any, claim: Any, **options: Any) -> None:
        with _unguarded():
            await _give_back(self, claim, **options)

    return [patch.object(FakeStateStore, "give_back", give_back)]


@contextmanager
def _unguarded() -> Iterator[None]:
    with (
        patch.object(FakeStateStore, "_held", lambda self, claim: self.disk.previews[claim.key]),
        patch.object(FakeStateStore, "_claimed", lambda self, claim: self.disk.requests[claim.request_id]),
    ):
        yield


@bug("an outage of somebody else uses an attempt up", breaks=("outages_end_nothing",))
def give_back_counts() -> list[Any]:
    original = Worker._give_back

    async def give_back(self: Any, holding: Any, *, delay: float, counted: bool, error: str) -> Any:
        return await original(self, holding, delay=delay, counted=counted or error != "the deployer stops", error=error)

    return [patch.object(Worker, "_give_back", give_back)]


@bug("attempts are counted when they fail, not when they begin", breaks=("accepted_reaches_terminal_state",))
def tries_at_failure() -> list[Any]:
    def grant(self: Any, request: Any, preview: Any, *rest: Any) -> Any:
        claim = _grant(self, request, preview, *rest)
        request.attempts -= 1
        return claim

    async def give_back(self: Any, claim: Any, *, delay: float, counted: bool, error: str) -> None:
        await _give_back(self, claim, delay=delay, counted=True, error=error)
        self.disk.requests[claim.request_id].attempts += 1 if counted else 0

    return [patch.object(FakeStateStore, "_grant", grant), patch.object(FakeStateStore, "give_back", give_back)]


@bug("tokens start again after a teardown", breaks=("one_mutating_worker_per_release", "no_write_after_lost_claim"))
def token_reset() -> list[Any]:
    async def finish(self: Any, claim: Any, finish: Any) -> None:
        await _finish(self, claim, finish)
        if finish.preview_state is PreviewState.DESTROYED:
            self.disk.last_token = 0

    return [patch.object(FakeStateStore, "finish", finish)]


# -- order, identity ------------------------------------------------------------------------------------------------------


@bug("older requests are carried out, too", breaks=("generation_never_decreases", "newest_wins"))
def no_generation() -> list[Any]:
    def verdict(self: Any, request: Any, preview: Any, now: Any) -> Any:
        before, preview.desired = preview.desired, min(preview.desired, request.message.order)
        found = _verdict(self, request, preview, now)
        preview.desired = max(before, preview.desired)
        return found

    async def begin(self: Any, claim: Any, **options: Any) -> Any:
        preview = self.disk.previews[claim.key]
        before, preview.desired = preview.desired, claim.order
        began = await _begin(self, claim, **options)
        preview.desired = max(before, preview.desired)
        return began

    async def heartbeat(self: Any, claim: Any) -> Any:
        await original(self, claim)
        return claim.order

    original = FakeStateStore.heartbeat
    return [
        patch.object(FakeStateStore, "_verdict", verdict),
        patch.object(FakeStateStore, "begin", begin),
        patch.object(FakeStateStore, "heartbeat", heartbeat),
    ]


@bug("the newest is the one that arrived last", breaks=("generation_never_decreases", "newest_wins"))
def arrival_order() -> list[Any]:
    from prevue.model import EPOCH, Message

    arrived: dict[tuple[Any, ...], int] = {}

    def order(self: Any) -> Order:
        at = arrived.setdefault((self.delivery_id, self.key, self.effective_source_id), len(arrived))
        return Order(EPOCH + timedelta(seconds=at), 0, 0)

    return [patch.object(Message, "order", property(order))]


@bug(
    "a close has no precedence over a command of the same second",
    breaks=("generation_never_decreases", "newest_wins", "closed_pull_request_leaves_nothing"),
)
def close_without_rank() -> list[Any]:
    from prevue.model import Message

    original: Any = Message.__dict__["order"].fget

    def order(self: Any) -> Order:
        found = original(self)
        return Order(found.at, 0, found.tie)

    return [patch.object(Message, "order", property(order))]


@bug(
    "`already deployed` is a verdict of the claim: it raises nothing and does not read GitHub (A2)",
    settings=world_of("queue_delay", "queue_reorder", "webhook_delay", numbers=Numbers()),
    breaks=("newest_wins",),
)
def already_at_claim() -> list[Any]:
    async def register(self: Any, message: Any, *, holder: str) -> Any:
        preview = self.disk.previews.get(message.key)
        live = preview.live if preview is not None else None
        if live is not None and live.sha == message.commit_sha and not _is_busy(preview, self.clock.now()):
            now = await self._begin_transaction()
            row, is_new = self._register(message, now)
            if is_new:
                self._end(row, RequestState.DEPLOYED, Reason.ALREADY_LIVE, now, url=preview.url)
                return Done(row.state)
        return await _register(self, message, holder=holder)

    return [patch.object(FakeStateStore, "register_and_claim", register)]


@bug("a commit that was deployed once is done (A1: A, B, A again; A2: after a teardown)", breaks=("ready_means_ready_at_that_commit",))
def done_by_key() -> list[Any]:
    def verdict(self: Any, request: Any, preview: Any, now: Any) -> Any:
        key = request.message.idempotency_key
        done = [row for row in self.disk.requests.values() if row.message.idempotency_key == key and row.state is RequestState.DEPLOYED]
        if done and request.message.action is Action.DEPLOY and not request.state.is_terminal:
            self._end(request, RequestState.DEPLOYED, Reason.ALREADY_LIVE, now, url=done[0].url)
        return _verdict(self, request, preview, now)

    return [patch.object(FakeStateStore, "_verdict", verdict)]


@bug("a finished request may be claimed again", breaks=("redelivery_changes_nothing",))
def no_dedupe() -> list[Any]:
    def verdict(self: Any, request: Any, preview: Any, now: Any) -> Any:
        if request.state.is_terminal and request.state is not RequestState.DEAD and not request.message.order < preview.desired:
            return None if not _is_busy(preview, now) else _verdict(self, request, preview, now)
        return _verdict(self, request, preview, now)

    return [patch.object(FakeStateStore, "_verdict", verdict)]


@bug("the row of a destroyed preview is dropped (G-5)", breaks=("generation_never_decreases", "closed_pull_request_leaves_nothing"))
def no_tombstone() -> list[Any]:
    async def finish(self: Any, claim: Any, finish: Any) -> None:
        await _finish(self, claim, finish)
        if finish.preview_state is PreviewState.DESTROYED:
            preview = self.disk.previews[claim.key]
            preview.desired = Order(preview.desired.at - timedelta(days=1), 0, 0)

    return [patch.object(FakeStateStore, "finish", finish)]


@bug("the queue knows a message by commit: an honest repeat is swallowed (A16)", breaks=("accepted_reaches_terminal_state",))
def queue_identity_by_commit() -> list[Any]:
    def by_commit(message: Any) -> str:
        return f"{message.idempotency_key}/{message.effective_source}"

    return [patch.object(queue_fake, "message_identity", by_commit)]


@bug("namespace by name and number, without the repository's id (A4)", breaks=("names_are_injective",))
def namespace_by_slug() -> list[Any]:
    return [patch.object(fake, "preview_namespace", lambda key, repo: f"pv-{repo.partition('/')[0]}-{key.pr_number}")]
