"""One message from receipt to settlement: register, claim, carry out, finish (protocol section 2).

The queue wakes, the statestore decides. Whatever happens inside, the worker ends in one of three ways: it wrote the outcome under its
token, it gave the claim back after its Helm child was reaped, or it lost the claim and wrote nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
import structlog

from prevue import lifecycle
from prevue.clock import Clock
from prevue.deployer.holding import Holding, hold
from prevue.errors import (
    GitHubUnavailable,
    MessageInvalid,
    OutageError,
    PermanentError,
    QueueUnavailable,
    StaleClaim,
    StateStoreUnavailable,
    TransientError,
)
from prevue.github.port import GitHub
from prevue.lifecycle import Finish, Reason
from prevue.model import Action, Claim, Message, Source, format_time
from prevue.queue.port import Done, Enqueuer, Release, RetryAfter, Settlement
from prevue.statestore import port as statestore
from prevue.statestore.port import ClaimStore

log = structlog.get_logger(__name__)

OUTAGE_RETRY_SECONDS = 10
"""Wait after an outage that named no time of its own."""

Pipeline = Callable[[Claim], Awaitable[Finish]]


class WorkerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The worker's numbers, in seconds; their reasons stand in `config.DeployerSettings`."""

    lease_seconds: float = 30
    backoff_seconds: float = 5
    backoff_max_seconds: float = 300


class _HaltedError(Exception):
    """The process stops: the claim goes back."""


