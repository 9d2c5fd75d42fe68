"""Planted bugs, by name: each is a substitution in production code (or in the statestore's fake, where the rule lives in SQL).

Production code knows none of them. A bug that the oracle does not find within its bound of seeds would mean that the simulation cannot
see such a mistake; `docs/simulation.md` has the table of what it took. The names of the first group are those of
`docs/protocol/protocol_model.py`; the letters of the others are those of the hazards that they stand for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import msgspec

from prevue import lifecycle
from prevue.cluster.port import Fence
from prevue.deployer.pipeline import Pipeline
from prevue.deployer.worker import Worker
from prevue.errors import HelmInterrupted, OutageError, StaleClaim
from prevue.github.comments import RefusalReason
from prevue.github_app import handle
from prevue.github_app.acknowledge import Acknowledger
from prevue.github_app.handle import Handler
from prevue.lifecycle import Reason
from prevue.model import Action, Order, PreviewState, RequestState, Source, idempotency_key
from prevue.queue import port as queue_port
from prevue.statestore.port import Began, Done, Granted, Later
from prevue.sweeper.outbox import OutboxDrainer
from prevue.testing import queue as queue_fake
from prevue.testing import statestore as fake
from prevue.testing.cluster import FakeCluster
from prevue.testing.statestore import FakeStateStore
from prevue.testing.statestore_disk import OutboxRow
from tests.simulation.world import Settings

Plant = Callable[[], list[Any]]


@dataclass(frozen=True, kw_only=True)
class Bug:
    """One planted bug: what it is, the patches that plant it, and the world that it is looked for in."""

    name: str
    what: str
    plant: Plant
    settings: Settings


BUGS: dict[str, Bug] = {}


def bug(what: str, *, settings: Settings | None = None) -> Callable[[Plant], Plant]:
    """Register a planted bug under its function's name."""

    def register(plant: Plant) -> Plant:
        BUGS[plant.__name__] = Bug(name=plant.__name__, what=what, plant=plant, settings=settings or Settings())
        return plant

    return register


@contextmanager
def planted(name: str) -> Iterator[Bug]:
    """Inside, the bug is there."""
    found = BUGS[name]
    patches = found.plant()
    for each in patches:
        each.start()
    try:
        yield found
    finally:
        for each in patches:
            each.stop()


# -- the claim ----------------------------------------------------------------------------------------------------------

_verdict = FakeStateStore._verdict
_grant = FakeStateStore._grant
_end = FakeStateStore._end
_begin = FakeStateStore.begin
_finish = FakeStateStore.finish
_give_back = FakeStateStore.give_back
_register = FakeStateStore.register_and_claim
_is_busy = fake.is_busy


@bug("the claim is on the commit, not on the preview")
def claim_per_key() -> list[Any]:
    def verdict(self: Any, request: Any, preview: Any, now: Any) -> Any:
        holder = self.disk.requests.get(preview.holder_request)
        if holder is not None and holder.message.commit_sha != request.message.commit_sha:
            with patch.object(fake, "is_busy", lambda *_: False):
                return _verdict(self, request, preview, now)
        return _verdict(self, request, preview, now)

    return [patch.object(FakeStateStore, "_verdict", verdict)]


@bug("the claim looks at the lease alone, not at Helm's stored deadline")
def no_helm_deadline() -> list[Any]:
    return [patch.object(fake, "is_busy", lambda preview, now: preview.lease_until > now)]


@bug("the claim is released while Helm still runs")
def release_running() -> list[Any]:
    async def run(self: Any, holding: Any) -> Any:
        work = asyncio.ensure_future(self._pipeline(holding.claim))
        signals = [asyncio.create_task(event.wait()) for event in (holding.lost, holding.newer, self._halt)]
        await asyncio.wait([work, *signals], return_when=asyncio.FIRST_COMPLETED)
        for task in signals:
            task.cancel()
        if holding.is_lost:
            raise StaleClaim
        return work.result() if work.done() else lifecycle.superseded()

    return [patch.object(Worker, "_run", run)]


