"""Planted bugs, by name: each is a substitution in production code (or in the statestore's fake, where the rule lives in SQL).

Production code knows none of them. A bug that the oracle does not find within its bound of seeds would mean that the simulation cannot
see such a mistake; `docs/simulation.md` has the table of what it took. The names of the first group are those of
`docs/protocol/protocol_model.py`; the letters of the others are those of the hazards that they stand for.
"""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import patch

import msgspec
from tests.simulation import bugs_claim, bugs_sweeper
from tests.simulation.planting import BUGS, Bug, bug, planted, world_of
from tests.simulation.world import UNREACHABLE_SECONDS, Numbers

__all__ = ["BUGS", "Bug", "bugs_claim", "bugs_sweeper", "planted"]


from prevue import lifecycle
from prevue.cluster.port import Fence
from prevue.deployer.pipeline import Pipeline
from prevue.deployer.worker import Worker
from prevue.errors import HelmInterrupted
from prevue.github.comments import RefusalReason
from prevue.github_app import handle
from prevue.github_app.acknowledge import Acknowledger
from prevue.github_app.handle import Handler
from prevue.lifecycle import Reason
from prevue.model import Action, Live, PreviewState, RequestState
from prevue.queue import port as queue_port
from prevue.statestore.port import Began, Dead
from prevue.statestore.rules import STATUS, is_told
from prevue.sweeper.outbox import OutboxDrainer
from prevue.sweeper.own_comments import OwnComments
from prevue.sweeper.waiting import WaitingSweeper
from prevue.testing import queue as queue_fake
from prevue.testing import statestore_disk
from prevue.testing.cluster import FakeCluster
from prevue.testing.statestore import FakeStateStore
from prevue.testing.statestore_disk import OutboxRow

_verdict = FakeStateStore._verdict
_end = FakeStateStore._end
_begin = FakeStateStore.begin
_finish = FakeStateStore.finish
_register = FakeStateStore.register_and_claim


# -- under the claim ------------------------------------------------------------------------------------------------------


@bug("a release that exists is a success (A5)", breaks=("ready_means_ready_at_that_commit",))
def exists_is_success() -> list[Any]:
    from prevue.deployer import pipeline

    return [patch.object(pipeline, "_is_ours", lambda record, labels: record is not None)]


@bug("Helm's exit code is believed", breaks=("ready_means_ready_at_that_commit",))
def exit_code_decides() -> list[Any]:
    original = Pipeline._read_back

    async def read_back(self: Any, fence: Any, spec: Any, run: Any) -> None:
        if run.exit_code != 0:
            await original(self, fence, spec, run)

    return [patch.object(Pipeline, "_read_back", read_back)]


@bug("ready as soon as Helm is done: workloads are not waited for", breaks=("ready_means_ready_at_that_commit",))
def no_readiness() -> list[Any]:
    async def wait_for_url(self: Any, fence: Any, manifest: Any, plan: Any, limits: Any, times: Any = None) -> str:
        return await self._cluster.url(fence, manifest, plan.url_source, host=plan.url_host, timeout_seconds=1)  # type: ignore[no-any-return]

    return [patch.object(Pipeline, "_wait_for_url", wait_for_url)]


@bug(
    "what is live stays known after the begin, and is believed without a look",
    settings=world_of("crash_deployer", "helm_killed", "helm_lies", "cluster_error"),
    breaks=("ready_means_ready_at_that_commit",),
)
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


@bug("a pending release is not recovered (A7)", breaks=("outages_end_nothing",))
def no_recovery() -> list[Any]:
    async def run_helm(self: Any, fence: Any, spec: Any, deadline: float) -> Any:
        return await self._helm.upgrade_install(spec, kubeconfig=self._cluster.kubeconfig(fence), deadline=deadline)

    return [patch.object(Pipeline, "_run_helm", run_helm)]


@bug("the head at execution is deployed, not the pinned commit (G-1)", breaks=("every_apply_was_authorised_for_that_commit",))
def head_at_execution() -> list[Any]:
    from tests.simulation.world import World

    original = World.plan

    def plan(self: Any, claim: Any, pull: Any) -> Any:
        found = original(self, claim, pull)
        ready = msgspec.structs.replace(found.ready, commit_sha=pull.head_sha)
        return msgspec.structs.replace(found, commit_sha=pull.head_sha, ready=ready)

    return [patch.object(World, "plan", plan)]


