"""What the App says on a pull request: the acknowledgement of a command, and why one was refused.

It happens after the answer to GitHub has been decided and never changes it: the command is durable in the queue, and what is skipped or
fails here the deployer's outbox writes. Three rules: list our own comments first and only ever POST (the outbox owns the comment from
then on); stay inside the budget; at shutdown finish what has begun, within a bound (protocol section 5).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from prevue.errors import PrevueError, RateLimited
from prevue.github.comments import RefusalReason, acknowledgement, refusal
from prevue.github.port import GitHub
from prevue.github_app.budget import Budget
from prevue.github_app.requests import DeployRequest
from prevue.masking import foreign_text
from prevue.model import Message, PreviewKey, Source, comment_marker
from prevue.telemetry import Log, get_logger

CONCURRENT_MAX: Final = 20
"""Acknowledgements at the same time, one call each; GitHub allows an App 100 calls at once, look-ups and outbox included."""
PENDING_MAX: Final = 1_000
"""Acknowledgements that wait for their turn; one more is left to the outbox, as if the budget were spent."""
SECONDS_MAX: Final = 30.0
"""One acknowledgement, all its calls together; later it would only race the outbox."""
REACTION: Final = "eyes"
REACTION_KEEPS: Final = 0.5
"""The reaction is the smaller courtesy: only while half the budget is left."""
WAIT_UNSAID_SECONDS: Final = 60.0

_T = TypeVar("_T")

_log = get_logger()


class Acknowledger:
    """Background work of one App process."""

    def __init__(self, github: GitHub, budget: Budget) -> None:
        self._github = github
        self._budget = budget
        self._slots = asyncio.Semaphore(CONCURRENT_MAX)
        self._pending: dict[str, asyncio.Task[None]] = {}

    def acknowledge(self, message: Message) -> None:
        """Write "Deployment requested!" for this command, later; returns at once."""
        marker = comment_marker(message.key, Source.COMMENT, message.effective_source_id)
        self._start(marker, message.delivery_id, lambda: self._acknowledge(message, marker))

    def refuse(self, request: DeployRequest, *, reason: RefusalReason, detail: str = "") -> None:
        """Write why this command is not carried out, later; returns at once."""
        key = PreviewKey(request.github_host, request.repository_id, request.pr_number)
        marker = comment_marker(key, Source.COMMENT, str(request.comment_id))
        body = refusal(marker=marker, requested_by=request.requested_by, reason=reason, detail=detail)
        self._start(marker, request.delivery_id, lambda: self._refuse(request, marker, body))

    async def drain(self, seconds: float) -> None:
        """Let what has begun finish within `seconds`, then cancel the rest: the outbox writes it."""
        pending = list(self._pending.values())
        if not pending:
            return
        _done, late = await asyncio.wait(pending, timeout=seconds)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _start(self, marker: str, delivery_id: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        # Equal deliveries at the same time would each find no comment yet, and each write one.
        if marker in self._pending:
            return
        if len(self._pending) >= PENDING_MAX:
            _log.warning(Log.ACKNOWLEDGEMENT_SKIPPED, delivery_id=delivery_id, reason="too_many_pending")
            return
        task = asyncio.create_task(self._guarded(delivery_id, work), name=f"acknowledge {delivery_id}")
        self._pending[marker] = task
        task.add_done_callback(lambda _task: self._pending.pop(marker, None))

    async def _guarded(self, delivery_id: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            async with self._slots, asyncio.timeout(SECONDS_MAX):
                await work()
        except (PrevueError, TimeoutError) as exc:
            _log.warning(Log.ACKNOWLEDGEMENT_FAILED, delivery_id=delivery_id, error=foreign_text(str(exc)) or "time-out")
        except Exception:  # noqa: BLE001 -- see below
            # A task nobody waits for: an error unseen here would be unseen for ever.
            _log.exception(Log.ACKNOWLEDGEMENT_FAILED, delivery_id=delivery_id)

    async def _acknowledge(self, message: Message, marker: str) -> None:
        installation_id, repo = message.installation_id, message.repo
        body = acknowledgement(marker=marker, commit_sha=message.commit_sha, requested_by=message.requested_by, repo=repo)
        if not await self._post_once(installation_id, repo, message.pr_number, marker, body, message.delivery_id):
            return
        reaction = self._budget.take(installation_id, keep=REACTION_KEEPS)
        if reaction:
            await self._counted(installation_id, self._github.react(installation_id, repo, message.comment_id, REACTION))
        _log.info(Log.ACKNOWLEDGED, delivery_id=message.delivery_id, repo=repo, pr_number=message.pr_number, reaction=reaction)

    async def _refuse(self, request: DeployRequest, marker: str, body: str) -> None:
        told = await self._post_once(request.installation_id, request.repo, request.pr_number, marker, body, request.delivery_id)
        if told:
            _log.info(Log.REFUSAL_TOLD, delivery_id=request.delivery_id, repo=request.repo, pr_number=request.pr_number)

    async def _post_once(self, installation_id: int, repo: str, number: int, marker: str, body: str, delivery_id: str) -> bool:
        """POST `body` unless our comment with `marker` is there already or the budget is spent; whether it was written."""
        if not self._budget.may_write(installation_id):  # asked before the listing, which would be for nothing
            _log.info(Log.ACKNOWLEDGEMENT_SKIPPED, delivery_id=delivery_id, reason="budget")
            return False
        found = await self._counted(installation_id, self._github.find_comments(installation_id, repo, number, marker=marker))
        if found:
            _log.info(Log.ACKNOWLEDGEMENT_SKIPPED, delivery_id=delivery_id, reason="already_there")
            return False
        if not self._budget.take(installation_id):
            _log.info(Log.ACKNOWLEDGEMENT_SKIPPED, delivery_id=delivery_id, reason="budget")
            return False
        await self._counted(installation_id, self._github.create_comment(installation_id, repo, number, body))
        return True

    async def _counted(self, installation_id: int, call: Awaitable[_T]) -> _T:
        """The call's result; a rate limit stops this installation's writes for as long as GitHub asks."""
        try:
            return await call
        except RateLimited as exc:
            self._budget.pause(installation_id, exc.retry_after or WAIT_UNSAID_SECONDS)
            raise
