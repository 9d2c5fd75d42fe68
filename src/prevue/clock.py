"""Time as the protocol needs it, behind one small port, so that a simulation can own it.

Deadlines that must hold although the machine was suspended are absolute CLOCK_BOOTTIME seconds (protocol section 7);
CLOCK_MONOTONIC stands still during a suspend. Waiting is asyncio's own: a simulated event loop owns that too.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """The two readings that Prevue takes."""

    def boottime(self) -> float:
        """Seconds since boot, suspend included; only differences and deadlines have a meaning."""
        ...

    def now(self) -> datetime:
        """Wall-clock time, UTC: for JWTs and texts alone, never for leases or order."""
        ...


class SystemClock:
    """The machine's clocks."""

    def boottime(self) -> float:
        """CLOCK_BOOTTIME; where the platform has none (macOS), its monotonic clock counts suspends itself."""
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

    def now(self) -> datetime:
        """UTC now."""
        return datetime.now(UTC)
