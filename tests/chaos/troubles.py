"""GitHub's own troubles, through the local GitHub's control: errors, limits, latency, answers that never come, webhooks that are lost."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from prevue.local.client import Failed, LocalGitHub

SECONDS_BETWEEN = 8.0
REPOS = "/repos/"
"""What Prevue asks for. The driver itself reads below `/repositories/`, so that no trouble is wasted on it."""
LIMIT_MESSAGE = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."


class Troubles:
    """Makes one after another until cancelled."""

    def __init__(self, github: LocalGitHub, rng: random.Random) -> None:
        self.made: Counter[str] = Counter()
        self._github = github
        self._rng = rng

    async def run(self) -> None:
        """Until cancelled; what is left of the faults then has to be cleared."""
        while True:
            await asyncio.sleep(SECONDS_BETWEEN * self._rng.uniform(0.5, 1.5))
            await self._make(self._rng.choice(["5xx", "403 limit", "latency", "no answer", "done, no answer", "done, 502", "lost webhook"]))

    async def _make(self, kind: str) -> None:
        times = self._rng.randint(1, 4)
        match kind:
            case "5xx":
                await self._github.fault(REPOS, status=self._rng.choice([500, 502, 503]), times=times)
            case "403 limit":
                headers = {"retry-after": str(self._rng.randint(1, 4))}
                await self._github.fault(REPOS, status=403, times=1, message=LIMIT_MESSAGE, headers=headers)
            case "latency":
                await self._github.fault(REPOS, status=200, times=times, delay_ms=self._rng.randint(300, 2500))
            case "no answer":
                await self._github.fault(REPOS, times=times, delay_ms=self._rng.randint(0, 1500))
            case "done, no answer":
                await self._github.fault(REPOS, method="POST", times=1, after=True)
            case "done, 502":
                await self._github.fault(REPOS, method="PATCH", times=1, status=502, after=True)
            case "lost webhook":
                await self._github.lose_webhooks(1)
        self.made[kind] += 1

    async def end(self) -> None:
        """Nothing fails any more."""
        for _ in range(5):
            try:
                await self._github.clear_faults()
                await self._github.lose_webhooks(0)
            except Failed:
                await asyncio.sleep(1)
            else:
                return
