"""Which repositories the App is installed on, asked seldom: an answer costs a call an installation and changes rarely."""

from __future__ import annotations

from prevue.clock import Clock
from prevue.errors import GitHubUnavailable, PermanentError
from prevue.github.port import GitHubApp, InstalledRepositories, Repository

KNOWN_SECONDS = 300.0
"""How long a whole answer is good."""
RETRY_SECONDS = 10.0
"""After a failure, or an answer with a silent installation, what was known before serves so long, and nobody asks again before."""


class KnownRepositories:
    """The App's repositories, from GitHub or from the last answer."""

    def __init__(self, github: GitHubApp, clock: Clock) -> None:
        self._github = github
        self._clock = clock
        self._known: list[Repository] = []
        self._until = float("-inf")
        self._error = ""

    async def all(self) -> list[Repository]:
        """Every one, in GitHub's order; behind them what silent installations had before.

        Raises:
            GitHubUnavailable: GitHub does not tell, and nothing is known from before.
        """
        now = self._clock.boottime()
        if now >= self._until:
            self._until = now + RETRY_SECONDS
            try:
                self._take(await self._github.repositories(), now)
            except (GitHubUnavailable, PermanentError) as exc:
                self._error = str(exc)
        if self._error and not self._known:
            raise GitHubUnavailable(f"the App's repositories cannot be listed: {self._error}")
        return self._known

    def _take(self, found: InstalledRepositories, asked_at: float) -> None:
        silent = found.silent_installations
        told = {one.id for one in found.repositories}
        self._known = found.repositories + [one for one in self._known if one.installation_id in silent and one.id not in told]
        self._error = f"installations do not answer: {', '.join(map(str, sorted(silent)))}" if silent else ""
        if not silent:
            self._until = asked_at + KNOWN_SECONDS

    async def find(self, repository_id: int) -> Repository | None:
        """By number; None: the App is not installed there, or its installation has not told yet."""
        return next((one for one in await self.all() if one.id == repository_id), None)
