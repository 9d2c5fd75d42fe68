"""The App's way in for what the sweeper found: authorised, enqueued and acknowledged exactly as a webhook is.

Here, because processes do not know each other: the sweeper finds, the App decides.
"""

from __future__ import annotations

import structlog

from prevue.github.port import HookDelivery
from prevue.github_app.delivery import Delivery, DeliveryRejected
from prevue.github_app.handle import Handler, Outcome, Result, Unavailable
from prevue.github_app.requests import DeployRequest
from prevue.masking import foreign_text
from prevue.sweeper.found import Answer, FoundCommand

log = structlog.get_logger(__name__)


class AppDoor:
    """The App's handler behind the sweeper's two questions."""

    def __init__(self, handler: Handler, *, github_host: str) -> None:
        self._handler = handler
        self._github_host = github_host

    async def command(self, found: FoundCommand) -> Answer:
        """A command in a comment; its author is who asks, since an edited comment is none."""
        request = DeployRequest(
            installation_id=found.installation_id,
            repo=found.repo,
            repository_id=found.repository_id,
            pr_number=found.pr_number,
            comment_id=found.comment_id,
            requested_by=found.requested_by,
            requested_at=found.requested_at,
            delivery_id=f"scan-{found.comment_id}",
            github_host=self._github_host,
        )
        try:
            return _answer(await self._handler.carry_out(request))
        except DeliveryRejected as exc:
            log.warning("a command cannot be carried out", action="command_rejected", error=str(exc))
            return Answer.REFUSED

    async def delivery(self, entry: HookDelivery, payload: bytes) -> Answer:
        """A delivery from GitHub's log: it came over the API, so it needs no signature."""
        try:
            request = self._handler.ignore(Delivery(event=entry.event, delivery_id=entry.guid, body=payload))
            return _answer(request if isinstance(request, Outcome) else await self._handler.carry_out(request))
        except DeliveryRejected as exc:
            log.warning("a delivery cannot be read", action="delivery_unreadable", delivery_id=entry.guid, error=foreign_text(str(exc)))
            return Answer.REFUSED


def _answer(outcome: Outcome) -> Answer:
    match outcome.result:
        case Result.ENQUEUED | Result.ALREADY_ENQUEUED:
            return Answer.TAKEN
        case Result.UNAVAILABLE if outcome.reason != Unavailable.NOT_FOUND:
            return Answer.LATER
        case _:
            # Not found: its comment or delivery is there, and the pull request is gone for good.
            return Answer.REFUSED
