"""The statestore port: the claim protocol's transactions, one method each (protocol section 2).

Each method is atomic and durable at return. All times are the database's (`clock_timestamp()`), never a caller's. A write under a claim
presents the claim's token; where that is no longer the preview's, nothing is written and `StaleClaim` is raised. Any method may raise
`StateStoreUnavailable`: then its transaction may or may not have been committed, and calling it again is harmless.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

import msgspec

from prevue.lifecycle import Finish
from prevue.model import Claim, Live, Message, Notice, Order, PreviewKey, PreviewState, RequestState, Source


class ClaimLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The protocol's numbers that the statestore applies (protocol section 7)."""

    lease_seconds: float = 30
    attempts_max: int = 5
    acknowledge_after_seconds: float = 5
    """A new command's acknowledgement is due in the outbox after this time, should the App have skipped it."""
    verify_after_seconds: float = 60
    """lane lease + HTTP time-out: when no earlier drainer can still be inside a POST."""


class Done(msgspec.Struct, frozen=True):
    """Protocol verdict 1: the request is terminal."""

    state: RequestState


class InProgress(msgspec.Struct, frozen=True):
    """Protocol verdicts 2 and 4: the preview is busy; the request is durable here and the sweeper wakes it."""


class Superseded(msgspec.Struct, frozen=True):
    """Protocol verdict 3: a newer request is desired; the request has ended, its outbox row is written."""


class Later(msgspec.Struct, frozen=True):
    """Protocol verdict 5: `not_before` lies `delay` seconds ahead."""

    delay: float


class Dead(msgspec.Struct, frozen=True):
    """Protocol verdict 6: attempts are spent; the request is a dead letter and its announcement is in the outbox."""


class Granted(msgspec.Struct, frozen=True):
    """Protocol verdict 7: this worker holds the preview."""

    claim: Claim


Verdict = Done | InProgress | Superseded | Later | Dead | Granted


class Began(msgspec.Struct, frozen=True):
    """Helm may run: the deadline is stored, what is live is unknown from here on."""


class NewerDesired(msgspec.Struct, frozen=True):
    """The token is still the preview's, but a newer request is desired: finish as superseded."""


class ClaimStore(Protocol):
    """Register, claim, and every write under the claim."""

    async def register_and_claim(self, message: Message, *, holder: str) -> Verdict:
        """Protocol T1: register the request, raise what is desired, give the first verdict that fits, under the preview's row lock.

        `message.is_complete` must be true. A repeated message finds its row. Namespace and release names are derived at the first
        registration of a preview and stored; an attempt is counted with Granted; a newly registered command that the verdict leaves
        open gets its acknowledgement's outbox row.
        """
        ...

    async def heartbeat(self, claim: Claim) -> Order:
        """Protocol step 1: extend the lease; returns the order that is desired now. A lapsed lease is never revived.

        Raises:
            StaleClaim: the token is not the preview's any more, or the lease has lapsed.
        """
        ...

    async def begin(
        self, claim: Claim, *, preview_state: PreviewState, deadline_seconds: float, values_digest: str = ""
    ) -> Began | NewerDesired:
        """Protocol step 5: store Helm's deadline (`deadline_seconds` from the database's now) and the new state; live becomes unknown.

        Raises:
            StaleClaim: the token is not the preview's any more, or the lease has lapsed.
        """
        ...

    async def finish(self, claim: Claim, finish: Finish) -> None:
        """Protocol step 10: request, preview and outbox row in one transaction; preview and claim are free afterwards.

        Raises:
            StaleClaim: the token is not the preview's, or the request is not `claimed` under it any more.
        """
        ...

    async def give_back(self, claim: Claim, *, delay: float, counted: bool, error: str) -> None:
        """Protocol transient failure (`counted`) or protocol give back: the request waits, not before `delay` seconds; the preview is free.

        Only to be called when the Helm child is reaped. The request's `error` keeps why, freed of secrets.

        Raises:
            StaleClaim: as `finish`.
        """
        ...

    async def waiting(self, key: PreviewKey) -> list[Message]:
        """The preview's waiting requests whose `not_before` has passed: a hint for the queue after a finish (protocol step 11)."""
        ...

    async def is_expired(self, claim: Claim) -> bool:
        """Whether the claimed preview's time to live is over now, by the database's clock; one that never expires is not."""
        ...

    async def note(self, claim: Claim, event: str, details: dict[str, str | int | float | bool]) -> None:
        """Append one row to the ledger; never refused for a stale token: what a stale worker saw is evidence too."""
        ...


