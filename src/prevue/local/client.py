"""A client of the local stack: what the demo, the acceptance tests and the benchmarks do to the local GitHub, and what they look at.

The control paths are `/_local`; what is read is GitHub's own REST, without a token, as on a public repository.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx2
import msgspec

BOT = "prevue-local[bot]"
HELLO = "acme/hello"
OTHER = "acme/other"
POLL_SECONDS = 0.2
_URL = re.compile(r"https?://[^\s|)>]+")

Found = TypeVar("Found")


class Failed(Exception):
    """What was waited for did not come, or the local GitHub refused; the message says what there was instead."""


class Pull(msgspec.Struct, frozen=True):
    """A pull request that was opened."""

    repo: str
    number: int
    head_sha: str


class Comment(msgspec.Struct, frozen=True):
    """A comment as GitHub shows it."""

    id: int
    author: str
    body: str

    @property
    def text(self) -> str:
        """The body without its hidden marker."""
        return re.sub(r"<!--.*?-->", "", self.body, flags=re.DOTALL).strip()

    @property
    def url(self) -> str:
        """The first URL in the text; empty if there is none."""
        found = _URL.search(self.text)
        return found.group() if found else ""


class LocalGitHub:
    """The local GitHub at one URL; made by `connect`."""

    def __init__(self, url: str, http: httpx2.AsyncClient) -> None:
        self.url = url
        self._http = http

    async def open_pull(self, repo: str = HELLO, *, user: str = "writer", **form: Any) -> Pull:
        """Open a pull request; its image is there at return. `form`: `head_sha`, `fork`, `image`."""
        made = await self._control("POST", f"repos/{repo}/pulls", {"user": user, **form})
        return Pull(repo, made["number"], made["head_sha"])

    async def open_issue(self, repo: str = HELLO, *, user: str = "writer") -> Pull:
        """Open a plain issue: a conversation without a commit."""
        made = await self._control("POST", f"repos/{repo}/issues", {"user": user})
        return Pull(repo, made["number"], "")

    async def push(self, pull: Pull, **form: Any) -> Pull:
        """Push a new commit, or with `sha` a known one."""
        made = await self._control("POST", f"repos/{pull.repo}/pulls/{pull.number}/push", form)
        return Pull(pull.repo, pull.number, made["head_sha"])

    async def close(self, pull: Pull) -> None:
        """Close it."""
        await self._control("POST", f"repos/{pull.repo}/pulls/{pull.number}/close", {})

    async def reopen(self, pull: Pull) -> None:
        """Reopen it."""
        await self._control("POST", f"repos/{pull.repo}/pulls/{pull.number}/reopen", {})

    async def comment(self, pull: Pull, body: str = "/preview", *, user: str = "writer") -> int:
        """Write a comment; returns its id."""
        made = await self._control("POST", f"repos/{pull.repo}/issues/{pull.number}/comments", {"user": user, "body": body})
        return int(made["id"])

    async def fault(self, path: str, **form: Any) -> None:
        """Let the next requests below `path` fail."""
        await self._control("POST", "faults", {"path": path, **form})

    async def clear_faults(self) -> None:
        """Let nothing fail any more."""
        await self._control("DELETE", "faults", None)

    async def lose_webhooks(self, times: int = 1) -> None:
        """Let the next happenings make no delivery at all."""
        await self._control("POST", "webhooks/lose", {"times": times})

    async def happened_ago(self, *, seconds: float) -> None:
        """Date what happens from now on so long ago; 0: now again."""
        await self._control("POST", "clock", {"behind_seconds": seconds})

    async def limits(self, *, per_minute: int | None, per_hour: int | None) -> None:
        """Set the secondary limit; None = off."""
        await self._control("POST", "limits", {"content_per_minute": per_minute, "content_per_hour": per_hour})

    async def deliveries(self, *, event: str = "", per_page: int = 30) -> list[dict[str, Any]]:
        """The log of webhooks, newest first."""
        found: list[dict[str, Any]] = await self._control("GET", f"deliveries?event={event}&per_page={per_page}", None)
        return found

    async def delivery_of(self, comment_id: int, *, seconds: float = 20) -> dict[str, Any]:
        """The answered delivery of a comment's creation."""
        return (await self.deliveries_of([comment_id], seconds=seconds))[comment_id]

    async def deliveries_of(self, comment_ids: Collection[int], *, seconds: float = 20) -> dict[int, dict[str, Any]]:
        """Comment → the answered delivery of its creation. Each may be followed by a few of edits and of Prevue's own comments."""
        found: dict[int, dict[str, Any]] = {}

        async def look() -> bool | None:
            for delivery in await self.deliveries(event="issue_comment", per_page=100 + 10 * len(comment_ids)):
                payload = delivery["request"]["payload"]
                if payload["action"] == "created" and delivery["response"] is not None:
                    found[payload["comment"]["id"]] = delivery
            return set(comment_ids) <= found.keys() or None

        missing = "the deliveries of {} comments"
        await wait_for(look, seconds=seconds, what=missing.format(len(comment_ids)), instead=lambda: missing.format(len(found)))
        return {comment_id: found[comment_id] for comment_id in comment_ids}

    async def redeliver(self, guid: str) -> None:
        """Send a delivery again, as a person does by hand."""
        await self._control("POST", f"deliveries/{guid}/redeliver", {})

    async def repository_id(self, repo: str) -> int:
        """The numeric id of a repository."""
        return int((await self._get(f"repos/{repo}"))["id"])

    async def comments(self, pull: Pull) -> list[Comment]:
        """The whole conversation, oldest first."""
        found: list[Comment] = []
        for page in range(1, 100):
            items = await self._get(f"repos/{pull.repo}/issues/{pull.number}/comments?per_page=100&page={page}")
            found += [Comment(item["id"], item["user"]["login"], item["body"]) for item in items]
            if len(items) < 100:
                break
        return found

    async def answers(self, pull: Pull) -> list[Comment]:
        """What Prevue wrote, oldest first."""
        return [comment for comment in await self.comments(pull) if comment.author == BOT]

    async def wait_answer(self, pull: Pull, *texts: str, seconds: float = 60, after: int = 0) -> Comment:
        """The first of Prevue's comments that contains one of `texts` and is newer than the comment `after`."""
        last: list[Comment] = []

        async def look() -> Comment | None:
            last[:] = [comment for comment in await self.answers(pull) if comment.id > after]
            return next((comment for comment in last if any(text in comment.text for text in texts)), None)

        return await wait_for(
            look,
            seconds=seconds,
            what=f"a comment with {' or '.join(map(repr, texts))} on {pull.repo}#{pull.number}",
            instead=lambda: "\n".join(comment.text for comment in last) or "no comment of Prevue's",
        )

    async def _get(self, path: str) -> Any:
        return await self._answer("GET", path)

    async def _control(self, method: str, path: str, form: dict[str, Any] | None) -> Any:
        return await self._answer(method, f"_local/{path}", form)

    async def _answer(self, method: str, path: str, form: dict[str, Any] | None = None) -> Any:
        try:
            response = await self._http.request(method, f"{self.url}/{path}", json=form)
        except httpx2.HTTPError as exc:
            raise Failed(f"{method} {self.url}/{path}: no answer ({type(exc).__name__} {exc})") from exc
        if response.is_error:
            raise Failed(f"{method} {self.url}/{path}: {response.status_code} {response.text[:500]}")
        return response.json() if response.content else None


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[LocalGitHub]:
    """A client of the local GitHub at `url`; no proxy of the environment is asked."""
    async with httpx2.AsyncClient(trust_env=False, timeout=60, limits=httpx2.Limits(max_connections=100)) as http:
        yield LocalGitHub(url, http)


async def served_commit(url: str, http: httpx2.AsyncClient | None = None) -> str:
    """The commit that a preview's page shows, read by the image from a file of its own; empty if it does not answer."""
    if http is None:
        async with httpx2.AsyncClient(trust_env=False, timeout=5) as own:
            return await served_commit(url, own)
    try:
        page = await http.get(url)
    except httpx2.HTTPError:
        return ""
    found = re.search(r'id="commit">([0-9a-f]{40})<', page.text) if page.status_code == 200 else None
    return found.group(1) if found else ""


async def wait_for(
    look: Callable[[], Awaitable[Found | None]],
    *,
    seconds: float,
    what: str,
    instead: Callable[[], str] = lambda: "",
    every: float = POLL_SECONDS,
) -> Found:
    """What `look` finds (anything but None), asked again and again.

    Raises:
        Failed: it found nothing in time; with what there was `instead`.
    """
    give_up_at = time.monotonic() + seconds
    while (found := await look()) is None:
        if time.monotonic() >= give_up_at:
            raise Failed(f"waited {seconds:.0f} s for {what}; there was instead: {instead() or 'nothing'}")
        await asyncio.sleep(every)
    return found
