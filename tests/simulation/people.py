"""What people do on GitHub, and when they did it: the history that the oracle judges by.

Three pull requests in two repositories of one installation (two of them have the same number), a writer who may, a reader who may not.
Commands, pushes, force-pushes back to an earlier commit, closes and reopens, often within one second; and an operator who replays
dead letters.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from prevue.testing.github.records import Comment, Issue
from prevue.testing.queue import FakeQueue
from prevue.testing.statestore import FakeStateStore
from prevue.wiring import dead_letters

if TYPE_CHECKING:
    from tests.simulation.world import World

REPOS = ("acme/hello", "acme/hello-two")
PULLS = ((REPOS[0], 1), (REPOS[0], 2), (REPOS[1], 1))
COMMANDS = 10
STALE_SECONDS = 3.0
"""How far GitHub's read replicas lag at most."""

_PULL_PATH = re.compile(r"/repos/(.+)/pulls/(\d+)")


@dataclass(kw_only=True)
class PullHistory:
    """One pull request as it was over time; `heads`, `opened` and `writer_may` are (since, value)."""

    repo: str
    number: int
    repository_id: int
    heads: list[tuple[float, str]] = field(default_factory=list)
    opened: list[tuple[float, bool]] = field(default_factory=list)
    closes: list[datetime] = field(default_factory=list)
    commands: dict[int, tuple[float, str, Comment]] = field(default_factory=dict)
    """Comment id → when, who, the comment."""


