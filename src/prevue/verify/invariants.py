"""The invariants over what is stored about one preview: pure, and apart from the code that is to keep them.

What a live system cannot show from its rows (who was allowed at the time, a Helm that wrote without a token) is not claimed here; the
simulation checks that. An open request or an unsent comment is only a violation once it is old: between two steps it is no mistake.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

import msgspec

from prevue.errors import ImpossibleEvent
from prevue.lifecycle import Reason, RequestEvent, request_step
from prevue.model import Action, PreviewState, RequestState, Source
from prevue.statestore.port import AuditCase, AuditEvent, AuditRequest


class Invariant(StrEnum):
    """Names, as in the design, the simulation and the chaos run."""

    ACCEPTED_REACHES_TERMINAL_STATE = "accepted_reaches_terminal_state"
    NOTHING_ENDS_WITHOUT_A_WORD = "nothing_ends_without_a_word"
    ONE_STATUS_COMMENT_PER_COMMAND = "one_status_comment_per_command"
    ONE_MUTATING_WORKER_PER_RELEASE = "one_mutating_worker_per_release"
    NO_WRITE_AFTER_LOST_CLAIM = "no_write_after_lost_claim"
    ONE_OUTCOME_PER_REQUEST = "one_outcome_per_request"
    GENERATION_NEVER_DECREASES = "generation_never_decreases"
    NEWEST_WINS = "newest_wins"
    READY_MEANS_READY_AT_THAT_COMMIT = "ready_means_ready_at_that_commit"
    EVERY_APPLY_WAS_AUTHORISED_FOR_THAT_COMMIT = "every_apply_was_authorised_for_that_commit"
    NAMES_ARE_INJECTIVE = "names_are_injective"
    DEAD_LETTER_IS_ANNOUNCED = "dead_letter_is_announced"
    CLOSED_PULL_REQUEST_LEAVES_NOTHING = "closed_pull_request_leaves_nothing"
    REDELIVERY_CHANGES_NOTHING = "redelivery_changes_nothing"
    QUIET_AFTER_FAULTS_STOP = "quiet_after_faults_stop"


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """One row, namespace or comment that breaks an invariant."""

    invariant: Invariant
    where: str
    """Such as `acme/hello#12 request 7`."""
    text: str


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How old something must be before it counts."""

    open_seconds: float = 3600
    """An open request."""
    told_seconds: float = 600
    """An outcome that is not told, a closed pull request's preview that stands."""
    conversation_seconds: float = 7 * 86_400
    """Older outcomes' comments are not read: a call to GitHub for every pull request there ever was would end at its limit."""
    is_quiet: bool = False
    """Nothing should be under way: whatever is open, or not told and verified, counts at once."""


def check_case(case: AuditCase, patience: Patience) -> Iterator[Violation]:
    """Every violation in what is stored about one preview."""
    for request in case.requests:
        yield from _check_request(case, request, patience)
        yield from _check_path(case, request)
    yield from _check_events(case)
    yield from _check_newest(case)
    identities = [(one.message.effective_source, one.message.effective_source_id) for one in case.requests]
    for source, source_id in {one for one in identities if identities.count(one) > 1}:
        yield _violation(Invariant.REDELIVERY_CHANGES_NOTHING, case, f"two requests have the identity {source} {source_id}")


def must_be_told(request: AuditRequest) -> bool:
    """Whoever asked by a comment, and every replay, gets an answer; a destroy only where there was a preview."""
    source = request.message.effective_source
    return source is Source.COMMENT or (source is Source.REPLAY and request.message.action is Action.DEPLOY)


def _check_request(case: AuditCase, request: AuditRequest, patience: Patience) -> Iterator[Violation]:
    if patience.is_quiet and not request.state.is_terminal:
        yield _violation(Invariant.QUIET_AFTER_FAULTS_STOP, case, f"it is {request.state}", request)
    if patience.is_quiet and request.told_version is not None and not request.is_verified:
        yield _violation(Invariant.QUIET_AFTER_FAULTS_STOP, case, "its comment is not written and verified yet", request)
    outcomes = sum(1 for one in case.events if one.request_id == request.id and one.event == "finished")
    if not request.state.is_terminal:
        if request.age_seconds > patience.open_seconds:
            text = f"{request.state} for {request.age_seconds:.0f} s"
            yield _violation(Invariant.ACCEPTED_REACHES_TERMINAL_STATE, case, text, request)
        if outcomes:
            yield _violation(Invariant.ONE_OUTCOME_PER_REQUEST, case, f"{request.state}, and its ledger has an outcome", request)
        return
    if outcomes != 1:
        yield _violation(Invariant.ONE_OUTCOME_PER_REQUEST, case, f"its ledger has {outcomes} outcomes", request)
    if request.told_version is None and must_be_told(request):
        yield _violation(Invariant.NOTHING_ENDS_WITHOUT_A_WORD, case, f"{request.state}, and nothing is to be told", request)
    if request.told_version is None and request.state is RequestState.DEAD:
        yield _violation(Invariant.DEAD_LETTER_IS_ANNOUNCED, case, "dead, and not announced", request)
    if request.told_version is not None and not request.is_sent and request.age_seconds > patience.told_seconds:
        text = f"{request.state} for {request.age_seconds:.0f} s, and its comment is not written"
        yield _violation(Invariant.NOTHING_ENDS_WITHOUT_A_WORD, case, text, request)