@bug("a graceful stop gives the claim back while Helm still runs")
def give_back_running() -> list[Any]:
    original = Worker._run

    async def run(self: Any, holding: Any) -> Any:
        work = asyncio.ensure_future(original(self, holding))
        halted = asyncio.create_task(self._halt.wait())
        await asyncio.wait([work, halted], return_when=asyncio.FIRST_COMPLETED)
        halted.cancel()
        if work.done():
            return work.result()
        raise OutageError("the deployer stops")

    return [patch.object(Worker, "_run", run)]


@bug("Helm's deadline counts from its start, not from the begin")
def relative_deadline() -> list[Any]:
    original = Pipeline._run_helm

    async def run_helm(self: Any, fence: Any, spec: Any, deadline: float) -> Any:
        return await original(self, fence, spec, self._clock.boottime() + self._limits.helm_deadline_seconds)

    return [patch.object(Pipeline, "_run_helm", run_helm)]


@bug("Helm runs before the fence is seen to bite")
def no_confirm() -> list[Any]:
    async def fence_bites(self: Any, fence: Fence) -> None:
        await asyncio.sleep(0)

    return [patch.object(FakeCluster, "fence_bites", fence_bites)]


@bug("leases by the deployer's own wall clock, not by the database's (A21)")
def lease_by_own_clock() -> list[Any]:
    original = FakeStateStore._begin_transaction

    async def begin_transaction(self: Any) -> Any:
        from tests.simulation.loop import current_process

        process = current_process()
        return await original(self) + timedelta(seconds=process.wall_offset_seconds if process else 0)

    return [patch.object(FakeStateStore, "_begin_transaction", begin_transaction)]


@bug("writes under a claim do not present the token")
def no_token() -> list[Any]:
    return [
        patch.object(FakeStateStore, "_held", lambda self, claim: self.disk.previews[claim.key]),
        patch.object(FakeStateStore, "_claimed", lambda self, claim: self.disk.requests[claim.request_id]),
    ]


@bug("a finish looks at the token, not also at the request's state")
def finish_by_token_only() -> list[Any]:
    return [patch.object(FakeStateStore, "_claimed", lambda self, claim: self.disk.requests[claim.request_id])]


@bug("a give-back does not present the token")
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


@bug("an outage of somebody else uses an attempt up")
def give_back_counts() -> list[Any]:
    original = Worker._give_back

    async def give_back(self: Any, holding: Any, *, delay: float, counted: bool, error: str) -> Any:
        return await original(self, holding, delay=delay, counted=counted or error != "the deployer stops", error=error)

    return [patch.object(Worker, "_give_back", give_back)]


@bug("attempts are counted when they fail, not when they begin")
def tries_at_failure() -> list[Any]:
    def grant(self: Any, request: Any, preview: Any, *rest: Any) -> Any:
        claim = _grant(self, request, preview, *rest)
        request.attempts -= 1
        return claim

    async def give_back(self: Any, claim: Any, *, delay: float, counted: bool, error: str) -> None:
        await _give_back(self, claim, delay=delay, counted=True, error=error)
        self.disk.requests[claim.request_id].attempts += 1 if counted else 0

    return [patch.object(FakeStateStore, "_grant", grant), patch.object(FakeStateStore, "give_back", give_back)]


@bug("tokens start again after a teardown")
def token_reset() -> list[Any]:
    async def finish(self: Any, claim: Any, finish: Any) -> None:
        await _finish(self, claim, finish)
        if finish.preview_state is PreviewState.DESTROYED:
            self.disk.last_token = 0

    return [patch.object(FakeStateStore, "finish", finish)]


# -- order, identity ------------------------------------------------------------------------------------------------------


@bug("older requests are carried out, too")
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


