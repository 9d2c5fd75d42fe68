"""What the suites of the statestore share: the harness, and messages of one pull request."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec

from prevue.model import Action, Claim, Live, Message, Source, format_time, idempotency_key
from prevue.statestore.port import (
    AlarmStore,
    Auditor,
    ClaimLimits,
    ClaimStore,
    CursorStore,
    DeadLetterStore,
    Granted,
    JanitorStore,
    LeaseStore,
    Outbox,
    OutboxItem,
    PreviewReader,
    SweepStore,
    TokenStore,
)

INSTALLATION = 7
START = datetime(2026, 2, 12, 10, 0, tzinfo=UTC)
LEASE_SECONDS = 30.0
ATTEMPTS_MAX = 3
LIMITS = ClaimLimits(lease_seconds=LEASE_SECONDS, attempts_max=ATTEMPTS_MAX, acknowledge_after_seconds=5, verify_after_seconds=60)
DEADLINE_SECONDS = 50.0

Rows = dict[str, list[Any]]
"""Every table's rows, comparable."""


class Store(
    ClaimStore,
    Outbox,
    SweepStore,
    JanitorStore,
    LeaseStore,
    CursorStore,
    TokenStore,
    AlarmStore,
    DeadLetterStore,
    Auditor,
    PreviewReader,
    Protocol,
):
    """All protocols, as a deployer opens them."""


class OpenHarness(Protocol):
    """What any comparison needs beyond the port."""

    def open(self) -> AbstractAsyncContextManager[Store]:
        """Another process's view of the same statestore, with the suite's limits."""
        ...

    async def let_time_pass(self, seconds: float) -> None:
        """Leases, deadlines and delays are `seconds` nearer to their end."""
        ...


class StateStoreHarness(OpenHarness, Protocol):
    """What the suites need beyond the port; opened with `LIMITS`."""

    async def rows(self) -> Rows:
        """All that is stored."""
        ...

    def outage(self) -> AbstractAsyncContextManager[None]:
        """Inside, the statestore cannot be reached."""
        ...


def command(number: int, *, pr_number: int = 1, at: int | None = None, **changes: object) -> Message:
    """`/preview` by comment `number`, `at` seconds after the start (by default `number`)."""
    sha = f"{number:040x}"
    message = Message(
        idempotency_key=idempotency_key("acme/hello", pr_number, sha),
        repo="acme/hello",
        pr_number=pr_number,
        commit_sha=sha,
        installation_id=INSTALLATION,
        comment_id=number,
        repository_id=42,
        requested_by="writer",
        requested_at=START + timedelta(seconds=number if at is None else at),
        source=Source.COMMENT,
        source_id=str(number),
    )
    return msgspec.structs.replace(message, **changes)


def close(at: int, *, pr_number: int = 1, **changes: object) -> Message:
    """The pull request was closed `at` seconds after the start."""
    closed_at = START + timedelta(seconds=at)
    message = Message(
        idempotency_key=idempotency_key("acme/hello", pr_number, ""),
        repo="acme/hello",
        pr_number=pr_number,
        commit_sha="",
        installation_id=INSTALLATION,
        comment_id=0,
        action=Action.DESTROY,
        repository_id=42,
        requested_at=closed_at,
        source=Source.CLOSE,
        source_id=format_time(closed_at),
    )
    return msgspec.structs.replace(message, **changes)


def push(at: int, source_id: str) -> Message:
    """A push `at` seconds after the start: two of one time are of equal order, as a replay is to what it repeats."""
    return command(1, at=at, source=Source.PUSH, source_id=source_id, comment_id=0)


async def claim_of(store: ClaimStore, message: Message, *, holder: str = "worker-1") -> Claim:
    """The claim of a message that must be granted."""
    verdict = await store.register_and_claim(message, holder=holder)
    assert isinstance(verdict, Granted), verdict  # noqa: S101 (a test's expectation)
    return verdict.claim


def live_of(claim: Claim, *, digest: str = "digest") -> Live:
    """What the claim's deploy leaves live."""
    return Live(sha=claim.message.commit_sha, digest=digest, request_id=claim.request_id, token=claim.token)


async def due_items(store: Outbox, *, limit: int = 100) -> list[OutboxItem]:
    """All that is due of our installation."""
    return await store.due(INSTALLATION, limit=limit)
