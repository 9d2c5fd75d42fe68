"""What survives a crash of the statestore's fake: the rows, for tests to look at and to break."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from prevue.model import Live, Message, Order, PreviewKey, PreviewState, RequestState

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