@bug("the newest is the one that arrived last")
def arrival_order() -> list[Any]:
    from prevue.model import EPOCH, Message

    arrived: dict[tuple[Any, ...], int] = {}

    def order(self: Any) -> Order:
        at = arrived.setdefault((self.delivery_id, self.key, self.effective_source_id), len(arrived))
        return Order(EPOCH + timedelta(seconds=at), 0, 0)

    return [patch.object(Message, "order", property(order))]


@bug("a close has no precedence over a command of the same second")
def close_without_rank() -> list[Any]:
    from prevue.model import Message

    original = Message.order.fget
    assert original is not None

    def order(self: Any) -> Order:
        found = original(self)
        return Order(found.at, 0, found.tie)

    return [patch.object(Message, "order", property(order))]


@bug("`already deployed` is a verdict of the claim: it raises nothing and does not read GitHub (A2)")
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


@bug("a commit that was deployed once is done (A1: A, B, A again; A2: after a teardown)")
def done_by_key() -> list[Any]:
    def verdict(self: Any, request: Any, preview: Any, now: Any) -> Any:
        key = request.message.idempotency_key
        done = [row for row in self.disk.requests.values() if row.message.idempotency_key == key and row.state is RequestState.DEPLOYED]
        if done and request.message.action is Action.DEPLOY and not request.state.is_terminal:
            self._end(request, RequestState.DEPLOYED, Reason.ALREADY_LIVE, now, url=done[0].url)
        return _verdict(self, request, preview, now)

    return [patch.object(FakeStateStore, "_verdict", verdict)]


@bug("a finished request may be claimed again")
def no_dedupe() -> list[Any]:
    def verdict(self: Any, request: Any, preview: Any, now: Any) -> Any:
        if request.state.is_terminal and request.state is not RequestState.DEAD and not request.message.order < preview.desired:
            return None if not _is_busy(preview, now) else _verdict(self, request, preview, now)
        return _verdict(self, request, preview, now)

    return [patch.object(FakeStateStore, "_verdict", verdict)]


@bug("the row of a destroyed preview is dropped (G-5)")
def no_tombstone() -> list[Any]:
    async def finish(self: Any, claim: Any, finish: Any) -> None:
        await _finish(self, claim, finish)
        if finish.preview_state is PreviewState.DESTROYED:
            preview = self.disk.previews[claim.key]
            preview.desired = Order(preview.desired.at - timedelta(days=1), 0, 0)

    return [patch.object(FakeStateStore, "finish", finish)]


@bug("the queue knows a message by commit: an honest repeat is swallowed (A16)")
def queue_identity_by_commit() -> list[Any]:
    def by_commit(message: Any) -> str:
        return f"{message.idempotency_key}/{message.effective_source}"

    return [patch.object(queue_fake, "message_identity", by_commit)]


@bug("namespace by name and number, without the repository's id (A4)")
def namespace_by_slug() -> list[Any]:
    return [patch.object(fake, "preview_namespace", lambda key, repo: f"pv-{repo.partition('/')[0]}-{key.pr_number}")]


# -- under the claim ------------------------------------------------------------------------------------------------------


@bug("a release that exists is a success (A5)")
def exists_is_success() -> list[Any]:
    from prevue.deployer import pipeline

    return [patch.object(pipeline, "_is_ours", lambda record, labels: record is not None)]


@bug("Helm's exit code is believed")
def exit_code_decides() -> list[Any]:
    original = Pipeline._read_back

    async def read_back(self: Any, fence: Any, spec: Any, run: Any) -> None:
        if run.exit_code != 0:
            await original(self, fence, spec, run)

    return [patch.object(Pipeline, "_read_back", read_back)]


@bug("ready as soon as Helm is done: workloads are not waited for")
def no_readiness() -> list[Any]:
    async def wait_for_url(self: Any, fence: Any, manifest: Any, plan: Any, limits: Any, times: Any = None) -> str:
        return await self._cluster.url(fence, manifest, plan.url_source, host=plan.url_host, timeout_seconds=1)  # type: ignore[no-any-return]

    return [patch.object(Pipeline, "_wait_for_url", wait_for_url)]