@bug(
    "a command on a closed pull request is rejected, and no more",
    settings=world_of("github_stale_read_app", "webhook_delay", "queue_delay", has_sweeper_rules=False),
    breaks=("closed_pull_request_leaves_nothing",),
)
def closed_only_rejects() -> list[Any]:
    original = Pipeline._teardown

    async def teardown(self: Any, claim: Any, times: Any, outcome: Any, reason: Any) -> Any:
        if reason is Reason.PULL_REQUEST_CLOSED:
            return lifecycle.rejected(reason, "the pull request is closed")
        return await original(self, claim, times, outcome, reason)

    return [patch.object(Pipeline, "_teardown", teardown)]


@bug(
    "open or closed is not read under the claim",
    settings=world_of("github_stale_read_app", "webhook_delay", "queue_delay", has_sweeper_rules=False),
    breaks=("closed_pull_request_leaves_nothing",),
)
def closed_not_read() -> list[Any]:
    original = Pipeline._read_github

    async def read_github(self: Any, claim: Any) -> Any:
        pull, refused = await original(self, claim)
        return msgspec.structs.replace(pull, is_open=True), refused

    return [patch.object(Pipeline, "_read_github", read_github)]


@bug(
    "what is live is answered before GitHub is read",
    breaks=("closed_pull_request_leaves_nothing",),
    settings=world_of("github_stale_read_app", "webhook_delay", "queue_delay", has_sweeper_rules=False, boost=4.0, crowded=True),
)
def live_before_github() -> list[Any]:
    original = Pipeline._deploy

    async def deploy(self: Any, claim: Any, times: Any) -> Any:
        if claim.live is not None and claim.live.sha == claim.message.commit_sha and claim.preview_state is PreviewState.READY:
            await asyncio.sleep(0.01)
            return lifecycle.already_live(claim.url, ttl_seconds=0)
        return await original(self, claim, times)

    return [patch.object(Pipeline, "_deploy", deploy)]


@bug("a right that was lost while the request waited is not asked for again (G-3)", breaks=("every_apply_was_authorised_for_that_commit",))
def permission_not_read() -> list[Any]:
    original = Pipeline._read_github

    async def read_github(self: Any, claim: Any) -> Any:
        pull, refused = await original(self, claim)
        return pull, None if refused is not None and refused.reason is Reason.PERMISSION_LOST else refused

    return [patch.object(Pipeline, "_read_github", read_github)]


@bug(
    "the namespace is deleted by its name alone",
    settings=world_of("pause_deployer", "cluster_slow", "helm_slow"),
    breaks=("one_mutating_worker_per_release",),
)
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


@bug(
    "a teardown becomes a dead letter",
    settings=world_of("crash_deployer", "pause_deployer", "store_lost_answer"),
    breaks=("closed_pull_request_leaves_nothing",),
)
def destroy_dies() -> list[Any]:
    def verdict(self: Any, request: Any, preview: Any, now: Any) -> Any:
        found = _verdict(self, request, preview, now)
        if found is None and request.attempts >= self.limits.attempts_max:
            return Dead()
        return found

    return [patch.object(FakeStateStore, "_verdict", verdict)]


# -- telling --------------------------------------------------------------------------------------------------------------


@bug(
    "the outbox row is written after the outcome's transaction (A9)",
    settings=world_of("crash_deployer", "github_5xx", boost=4.0),
    breaks=("nothing_ends_without_a_word",),
)
def outbox_apart() -> list[Any]:
    async def finish(self: Any, claim: Any, finish: Any) -> None:
        await _finish(self, claim, msgspec.structs.replace(finish, tell=False))
        row = self.disk.requests[claim.request_id]
        if finish.tell and is_told(row.message, finish.outcome, PreviewState.READY):
            asyncio.get_running_loop().create_task(tell(self, row), name="tell")

    async def tell(self: Any, row: Any) -> None:
        await asyncio.sleep(0.5)
        _tell_again(self, row)

    return [patch.object(FakeStateStore, "finish", finish)]


@bug(
    "the dead letter's announcement is written after its transaction (A18)",
    settings=world_of("poison", "crash_deployer", boost=2.0, numbers=Numbers(attempts_max=1)),
    breaks=("dead_letter_is_announced",),
)
def dead_letter_apart() -> list[Any]:
    async def register(self: Any, message: Any, *, holder: str) -> Any:
        found = await _register(self, message, holder=holder)
        if isinstance(found, Dead):
            row = next(row for row in self.disk.requests.values() if row.message.key == message.key and row.state is RequestState.DEAD)
            box = self.disk.outbox[row.id, STATUS]
            box.version -= 1
            if not box.version:
                del self.disk.outbox[row.id, STATUS]
            await asyncio.sleep(2)
            _tell_again(self, row)
        return found

    return [patch.object(FakeStateStore, "register_and_claim", register)]


