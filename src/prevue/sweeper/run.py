"""The sweeper: rules that run again and again, each at its own pace, in the one process that holds the lease.

The lease only saves work: every rule is safe without it, so a sweeper that was paused and goes on beside another does no harm. A rule
that fails is tried again at its next turn and stops no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import msgspec
import structlog

from prevue.errors import PrevueError, StateStoreUnavailable
from prevue.statestore.port import LeaseStore

log = structlog.get_logger(__name__)

LEASE = "sweeper"
LEASE_SECONDS = 30.0
"""Another process takes over so long after one that died; extended at a third of it."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that the sweeper does."""

    name: str
    interval_seconds: float
    """From the end of a turn to the begin of the next."""
    sweep: Callable[[], Awaitable[object]]


class Sweeper:
    """Runs its rules while it holds the lease, until stopped."""

    def __init__(self, *, holder: str, leases: LeaseStore, rules: Sequence[Rule], lease_seconds: float = LEASE_SECONDS) -> None:
        self._holder = holder
        self._leases = leases
        self.rules = tuple(rules)
        self._lease_seconds = lease_seconds
        self._active = asyncio.Event()

    @property
    def is_active(self) -> bool:
        """Whether this one holds the lease, as far as it knows."""
        return self._active.is_set()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; then the lease is given back."""
        async with asyncio.TaskGroup() as tasks:
            rules = [tasks.create_task(self._run_rule(rule, stop), name=f"sweeper-{rule.name}") for rule in self.rules]
            await self._keep_lease(stop)
            for task in rules:  # a turn is cut off where it is: each is safe at any point, and begins anew elsewhere
                task.cancel()
        with suppress(StateStoreUnavailable):
            await self._leases.release_lease(LEASE, holder=self._holder)

    async def _keep_lease(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                is_ours = await self._leases.acquire_lease(LEASE, holder=self._holder, seconds=self._lease_seconds)
            except StateStoreUnavailable:
                is_ours = False
            if is_ours != self._active.is_set():
                log.info("sweeper active" if is_ours else "another sweeper is active", action="sweeper", active=is_ours)
            if is_ours:
                self._active.set()
            else:
                self._active.clear()
            await _pause(stop, self._lease_seconds / 3)

    async def _run_rule(self, rule: Rule, stop: asyncio.Event) -> None:
        # Asked here, not left to the cancellation: a turn may end without an await, and after the stop no pause has one either.
        while not stop.is_set():
            await self._active.wait()
            await self._turn(rule)
            await _pause(stop, rule.interval_seconds)

    async def _turn(self, rule: Rule) -> None:
        try:
            await rule.sweep()
        except PrevueError as exc:
            log.warning("sweep skipped", action="sweep_delayed", rule=rule.name, error=str(exc))
        except Exception:
            # One rule's fault must not stop the others; it is logged whole, and the rule has its next turn.
            log.exception("sweep failed", action="sweep_failed", rule=rule.name)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