@bug("what is live stays known after the begin, and is believed without a look")
def live_is_believed() -> list[Any]:
    async def begin(self: Any, claim: Any, **options: Any) -> Any:
        live = self.disk.previews[claim.key].live
        began = await _begin(self, claim, **options)
        if isinstance(began, Began):
            self.disk.previews[claim.key].live = live
        return began

    async def live_url(self: Any, claim: Any, plan: Any) -> str:
        return "http://127.0.0.1/" if claim.live is not None and claim.live.sha == plan.commit_sha else ""

    return [patch.object(FakeStateStore, "begin", begin), patch.object(Pipeline, "_live_url", live_url)]


@bug("a pending release is not recovered (A7)")
def no_recovery() -> list[Any]:
    async def run_helm(self: Any, fence: Any, spec: Any, deadline: float) -> Any:
        return await self._helm.upgrade_install(spec, kubeconfig=self._cluster.kubeconfig(fence), deadline=deadline)

    return [patch.object(Pipeline, "_run_helm", run_helm)]


@bug("the head at execution is deployed, not the pinned commit (G-1)")
def head_at_execution() -> list[Any]:
    from tests.simulation.world import World

    original = World.plan

    def plan(self: Any, claim: Any, pull: Any) -> Any:
        found = original(self, claim, pull)
        ready = msgspec.structs.replace(found.ready, commit_sha=pull.head_sha)
        return msgspec.structs.replace(found, commit_sha=pull.head_sha, ready=ready)

    return [patch.object(World, "plan", plan)]


@bug("a command on a closed pull request is rejected, and no more")
def closed_only_rejects() -> list[Any]:
    original = Pipeline._teardown

    async def teardown(self: Any, claim: Any, times: Any, outcome: Any, reason: Any) -> Any:
        if reason is Reason.PULL_REQUEST_CLOSED:
            return lifecycle.rejected(reason, "the pull request is closed")
        return await original(self, claim, times, outcome, reason)

    return [patch.object(Pipeline, "_teardown", teardown)]


@bug("open or closed is not read under the claim")
def closed_not_read() -> list[Any]:
    original = Pipeline._read_github

    async def read_github(self: Any, claim: Any) -> Any:
        pull, refused = await original(self, claim)
        return msgspec.structs.replace(pull, is_open=True), refused

    return [patch.object(Pipeline, "_read_github", read_github)]


@bug("the namespace is deleted by its name alone")
def no_precondition() -> list[Any]:
    original = FakeCluster.delete_namespace

    async def delete_namespace(self: Any, fence: Fence, *, timeout_seconds: float) -> None:
        found = self._state.find(fence.namespace)
        if found is not None:
            fence = msgspec.structs.replace(fence, uid=found.uid, resource_version=str(found.resource_version))
            before, found.fence = found.fence, fence.token
            try:
                await original(self, fence, timeout_seconds=timeout_seconds)
            finally:
                found.fence = before
        else:
            await original(self, fence, timeout_seconds=timeout_seconds)

    return [patch.object(FakeCluster, "delete_namespace", delete_namespace)]


@bug("a teardown becomes a dead letter")
def destroy_dies() -> list[Any]:
    def verdict(self: Any, request: Any, preview: Any, now: Any) -> Any:
        found = _verdict(self, request, preview, now)
        if found is None and request.attempts >= self.limits.attempts_max:
            return fake.Dead()
        return found

    return [patch.object(FakeStateStore, "_verdict", verdict)]


# -- telling --------------------------------------------------------------------------------------------------------------


