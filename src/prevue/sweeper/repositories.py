"""Which repositories the App is installed on, asked seldom: an answer costs a call an installation and changes rarely."""

from __future__ import annotations

from prevue.clock import Clock
from prevue.errors import GitHubUnavailable, PermanentError
from prevue.github.port import GitHubApp, Repository

KNOWN_SECONDS = 300.0
"""How long an answer is good."""
RETRY_SECONDS = 10.0
"""After a failure the last answer serves so long; where there is none, nobody asks again before."""


class KnownRepositories:
    """The App's repositories, from GitHub or from the last answer."""

    def __init__(self, github: GitHubApp, clock: Clock) -> None:
        self._github = github
        self._clock = clock
        self._known: list[Repository] = []
        self._until = float("-inf")
        self._error: Exception | None = None

    async def all(self) -> list[Repository]:
        """Every one, in GitHub's order.

        Raises:
            GitHubUnavailable: GitHub cannot be asked, and never could.
        """
        now = self._clock.boottime()
        if now >= self._until:
            self._until = now + RETRY_SECONDS
            try:
                self._known = await self._github.repositories()
                self._until, self._error = now + KNOWN_SECONDS, None
            except (GitHubUnavailable, PermanentError) as exc:
                self._error = exc
        if self._error is not None and not self._known:
            raise GitHubUnavailable(f"the App's repositories cannot be listed: {self._error}") from self._error
        return self._known

    async def find(self, repository_id: int) -> Repository | None:
        """By number; None: the App is not installed there."""
        return next((one for one in await self.all() if one.id == repository_id), None)