class OutboxItem(msgspec.Struct, frozen=True, kw_only=True):
    """One status comment to be written or verified."""

    notice: Notice
    kind: str
    version: int
    known_comment_id: int
    """The comment that was written last time; 0 if none is known."""
    is_verify: bool
    """True: the text was sent; look once more that exactly one comment stands there with the newest text."""
    verify_at: datetime | None
    """As it was read: a verify ends only this one, never one that was armed since."""


class Outbox(Protocol):
    """What is still to be said on pull requests (protocol section 5)."""

    async def due_installations(self) -> list[int]:
        """Installations with rows that are due or to be verified now."""
        ...

    async def seconds_until_due(self) -> float | None:
        """Seconds until the next row is due or to be verified, at least 0; None if there is none."""
        ...

    async def acquire_lane(self, installation_id: int, *, holder: str, seconds: float) -> bool:
        """Take or extend the installation's lane lease; False if another holds it."""
        ...

    async def release_lane(self, installation_id: int, *, holder: str) -> None:
        """Give the lane back; harmless if it is not ours."""
        ...

    async def due(self, installation_id: int, *, limit: int) -> list[OutboxItem]:
        """Rows to send (outcomes before acknowledgements, then oldest first), then rows to verify."""
        ...

    async def reserve_write(self, installation_id: int, *, per_minute: int, per_hour: int) -> float:
        """Record one content write and return 0, if fewer than the limits fall in the last minute and hour; else the seconds to wait."""
        ...

    async def sent(self, item: OutboxItem, *, comment_id: int) -> None:
        """The comment stands with this item's version: `sent_version`, and the verify's time; after a verify, done for good."""
        ...

    async def postpone(self, item: OutboxItem, *, delay: float, error: str) -> None:
        """Not before `delay` seconds again; attempts are counted, and never end it."""
        ...


class SweepStore(Protocol):
    """What the sweeper's rules read and mark."""

    async def unheld(self, *, quiet_seconds: float, limit: int) -> list[Message]:
        """Protocol rule 1: requests not terminal, `not_before` past, preview not busy, not sent for `quiet_seconds`; marks them sent."""
        ...


class StandingPreview(msgspec.Struct, frozen=True, kw_only=True):
    """A preview's row as protocol rules 2, 3 and 5 read it, in one snapshot."""

    key: PreviewKey
    repo: str
    installation_id: int
    """Of the request that is desired."""
    namespace: str
    state: PreviewState
    order: Order
    """What is desired: the order that a sweep or an expiry repeats."""
    is_idle: bool
    """Not busy, and its desired request is terminal: nothing is under way or waits."""
    live_request: int | None
    token: int | None


class JanitorStore(Protocol):
    """What the sweeper reads to find what should not stand."""

    async def standing(self, *, after: PreviewKey | None = None, limit: int) -> list[StandingPreview]:
        """Previews that are not destroyed, by ascending key, beginning after `after`."""
        ...

    async def find(self, key: PreviewKey) -> StandingPreview | None:
        """One row, whatever its state."""
        ...

    async def expired(self, *, limit: int) -> list[StandingPreview]:
        """Protocol rule 5: `expires_at` past, idle, not destroyed; the one that expired first comes first."""
        ...

    async def is_registered(self, key: PreviewKey, source: Source, source_id: str) -> bool:
        """Whether there is a request of this identity, in any state."""
        ...

    async def verify_again(self, key: PreviewKey, source: Source, source_id: str, *, written_at: datetime) -> None:
        """Its status comment was written before `written_at`: unless a verify ended since then, one follows, also where one runs now."""
        ...


class LeaseStore(Protocol):
    """Named leases that only save work: whoever holds none does no harm either."""

    async def acquire_lease(self, name: str, *, holder: str, seconds: float) -> bool:
        """Take or extend; False if another holds it."""
        ...

    async def release_lease(self, name: str, *, holder: str) -> None:
        """Give it back; harmless if it is not ours."""
        ...