@bug("the outbox row is written after the outcome's transaction (A9)")
def outbox_apart() -> list[Any]:
    async def finish(self: Any, claim: Any, finish: Any) -> None:
        await _finish(self, claim, msgspec.structs.replace(finish, tell=False))
        await asyncio.sleep(0.01)
        row = self.disk.requests[claim.request_id]
        if finish.tell and fake.is_told(row.message, finish.outcome, PreviewState.READY):
            _tell_again(self, row)

    return [patch.object(FakeStateStore, "finish", finish)]


@bug("the dead letter's announcement is written after its transaction (A18)")
def dead_letter_apart() -> list[Any]:
    async def register(self: Any, message: Any, *, holder: str) -> Any:
        found = await _register(self, message, holder=holder)
        if isinstance(found, fake.Dead):
            row = next(row for row in self.disk.requests.values() if row.message.key == message.key and row.state is RequestState.DEAD)
            box = self.disk.outbox[row.id, fake.STATUS]
            box.version -= 1
            await asyncio.sleep(0.5)
            box.version += 1
        return found

    return [patch.object(FakeStateStore, "register_and_claim", register)]


def _tell_again(store: Any, row: Any) -> None:
    now = store.clock.now()
    box = store.disk.outbox.get((row.id, fake.STATUS))
    if box is None:
        store.disk.outbox[row.id, fake.STATUS] = OutboxRow(row.id, fake.STATUS, now)
    else:
        box.version, box.due_at = box.version + 1, now


@bug("the outcome is no higher version of the acknowledgement's row")
def outcome_kept_out() -> list[Any]:
    def end(self: Any, request: Any, *rest: Any, **options: Any) -> None:
        box = self.disk.outbox.get((request.id, fake.STATUS))
        version = box.version if box is not None else 0
        _end(self, request, *rest, **options)
        if box is not None:
            box.version = version

    return [patch.object(FakeStateStore, "_end", end)]


@bug("the acknowledgement has an outbox row of its own, with its own verify")
def ack_row_apart() -> list[Any]:
    item = FakeStateStore._item

    async def register(self: Any, message: Any, *, holder: str) -> Any:
        found = await _register(self, message, holder=holder)
        for (request_id, kind), box in list(self.disk.outbox.items()):
            if kind == fake.STATUS and box.version == 1 and box.sent_version == 0 and box.due_at > self.clock.now():
                del self.disk.outbox[request_id, kind]
                self.disk.outbox[request_id, "ack"] = OutboxRow(request_id, "ack", box.due_at)
        return found

    def apart(self: Any, row: Any) -> Any:
        found = item(self, row)
        if row.kind == "ack":
            return msgspec.structs.replace(found, notice=msgspec.structs.replace(found.notice, state=RequestState.WAITING))
        return found

    return [patch.object(FakeStateStore, "register_and_claim", register), patch.object(FakeStateStore, "_item", apart)]


@bug("duplicate comments are left standing (A10)")
def no_heal() -> list[Any]:
    from prevue.github.client import GitHubClient

    async def delete_comment(self: Any, *_: Any) -> None:
        await asyncio.sleep(0)

    return [patch.object(GitHubClient, "delete_comment", delete_comment)]


@bug("a comment that was written is not verified once more (A11)")
def no_verify() -> list[Any]:
    original = FakeStateStore.sent

    async def sent(self: Any, item: Any, *, comment_id: int) -> None:
        await original(self, item, comment_id=comment_id)
        self.disk.outbox[item.notice.request_id, item.kind].verify_at = None

    return [patch.object(FakeStateStore, "sent", sent)]


@bug("a comment is POSTed without looking for one that is there")
def no_search_before_post() -> list[Any]:
    original = Acknowledger._post_once

    async def post_once(self: Any, installation_id: int, repo: str, number: int, marker: str, body: str, delivery_id: str) -> bool:
        await self._github.create_comment(installation_id, repo, number, body)
        return True

    assert original
    return [patch.object(Acknowledger, "_post_once", post_once)]