class People:
    """Act until the script is over."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.pulls: list[PullHistory] = []
        self.writer_may: list[tuple[float, bool]] = [(0.0, True)]
        self.commands = 0
        self.replays = 0
        """Those that are under way."""

    def settle_in(self) -> None:
        """Repositories, accounts, pull requests."""
        github = self._world.github
        for repo in REPOS:
            github.add_repository(repo)
            github.set_permission(repo, "writer", "write")
            github.set_permission(repo, "reader", "read")
        for repo, number in PULLS:
            issue = github.open_pull_request(repo, "writer")
            history = PullHistory(repo=repo, number=number, repository_id=github.repository(repo).id)
            history.opened.append((0.0, True))
            self.pulls.append(history)
            self._head_is(history, issue)

    async def act(self) -> None:
        """Ten commands, and what else happens between them; the first action is a command."""
        random = self._world.random
        pace = random.choice((1.0, 4.0, 8.0))
        while self.commands < COMMANDS:
            await asyncio.sleep(0.0 if random.random() < 0.2 else random.expovariate(1 / pace))
            pull = random.choice(self.pulls[:1] if random.random() < 0.4 or self._world.settings.crowded else self.pulls)
            self._act_once(pull, random.random() if self.commands else 0.0)

    def _act_once(self, pull: PullHistory, chance: float) -> None:
        world, issue = self._world, self._world.github.issue(pull.repo, pull.number)
        if chance < 0.6:
            if world.settings.pushes_before_commands and issue.state == "open":
                self.push(pull)
            self.command(pull)
        elif chance < 0.65:
            self.command(pull, user="reader")
        elif chance < 0.68:
            self._change_permission()
        elif chance < 0.71:
            world.values_version += 1
        elif issue.state == "closed":
            self.reopen(pull)
        elif chance < 0.86:
            self.push(pull)
        else:
            self.close(pull)

    def command(self, pull: PullHistory, *, user: str = "writer") -> int:
        """`/preview`; returns the comment's id."""
        now = self._world.loop.time()
        self.commands += 1
        self._world.trace(f"people /preview {pull.repo}#{pull.number} by {user}")
        comment = self._world.github.comment(pull.repo, pull.number, user, "/preview")
        pull.commands[comment.id] = (now, user, comment)
        return comment.id

    def push(self, pull: PullHistory) -> None:
        """A new commit, or back to an earlier one."""
        world = self._world
        issue = world.github.issue(pull.repo, pull.number)
        earlier = [sha for _, sha in pull.heads if issue.pull is not None and sha != issue.pull.head_sha]
        sha = world.random.choice(earlier) if earlier and world.random.random() < 0.5 else None
        self._head_is(pull, world.github.push(pull.repo, pull.number, sha=sha))

    def close(self, pull: PullHistory) -> None:
        """Close it."""
        issue = self._world.github.close_pull_request(pull.repo, pull.number)
        pull.opened.append((self._world.loop.time(), False))
        if issue.closed_at is not None:
            pull.closes.append(issue.closed_at)
        self._world.trace(f"people close {pull.repo}#{pull.number}")

    def reopen(self, pull: PullHistory) -> None:
        """Open it again."""
        self._world.github.reopen_pull_request(pull.repo, pull.number)
        pull.opened.append((self._world.loop.time(), True))
        self._world.trace(f"people reopen {pull.repo}#{pull.number}")

    def hears_of_death(self, request_id: int) -> None:
        """The operator: one dead letter in two is replayed, some time later."""
        world = self._world
        if world.faults.is_active and world.random.random() < 0.5:
            self.replays += 1
            world.outside(self._replay(request_id, world.random.uniform(0.5, 15)), "replay")

    async def _replay(self, request_id: int, seconds: float) -> None:
        await asyncio.sleep(seconds)
        world = self._world
        store = FakeStateStore(world.store, limits=world.limits, clock=world.clock)
        letters = [letter for letter in await store.dead_letters() if letter.id == request_id]
        async for settled in dead_letters.replay(store, FakeQueue(world.queue), letters, rate="1/second"):
            world.trace(f"operator replays {settled.id}")
        self.replays -= 1

    def _change_permission(self) -> None:
        may = not self.writer_may[-1][1]
        for repo in REPOS:
            self._world.github.set_permission(repo, "writer", "write" if may else "read")
        self.writer_may.append((self._world.loop.time(), may))
        self._world.trace(f"people writer_may {may}")

    def _head_is(self, pull: PullHistory, issue: Issue) -> None:
        world = self._world
        assert issue.pull is not None
        sha = issue.pull.head_sha
        if all(sha != known for _, known in pull.heads):
            # What is wrong with a commit itself stays wrong.
            if world.faults.draw("poison"):
                world.poisoned.add(sha)
            elif world.faults.draw("never_ready"):
                world.never_ready.add(sha)
                world.cluster.fail_ready("container web crashes", commit=sha)
        pull.heads.append((world.loop.time(), sha))
        world.trace(f"people head {pull.repo}#{pull.number} {sha[:7]}")

    def is_lagging(self, path: str) -> bool:
        """Whether a lagging replica would show another state of this pull request."""
        found = _PULL_PATH.fullmatch(path)
        if found is None:
            return False
        since = self._world.loop.time() - STALE_SECONDS
        return any(
            (each.repo, str(each.number)) == found.groups() and each.opened[-1][0] >= since for each in self.pulls if len(each.opened) > 1
        )

    @contextmanager
    def as_it_was(self, path: str) -> Iterator[None]:
        """A pull request as a lagging replica shows it: before its last close or reopening, where that is seconds old."""
        found = _PULL_PATH.fullmatch(path)
        pull = next((each for each in self.pulls if found and (each.repo, str(each.number)) == found.groups()), None)
        if pull is None or len(pull.opened) < 2 or pull.opened[-1][0] < self._world.loop.time() - STALE_SECONDS:
            yield
            return
        issue = self._world.github.issue(pull.repo, pull.number)
        now = issue.state, issue.closed_at
        was_open = pull.opened[-2][1]
        issue.state, issue.closed_at = ("open", None) if was_open else ("closed", pull.closes[-1] if pull.closes else None)
        try:
            yield
        finally:
            issue.state, issue.closed_at = now


def held_within(history: list[tuple[float, str]] | list[tuple[float, bool]], value: str | bool, since: float, until: float) -> bool:
    """Whether `value` held at any moment between `since` and `until`."""
    ends = [when for when, _ in history[1:]] + [float("inf")]
    return any(what == value and begin <= until and end >= since for (begin, what), end in zip(history, ends, strict=True))