def _check_path(case: AuditCase, request: AuditRequest) -> Iterator[Violation]:
    """Its ledger is a way through the lifecycle's table, from its registration to the state that its row has."""
    state: RequestState | None = None
    for event in case.events:
        if event.request_id == request.id and (happened := _request_event(event)) is not None:
            try:
                state = request_step(state, happened).to
            except ImpossibleEvent as exc:
                yield _violation(Invariant.ONE_OUTCOME_PER_REQUEST, case, f"its ledger has an impossible step: {exc}", request)
                return
    if state is not request.state:
        text = f"its ledger ends at {state or 'nothing'}, its row says {request.state}"
        yield _violation(Invariant.ONE_OUTCOME_PER_REQUEST, case, text, request)


def _request_event(event: AuditEvent) -> RequestEvent | None:
    """What a row of the ledger is to its request; None: only evidence."""
    match event.event:
        case "registered" | "granted":
            return RequestEvent(event.event)
        case "given_back":
            return RequestEvent.GIVEN_BACK
        case "finished":
            # Written by T1 it may have been overtaken or spent: the way to `superseded` is the same for both, from wherever it was.
            if event.state in (RequestState.SUPERSEDED, RequestState.DEAD):
                return RequestEvent.SPENT if event.state == RequestState.DEAD else RequestEvent.OVERTAKEN
            return next((one for one in RequestEvent if one == event.state), None)
        case _:
            return None


def _check_events(case: AuditCase) -> Iterator[Violation]:
    """The ledger in the order in which it was written: tokens grow, nobody writes with an old one, no older request begins later."""
    by_id = {one.id: one for one in case.requests}
    token, newest = 0, None
    for event in case.events:
        request = by_id[event.request_id]
        if event.token is None:
            continue
        if event.event == "granted":
            if event.token <= token:
                text = f"the token {event.token} was given out after {token}"
                yield _violation(Invariant.ONE_MUTATING_WORKER_PER_RELEASE, case, text, request)
            token = max(token, event.token)
        elif event.event in ("began", "given_back", "finished") and event.token < token and not _ended_without_claim(event.event, request):
            text = f"{event.event} was written with the token {event.token} after {token} had been given out"
            yield _violation(Invariant.NO_WRITE_AFTER_LOST_CLAIM, case, text, request)
        if event.event == "began":
            if newest is not None and request.message.order < newest.message.order:
                text = f"it began after the newer request {newest.id} had begun"
                yield _violation(Invariant.GENERATION_NEVER_DECREASES, case, text, request)
            newest = request if newest is None or request.message.order > newest.message.order else newest
            if event.state == PreviewState.DEPLOYING and not _may_deploy(request):
                text = "it began a deploy, and no command of a person stands behind it"
                yield _violation(Invariant.EVERY_APPLY_WAS_AUTHORISED_FOR_THAT_COMMIT, case, text, request)
    if case.preview.token is not None and token and case.preview.token != token:
        text = f"the row has the token {case.preview.token}, the ledger's last is {token}"
        yield _violation(Invariant.ONE_MUTATING_WORKER_PER_RELEASE, case, text)


def _ended_without_claim(event: str, request: AuditRequest) -> bool:
    """T1 itself ends a request that was claimed before: superseded or dead, with the token of its last claim."""
    return event == "finished" and request.state in (RequestState.SUPERSEDED, RequestState.DEAD)


def _may_deploy(request: AuditRequest) -> bool:
    message = request.message
    asked = message.effective_source in (Source.COMMENT, Source.REPLAY, Source.PUSH)
    return asked and bool(message.commit_sha) and message.action is Action.DEPLOY and bool(message.requested_by)


def _check_newest(case: AuditCase) -> Iterator[Violation]:
    preview, live = case.preview, case.live
    for request in case.requests:
        if request.message.order > preview.order:
            yield _violation(Invariant.NEWEST_WINS, case, "it is newer than what is desired", request)
    if preview.state is not PreviewState.READY:
        # Failed with something live: a command that died before it began left what was there.
        if live is not None and preview.state is not PreviewState.FAILED:
            yield _violation(Invariant.READY_MEANS_READY_AT_THAT_COMMIT, case, f"{preview.state}, and a commit is said to be live")
        return
    if live is None or not case.url:
        if preview.is_idle:
            yield _violation(Invariant.READY_MEANS_READY_AT_THAT_COMMIT, case, "ready, and no commit or no URL is stored")
        return
    source = next((one for one in case.requests if one.id == live.request_id), None)
    if source is None or source.message.commit_sha != live.sha or source.state is not RequestState.DEPLOYED:
        text = f"{live.sha[:12]} is live for request {live.request_id}, which did not deploy it"
        yield _violation(Invariant.READY_MEANS_READY_AT_THAT_COMMIT, case, text)
        return
    newer = [one for one in case.requests if one.message.order > source.message.order and one.state is RequestState.DEPLOYED]
    for one in newer:
        if one.reason != Reason.ALREADY_LIVE or one.message.commit_sha != live.sha:
            yield _violation(Invariant.NEWEST_WINS, case, f"it was deployed, and the older request {source.id} is live", one)


def _violation(invariant: Invariant, case: AuditCase, text: str, request: AuditRequest | None = None) -> Violation:
    return Violation(invariant=invariant, where=where(case) + (f" request {request.id}" if request else ""), text=text)


def where(case: AuditCase) -> str:
    """The pull request, as people write it."""
    return f"{case.preview.repo}#{case.preview.key.pr_number}"