@bug(
    "a superseded command is told of what is desired now, not of what took over: its comment changes with each look",
    settings=world_of("webhook_never_sent", "webhook_lost", boost=4.0, crowded=True),
    breaks=("redelivery_changes_nothing",),
)
def superseded_by_later() -> list[Any]:
    def desired_now(disk: Any, request: Any) -> str:
        desired = disk.requests[disk.previews[request.message.key].desired_request]
        is_superseded = request.state is RequestState.SUPERSEDED and desired is not request
        return desired.message.commit_sha if is_superseded else ""

    return [patch.object(statestore_disk, "_superseded_by", desired_now)]


def _tell_again(store: Any, row: Any) -> None:
    now = store.clock.now()
    box = store.disk.outbox.get((row.id, STATUS))
    if box is None:
        store.disk.outbox[row.id, STATUS] = OutboxRow(row.id, STATUS, now)
    else:
        box.version, box.due_at = box.version + 1, now


@bug("the outcome is no higher version of the acknowledgement's row", breaks=("nothing_ends_without_a_word", "dead_letter_is_announced"))
def outcome_kept_out() -> list[Any]:
    def end(self: Any, request: Any, *rest: Any, **options: Any) -> None:
        box = self.disk.outbox.get((request.id, STATUS))
        version = box.version if box is not None else 0
        _end(self, request, *rest, **options)
        if box is not None:
            box.version = version

    return [patch.object(FakeStateStore, "_end", end)]


@bug("the acknowledgement has an outbox row of its own, with its own verify", breaks=("nothing_ends_without_a_word",))
def ack_row_apart() -> list[Any]:
    item = FakeStateStore._item

    async def register(self: Any, message: Any, *, holder: str) -> Any:
        found = await _register(self, message, holder=holder)
        for (request_id, kind), box in list(self.disk.outbox.items()):
            if kind == STATUS and box.version == 1 and box.sent_version == 0 and box.due_at > self.clock.now():
                del self.disk.outbox[request_id, kind]
                self.disk.outbox[request_id, "ack"] = OutboxRow(request_id, "ack", box.due_at)
        return found

    def apart(self: Any, row: Any) -> Any:
        found = item(self, row)
        if row.kind == "ack":
            return msgspec.structs.replace(found, notice=msgspec.structs.replace(found.notice, state=RequestState.WAITING))
        return found

    return [patch.object(FakeStateStore, "register_and_claim", register), patch.object(FakeStateStore, "_item", apart)]


@bug("duplicate comments are left standing (A10)", breaks=("one_status_comment_per_command",))
def no_heal() -> list[Any]:
    from prevue.github.client import GitHubClient

    async def delete_comment(self: Any, *_: Any) -> None:
        await asyncio.sleep(0)

    return [patch.object(GitHubClient, "delete_comment", delete_comment)]


async def unseen(_self: Any, *_: Any, **__: Any) -> None:
    """What the comment scan does about our own comments, which mends the same."""
    await asyncio.sleep(0)


@bug("a comment that was written is not verified once more (A11)", breaks=("one_status_comment_per_command",))
def no_verify() -> list[Any]:
    original = FakeStateStore.sent

    async def sent(self: Any, item: Any, *, comment_id: int) -> None:
        await original(self, item, comment_id=comment_id)
        self.disk.outbox[item.notice.request_id, item.kind].verify_at = None

    return [patch.object(FakeStateStore, "sent", sent), patch.object(FakeStateStore, "verify_again", unseen)]


@bug("a comment is POSTed without looking for one that is there", breaks=("one_status_comment_per_command", "redelivery_changes_nothing"))
def no_search_before_post() -> list[Any]:
    async def post_once(self: Any, installation_id: int, repo: str, number: int, marker: str, body: str, delivery_id: str) -> bool:
        await self._github.create_comment(installation_id, repo, number, body)
        return True

    return [patch.object(Acknowledger, "_post_once", post_once)]


@bug("the App edits a comment that it finds: a late acknowledgement turns `ready` back", breaks=("nothing_ends_without_a_word",))
def app_patches() -> list[Any]:
    original = Acknowledger._post_once

    async def post_once(self: Any, installation_id: int, repo: str, number: int, marker: str, body: str, delivery_id: str) -> bool:
        found = await self._github.find_comments(installation_id, repo, number, marker=marker)
        if found:
            await self._github.update_comment(installation_id, repo, found[0].id, body)
            return True
        return await original(self, installation_id, repo, number, marker, body, delivery_id)

    return [patch.object(Acknowledger, "_post_once", post_once), patch.object(FakeStateStore, "verify_again", unseen)]


