"""A clock that stands still until a test moves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

START = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


class FakeClock:
    """Both readings move together, and only by `advance`."""

    def __init__(self, start: datetime = START, *, boottime: float = 1000.0) -> None:
        self._now = start
        self._boottime = boottime

    def boottime(self) -> float:
        """Seconds since an imagined boot."""
        return self._boottime

    def now(self) -> datetime:
        """The imagined UTC time."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        if seconds < 0:
            raise ValueError("a clock does not go back")
        self._boottime += seconds
        self._now += timedelta(seconds=seconds)