class Worker:
    """Carries messages out; one object serves all slots of a process."""

    def __init__(
        self,
        *,
        holder: str,
        store: ClaimStore,
        github: GitHub,
        enqueuer: Enqueuer,
        pipeline: Pipeline,
        limits: WorkerLimits,
        clock: Clock,
        on_told: Callable[[], None] = lambda: None,
        on_verdict: Callable[[statestore.Verdict], None] = lambda _: None,
        on_finished: Callable[[Finish], None] = lambda _: None,
        rng: random.Random | None = None,
    ) -> None:
        self._holder = holder
        self._store = store
        self._github = github
        self._enqueuer = enqueuer
        self._pipeline = pipeline
        self._limits = limits
        self._clock = clock
        self._on_told = on_told
        self._on_verdict = on_verdict
        self._on_finished = on_finished
        self._random = rng or random.SystemRandom()
        self._halt = asyncio.Event()

    def halt(self) -> None:
        """The grace period is over: end what runs, give every claim back, count no attempt. Harmless when repeated."""
        self._halt.set()

    async def handle(self, message: Message) -> Settlement:
        """Carry `message` out as far as it can be now; the queue's handler."""
        bound = {"delivery_id": message.delivery_id, "repo": message.repo, "pr_number": message.pr_number}
        with structlog.contextvars.bound_contextvars(**bound):
            try:
                complete = await self._complete(message)
                verdict = await self._store.register_and_claim(complete, holder=self._holder)
            except (MessageInvalid, PermanentError) as exc:
                log.warning("message can never be carried out", action="message_dropped", error=str(exc))
                return Done()
            except (StateStoreUnavailable, GitHubUnavailable) as exc:
                log.warning("cannot register now", action="register_delayed", error=str(exc))
                return RetryAfter(exc.retry_after or self._jitter(OUTAGE_RETRY_SECONDS / 2))
            self._on_verdict(verdict)
            return await self._act_on(verdict)

    async def _act_on(self, verdict: statestore.Verdict) -> Settlement:
        match verdict:
            case statestore.Granted(claim):
                return await self._carry_out(claim)
            case statestore.Later(delay):
                return RetryAfter(delay)
            case statestore.Superseded() | statestore.Dead():
                self._on_told()
        log.info("nothing to carry out", action="verdict", verdict=type(verdict).__name__)
        return Done()

    async def _complete(self, message: Message) -> Message:
        """The message with its optional fields read from GitHub where an older App left them out, never from a clock of ours."""
        if message.is_complete:
            return message
        pull = await self._github.pull_request(message.installation_id, message.repo, message.pr_number)
        filled = msgspec.structs.replace(message, repository_id=message.repository_id or pull.repository_id, repo=pull.repo)
        if filled.effective_source is Source.COMMENT:
            comment = await self._github.comment(message.installation_id, message.repo, message.comment_id)
            filled = msgspec.structs.replace(
                filled, requested_at=filled.requested_at or comment.created_at, requested_by=filled.requested_by or comment.author
            )
        elif filled.requested_at is None and pull.closed_at is not None:
            filled = msgspec.structs.replace(filled, requested_at=pull.closed_at)
        if filled.requested_at and not filled.source_id and filled.effective_source is Source.CLOSE:
            filled = msgspec.structs.replace(filled, source_id=format_time(filled.requested_at))
        if not filled.is_complete:
            raise MessageInvalid("source, source_id or requested_at is absent, and GitHub does not know it either")
        return filled

    async def _carry_out(self, claim: Claim) -> Settlement:
        with structlog.contextvars.bound_contextvars(token=claim.token, attempt=claim.attempt, namespace=claim.namespace):
            log.info("claim granted", action="claimed", request_action=claim.message.action, commit=claim.message.commit_sha)
            async with hold(self._store, claim, lease_seconds=self._limits.lease_seconds, clock=self._clock) as holding:
                try:
                    return await self._outcome(holding)
                except StaleClaim:
                    # Somebody else holds the preview by now, or may: nothing is written and nothing is said.
                    log.warning("claim lost", action="claim_lost")
                    return RetryAfter(self._limits.lease_seconds)

    async def _outcome(self, holding: Holding) -> Settlement:
        """Run the pipeline; turn what it returns or raises into one write under the token."""
        claim = holding.claim
        try:
            finish = await self._run(holding)
        except StaleClaim:
            raise
        except _HaltedError:
            return await self._give_back(holding, delay=0, counted=False, error="the deployer stops")
        except OutageError as exc:
            delay = exc.retry_after or self._jitter(OUTAGE_RETRY_SECONDS)
            return await self._give_back(holding, delay=delay, counted=False, error=str(exc))
        except PermanentError as exc:
            # The pipeline classifies what it knows; this one came from before it began.
            finish = lifecycle.failed(Reason.OTHER, _text(exc), began=False)
        except Exception as exc:
            # An error that nobody classified counts as transient until the attempts are spent (protocol section 3).
            expected = isinstance(exc, TransientError)
            log.warning("attempt failed", action="attempt_failed", error=_text(exc), exc_info=not expected)
            delay = max(getattr(exc, "retry_after", None) or 0, self._backoff(claim.attempt))
            return await self._give_back(holding, delay=delay, counted=True, error=_text(exc))
        return await self._finish(holding, finish)

    async def _run(self, holding: Holding) -> Finish:
        """The pipeline, ended early when the claim is lost, a newer request is desired, or the process must stop.

        Cancelling the pipeline returns only when its Helm child is reaped (helm.port), so the claim may be written after it.
        """
        work = asyncio.ensure_future(self._pipeline(holding.claim))
        signals = [asyncio.create_task(event.wait()) for event in (holding.lost, holding.newer, self._halt)]
        try:
            await asyncio.wait([work, *signals], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in signals:
                task.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait([work])
        if holding.is_lost:
            _ = work.cancelled() or work.exception()  # looked at, so that asyncio does not complain
            raise StaleClaim
        if not work.cancelled():
            return work.result()
        if holding.newer.is_set():
            return lifecycle.superseded(tell=holding.claim.message.action is Action.DEPLOY)
        raise _HaltedError

    async def _finish(self, holding: Holding, finish: Finish) -> Settlement:
        await self._write(holding, lambda: self._store.finish(holding.claim, finish))
        self._on_finished(finish)
        log.info("request finished", action="finished", outcome=finish.outcome, reason=finish.reason, url=finish.url)
        self._on_told()
        await self._wake_waiting(holding.claim)
        return Done()

    async def _give_back(self, holding: Holding, *, delay: float, counted: bool, error: str) -> Settlement:
        await self._write(holding, lambda: self._store.give_back(holding.claim, delay=delay, counted=counted, error=error))
        log.info("claim given back", action="given_back", delay=round(delay, 1), counted=counted, error=error)
        return Release() if self._halt.is_set() else RetryAfter(delay)

    async def _write(self, holding: Holding, write: Callable[[], Awaitable[None]]) -> None:
        """Repeat `write` through outages of the statestore for as long as the claim is held; an ambiguous commit shows as StaleClaim."""
        while True:
            try:
                return await write()
            except StateStoreUnavailable:
                if holding.is_lost:
                    raise StaleClaim from None
                await asyncio.sleep(self._jitter(0.5))

    async def _wake_waiting(self, claim: Claim) -> None:
        """Protocol step 11: a hint; when it is lost, protocol rule 1 wakes them."""
        with suppress(StateStoreUnavailable, QueueUnavailable):
            for message in await self._store.waiting(claim.key):
                await self._enqueuer.enqueue(message)

    def _backoff(self, attempt: int) -> float:
        return self._jitter(min(self._limits.backoff_max_seconds, self._limits.backoff_seconds * 2 ** (attempt - 1)))

    def _jitter(self, seconds: float) -> float:
        return seconds * self._random.uniform(0.75, 1.25)


def _text(exc: BaseException) -> str:
    details = getattr(exc, "details", "")
    text = str(exc) or type(exc).__name__
    return f"{text}\n{details}" if details else text