@bug("the App edits a comment that it finds: a late acknowledgement turns `ready` back")
def app_patches() -> list[Any]:
    original = Acknowledger._post_once

    async def post_once(self: Any, installation_id: int, repo: str, number: int, marker: str, body: str, delivery_id: str) -> bool:
        found = await self._github.find_comments(installation_id, repo, number, marker=marker)
        if found:
            await self._github.update_comment(installation_id, repo, found[0].id, body)
            return True
        return await original(self, installation_id, repo, number, marker, body, delivery_id)

    return [patch.object(Acknowledger, "_post_once", post_once)]


@bug("an outbox row that GitHub refused for good is forgotten")
def outbox_gives_up() -> list[Any]:
    original = OutboxDrainer._postpone

    async def postpone(self: Any, item: Any, delay: float, exc: Any) -> None:
        await original(self, item, delay, exc)
        if delay >= 60:
            await self._outbox.sent(item, comment_id=0)

    return [patch.object(OutboxDrainer, "_postpone", postpone)]


# -- receiving ------------------------------------------------------------------------------------------------------------


@bug("the queue's message is settled at receipt")
def ack_early() -> list[Any]:
    original = queue_fake.FakeQueue._handle

    async def handle_early(self: Any, handler: Any, entry: Any, receipt: int) -> None:
        self._settle(entry, receipt, queue_port.Done())
        await original(self, handler, entry, receipt)

    return [patch.object(queue_fake.FakeQueue, "_handle", handle_early)]


@bug("202 before the message is durable (A13)")
def answer_before_enqueue() -> list[Any]:
    async def enqueue(self: Any, message: Any) -> Any:
        task = asyncio.create_task(self._enqueuer.enqueue(message))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return handle.Outcome(result=handle.Result.ENQUEUED, message=message)

    return [patch.object(Handler, "_enqueue", enqueue)]


@bug("202 although the queue did not take the message (A13)")
def queue_error_is_accepted() -> list[Any]:
    original = Handler._enqueue

    async def enqueue(self: Any, message: Any) -> Any:
        found = await original(self, message)
        return handle.Outcome(result=handle.Result.ENQUEUED, message=message) if found.result is handle.Result.UNAVAILABLE else found

    return [patch.object(Handler, "_enqueue", enqueue)]


@bug("who may not push may preview")
def no_authorisation() -> list[Any]:
    original = handle._refusal

    def refusal(permission: Any, pull: Any) -> Any:
        found = original(permission, pull)
        return None if found is RefusalReason.PERMISSION else found

    return [patch.object(handle, "_refusal", refusal)]


@bug("nobody re-enqueues what nobody holds (sweeper, rule 1)", settings=Settings(sweeper=False))
def no_sweeper() -> list[Any]:
    return []


@bug("the sweeper looks for waiting requests only, not for expired claims")
def sweeper_forgets_claimed() -> list[Any]:
    original = FakeStateStore.unheld

    async def unheld(self: Any, **options: Any) -> Any:
        messages = await original(self, **options)
        waiting = {
            (row.message.key, row.message.effective_source_id)
            for row in self.disk.requests.values()
            if row.state is RequestState.WAITING
        }
        return [message for message in messages if (message.key, message.effective_source_id) in waiting]

    return [patch.object(FakeStateStore, "unheld", unheld)]


@bug("every error ends the request: an outage is taken for the chart's fault")
def outage_is_permanent() -> list[Any]:
    original = Worker._outcome

    async def outcome(self: Any, holding: Any) -> Any:
        pipeline = self._pipeline

        async def careless(claim: Any) -> Any:
            try:
                return await pipeline(claim)
            except HelmInterrupted as exc:
                if claim.message.action is Action.DESTROY:
                    raise
                return lifecycle.deployed(lifecycle.Live(sha=claim.message.commit_sha, digest="", request_id=0, token=claim.token), str(exc))

        self._pipeline = careless
        try:
            return await original(self, holding)
        finally:
            self._pipeline = pipeline

    return [patch.object(Worker, "_outcome", outcome)]


_ = (Granted, Later, Source, idempotency_key)
