"""What must hold once the faults have stopped: liveness, and the promises about how everything ends."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tests.simulation.invariants import identity
from tests.simulation.loop import BOOTED_SECONDS, START
from tests.simulation.people import PullHistory, held_within

from prevue.model import PreviewKey, PreviewState, RequestState, Source, comment_marker
from prevue.testing.github.records import Comment
from prevue.testing.statestore_disk import RequestRow

if TYPE_CHECKING:
    from tests.simulation.world import World

WORDS: dict[RequestState, tuple[str, ...]] = {
    RequestState.DEPLOYED: ("Preview ready", "Preview already exists"),
    RequestState.DESTROYED: ("Preview removed", "Preview expired"),
    RequestState.SUPERSEDED: ("Superseded", "closed meanwhile"),
    RequestState.REJECTED: ("Preview not started",),
    RequestState.FAILED: ("Preview failed",),
    RequestState.DEAD: ("Preview given up",),
}
"""By what words people can tell how a request ended."""


_OURS = (Source.SWEEP, Source.EXPIRY)


def unquiet(world: World) -> str:
    """What is still going on; empty: nothing."""
    store = world.store
    busy = world.clock.now()
    if world.wire.in_flight or world.wire.unsettled or world.people.replays:
        return "a webhook or a replay is under way"
    acknowledgers = [app.acknowledger for app in world.apps] + [deployer.acknowledger for deployer in world.deployers]
    if any(acknowledger._pending for acknowledger in acknowledgers):
        return "an acknowledgement is under way"
    for row in store.requests.values():
        if not row.state.is_terminal:
            return f"request {row.id} ({row.message.effective_source}) is {row.state}, attempts {row.attempts}: {row.error[:80]}"
    for box in store.outbox.values():
        if box.sent_version < box.version or box.verify_at is not None:
            return f"the outbox has something to say about request {box.request_id}: {box.error[:80]}"
    for preview in store.previews.values():
        if preview.lease_until > busy or preview.helm_deadline > busy:
            return f"{preview.namespace} is held"
    if any(deployer.helm.children for deployer in world.deployers):
        return "a Helm runs"
    if world.settings.has_sweeper_rules and (left := _left_for_the_sweeper(world)):
        return left
    if world.queue.entries:
        return f"{len(world.queue.entries)} messages are in the queue"
    return ""


def has_commands_without_request(world: World) -> bool:
    """Refused, or not found yet."""
    known = {identity(row.message) for row in world.store.requests.values()}
    commands = [
        (PreviewKey("github.com", pull.repository_id, pull.number), Source.COMMENT, str(comment_id))
        for pull in world.people.pulls
        for comment_id in pull.commands
    ]
    return any(command not in known for command in commands)


def _left_for_the_sweeper(world: World) -> str:
    """What its rules 2, 3 and 5 have not found yet."""
    known = {identity(row.message) for row in world.store.requests.values()}
    for pull in world.people.pulls:
        key = PreviewKey("github.com", pull.repository_id, pull.number)
        for comment_id, (since, who, _) in pull.commands.items():
            stayed_open = pull.opened[-1][1] and pull.opened[-1][0] <= since
            stayed_allowed = who == "writer" and world.people.writer_may[-1][1] and world.people.writer_may[-1][0] <= since
            # One whose App was shown a state of seconds ago may have been refused: it has its answer.
            marker = comment_marker(key, Source.COMMENT, str(comment_id))
            is_refused = any(comment.body.startswith(marker) for comment in ours(world, pull))
            if stayed_open and stayed_allowed and not is_refused and (key, Source.COMMENT, str(comment_id)) not in known:
                return f"the command {comment_id} has no request"
        row = world.store.previews.get(key)
        if row is None:
            continue
        if not pull.opened[-1][1] and row.state is not PreviewState.DESTROYED:
            return f"{pull.repo}#{pull.number} is closed, and {row.namespace} stands"
        if row.state is PreviewState.DESTROYED and world.cluster.find(row.namespace) is not None:
            return f"{row.namespace} stands, its preview is destroyed: closed or expired"
        if row.expires_at is not None and row.state is not PreviewState.DESTROYED:
            return f"{row.namespace} is going to expire"
    return ""


def snapshot(world: World) -> dict[str, Any]:
    """All that a redelivery must not change."""
    return {
        "writes": len(world.cluster.journal),
        "requests": [(row.id, row.state, row.token, row.attempts) for row in world.store.requests.values()],
        "comments": [(comment.id, comment.body) for pull in world.people.pulls for comment in ours(world, pull)],
        "served": [(row.namespace, world.cluster.served_commit(row.namespace)) for row in world.store.previews.values()],
    }


def ours(world: World, pull: PullHistory) -> list[Comment]:
    """Our own comments on a pull request."""
    comments = world.github.issue(pull.repo, pull.number).comments.values()
    return [comment for comment in comments if comment.author is world.github.app.bot]


_TOLD = ("one_status_comment_per_command", "nothing_ends_without_a_word", "dead_letter_is_announced")


def is_told_wrongly(world: World) -> bool:
    """Whether some comment is not yet what it should be: what a late writer left, only the comment scan finds."""
    found: list[str] = []
    QuietCheck(world, lambda invariant, _: found.append(invariant)).check()
    return any(invariant in _TOLD for invariant in found)


class QuietCheck:
    """The promises about the end, pull request by pull request."""

    def __init__(self, world: World, report: Callable[[str, str], None]) -> None:
        self._world = world
        self._report = report
        self._rows: dict[PreviewKey, list[RequestRow]] = {}
        for row in world.store.requests.values():
            self._rows.setdefault(row.message.key, []).append(row)

    def check(self) -> None:
        """All of them; what is broken is reported."""
        self._accepted()
        names = [row.namespace for row in self._world.store.previews.values()]
        if len(set(names)) < len(names):
            self._report("names_are_injective", f"two previews have one namespace: {', '.join(sorted(names))}")
        for pull in self._world.people.pulls:
            key = PreviewKey("github.com", pull.repository_id, pull.number)
            rows = self._rows.get(key, [])
            self._told(pull, rows)
            self._newest(pull, key, rows)
            self._closed(pull, key)

    def _accepted(self) -> None:
        known = [identity(row.message) for row in self._world.store.requests.values()]
        if len(set(known)) < len(known):
            self._report("one_outcome_per_request", "one request has two rows")
        for wanted in sorted(self._world.oracle.accepted):
            if wanted not in known:
                self._report("accepted_reaches_terminal_state", f"{wanted} was answered with 202, and nobody knows it")

    def _told(self, pull: PullHistory, rows: list[RequestRow]) -> None:
        """One comment for each command, which says how it ended; a close is told where there was a preview."""
        comments = ours(self._world, pull)
        for row in rows:
            message = row.message
            marker = comment_marker(message.key, message.effective_source, message.effective_source_id)
            found = [comment for comment in comments if comment.body.startswith(marker)]
            is_command = message.effective_source in (Source.COMMENT, Source.REPLAY)
            words = WORDS[row.state]
            if len(found) > 1:
                self._report("one_status_comment_per_command", f"request {row.id} has {len(found)} comments")
            is_silent = (
                message.effective_source is Source.SWEEP or row.state is not RequestState.DESTROYED or not self._removed_something(row)
            )
            if not found and (is_command or not is_silent):
                name = "dead_letter_is_announced" if row.state is RequestState.DEAD else "nothing_ends_without_a_word"
                self._report(name, f"request {row.id} ({message.effective_source}) ended as {row.state}, and no comment says so")
            if found and not any(word in found[0].body for word in words):
                name = "dead_letter_is_announced" if row.state is RequestState.DEAD else "nothing_ends_without_a_word"
                self._report(name, f"request {row.id} ended as {row.state}, and its comment says: {found[0].body[len(marker) :][:60]!r}")

        known = {row.message.comment_id for row in rows if row.message.effective_source is Source.COMMENT}
        for comment_id in pull.commands.keys() - known:
            marker = comment_marker(PreviewKey("github.com", pull.repository_id, pull.number), Source.COMMENT, str(comment_id))
            refusals = sum(comment.body.startswith(marker) for comment in comments)
            if refusals > 1 and self._world.settings.has_sweeper_rules:
                self._report("one_status_comment_per_command", f"the command {comment_id} was refused {refusals} times")

    def _removed_something(self, row: RequestRow) -> bool:
        """Whether it is the first to end after a namespace of its preview went: that one has to say so, whoever deleted it."""
        oracle = self._world.oracle
        tokens = {grant.token for grant in oracle.grants.values() if grant.key == row.message.key}
        ends = sorted((other.finished_at, other.id) for other in self._rows[row.message.key] if other.finished_at is not None)
        for write in self._world.cluster.journal:
            if write.kind == "Namespace" and write.token in tokens:
                at = START + timedelta(seconds=write.at - BOOTED_SECONDS)
                if next((number for end, number in ends if end >= at), None) == row.id:
                    return True
        return False

    def _newest(self, pull: PullHistory, key: PreviewKey, rows: list[RequestRow]) -> None:
        """The newest request by GitHub's order decides what stands there."""
        if not rows:
            return
        order = self._world.oracle.order_of
        # A sweep, an expiry or a replay has the order of what it repeats: of equals the last one counts, but not one that found no reason.
        counted = [row for row in rows if row.state is not RequestState.SUPERSEDED or row.message.effective_source not in _OURS] or rows
        newest = max(counted, key=lambda row: (order(row.message), row.finished_at or row.registered_at))
        preview = self._world.store.previews[key]
        served = self._world.cluster.served_commit(preview.namespace)
        if newest.state is RequestState.SUPERSEDED and newest.message.effective_source not in _OURS and not self._was_closed(pull, newest):
            self._report("newest_wins", f"request {newest.id} is the newest, and superseded")
        stands = served == newest.message.commit_sha and preview.state is PreviewState.READY
        if newest.state is RequestState.DEPLOYED and not stands:
            text = f"request {newest.id} is the newest, deployed at {newest.message.commit_sha[:7]}; served is {served}"
            self._report("newest_wins", text)
        if newest.state is RequestState.DESTROYED and served is not None:
            self._report("newest_wins", f"request {newest.id} is the newest and tore down, but {served} is served")
        for row in rows:
            is_ours = row.message.effective_source in _OURS
            has_newer = any(order(other.message) > order(row.message) for other in rows)
            if row.state is RequestState.SUPERSEDED and not has_newer and not is_ours and not self._was_closed(pull, row):
                self._report("newest_wins", f"request {row.id} is superseded, and nothing newer is known")

    def _was_closed(self, pull: PullHistory, row: RequestRow) -> bool:
        """Whether the pull request was closed at some time while the request was open."""
        since = (row.registered_at - self._world.clock.now()).total_seconds() + self._world.loop.time()
        return held_within(pull.opened, False, since - 3, self._world.loop.time())

    def _closed(self, pull: PullHistory, key: PreviewKey) -> None:
        if pull.opened[-1][1] or key not in self._world.store.previews:
            return
        preview = self._world.store.previews[key]
        namespace = self._world.cluster.find(preview.namespace)
        if namespace is not None:
            is_empty = not namespace.releases and not namespace.objects
            if self._world.settings.has_sweeper_rules or not is_empty:
                self._report("closed_pull_request_leaves_nothing", f"{pull.repo}#{pull.number} is closed, and {preview.namespace} is there")
        elif preview.state is not PreviewState.DESTROYED:
            self._report("closed_pull_request_leaves_nothing", f"{pull.repo}#{pull.number} is closed, and its row says {preview.state}")
