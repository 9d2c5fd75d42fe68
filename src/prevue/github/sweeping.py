"""What the sweeper asks of GitHub, beside the port that everybody uses: the App's own log of deliveries, and whole repositories.

Reading alone, but for a redelivery. Lists are read to their end within a bound; a list that is longer is an outage, not half a truth.
https://docs.github.com/en/rest/apps/webhooks · https://docs.github.com/en/rest/issues/comments#list-issue-comments-for-a-repository
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Final, TypeVar
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import httpx2
import msgspec
import structlog

from prevue.errors import GitHubUnavailable, NotFound, PermanentError
from prevue.github import payloads
from prevue.github.port import DeliveryPage, FoundComment, HookDelivery, InstalledRepositories, Repository
from prevue.masking import foreign_text
from prevue.model import format_time

log = structlog.get_logger(__name__)

LIST_PAGES_MAX: Final = 100
"""Of 100 entries each: ten thousand open pull requests, or repositories of an installation."""
SCAN_PAGES_MAX: Final = 10
"""Of 100 comments each and scan; the next one goes on where this one ended."""

_PULL_REQUEST: Final = re.compile(r"/pull/(\d+)(?:#|$)")
_T = TypeVar("_T")

_installations = msgspec.json.Decoder(list[payloads.Installation])
_repositories = msgspec.json.Decoder(payloads.InstallationRepositories)
_deliveries = msgspec.json.Decoder(list[payloads.HookDelivery])
_delivery = msgspec.json.Decoder(payloads.FullHookDelivery)
_pulls = msgspec.json.Decoder(list[payloads.OpenPullRequest])
_comments = msgspec.json.Decoder(list[payloads.RepositoryComment])


class SweepCalls(ABC):
    """GitHubApp and Repositories, over the client's two ways of asking."""

    @abstractmethod
    async def _call(self, installation_id: int, method: str, path: str, body: dict[str, str] | None = None) -> httpx2.Response:
        """One call as an installation."""

    @abstractmethod
    async def _call_as_app(self, method: str, path: str) -> httpx2.Response:
        """One call with the App's JWT."""

    async def repositories(self) -> InstalledRepositories:
        """See the port."""
        found: list[Repository] = []
        silent: set[int] = set()
        async for response in self._pages(None, "/app/installations?per_page=100"):
            for installation in decode(_installations, response):
                if installation.suspended_at is not None:
                    continue
                try:
                    found += await self._repositories_of(installation.id)
                except (GitHubUnavailable, PermanentError) as exc:
                    silent.add(installation.id)
                    log.warning(
                        "an installation does not tell its repositories",
                        action="installation_skipped",
                        installation_id=installation.id,
                        error=str(exc),
                    )
        return InstalledRepositories(repositories=found, silent_installations=frozenset(silent))

    async def _repositories_of(self, installation_id: int) -> list[Repository]:
        return [
            Repository(id=one.id, full_name=one.full_name, installation_id=installation_id)
            async for response in self._pages(installation_id, "/installation/repositories?per_page=100")
            for one in decode(_repositories, response).repositories
        ]

    async def deliveries(self, *, older: str = "") -> DeliveryPage:
        """See the port."""
        query = urlencode({"per_page": 100, **({"cursor": older} if older else {})})
        response = await self._call_as_app("GET", f"/app/hook/deliveries?{query}")
        following = parse_qs(urlsplit(response.links.get("next", {}).get("url", "")).query)
        entries = [
            HookDelivery(
                id=one.id,
                guid=one.guid,
                event=one.event,
                action=one.action or "",
                delivered_at=one.delivered_at,
                is_pending=one.status == "pending",
                status_code=one.status_code,
            )
            for one in decode(_deliveries, response)
        ]
        return DeliveryPage(deliveries=entries, older=following.get("cursor", [""])[0])

    async def delivery_payload(self, delivery_id: int) -> bytes:
        """See the port."""
        response = await self._call_as_app("GET", f"/app/hook/deliveries/{delivery_id}")
        return bytes(decode(_delivery, response).request.payload)

    async def redeliver(self, delivery_id: int) -> None:
        """See the port."""
        await self._call_as_app("POST", f"/app/hook/deliveries/{delivery_id}/attempts")

    async def open_pull_requests(self, installation_id: int, repo: str) -> frozenset[int]:
        """See the port."""
        numbers: set[int] = set()
        async for response in self._pages(installation_id, f"{repo_path(repo)}/pulls?state=open&per_page=100"):
            numbers.update(one.number for one in decode(_pulls, response))
        return frozenset(numbers)

    async def comments_since(self, installation_id: int, repo: str, since: datetime) -> list[FoundComment]:
        """See the port."""
        query = urlencode({"since": format_time(since), "sort": "updated", "direction": "asc", "per_page": 100})
        found: list[FoundComment] = []
        async for response in self._pages(installation_id, f"{repo_path(repo)}/issues/comments?{query}", most=SCAN_PAGES_MAX):
            entries = decode(_comments, response)
            found += [one for one in map(_found_comment, entries) if one is not None]
        return found

    async def _pages(self, installation_id: int | None, path: str, *, most: int | None = None) -> AsyncIterator[httpx2.Response]:
        """Answer after answer along GitHub's links; beyond `most` pages it just ends, beyond LIST_PAGES_MAX it is refused."""
        at = path
        for number in range(1, LIST_PAGES_MAX + 1):
            if installation_id is None:
                response = await self._call_as_app("GET", at)
            else:
                response = await self._call(installation_id, "GET", at)
            yield response
            following = response.links.get("next", {}).get("url")
            if following is None or number == most:
                return
            at = following
        raise GitHubUnavailable(f"a list of GitHub's has more than {LIST_PAGES_MAX} pages: {path.partition('?')[0]}")


def _found_comment(one: payloads.RepositoryComment) -> FoundComment | None:
    """None for a comment of an issue that is no pull request: only the page's address tells them apart here."""
    pull = _PULL_REQUEST.search(one.html_url)
    if pull is None:
        return None
    return FoundComment(
        id=one.id,
        pr_number=int(pull[1]),
        body=one.body or "",
        author=one.user.login if one.user else "",
        is_bot=one.user is None or one.user.type == "Bot",
        is_edited=one.updated_at != one.created_at,
        created_at=one.created_at,
        updated_at=one.updated_at,
    )


def repo_path(repo: str) -> str:
    """`/repos/owner/name`, fit for a path."""
    owner, _, name = repo.partition("/")
    if not owner or not name or "/" in name or name in (".", ".."):
        raise NotFound(f"{foreign_text(repo, limit=120)!r} is not owner/name")
    return f"/repos/{quote(owner, safe='')}/{quote(name, safe='')}"


def decode(decoder: msgspec.json.Decoder[_T], response: httpx2.Response) -> _T:
    """The answer's body.

    Raises:
        GitHubUnavailable: it is not what GitHub documents.
    """
    try:
        return decoder.decode(response.content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise GitHubUnavailable(f"GitHub's answer ({response.status_code}) cannot be read: {foreign_text(str(exc), limit=120)}") from exc
