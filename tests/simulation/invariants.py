"""The oracle: Prevue's promises by name, judged by what stands outside of it.

It sees GitHub and what people did there, webhooks and their answers, what the cluster accepted (its journal), the rows on the statestore's
disk, and comments. It shares no rule with production code: orders, authorisation and texts are worked out here once more. What can be
told at once is looked at after every event; what holds "once quiet" is in `quiet.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
from tests.simulation.loop import Process
from tests.simulation.people import STALE_SECONDS, PullHistory, held_within

from prevue.model import Action, Message, PreviewKey, RequestState, Source
from prevue.testing.cluster import Write
from prevue.testing.github.records import Delivery
from prevue.testing.statestore_disk import PreviewRow, RequestRow

if TYPE_CHECKING:
    from tests.simulation.ports import HelmChild
    from tests.simulation.world import World

INVARIANTS = (
    "accepted_reaches_terminal_state",
    "nothing_ends_without_a_word",
    "one_status_comment_per_command",
    "one_mutating_worker_per_release",
    "no_write_after_lost_claim",
    "one_outcome_per_request",
    "generation_never_decreases",
    "newest_wins",
    "ready_means_ready_at_that_commit",
    "every_apply_was_authorised_for_that_commit",
    "names_are_injective",
    "dead_letter_is_announced",
    "closed_pull_request_leaves_nothing",
    "redelivery_changes_nothing",
    "quiet_after_faults_stop",
    "expired_preview_leaves_nothing",
    "outages_end_nothing",
    "no_unexpected_error",
)
"""The design's, and three more: expiry, attempts that are spent only where something really failed, no unexpected error."""

_WRITES_UNDER_A_CLAIM = frozenset({"heartbeat", "begin", "finish", "give_back"})


