"""Holding a claim: heartbeats, and knowing in time that the claim is lost (protocol step 1 and protocol section 7).

The holder stops itself at three quarters of the lease after the *sending* of its last successful heartbeat, by CLOCK_BOOTTIME: it may not
be able to learn of its loss, and a machine that slept must count the sleep.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog

from prevue.clock import Clock
from prevue.errors import StaleClaim, StateStoreUnavailable
from prevue.model import Claim
from prevue.statestore.port import ClaimStore

log = structlog.get_logger(__name__)

HEARTBEATS_A_LEASE = 4
"""Three may fail before the lease is given up."""


class Holding:
    """The state of a held claim: `lost` is set once it must not be acted on, `newer` once a newer request is desired."""

    def __init__(self, store: ClaimStore, claim: Claim, *, lease_seconds: float, clock: Clock) -> None:
        self.claim = claim
        self.lost = asyncio.Event()
        self.newer = asyncio.Event()
        self._store = store
        self._clock = clock
        self._interval = lease_seconds / HEARTBEATS_A_LEASE
        self._usable_seconds = lease_seconds - self._interval
        self._extended_at = claim.granted_at_boottime

    @property
    def is_lost(self) -> bool:
        """Whether the claim must not be acted on any more, by what is known here and now."""
        return self.lost.is_set() or self._clock.boottime() >= self._extended_at + self._usable_seconds

    async def keep(self) -> None:
        """Send heartbeats until the claim is lost or the task is cancelled."""
        while not self.is_lost:
            await asyncio.sleep(self._interval - (self._clock.boottime() - self._extended_at) % self._interval)
            sent_at = self._clock.boottime()
            try:
                async with asyncio.timeout(self._interval):
                    desired = await self._store.heartbeat(self.claim)
            except StaleClaim:
                break
            except (StateStoreUnavailable, TimeoutError):
                log.warning("heartbeat failed", action="heartbeat_failed", token=self.claim.token)
                continue
            self._extended_at = sent_at
            if desired > self.claim.order:
                self.newer.set()
        self.lost.set()


@asynccontextmanager
async def hold(store: ClaimStore, claim: Claim, *, lease_seconds: float, clock: Clock) -> AsyncIterator[Holding]:
    """Keep `claim` alive inside the block, also while it is being finished."""
    holding = Holding(store, claim, lease_seconds=lease_seconds, clock=clock)
    heart = asyncio.create_task(holding.keep(), name=f"heartbeat-{claim.token}")
    try:
        yield holding
    finally:
        heart.cancel()
        with suppress(asyncio.CancelledError):
            await heart
