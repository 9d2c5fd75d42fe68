"""What survives a crash of the statestore's fake: the rows, for tests to look at and to break."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from prevue.model import Live, Message, Notice, Order, PreviewKey, PreviewState, RequestState
from prevue.statestore.port import RequestView

NEVER = datetime.min.replace(tzinfo=UTC)
"""`-infinity`: a lease, deadline or delay that is over."""


@dataclass
class RequestRow:
    """One row of `request`."""

    id: int
    message: Message
    registered_at: datetime
    sent_at: datetime
    state: RequestState = RequestState.WAITING
    attempts: int = 0
    not_before: datetime = NEVER
    token: int | None = None
    reason: str = ""
    error: str = ""
    url: str = ""
    values_digest: str = ""
    finished_at: datetime | None = None


@dataclass
class PreviewRow:
    """One row of `preview`."""

    key: PreviewKey
    repo: str
    cluster: str
    namespace: str
    releases: tuple[str, ...]
    desired: Order
    desired_request: int
    changed_at: datetime
    state: PreviewState = PreviewState.REQUESTED
    live: Live | None = None
    token: int | None = None
    holder: str | None = None
    holder_request: int | None = None
    lease_until: datetime = NEVER
    helm_deadline: datetime = NEVER
    url: str = ""
    expires_at: datetime | None = None


@dataclass
class OutboxRow:
    """One row of `outbox`."""

    request_id: int
    kind: str
    due_at: datetime
    version: int = 1
    sent_version: int = 0
    verify_at: datetime | None = None
    comment_id: int = 0
    attempts: int = 0
    error: str = ""


@dataclass
class LedgerRow:
    """One row of `ledger`."""

    request_id: int
    token: int | None
    event: str
    at: datetime
    details: dict[str, str | int | float | bool]


@dataclass
class StateStoreDisk:
    """What is durable."""

    requests: dict[int, RequestRow] = field(default_factory=dict)
    previews: dict[PreviewKey, PreviewRow] = field(default_factory=dict)
    outbox: dict[tuple[int, str], OutboxRow] = field(default_factory=dict)
    leases: dict[str, tuple[str, datetime]] = field(default_factory=dict)
    cursors: dict[str, str] = field(default_factory=dict)
    ledger: list[LedgerRow] = field(default_factory=list)
    writes: dict[int, list[datetime]] = field(default_factory=dict)
    last_token: int = 0
    offset: timedelta = timedelta()
    outage: bool = False
    """While true, every call fails as if the database were down."""


def is_busy(preview: PreviewRow, now: datetime) -> bool:
    """Lease or Helm's deadline lies ahead."""
    return preview.lease_until > now or preview.helm_deadline > now


def is_verify(row: OutboxRow) -> bool:
    """The newest text was sent; only the look afterwards is left."""
    return row.sent_version >= row.version


def next_at(row: OutboxRow) -> datetime | None:
    """When the row is to be sent or verified; None when it is done for good."""
    return row.verify_at if is_verify(row) else row.due_at


def request_view(row: RequestRow) -> RequestView:
    """For people."""
    return RequestView(
        id=row.id,
        repo=row.message.repo,
        pr_number=row.message.pr_number,
        action=row.message.action.value,
        source=row.message.effective_source.value,
        state=row.state.value,
        commit_sha=row.message.commit_sha,
        requested_by=row.message.requested_by,
        delivery_id=row.message.delivery_id,
        attempts=row.attempts,
        token=row.token,
        reason=row.reason,
        error=row.error,
        url=row.url,
        registered_at=row.registered_at,
        finished_at=row.finished_at,
    )


def _superseded_by(disk: StateStoreDisk, request: RequestRow) -> str:
    """The commit of the request that was desired when this one ended as superseded."""
    if request.state is not RequestState.SUPERSEDED or request.finished_at is None:
        return ""
    mine, ended_at = request.message, request.finished_at
    others = [row for row in disk.requests.values() if row.message.key == mine.key and row.registered_at <= ended_at]
    newer = [row for row in others if row.message.order > mine.order]
    return max(newer, key=lambda row: (row.message.order, -row.id)).message.commit_sha if newer else ""


def notice_of(disk: StateStoreDisk, request_id: int) -> Notice:
    """What a status comment says of a request now."""
    request = disk.requests[request_id]
    message = request.message
    return Notice(
        request_id=request.id,
        key=message.key,
        repo=message.repo,
        installation_id=message.installation_id,
        source=message.effective_source,
        source_id=message.effective_source_id,
        action=message.action,
        comment_id=message.comment_id,
        commit_sha=message.commit_sha,
        requested_by=message.requested_by,
        state=request.state,
        attempts=request.attempts,
        reason=request.reason,
        error=request.error,
        url=request.url,
        registered_at=request.registered_at,
        finished_at=request.finished_at,
        superseded_by_sha=_superseded_by(disk, request),
    )