class Violation(Exception):
    """A promise is broken: its name, and what was seen."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant
        self.text = text


@dataclass(kw_only=True)
class Grant:
    """One claim, as the disk showed it when it was given out."""

    token: int
    key: PreviewKey
    request_id: int
    order: tuple[datetime, int, int]
    commit: str
    process: Process | None
    since: float = 0.0
    """Virtual time."""
    is_open: bool = True
    is_excused: bool = False
    """Something happened to its holder, its Helm or its statestore: the attempt may be spent."""
    is_returned: bool = False
    """Given back without counting."""


class Oracle:
    """Looks on."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.found: Violation | None = None
        self.grants: dict[int, Grant] = {}
        self.accepted: set[tuple[PreviewKey, Source, str]] = set()
        """Requests whose webhook was answered with 202."""
        self.children: list[HelmChild] = []
        self._states: dict[int, RequestState] = {}
        self._tokens: dict[PreviewKey, tuple[int | None, int | None]] = {}
        self._last_token = 0
        self._journal_seen = 0
        self._max_token: dict[str, int] = {}
        self._max_order: dict[str, tuple[datetime, int, int]] = {}
        self._owners: dict[str, PreviewKey] = {}
        self._authorised: set[tuple[PreviewKey, str]] = set()
        self._slow_namespaces: set[PreviewKey] = set()
        self._stands_until: dict[PreviewKey, float] = {}
        """Previews that were deployed last, and the virtual time at which each expires."""

    def report(self, invariant: str, text: str) -> None:
        """A promise is broken; the first one ends the seed."""
        if self.found is None:
            self.found = Violation(invariant, text)

    def after_step(self) -> None:
        """After every callback.

        Raises:
            Violation: something was reported, by whatever part.
        """
        journal = self.world.cluster.journal
        if len(journal) == self._journal_seen and not self.world.loop.errors and self.found is None:
            return
        while self._journal_seen < len(journal):
            self._accepted_write(journal[self._journal_seen])
            self._journal_seen += 1
        if self.world.loop.errors:
            error = self.world.loop.errors.pop()
            self.report("no_unexpected_error", f"{error.get('message')}: {error.get('exception')!r}")
        if self.found is not None:
            raise self.found

    # -- webhooks -----------------------------------------------------------------------------------------------------

    def enqueues(self, message: Message) -> None:
        """A request is put on the queue: was it asked for, by somebody who may, for a commit that was the head?"""
        if message.effective_source is not Source.COMMENT:
            return
        pull = self.pull_of(message.key)
        asked = pull.commands.get(message.comment_id)
        now = self.world.loop.time()
        if asked is None:
            self.report("every_apply_was_authorised_for_that_commit", f"no such command: comment {message.comment_id}")
            return
        since, who, _ = asked
        may = who == "writer" and held_within(self.world.people.writer_may, True, since, now)
        was_head = held_within(pull.heads, message.commit_sha, since, now)
        was_open = held_within(pull.opened, True, since - STALE_SECONDS, now)
        if not (may and was_head and was_open):
            text = f"comment {message.comment_id} by {who}: may {may}, {message.commit_sha[:7]} was head {was_head}, open {was_open}"
            self.report("every_apply_was_authorised_for_that_commit", text)
        self._authorised.add((message.key, message.commit_sha))

    def app_answered(self, delivery: Delivery, status: int, body: bytes) -> None:
        """The answer to a webhook; from a 202 on the request must not get lost."""
        if status != 202:
            return
        event = msgspec.json.decode(delivery.payload, type=_Event)
        if event.comment is not None and event.issue is not None:
            key = PreviewKey("github.com", event.repository.id, event.issue.number)
            self.accepted.add((key, Source.COMMENT, str(event.comment.id)))
        elif event.pull_request is not None:
            key = PreviewKey("github.com", event.repository.id, event.pull_request.number)
            self.accepted.add((key, Source.CLOSE, event.pull_request.closed_at))

    def pull_of(self, key: PreviewKey) -> PullHistory:
        """What people did to the pull request of a preview."""
        return next(pull for pull in self.world.people.pulls if (pull.repository_id, pull.number) == (key.repository_id, key.pr_number))

    def is_registered(self, message: Message) -> bool:
        """Whether the statestore has the request."""
        return any(identity(row.message) == identity(message) for row in self.world.store.requests.values())

    # -- statestore ---------------------------------------------------------------------------------------------------

    def after_transaction(self, process: Process, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, is_done: bool) -> None:
        """After each transaction: what has it changed, and might it?"""
        if is_done and method in _WRITES_UNDER_A_CLAIM:
            self._written_under_a_claim(process, method, args, kwargs)
        for key, preview in self.world.store.previews.items():
            before, now = self._tokens.get(key, (None, None)), (preview.token, preview.holder_request)
            if before != now:
                self._tokens[key] = now
                self._claim_changed(process, preview, before)
        for row in self.world.store.requests.values():
            was = self._states.get(row.id)
            if was is not row.state:
                self._states[row.id] = row.state
                self._request_changed(row, was)

    def _written_under_a_claim(self, process: Process, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        claim = args[0]
        token = self._tokens.get(claim.key, (None, None))[0]
        self.world.trace(f"store {method} {process.name} token {claim.token} request {claim.request_id}")
        if token != claim.token:
            self.report("no_write_after_lost_claim", f"{method} under token {claim.token}, the preview's is {token}")
        grant = self.grants.get(claim.token)
        if method == "finish" and self._states.get(claim.request_id, RequestState.WAITING).is_terminal:
            self.report("one_outcome_per_request", f"request {claim.request_id} was finished again under token {claim.token}")
        if method == "give_back" and grant is not None and not kwargs["counted"]:
            grant.is_returned = True

    def _claim_changed(self, process: Process, preview: PreviewRow, before: tuple[int | None, int | None]) -> None:
        token, held = before
        if held is not None and token == preview.token and preview.holder_request != held:
            row = self.world.store.requests[held]
            if row.state is RequestState.CLAIMED and row.token == token:
                self.report("no_write_after_lost_claim", f"the claim {token} was freed, and its request {held} is still claimed")
        if token is not None and token in self.grants:
            self.grants[token].is_open = False
        if preview.token is None or preview.token == token or preview.holder_request is None:
            return
        if preview.token in self.grants:
            self.report("no_write_after_lost_claim", f"the token {preview.token} was given out twice")
        row = self.world.store.requests[preview.holder_request]
        if self._states.get(row.id, RequestState.WAITING).is_terminal:
            self.report("redelivery_changes_nothing", f"request {row.id} was {self._states[row.id]}, and is claimed again")
        self.world.trace(f"granted {preview.token} request {row.id} {row.message.effective_source} to {process.name}")
        self.grants[preview.token] = Grant(
            token=preview.token,
            key=preview.key,
            request_id=row.id,
            order=self.order_of(row.message),
            commit=row.message.commit_sha,
            process=process,
            since=self.world.loop.time(),
            is_excused=preview.key in self._slow_namespaces,
        )

    def order_of(self, message: Message) -> tuple[datetime, int, int]:
        """The place of a request among those of its pull request, by GitHub's own times."""
        if message.effective_source is Source.COMMENT:
            return self.pull_of(message.key).commands[message.comment_id][2].created_at, 0, message.comment_id
        if message.effective_source is Source.CLOSE:
            return datetime.fromisoformat(message.source_id), 1, 0
        if message.effective_source is Source.REPLAY:
            return self.order_of(self.world.store.requests[int(message.source_id)].message)
        _, _, repeated = message.source_id.partition("@")
        at, _, rest = repeated.partition("/")
        rank, _, tie = rest.partition("/")
        return (datetime.fromisoformat(at), int(rank), int(tie)) if tie else message.order

    def _request_changed(self, row: RequestRow, was: RequestState | None) -> None:
        self.world.trace(f"request {row.id} {was} -> {row.state} {row.reason}")
        if was is not None and was.is_terminal:
            self.report("one_outcome_per_request", f"request {row.id} was {was} and became {row.state}")
        if row.state is RequestState.DEPLOYED:
            self._became_ready(row)
            self._stands_until[row.message.key] = self.world.loop.time() + (self.world.numbers.ttl_seconds or math.inf)
        elif row.state is RequestState.DEAD:
            self._died(row)
            self.world.people.hears_of_death(row.id)
        elif row.state is RequestState.DESTROYED:
            self._was_removed(row)
        if row.state in (RequestState.FAILED, RequestState.DESTROYED):
            self._stands_until.pop(row.message.key, None)

    def _was_removed(self, row: RequestRow) -> None:
        """What the sweeper asked for had its reason when it was carried out, not only when it was asked for."""
        key, now = row.message.key, self.world.loop.time()
        since = self.grants[row.token].since if row.token in self.grants else now
        if row.message.effective_source is Source.EXPIRY and self._stands_until.get(key, 0.0) > now:
            self.report("newest_wins", f"the expiry {row.id} removed what was deployed again and has not expired")
        is_open = not held_within(self.pull_of(key).opened, False, since - STALE_SECONDS, now)
        if row.message.effective_source is Source.SWEEP and key in self._stands_until and is_open:
            self.report("newest_wins", f"the sweep {row.id} removed the preview of a pull request that is open")

    def _became_ready(self, row: RequestRow) -> None:
        preview = self.world.store.previews[row.message.key]
        namespace = self.world.cluster.find(preview.namespace)
        commit = row.message.commit_sha
        revisions = namespace.releases.get(preview.releases[0], []) if namespace is not None else []
        newest = revisions[-1] if revisions else None
        served = self.world.cluster.served_commit(preview.namespace)
        if newest is None or newest.status != "deployed" or newest.commit != commit or served != commit or commit in self.world.never_ready:
            status = f"{newest.status} at {newest.commit[:7]}" if newest is not None else "no release"
            text = f"request {row.id} is deployed at {commit[:7]}; the cluster has {status}, serves {served}"
            self.report("ready_means_ready_at_that_commit", text)

    def _died(self, row: RequestRow) -> None:
        if row.message.action is Action.DESTROY:
            self.report("closed_pull_request_leaves_nothing", f"the teardown {row.id} is given up")
        spent = [grant for grant in self.grants.values() if grant.request_id == row.id and not grant.is_returned]
        for grant in spent:
            if not grant.is_excused:
                self.report("outages_end_nothing", f"request {row.id} is dead, but nothing had happened to its attempt {grant.token}")

    # -- the cluster --------------------------------------------------------------------------------------------------

    def _accepted_write(self, write: Write) -> None:
        self.world.trace(f"write {write.namespace} {write.token} {write.verb} {write.kind} {write.commit[:7]}")
        grant = self.grants.get(write.token)
        if grant is None:
            self.report("one_mutating_worker_per_release", f"a write with token {write.token}, which nobody was given")
            return
        name = write.namespace
        if write.token < self._max_token.get(name, 0):
            text = f"{name}: {write.verb} {write.kind} by {write.token} after a write by {self._max_token[name]}"
            self.report("one_mutating_worker_per_release", text)
        if grant.order < self._max_order.get(name, grant.order):
            self.report("generation_never_decreases", f"{name}: {write.verb} {write.kind} for an older request than before")
        owner = self._owners.setdefault(name, grant.key)
        if owner != grant.key or len(name) > 63:
            self.report("names_are_injective", f"{name} is written to for {grant.key} and for {owner}")
        if write.commit and not held_within(self.world.people.writer_may, True, grant.since - STALE_SECONDS, self.world.loop.time()):
            self.report("every_apply_was_authorised_for_that_commit", f"{name}: applied for one who lost the right before the claim")
        if write.commit and (grant.key, write.commit) not in self._authorised:
            self.report("every_apply_was_authorised_for_that_commit", f"{name}: {write.commit[:7]} was applied, and nobody asked for it")
        self._max_token[name] = max(write.token, self._max_token.get(name, 0))
        self._max_order[name] = max(grant.order, self._max_order.get(name, grant.order))

    def helm_started(self, child: HelmChild) -> None:
        """Where no policy refuses the stale one, no two may run at all."""
        world = self.world
        world.trace(f"helm starts in {child.namespace} for {child.token}")
        others = [
            other
            for deployer in world.deployers
            for other in deployer.helm.children
            if other.namespace == child.namespace and other.token != child.token
        ]
        if others and not world.faults.swarm.has_policy:
            self.report("one_mutating_worker_per_release", f"{child.namespace}: Helm runs for {others[0].token} and {child.token}")

    def token_of(self, kubeconfig: str) -> int:
        """The token in a claim's kubeconfig."""
        return msgspec.json.decode(kubeconfig, type=_Kubeconfig).token

    # -- excuses ------------------------------------------------------------------------------------------------------

    def excuse(self, process: Process) -> None:
        """Something happened to `process`: attempts that it holds now may be spent."""
        for grant in self.grants.values():
            if grant.is_open and grant.process is process:
                grant.is_excused = True

    def excuse_namespace(self, name: str) -> None:
        """A namespace that takes long to go keeps the next deploy waiting, too."""
        for row in self.world.store.previews.values():
            if row.namespace == name:
                self._slow_namespaces.add(row.key)
        for grant in self.grants.values():
            if grant.key in self._slow_namespaces:
                grant.is_excused = True


def identity(message: Message) -> tuple[PreviewKey, Source, str]:
    """What makes two messages the same request."""
    return message.key, message.effective_source, message.effective_source_id


class _Id(msgspec.Struct, frozen=True):
    id: int


class _Issue(msgspec.Struct, frozen=True):
    number: int


class _Pull(msgspec.Struct, frozen=True):
    number: int
    closed_at: str = ""


class _Event(msgspec.Struct, frozen=True):
    """What the oracle reads of a webhook."""

    repository: _Id
    comment: _Id | None = None
    issue: _Issue | None = None
    pull_request: _Pull | None = None


class _Kubeconfig(msgspec.Struct, frozen=True):
    token: int
