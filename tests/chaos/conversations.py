"""What Prevue said on the pull requests, and what its URLs serve."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
from tests.chaos.check import has_ended, is_ready
from tests.chaos.people import People
from tests.chaos.records import Deed, PullKey, ReadySeen, Remark

from prevue.local.client import BOT, Comment, served_commit

MARKER = re.compile(r"<!-- prevue:\S*/comment/(\d+) -->")
LOOK_SECONDS = 1.0
PAGE = 100


class Conversations:
    """Reads as anybody may, without a token, by the repositories' numbers: GitHub's troubles are for Prevue."""

    def __init__(self, url: str, http: httpx2.AsyncClient, people: People) -> None:
        self.ready_seen: list[ReadySeen] = []
        self._url = url
        self._http = http
        self._people = people
        self._known: set[tuple[int, str]] = set()

    async def remarks(self) -> list[Remark]:
        """Prevue's comments on all pull requests."""
        return [remark for key in self._people.keys for remark in await self._of(key)]

    async def served(self, url: str) -> str:
        """The commit that a URL serves; empty: no answer."""
        return await served_commit(url, self._http)

    async def follow(self) -> None:
        """Whenever a comment says "ready" for the first time, look at once whether it is true; until cancelled."""
        ended: dict[PullKey, set[int]] = {}
        while True:
            for key in self._people.keys:
                commands = {act.comment_id for act in self._people.acts if act.pull == key and act.deed is Deed.COMMAND}
                if commands <= ended.get(key, set()):
                    continue
                remarks = await self._of(key)
                ended[key] = {remark.answers for remark in remarks if has_ended(remark.text)}
                for remark in remarks:
                    await self._look_at(remark)
            await asyncio.sleep(LOOK_SECONDS)

    async def _look_at(self, remark: Remark) -> None:
        if not is_ready(remark.text) or (remark.answers, remark.url) in self._known:
            return
        self._known.add((remark.answers, remark.url))
        served = await self.served(remark.url)
        acts = len(self._people.acts)
        self.ready_seen.append(ReadySeen(pull=remark.pull, answers=remark.answers, url=remark.url, served=served, acts=acts))

    async def _of(self, key: PullKey) -> list[Remark]:
        found: list[Remark] = []
        for page in range(1, 100):
            path = f"{self._url}/repositories/{key.repository_id}/issues/{key.number}/comments"
            answer = await self._http.get(path, params={"per_page": PAGE, "page": page})
            answer.raise_for_status()
            items = answer.json()
            comments = [Comment(item["id"], item["user"]["login"], item["body"]) for item in items]
            found += [
                Remark(id=one.id, pull=key, answers=_command(one.body), text=one.text, url=one.url.rstrip("*"))
                for one in comments
                if one.author == BOT
            ]
            if len(items) < PAGE:
                break
        return found


@asynccontextmanager
async def listen(url: str, people: People) -> AsyncIterator[Conversations]:
    """The conversations on the local GitHub at `url`."""
    async with httpx2.AsyncClient(trust_env=False, timeout=20) as http:
        yield Conversations(url, http, people)


def _command(body: str) -> int:
    """The comment that is answered, by the hidden marker."""
    found = MARKER.search(body)
    return int(found[1]) if found else 0
