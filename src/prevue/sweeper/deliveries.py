"""Protocol rule 2, its first part: deliveries that the App did not take are sent again by GitHub (protocol section 6).

GitHub never repeats a delivery by itself, and keeps it for three days. A redelivery is an entry of its own with the same guid, so the
log itself says how often one was tried and whether any try succeeded; the cursor only saves reading what is settled.
https://docs.github.com/en/webhooks/using-webhooks/handling-failed-webhook-deliveries
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta

import structlog

from prevue.clock import Clock
from prevue.errors import PermanentError
from prevue.github.port import GitHubApp, HookDelivery
from prevue.statestore.port import CursorStore
from prevue.sweeper.found import WANTED

log = structlog.get_logger(__name__)

CURSOR = "deliveries"
LOOK_BACK = timedelta(days=3)
PAGES_MAX = 100
"""Of 100 entries each and turn."""
TRIES_MAX = 12
"""Deliveries of one guid, the first included: with the waits below more than an hour. After that only the scans bring its command."""
WAIT_SECONDS, WAIT_SECONDS_MAX = 15.0, 600.0
"""After the first failure; doubled with each. As soon as the App takes any delivery, nothing waits any longer."""
PENDING_SECONDS = 60.0
"""An entry without an end is on its way for so long; GitHub itself gives up after 10 s."""
BATCH_REDELIVERIES = 50
"""A turn: an App that has just come back is not run over."""


class Redeliverer:
    """Finds failed deliveries and has them sent again."""

    def __init__(self, *, github: GitHubApp, cursors: CursorStore, clock: Clock) -> None:
        self._github = github
        self._cursors = cursors
        self._clock = clock

    async def sweep(self) -> int:
        """One turn; returns how many were sent again."""
        cursor = int(await self._cursors.cursor(CURSOR) or 0)
        entries, is_complete = await read_deliveries(self._github, after=cursor, since=self._clock.now() - LOOK_BACK)
        groups: dict[str, list[HookDelivery]] = defaultdict(list)
        for entry in reversed(entries):
            groups[entry.guid].append(entry)
        taken_at = max((entry.delivered_at for entry in entries if entry.is_delivered), default=None)
        sent, unsettled = 0, []
        for tries in groups.values():
            if _is_settled(tries):
                continue
            if sent < BATCH_REDELIVERIES and self._is_due(tries, taken_at):
                if not await self._redeliver(tries[-1]):
                    continue
                sent += 1
            unsettled.append(tries[0].id)
        if is_complete and entries:
            await self._cursors.set_cursor(CURSOR, str(min([*(first - 1 for first in unsettled), entries[0].id])))
        return sent

    def _is_due(self, tries: list[HookDelivery], taken_at: datetime | None) -> bool:
        last = tries[-1]
        age = (self._clock.now() - last.delivered_at).total_seconds()
        if last.is_pending:
            return age >= PENDING_SECONDS
        if taken_at is not None and taken_at > last.delivered_at:
            return True
        return age >= min(WAIT_SECONDS_MAX, WAIT_SECONDS * 2.0 ** (len(tries) - 1))

    async def _redeliver(self, delivery: HookDelivery) -> bool:
        """False: GitHub will not send this one any more."""
        try:
            await self._github.redeliver(delivery.id)
        except PermanentError as exc:
            log.warning("a delivery cannot be sent again", action="redelivery_refused", delivery_id=delivery.guid, error=str(exc))
            return False
        log.info("a failed delivery is sent again", action="redelivered", delivery_id=delivery.guid, status=delivery.status_code)
        return True


def _is_settled(tries: list[HookDelivery]) -> bool:
    if not any((entry.event, entry.action) in WANTED for entry in tries):
        return True
    return any(entry.is_delivered for entry in tries) or len(tries) >= TRIES_MAX


async def read_deliveries(github: GitHubApp, *, after: int, since: datetime) -> tuple[list[HookDelivery], bool]:
    """Entries with a larger id than `after` that were delivered since, newest first; and whether that is all of them."""
    found: list[HookDelivery] = []
    older = ""
    for _ in range(PAGES_MAX):
        page = await github.deliveries(older=older)
        for entry in page.deliveries:
            if entry.id <= after or entry.delivered_at < since:
                return found, True
            found.append(entry)
        if not page.older:
            return found, True
        older = page.older
    log.warning("more deliveries than a turn reads", action="deliveries_cut", entries=len(found))
    return found, False
