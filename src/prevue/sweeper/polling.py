"""Deliveries without a public webhook address: their payloads are read from GitHub's log (`prevue deployer --poll-deliveries`).

The App on GitHub still needs a webhook address, any that is not reachable: GitHub then lists each delivery as failed, with its payload.
What arrives this way is authorised, enqueued and acknowledged as if it had been sent.
"""

from __future__ import annotations

from datetime import timedelta

import structlog

from prevue.clock import Clock
from prevue.errors import PermanentError
from prevue.github.port import GitHubApp, HookDelivery
from prevue.statestore.port import CursorStore
from prevue.sweeper.deliveries import read_deliveries
from prevue.sweeper.found import WANTED, AcceptDelivery, Answer

log = structlog.get_logger(__name__)

CURSOR = "deliveries/polled"
LOOK_BACK = timedelta(minutes=10)
"""At the very first turn: what was written just before Prevue was started, and no old commands. Later the cursor says where to go on."""
LOOK_BACK_MAX = timedelta(days=3)


class DeliveryPoller:
    """Reads new deliveries, oldest first, and hands them over."""

    def __init__(self, *, github: GitHubApp, cursors: CursorStore, accept: AcceptDelivery, clock: Clock) -> None:
        self._github = github
        self._cursors = cursors
        self._accept = accept
        self._clock = clock

    async def sweep(self) -> int:
        """One turn; returns how many asked for something. What cannot be decided now is the next turn's first."""
        cursor = await self._cursors.cursor(CURSOR)
        since = self._clock.now() - (LOOK_BACK if cursor is None else LOOK_BACK_MAX)
        entries, _ = await read_deliveries(self._github, after=int(cursor or 0), since=since)
        taken = 0
        for entry in reversed(entries):
            if (entry.event, entry.action) in WANTED and not entry.is_delivered:
                answer = await self._carry(entry)
                if answer is Answer.LATER:
                    break
                taken += answer is Answer.TAKEN
            await self._cursors.set_cursor(CURSOR, str(entry.id))
        return taken

    async def _carry(self, entry: HookDelivery) -> Answer:
        try:
            payload = await self._github.delivery_payload(entry.id)
        except PermanentError as exc:
            log.warning("a delivery cannot be read", action="delivery_unreadable", delivery_id=entry.guid, error=str(exc))
            return Answer.REFUSED
        answer = await self._accept(entry, payload)
        log.info("a delivery was read from GitHub's log", action="polled", delivery_id=entry.guid, github_event=entry.event, answer=answer)
        return answer