@bug(
    "what was read long ago is written all the same, and nobody looks at our own comments again (A11)",
    breaks=("nothing_ends_without_a_word", "dead_letter_is_announced"),
    settings=world_of("pause_deployer", "helm_slow", "ready_slowly", boost=3.0, numbers=Numbers(lease_seconds=20.0)),
)
def writes_late() -> list[Any]:
    original = OutboxDrainer._write

    async def write(self: Any, item: Any, _write_until: float) -> Any:
        return await original(self, item, float("inf"))

    return [patch.object(OutboxDrainer, "_write", write), patch.object(FakeStateStore, "verify_again", unseen)]


@bug(
    "a command that two Apps refused at once keeps two refusals",
    breaks=("one_status_comment_per_command",),
    settings=world_of("webhook_duplicate", "pause_app", "github_slow", boost=4.0),
)
def refusals_left() -> list[Any]:
    return [patch.object(OwnComments, "_leave_one", unseen)]


@bug(
    "an outbox row that GitHub refused for good is forgotten",
    settings=world_of("github_403", "github_422", boost=8.0),
    breaks=("nothing_ends_without_a_word",),
)
def outbox_gives_up() -> list[Any]:
    original = OutboxDrainer._postpone

    async def postpone(self: Any, item: Any, delay: float, exc: Any) -> None:
        if delay >= UNREACHABLE_SECONDS:
            await self._outbox.sent(item, comment_id=0)
        else:
            await original(self, item, delay, exc)

    return [patch.object(OutboxDrainer, "_postpone", postpone)]


# -- receiving ------------------------------------------------------------------------------------------------------------


@bug("the queue's message is settled at receipt", breaks=("accepted_reaches_terminal_state",))
def ack_early() -> list[Any]:
    original = queue_fake.FakeQueue._handle

    async def handle_early(self: Any, handler: Any, entry: Any, receipt: int) -> None:
        self._settle(entry, receipt, queue_port.Done())
        await original(self, handler, entry, receipt)

    return [patch.object(queue_fake.FakeQueue, "_handle", handle_early)]


@bug("202 before the message is durable (A13)", breaks=("accepted_reaches_terminal_state",))
def answer_before_enqueue() -> list[Any]:
    async def enqueue(self: Any, message: Any) -> Any:
        task = asyncio.create_task(self._enqueuer.enqueue(message))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return handle.Outcome(result=handle.Result.ENQUEUED, message=message)

    return [patch.object(Handler, "_enqueue", enqueue)]


@bug("202 although the queue did not take the message (A13)", breaks=("accepted_reaches_terminal_state",))
def queue_error_is_accepted() -> list[Any]:
    original = Handler._enqueue

    async def enqueue(self: Any, message: Any) -> Any:
        found = await original(self, message)
        return handle.Outcome(result=handle.Result.ENQUEUED, message=message) if found.result is handle.Result.UNAVAILABLE else found

    return [patch.object(Handler, "_enqueue", enqueue)]


@bug("who may not push may preview", breaks=("every_apply_was_authorised_for_that_commit",))
def no_authorisation() -> list[Any]:
    original = handle._refusal

    def refusal(permission: Any, pull: Any) -> Any:
        found = original(permission, pull)
        return None if found is RefusalReason.PERMISSION else found

    return [patch.object(handle, "_refusal", refusal)]


@bug("nobody re-enqueues what nobody holds (sweeper, rule 1)", breaks=("accepted_reaches_terminal_state",))
def no_sweeper() -> list[Any]:
    async def run(_self: Any, stop: asyncio.Event) -> None:
        await stop.wait()

    return [patch.object(WaitingSweeper, "run", run)]


@bug("the sweeper looks for waiting requests only, not for expired claims", breaks=("accepted_reaches_terminal_state",))
def sweeper_forgets_claimed() -> list[Any]:
    original = FakeStateStore.unheld

    async def unheld(self: Any, **options: Any) -> Any:
        messages = await original(self, **options)
        waiting = {
            (row.message.key, row.message.effective_source_id) for row in self.disk.requests.values() if row.state is RequestState.WAITING
        }
        return [message for message in messages if (message.key, message.effective_source_id) in waiting]

    return [patch.object(FakeStateStore, "unheld", unheld)]


@bug("an interrupted Helm counts as a success", breaks=("ready_means_ready_at_that_commit",))
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
                return lifecycle.deployed(Live(sha=claim.message.commit_sha, digest="", request_id=0, token=claim.token), str(exc))

        self._pipeline = careless
        try:
            return await original(self, holding)
        finally:
            self._pipeline = pipeline

    return [patch.object(Worker, "_outcome", outcome)]
