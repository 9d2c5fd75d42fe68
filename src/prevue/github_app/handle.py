"""What the App does with a delivery: authorise, resolve the commit, enqueue durably, then answer, then acknowledge.

The order is the promise. The App authorises before it enqueues, since every enqueued request supersedes older ones; it enqueues before
it answers 2xx, since GitHub never repeats a delivery by itself; whatever it cannot find out in time it answers with 503, enqueues
nothing, and the sweeper has GitHub send the delivery again. ADR 1; protocol sections 4 and 5.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Final

import msgspec

from prevue.config import AppSettings
from prevue.errors import (
    GitHubUnavailable,
    MessageInvalid,
    NotFound,
    NotInstalled,
    PermanentError,
    PrevueError,
    QueueUnavailable,
    RateLimited,
)
from prevue.github.comments import RefusalReason
from prevue.github.port import GitHub, Permission, PullRequest
from prevue.github_app.acknowledge import Acknowledger
from prevue.github_app.delivery import Delivery, MalformedDelivery
from prevue.github_app.requests import DeployRequest, DestroyRequest, Ignored, Ping, read
from prevue.masking import foreign_text
from prevue.model import Message
from prevue.queue.port import AlreadyEnqueued, Enqueuer

ENQUEUE_SECONDS_MAX: Final = 3.5
"""With `app.github_timeout_seconds` below the 10 s after which GitHub gives a delivery up; a backend has a limit of its own below this.
A time-out may still have enqueued: the answer is 503 all the same, and the redelivery finds the message there or the request done."""


class Result(StrEnum):
    """How a delivery ended; `asgi.py` has the table to HTTP statuses."""

    ENQUEUED = "enqueued"
    ALREADY_ENQUEUED = "already_enqueued"
    """An unsettled message of the same request is in the queue: a redelivery. Accepted, and not acknowledged again."""
    REFUSED = "refused"
    IGNORED = "ignored"
    PONG = "pong"
    INVALID_SIGNATURE = "invalid_signature"
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    TOO_SLOW = "too_slow"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    UNAVAILABLE = "unavailable"
    ERROR = "error"


class Unavailable(StrEnum):
    """Why nothing could be decided now; GitHub lists the delivery as failed, and it is sent again."""

    QUEUE = "queue_unavailable"
    GITHUB = "github_unavailable"
    GITHUB_TIMEOUT = "github_timeout"
    RATE_LIMITED = "github_rate_limited"
    NOT_INSTALLED = "github_refuses"
    NOT_FOUND = "github_not_found"
    """The pull request is unknown to GitHub's API, although its webhook came: seconds after its opening that is a replica's lag."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one delivery. `detail` is for our log, never for the answer; `message` is what was enqueued."""

    result: Result
    reason: str = ""
    detail: str = ""
    message: Message | None = None


_IGNORED: Final = {reason: Outcome(result=Result.IGNORED, reason=reason.value) for reason in Ignored}
_PONG: Final = Outcome(result=Result.PONG)


class Handler:
    """Deliveries of one App process; remembers nothing of them."""

    def __init__(self, *, github: GitHub, enqueuer: Enqueuer, acknowledger: Acknowledger, settings: AppSettings, github_host: str) -> None:
        self._github = github
        self._enqueuer = enqueuer
        self._acknowledger = acknowledger
        self._github_seconds = settings.github_timeout_seconds
        self._github_host = github_host

    def ignore(self, delivery: Delivery) -> Outcome | DeployRequest | DestroyRequest:
        """The outcome of a delivery that asks for nothing, which is nearly every one; else what it asks for. Without I/O.

        Raises:
            MalformedDelivery: the body cannot be read.
        """
        request = read(delivery, github_host=self._github_host)
        match request:
            case Ignored():
                return _IGNORED[request]
            case Ping():
                return _PONG
            case _:
                return request

    async def carry_out(self, request: DeployRequest | DestroyRequest) -> Outcome:
        """Authorise and enqueue; the acknowledgement is started, not awaited.

        Raises:
            MalformedDelivery: a name in the payload is none that GitHub gives.
        """
        if isinstance(request, DestroyRequest):
            return await self._enqueue(request.message)
        try:
            async with asyncio.timeout(self._github_seconds):
                permission, pull = await self._ask(request)
        except TimeoutError:
            return Outcome(result=Result.UNAVAILABLE, reason=Unavailable.GITHUB_TIMEOUT)
        except PrevueError as exc:
            return _unavailable(exc)
        refused = _refusal(permission, pull)
        if refused is not None:
            detail = permission.value if refused is RefusalReason.PERMISSION else ""
            self._acknowledger.refuse(request, reason=refused, detail=detail)
            return Outcome(result=Result.REFUSED, reason=refused.value)
        try:
            message = request.message(repo=pull.repo, commit_sha=pull.head_sha)
        except ValueError as exc:
            raise MalformedDelivery(f"the request cannot be written down: {foreign_text(str(exc), limit=120)}") from exc
        outcome = await self._enqueue(message)
        if outcome.result is Result.ENQUEUED:
            self._acknowledger.acknowledge(message)
        return outcome

    async def _ask(self, request: DeployRequest) -> tuple[Permission, PullRequest]:
        """The sender's permission and the pull request, asked at the same time: the person waits for the slower one, not for both."""
        asked = asyncio.ensure_future(self._github.permission(request.installation_id, request.repo, request.requested_by))
        try:
            pull = await self._github.pull_request(request.installation_id, request.repo, request.pr_number)
            return await asked, pull
        finally:
            asked.cancel()
            # Also takes its error, where the pull request's error came first.
            await asyncio.gather(asked, return_exceptions=True)

    async def _enqueue(self, message: Message) -> Outcome:
        try:
            async with asyncio.timeout(ENQUEUE_SECONDS_MAX):
                enqueued = await self._enqueuer.enqueue(message)
        except TimeoutError:
            return Outcome(result=Result.UNAVAILABLE, reason=Unavailable.QUEUE, detail="time-out")
        except QueueUnavailable as exc:
            return Outcome(result=Result.UNAVAILABLE, reason=Unavailable.QUEUE, detail=foreign_text(str(exc)))
        except MessageInvalid as exc:
            raise MalformedDelivery(str(exc)) from exc
        already = isinstance(enqueued, AlreadyEnqueued)
        return Outcome(result=Result.ALREADY_ENQUEUED if already else Result.ENQUEUED, message=message)


def _refusal(permission: Permission, pull: PullRequest) -> RefusalReason | None:
    """Why a command is not carried out; the asker's right first, so that strangers learn nothing else."""
    if not permission.may_preview:
        return RefusalReason.PERMISSION
    if not pull.is_open:
        return RefusalReason.CLOSED
    if pull.is_fork:
        return RefusalReason.FORK
    return None


def _unavailable(error: PrevueError) -> Outcome:
    """GitHub's errors: whatever the reason, nothing is known about the asker, so nothing is enqueued or refused."""
    match error:
        case RateLimited():
            reason = Unavailable.RATE_LIMITED
        case GitHubUnavailable():
            reason = Unavailable.GITHUB
        case NotInstalled():
            reason = Unavailable.NOT_INSTALLED
        case NotFound():
            reason = Unavailable.NOT_FOUND
        case PermanentError():
            reason = Unavailable.GITHUB
        case _:
            raise error
    return Outcome(result=Result.UNAVAILABLE, reason=reason, detail=foreign_text(str(error)))
