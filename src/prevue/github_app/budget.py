"""How many content writes this process may still make for an installation: sliding windows of a minute and an hour.

GitHub's secondary limit counts comments and reactions of an installation, 80 a minute and 500 an hour, whoever writes them; who goes on
regardless risks being banned. The App's processes together keep to `app.comments_per_minute` and `_per_hour`, each to its share, and
the outbox to the rest. The invariant: within any 60 s (3600 s) at most that many grants. No I/O, no clock of its own.
https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#about-secondary-rate-limits
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

MINUTE: Final = 60.0
HOUR: Final = 3600.0
INSTALLATIONS_MAX: Final = 10_000
"""Beyond this, installations that have not written within the hour are forgotten."""


class _Window:
    """Writes within the last `seconds`."""

    __slots__ = ("limit", "seconds", "times")

    def __init__(self, seconds: float, limit: int) -> None:
        self.seconds = seconds
        self.limit = limit
        self.times: deque[float] = deque()

    def has_left(self, now: float, share: float) -> bool:
        """Whether at least one write, and at least `share` of the limit, is left."""
        while self.times and self.times[0] <= now - self.seconds:
            self.times.popleft()
        left = self.limit - len(self.times)
        return left > 0 and left >= share * self.limit


class Budget:
    """Content writes by installation; `now` gives seconds on a clock that never goes back."""

    def __init__(self, *, per_minute: int, per_hour: int, replicas: int, now: Callable[[], float]) -> None:
        # Rounded down: with more processes than writes none may write, and the outbox does it all.
        self._per_minute = per_minute // replicas
        self._per_hour = per_hour // replicas
        self._now = now
        self._windows: dict[int, tuple[_Window, _Window]] = {}
        self._paused: dict[int, float] = {}

    def may_write(self, installation_id: int) -> bool:
        """Whether `take` would grant a write now."""
        return self._has_left(installation_id, 0.0)

    def take(self, installation_id: int, *, keep: float = 0.0) -> bool:
        """Count one write, if it fits and at least `keep` (0 to 1) of each window is left before it; else count nothing."""
        if not self._has_left(installation_id, keep):
            return False
        for window in self._windows[installation_id]:
            window.times.append(self._now())
        return True

    def pause(self, installation_id: int, seconds: float) -> None:
        """No writes for so long: GitHub has answered with its limit."""
        self._paused[installation_id] = max(self._now() + seconds, self._paused.get(installation_id, 0.0))

    def _has_left(self, installation_id: int, share: float) -> bool:
        now = self._now()
        if now < self._paused.get(installation_id, 0.0):
            return False
        self._paused.pop(installation_id, None)
        windows = self._windows.get(installation_id)
        if windows is None:
            if len(self._windows) >= INSTALLATIONS_MAX:
                self._forget_idle(now)
            windows = self._windows[installation_id] = (_Window(MINUTE, self._per_minute), _Window(HOUR, self._per_hour))
        return all(window.has_left(now, share) for window in windows)

    def _forget_idle(self, now: float) -> None:
        self._windows = {key: pair for key, pair in self._windows.items() if pair[1].times and pair[1].times[-1] > now - HOUR}
