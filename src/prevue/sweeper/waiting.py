"""Protocol rule 1: what nobody holds goes to the queue again (protocol section 6).

`InProgress` is acknowledged, so a request whose worker died lives in the statestore alone: without this rule it would be lost.
Safe without any lease: a message too many finds its request done or held.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from prevue.errors import MessageInvalid, QueueUnavailable, StateStoreUnavailable
from prevue.queue.port import Enqueuer
from prevue.statestore.port import SweepStore

log = structlog.get_logger(__name__)

BATCH_REQUESTS = 200


class WaitingSweeper:
    """Re-enqueues waiting requests, until stopped."""

    def __init__(self, *, store: SweepStore, enqueuer: Enqueuer, interval_seconds: float, quiet_seconds: float) -> None:
        self._store = store
        self._enqueuer = enqueuer
        self._interval = interval_seconds
        self._quiet = quiet_seconds

    async def run(self, stop: asyncio.Event) -> None:
        """Sweep every interval until `stop`; an outage is waited out."""
        while not stop.is_set():
            try:
                await self.sweep()
            except StateStoreUnavailable as exc:
                log.warning("sweep skipped", action="sweep_delayed", error=str(exc))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await stop.wait()

    async def sweep(self) -> int:
        """One pass; returns how many were sent. Each item is isolated from the others."""
        messages = await self._store.unheld(quiet_seconds=self._quiet, limit=BATCH_REQUESTS)
        sent = 0
        for message in messages:
            try:
                await self._enqueuer.enqueue(message)
                sent += 1
            except (QueueUnavailable, MessageInvalid) as exc:
                log.warning("waiting request not sent", action="reenqueue_failed", repo=message.repo, pr=message.pr_number, error=str(exc))
        if sent:
            log.info("waiting requests sent again", action="reenqueued", requests=sent)
        return sent
