"""The lifecycle as a pure state machine: a state and an event give the next state and what else belongs into the same transaction.

No I/O, no clock. `REQUEST` and `PREVIEW` are the whole truth: what is not in them cannot happen, and `docs/state-machine.md` draws exactly
their arrows. The statestore carries a step out; a contract suite fires every event in every state at each backend.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from prevue.errors import ImpossibleEvent
from prevue.model import Live, PreviewState, RequestState


class RequestEvent(StrEnum):
    """What happens to a request. T1 brings the first four, its holder the others; the last five are named as the states they lead to."""

    REGISTERED = "registered"
    GRANTED = "granted"
    """A worker has it now: the first, or the next one where the last was lost with lease and Helm's deadline."""
    OVERTAKEN = "overtaken"
    """Nobody works on it, and a newer request is desired."""
    SPENT = "spent"
    """Nobody works on it, and its attempts are spent; never a destroy's."""
    ATTEMPT_FAILED = "attempt_failed"
    GIVEN_BACK = "given_back"
    """Nobody's fault: a stop, or an outage."""
    DEPLOYED = "deployed"
    DESTROYED = "destroyed"
    SUPERSEDED = "superseded"
    REJECTED = "rejected"
    FAILED = "failed"


class RequestStep(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request goes, and its effects."""

    to: RequestState
    attempts: int = 0
    """Added to its attempts: counted when granted, not at a failure, which a worker that dies never reports."""
    is_told: bool = False
    """It ends, and its outbox row is written in the same transaction (for whom not: `prevue.statestore.rules.is_told`)."""
    frees: bool = False
    """The preview has no holder, lease and deadline any more."""


class PreviewEvent(StrEnum):
    """What happens to a preview."""

    REGISTERED = "registered"
    DEPLOY_BEGUN = "deploy_begun"
    DESTROY_BEGUN = "destroy_begun"
    FOUND_READY = "found_ready"
    """Read back as deployed at the claim's commit, workloads ready, URL answered."""
    FAILED = "failed"
    """Helm may have run, and the chart, the app or a quota is at fault."""
    GONE = "gone"
    """Its namespace answers 404, whoever removed it."""
    KEPT = "kept"
    """A request ended without a change of it."""
    SPENT = "spent"
    """A deploy's attempts are spent: it died before or after a begin, so what was known to be live stays known."""


class LiveAfter(StrEnum):
    """What is known to be live after an event."""

    AS_BEFORE = "as before"
    UNKNOWN = "unknown"
    """Helm may run, or nothing is there: NULL."""
    FOUND = "found"


class PreviewStep(msgspec.Struct, frozen=True, kw_only=True):
    """Where a preview goes, and its effect on what is known to be live."""

    to: PreviewState
    live: LiveAfter = LiveAfter.AS_BEFORE


_OPEN = tuple(state for state in RequestState if not state.is_terminal)
_CLAIMED = (RequestState.CLAIMED,)
_OUTCOMES = (RequestState.DEPLOYED, RequestState.DESTROYED, RequestState.SUPERSEDED, RequestState.REJECTED, RequestState.FAILED)
_REQUEST: list[tuple[tuple[RequestState | None, ...], RequestEvent, RequestStep]] = [
    ((None,), RequestEvent.REGISTERED, RequestStep(to=RequestState.WAITING)),
    (_OPEN, RequestEvent.GRANTED, RequestStep(to=RequestState.CLAIMED, attempts=1)),
    (_OPEN, RequestEvent.OVERTAKEN, RequestStep(to=RequestState.SUPERSEDED, is_told=True)),
    (_OPEN, RequestEvent.SPENT, RequestStep(to=RequestState.DEAD, is_told=True)),
    (_CLAIMED, RequestEvent.ATTEMPT_FAILED, RequestStep(to=RequestState.WAITING, frees=True)),
    (_CLAIMED, RequestEvent.GIVEN_BACK, RequestStep(to=RequestState.WAITING, attempts=-1, frees=True)),
    *((_CLAIMED, RequestEvent(to.value), RequestStep(to=to, is_told=True, frees=True)) for to in _OUTCOMES),
]
REQUEST = {(state, event): step for states, event, step in _REQUEST for state in states}
"""No event has a step from a terminal state: it never changes again."""

_ANY = tuple(PreviewState)
_DEPLOYING = (PreviewState.DEPLOYING,)
_PREVIEW: list[tuple[tuple[PreviewState | None, ...], PreviewEvent, PreviewStep]] = [
    ((None,), PreviewEvent.REGISTERED, PreviewStep(to=PreviewState.REQUESTED)),
    (_ANY, PreviewEvent.DEPLOY_BEGUN, PreviewStep(to=PreviewState.DEPLOYING, live=LiveAfter.UNKNOWN)),
    (_ANY, PreviewEvent.DESTROY_BEGUN, PreviewStep(to=PreviewState.DESTROYING, live=LiveAfter.UNKNOWN)),
    (_DEPLOYING, PreviewEvent.FOUND_READY, PreviewStep(to=PreviewState.READY, live=LiveAfter.FOUND)),
    (_DEPLOYING, PreviewEvent.FAILED, PreviewStep(to=PreviewState.FAILED, live=LiveAfter.UNKNOWN)),
    (_ANY, PreviewEvent.GONE, PreviewStep(to=PreviewState.DESTROYED, live=LiveAfter.UNKNOWN)),
    (_ANY, PreviewEvent.SPENT, PreviewStep(to=PreviewState.FAILED)),
    *(((state,), PreviewEvent.KEPT, PreviewStep(to=state)) for state in PreviewState),
]
PREVIEW = {(state, event): step for states, event, step in _PREVIEW for state in states}
"""Any state may be begun in: the last holder may have died anywhere. Only what has begun can be found ready, or fail."""

BEGUN = {PreviewState.DEPLOYING: PreviewEvent.DEPLOY_BEGUN, PreviewState.DESTROYING: PreviewEvent.DESTROY_BEGUN}
"""The state that a begin leads to → the begin."""


def request_step(state: RequestState | None, event: RequestEvent) -> RequestStep:
    """What `event` does to a request in `state`.

    Raises:
        ImpossibleEvent: it cannot happen there.
    """
    if (step := REQUEST.get((state, event))) is None:
        raise ImpossibleEvent(f"a request that is {state} cannot be {event}")
    return step


def preview_step(state: PreviewState | None, event: PreviewEvent) -> PreviewStep:
    """What `event` does to a preview in `state`.

    Raises:
        ImpossibleEvent: it cannot happen there.
    """
    if (step := PREVIEW.get((state, event))) is None:
        raise ImpossibleEvent(f"a preview that is {state} cannot be {event}")
    return step


class Reason(StrEnum):
    """Why a request ended as it did; a stable word for logs, `--json` and the comment's wording."""

    READY = "ready"
    ALREADY_LIVE = "already_live"
    NEWER_REQUEST = "newer_request"
    PULL_REQUEST_CLOSED = "pull_request_closed"
    PULL_REQUEST_OPEN = "pull_request_open"
    NOT_EXPIRED = "not_expired"
    EXPIRED = "expired"
    PERMISSION_LOST = "permission_lost"
    FORK = "fork"
    NOT_CONFIGURED = "not_configured"
    NOT_FOUND = "not_found"
    CHART_INVALID = "chart_invalid"
    RELEASE_FAILED = "release_failed"
    NOT_READY = "not_ready"
    NAMESPACE_FOREIGN = "namespace_foreign"
    ATTEMPTS_SPENT = "attempts_spent"
    TORN_DOWN = "torn_down"
    NOTHING_TO_DESTROY = "nothing_to_destroy"
    OTHER = "other"


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """How a claim ends. `None` for `preview_state` keeps the preview's state, live facts and URL."""

    outcome: RequestState
    reason: Reason
    error: str = ""
    preview_state: PreviewState | None = None
    live: Live | None = None
    url: str = ""
    """For the request's comment; becomes the preview's when `preview_state` is READY."""
    tell: bool = True
    """Whether an outbox row is written."""
    ttl_seconds: float | None = None
    """The preview expires so long after this finish; 0: never, None: as before."""

    @property
    def request_event(self) -> RequestEvent:
        """What it is to the request."""
        return RequestEvent(self.outcome.value)

    @property
    def preview_event(self) -> PreviewEvent:
        """What it is to the preview."""
        return PreviewEvent.KEPT if self.preview_state is None else _FINISHED[self.preview_state]


_FINISHED = {
    PreviewState.READY: PreviewEvent.FOUND_READY,
    PreviewState.FAILED: PreviewEvent.FAILED,
    PreviewState.DESTROYED: PreviewEvent.GONE,
}


def deployed(live: Live, url: str, *, ttl_seconds: float = 0) -> Finish:
    """Read back as deployed at that commit, workloads ready, URL answered."""
    return Finish(
        outcome=RequestState.DEPLOYED,
        reason=Reason.READY,
        preview_state=PreviewState.READY,
        live=live,
        url=url,
        ttl_seconds=ttl_seconds,
    )


def already_live(url: str, *, ttl_seconds: float = 0) -> Finish:
    """The preview serves this commit with these values already: no Helm ran, what is live stays, and lives on."""
    return Finish(outcome=RequestState.DEPLOYED, reason=Reason.ALREADY_LIVE, url=url, ttl_seconds=ttl_seconds)


def failed(reason: Reason, error: str, *, began: bool, ttl_seconds: float = 0) -> Finish:
    """The chart's or the app's fault. What is live is unknown once Helm may have run (`began`), and its remains expire too."""
    return Finish(
        outcome=RequestState.FAILED,
        reason=reason,
        error=error,
        preview_state=PreviewState.FAILED if began else None,
        ttl_seconds=ttl_seconds if began else None,
    )


def rejected(reason: Reason, error: str) -> Finish:
    """Refused under the claim, before anything was changed."""
    return Finish(outcome=RequestState.REJECTED, reason=reason, error=error)


def superseded(reason: Reason = Reason.NEWER_REQUEST, *, tell: bool = True) -> Finish:
    """A newer request has taken over; the preview stays as it is, the newer one's begin moves it on."""
    return Finish(outcome=RequestState.SUPERSEDED, reason=reason, tell=tell)


def torn_down(outcome: RequestState, reason: Reason, *, tell: bool) -> Finish:
    """Release and namespace are gone: the tombstone. A deploy on a closed pull request ends here as `superseded`."""
    return Finish(outcome=outcome, reason=reason, preview_state=PreviewState.DESTROYED, tell=tell, ttl_seconds=0)
