"""The lifecycle as a pure state machine: what an outcome does to request and preview.

No I/O, no clock. The statestore carries these values out in one transaction; `docs/state-machine.md` draws them.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from prevue.model import Live, PreviewState, RequestState


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
