"""The people: commands, pushes, closes and reopenings over some pull requests, and their own record of what they wrote and when."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable
from datetime import UTC, datetime

from tests.chaos.records import Act, Deed, PullKey
from tests.chaos.stack import SLOW

from prevue.local.client import HELLO, OTHER, LocalGitHub, Pull

APART_SECONDS = 1.2
"""Between a close and what follows on its pull request: GitHub's times have whole seconds, and at equal time a close goes before."""
SLOW_SHARE = 0.5
FIRST_FEW = 5


class People:
    """Write on one local GitHub, one deed after another."""

    def __init__(self, github: LocalGitHub, rng: random.Random) -> None:
        self.acts: list[Act] = []
        self.repos: dict[int, str] = {}
        self._github = github
        self._rng = rng
        self._pulls: dict[PullKey, Pull] = {}
        self._open: set[PullKey] = set()
        self._closed_at: dict[PullKey, float] = {}

    async def write(self, pulls: int, seconds_between: float, begun: asyncio.Event, ended: Callable[[], bool]) -> None:
        """Open so many pull requests and ask for a preview of each, then go on until `ended`; `begun` is set after the first few."""
        await self._begin(pulls, begun)
        while not ended():
            await asyncio.sleep(seconds_between * self._rng.uniform(0.5, 1.5))
            await self._do_something()

    async def _begin(self, pulls: int, begun: asyncio.Event) -> None:
        self.repos = {await self._github.repository_id(repo): repo for repo in (HELLO, OTHER)}
        for index in range(pulls):
            repository_id = sorted(self.repos)[index % 2]
            repo = self.repos[repository_id]
            opened = await self._github.open_pull(repo, head_sha=self._sha(repo))
            key = PullKey(repository_id, opened.number)
            self._pulls[key] = opened
            self._open.add(key)
            self._note(key, Deed.OPEN)
            await self._command(key)
            if index == FIRST_FEW:
                begun.set()

    async def _do_something(self) -> None:
        key = self._rng.choice(list(self._pulls))
        if key not in self._open:
            await self._reopen(key)
            return
        deed = self._rng.choices(["again", "push", "back", "close", "twice", "command and close"], [35, 25, 8, 20, 6, 6])[0]
        if deed == "close":
            await self._close(key)
            return
        if deed in ("push", "back"):
            await self._push(key, back=deed == "back")
        if deed == "twice":
            await self._command(key)
        await self._command(key)
        if deed == "command and close":
            await self._close(key)

    async def ask_again(self, given_up: set[int]) -> int:
        """Whoever reads that the newest command was given up writes it once more, as the comment says; returns how many did."""
        newest = {act.pull: act for act in self.acts if act.deed is Deed.COMMAND}
        keys = [key for key, act in newest.items() if act.comment_id in given_up and key in self._open]
        for key in keys:
            await self._command(key)
        return len(keys)

    @property
    def keys(self) -> list[PullKey]:
        """All pull requests."""
        return list(self._pulls)

    async def _command(self, key: PullKey) -> None:
        comment_id = await self._github.comment(self._pulls[key])
        self._note(key, Deed.COMMAND, comment_id=comment_id)

    async def _push(self, key: PullKey, *, back: bool) -> None:
        pull = self._pulls[key]
        earlier = [act.sha for act in self.acts if act.pull == key and act.sha != pull.head_sha]
        sha = self._rng.choice(earlier) if back and earlier else self._sha(pull.repo)
        self._pulls[key] = await self._github.push(pull, sha=sha)
        self._note(key, Deed.PUSH)

    async def _close(self, key: PullKey) -> None:
        await asyncio.sleep(APART_SECONDS)
        await self._github.close(self._pulls[key])
        self._open.discard(key)
        self._note(key, Deed.CLOSE)
        self._closed_at[key] = asyncio.get_running_loop().time()

    async def _reopen(self, key: PullKey) -> None:
        await asyncio.sleep(max(0.0, self._closed_at[key] + APART_SECONDS - asyncio.get_running_loop().time()))
        await self._github.reopen(self._pulls[key])
        self._open.add(key)
        self._note(key, Deed.REOPEN)
        if self._rng.random() < 0.8:
            await self._command(key)

    def _note(self, key: PullKey, deed: Deed, *, comment_id: int = 0) -> None:
        self.acts.append(Act(pull=key, deed=deed, at=datetime.now(UTC), sha=self._pulls[key].head_sha, comment_id=comment_id))

    def _sha(self, repo: str) -> str:
        is_slow = repo == OTHER and self._rng.random() < SLOW_SHARE
        return (SLOW + secrets.token_hex(20)[4:]) if is_slow else "a" + secrets.token_hex(20)[1:]
