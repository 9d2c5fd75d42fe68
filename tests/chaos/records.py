"""What a run leaves to be judged: what people did, what stands in store, cluster and conversations, and whom the driver killed.

Plain records of the driver's own; nothing here knows a rule of Prevue's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class PullKey(NamedTuple):
    """A pull request, by the number of its repository."""

    repository_id: int
    number: int

    def __str__(self) -> str:
        return f"{self.repository_id}#{self.number}"


class Deed(StrEnum):
    """What a person did."""

    OPEN = "open"
    COMMAND = "command"
    PUSH = "push"
    CLOSE = "close"
    REOPEN = "reopen"


@dataclass(frozen=True, kw_only=True)
class Act:
    """One deed on one pull request; acts stand in the order in which they were done."""

    pull: PullKey
    deed: Deed
    at: datetime
    sha: str
    """The head after it."""
    comment_id: int = 0


@dataclass(frozen=True, kw_only=True)
class RequestRow:
    """A row of `request`."""

    id: int
    pull: PullKey
    source: str
    source_id: str
    action: str
    sha: str
    state: str
    attempts: int
    registered_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """A row of `ledger`; rows stand in the order of their ids."""

    request_id: int
    token: int | None
    event: str
    at: datetime
    outcome: str = ""


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A Secret of Helm's: one revision of a release."""

    uid: str
    namespace: str
    number: int
    status: str
    request_id: int
    token: int
    sha: str
    is_rollback: bool = False
    """It repeats an earlier one, labels included."""


@dataclass(frozen=True, kw_only=True)
class Remark:
    """A comment of Prevue's."""

    id: int
    pull: PullKey
    answers: int
    """The comment that holds the command; 0: none, as after a close."""
    text: str
    url: str


@dataclass(frozen=True, kw_only=True)
class ReadySeen:
    """A "ready" that was read while people went on: what its URL served just then."""

    pull: PullKey
    answers: int
    url: str
    served: str
    acts: int
    """So many acts had been done when the URL had answered."""


@dataclass(frozen=True, kw_only=True)
class LeaseSeen:
    """Until when a claim was seen to be protected: the later of its lease and its Helm's deadline."""

    pull: PullKey
    token: int
    until: datetime


class Held(NamedTuple):
    """A claim that a killed process held, and where its pipeline was."""

    pull: PullKey
    token: int
    step: str


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One kill or stop."""

    at: datetime
    kind: str
    held: tuple[Held, ...] = ()


@dataclass(kw_only=True)
class Evidence:
    """All of it."""

    lease_seconds: float
    acts: list[Act] = field(default_factory=list)
    requests: list[RequestRow] = field(default_factory=list)
    ledger: list[LedgerRow] = field(default_factory=list)
    namespaces: dict[PullKey, str] = field(default_factory=dict)
    """Those that stand at the end."""
    revisions: list[Revision] = field(default_factory=list)
    """Those that stand at the end."""
    revisions_seen: list[Revision] = field(default_factory=list)
    """Every one that was ever seen, as it was last."""
    remarks: list[Remark] = field(default_factory=list)
    served: dict[str, str] = field(default_factory=dict)
    """URL → the commit that it serves at the end; empty: no answer."""
    ready_seen: list[ReadySeen] = field(default_factory=list)
    leases_seen: list[LeaseSeen] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)
    asked_again: int = 0
    """Commands that were given up, and written once more when all was quiet."""
    faults: dict[str, int] = field(default_factory=dict)
    """GitHub's faults by kind."""