class CursorStore(Protocol):
    """How far the sweeper has read, by name."""

    async def cursor(self, name: str) -> str | None:
        """What was stored last; None: nothing yet."""
        ...

    async def set_cursor(self, name: str, value: str) -> None:
        """Store it. Two sweepers may overwrite each other: a cursor that goes back only reads again."""
        ...


class TokenStore(Protocol):
    """The one sequence of fencing tokens."""

    async def last_token(self) -> int:
        """The last one that was given out."""
        ...

    async def raise_tokens(self, *, above: int) -> bool:
        """Make every token from now on larger than `above`; whether that changed anything. Never lowers, also among several at once."""
        ...


class AlarmStore(Protocol):
    """What an operator must see."""

    async def overdue(self, *, older_than_seconds: float, limit: int) -> list[RequestView]:
        """Requests that are not terminal although they were registered so long ago, oldest first."""
        ...


class DeadLetterStore(Protocol):
    """What an operator does with a dead letter; the request itself never changes again."""

    async def dead_message(self, request_id: int) -> Message | None:
        """The message of a dead request; None: there is no such dead letter."""
        ...

    async def settle_dead_letter(self, request_id: int, event: str) -> None:
        """Write `replayed` or `dropped` into its ledger: it is not listed any more. Twice is harmless."""
        ...


class RequestView(msgspec.Struct, frozen=True, kw_only=True):
    """One request, for people and `--json`."""

    id: int
    repo: str
    pr_number: int
    action: str
    source: str
    state: str
    commit_sha: str
    requested_by: str
    delivery_id: str
    """The webhook delivery that brought it first; empty: it was found on GitHub, or is one of ours."""
    attempts: int
    token: int | None
    reason: str
    error: str
    url: str
    registered_at: datetime
    finished_at: datetime | None


class PreviewView(msgspec.Struct, frozen=True, kw_only=True):
    """One preview, for people and `--json`; `error` and `attempts` are those of its newest request."""

    repo: str
    pr_number: int
    state: str
    commit_sha: str
    url: str
    namespace: str
    release: str
    token: int | None
    attempts: int
    error: str
    repository_id: int
    github_host: str
    cluster: str
    requests: list[RequestView]
    """Newest first."""


class PreviewReader(Protocol):
    """Read-only: the CLI, and later the dashboard."""

    async def previews(self, *, repo: str | None = None, limit: int = 100) -> list[PreviewView]:
        """Previews, the one that changed last first; `requests` holds only the newest."""
        ...

    async def preview(self, repo: str, pr_number: int) -> PreviewView | None:
        """One preview with its requests; `repo` as it was last seen, case-insensitive."""
        ...

    async def dead_letters(self, *, limit: int = 100) -> list[RequestView]:
        """Requests whose attempts are spent, newest first, without those that were replayed or dropped."""
        ...

    async def dead_letter(self, request_id: int) -> RequestView | None:
        """One dead letter, also one that was replayed or dropped."""
        ...

    async def ledger(self, repo: str, pr_number: int) -> list[dict[str, str | int | float | bool | None]]:
        """The ledger's rows of a preview, oldest first."""
        ...


class AuditRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request with its outbox row, as `prevue verify` reads it; ages are in seconds, by the database's clock."""

    id: int
    message: Message
    state: RequestState
    reason: str
    token: int | None
    age_seconds: float
    """Since it ended, or was registered where it is open."""
    told_version: int | None
    """The outbox row's version; None: it has no row."""
    is_sent: bool
    is_verified: bool


class AuditEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the ledger."""

    request_id: int
    token: int | None
    event: str
    state: str
    """Of `began`: the preview's new state; of `finished`: the request's."""


class AuditCase(msgspec.Struct, frozen=True, kw_only=True):
    """One preview with all that is stored about it, read in one piece."""

    preview: StandingPreview
    live: Live | None
    url: str
    release: str
    requests: list[AuditRequest]
    events: list[AuditEvent]
    """In the order in which they were written."""


class Auditor(Protocol):
    """What `prevue verify` reads."""

    async def audit_keys(self, *, after: PreviewKey | None = None, limit: int) -> list[PreviewKey]:
        """Previews in any state, by ascending key, beginning after `after`."""
        ...

    async def audit(self, key: PreviewKey) -> AuditCase | None:
        """One of them; nobody changes the preview while it is read."""
        ...
