"""What Prevue said on the pull requests, and what its URLs serve."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable

import httpx2
from tests.chaos.people import People
from tests.chaos.records import PullKey, ReadySeen, Remark

from prevue.local.client import Failed, LocalGitHub, served_commit

MARKER = re.compile(r"<!-- prevue:(\S+) -->")
COMMAND = re.compile(r"/comment/(\d+)$")
READY = re.compile(r"\*\*Preview (?:ready|already exists)")
LOOK_SECONDS = 1.0


class Conversations:
    """Reads as anybody may, without a token."""

    def __init__(self, github: LocalGitHub, people: People) -> None:
        self.ready_seen: list[ReadySeen] = []
        self._github = github
        self._people = people
        self._known: set[tuple[int, str]] = set()

    async def remarks(self, keys: Iterable[PullKey]) -> list[Remark]:
        """Prevue's comments on these pull requests. A GitHub that refuses just now is asked again."""
        return [remark for key in keys for remark in await self._of(key)]

    async def _of(self, key: PullKey) -> list[Remark]:
        while True:
            try:
                comments = await self._github.answers(self._people.pull(key))
            except Failed:
                await asyncio.sleep(LOOK_SECONDS)
                continue
            return [Remark(id=one.id, pull=key, answers=_command(one.body), text=one.text, url=one.url.rstrip("*")) for one in comments]

    async def follow(self, finished: Callable[[], Iterable[PullKey]]) -> None:
        """Whenever one of them says "ready" for the first time, look at once whether it is true; until cancelled."""
        async with httpx2.AsyncClient(trust_env=False, timeout=5) as http:
            while True:
                for remark in await self.remarks(finished()):
                    if READY.search(remark.text) and (remark.answers, remark.url) not in self._known:
                        self._known.add((remark.answers, remark.url))
                        served = await served_commit(remark.url, http)
                        acts = len(self._people.acts)
                        seen = ReadySeen(pull=remark.pull, answers=remark.answers, url=remark.url, served=served, acts=acts)
                        self.ready_seen.append(seen)
                await asyncio.sleep(LOOK_SECONDS)


def _command(body: str) -> int:
    """The comment that is answered, by the hidden marker."""
    marker = MARKER.search(body)
    found = COMMAND.search(marker[1]) if marker else None
    return int(found[1]) if found else 0
