"""The GitHub port over HTTP: one client, one App, any number of installations.

Built directly on httpx2: the rules that matter here (a token's age, no second POST, redirects on our own host alone) are about single
requests, and a general client hides those. Invariants: a POST is sent at most once (a redirect's second leg excepted: the first host
has not carried it out); a token goes to the API's own host only; no text from outside leaves without `foreign_text`.

GitHub's facts that matter: a fresh token may be unknown (401) or without its rights (403) for seconds; 403 is also a rate limit's
answer; a renamed repository answers 301/307 for ever. https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote

import httpx2
import msgspec

from prevue.clock import Clock, SystemClock
from prevue.config import GitHubSettings
from prevue.errors import ConfigError, GitHubUnavailable, NotFound, NotInstalled, PrevueError
from prevue.github import payloads
from prevue.github.answers import error_of, rate_limit_wait, server_time
from prevue.github.connections import Connections
from prevue.github.port import Comment, GitHub, GitHubApp, Permission, PullRequest, Repositories
from prevue.github.sweeping import SweepCalls, decode, repo_path
from prevue.github.tokens import AppIdentity, InstallationTokens, Token, token_usable_until
from prevue.masking import foreign_text, mask_secrets

API_VERSION: Final = "2022-11-28"
"""https://docs.github.com/en/rest/about-the-rest-api/api-versions"""
REQUEST_SECONDS_MAX: Final = 15.0
"""One request from its start to its answer's last byte, however slowly bytes drip; the outbox's verify pass counts on an end."""
FRESH_SECONDS: Final = 10.0
"""A token younger than this may be refused although it is good."""
FRESH_RETRY_SECONDS: Final = (0.3, 0.7, 1.0, 2.0, 2.0, 2.0, 2.0)
"""Waits between tries while a fresh token is refused; together FRESH_SECONDS."""
REDIRECTS_MAX: Final = 3
PAGES_MAX: Final = 50
"""Of 100 comments each: twice what GitHub lets one conversation hold (2,500)."""

_PERMISSIONS: Final = {permission.value: permission for permission in Permission}
_T = TypeVar("_T")

_app = msgspec.json.Decoder(payloads.App)
_account = msgspec.json.Decoder(payloads.Account)
_token = msgspec.json.Decoder(payloads.InstallationToken)
_pull = msgspec.json.Decoder(payloads.PullRequest)
_permission = msgspec.json.Decoder(payloads.Permission)
_comment = msgspec.json.Decoder(payloads.Comment)
_comments = msgspec.json.Decoder(list[payloads.Comment])


class GitHubClient(SweepCalls):
    """The port `GitHub`, and what start-up checks need besides."""

    def __init__(self, http: Connections, *, api_url: str, identity: AppIdentity, clock: Clock) -> None:
        self._http = http
        self._root = httpx2.URL(api_url)
        self._base = api_url.rstrip("/")
        self._identity = identity
        self._clock = clock
        self._tokens = InstallationTokens(self._buy_token, clock)
        self._bot_id: int | None = None
        self._bot_lock = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: GitHubSettings, *, clock: Clock | None = None, transport: httpx2.AsyncBaseTransport | None = None
    ) -> AsyncIterator[GitHubClient]:
        """A client for the App of `settings`; `transport` instead of the network, for tests.

        Raises:
            ConfigError: App id, private key or API address are missing or wrong. GitHub is not asked.
        """
        used_clock = clock or SystemClock()
        identity = AppIdentity.from_settings(settings, used_clock)
        try:
            root = httpx2.URL(settings.api_url)
        except httpx2.InvalidURL as exc:
            raise ConfigError(f"github.api_url: {settings.api_url!r} is not a URL") from exc
        if root.scheme not in ("http", "https") or not root.host or root.query or root.userinfo:
            raise ConfigError(f"github.api_url is {mask_secrets(settings.api_url)!r}; accepted: https://HOST or https://HOST/api/v3")
        headers = {
            "user-agent": f"prevue/{version('prevue')} (app {settings.app_id})",
            "accept": "application/vnd.github+json",
            "x-github-api-version": API_VERSION,
        }
        async with Connections.open(headers=headers, transport=transport) as http:
            client = cls(http, api_url=settings.api_url, identity=identity, clock=used_clock)
            try:
                yield client
            finally:
                await client._tokens.aclose()

    # -- the port -------------------------------------------------------------------------------------------------

    async def pull_request(self, installation_id: int, repo: str, number: int) -> PullRequest:
        """See the port."""
        found = await self._read(_pull, installation_id, "GET", f"{repo_path(repo)}/pulls/{number}")
        head, base = found.head, found.base.repo
        return PullRequest(
            repo=base.full_name,
            repository_id=base.id,
            number=found.number,
            is_open=found.state == "open",
            is_fork=head.repo is None or head.repo.id != base.id,
            head_sha=head.sha,
            head_ref=head.ref,
            closed_at=found.closed_at,
        )

    async def permission(self, installation_id: int, repo: str, login: str) -> Permission:
        """See the port. https://docs.github.com/en/rest/collaborators/collaborators#get-repository-permissions-for-a-user"""
        try:
            found = await self._read(
                _permission, installation_id, "GET", f"{repo_path(repo)}/collaborators/{quote(login, safe='')}/permission"
            )
        except NotFound:
            return Permission.NONE
        known = _PERMISSIONS.get(found.role_name) or _PERMISSIONS.get(found.permission)
        if known is not None:
            return known
        raise GitHubUnavailable(f"GitHub names an unknown permission: {foreign_text(found.permission, limit=40)}")

    async def comment(self, installation_id: int, repo: str, comment_id: int) -> Comment:
        """See the port."""
        found = await self._read(_comment, installation_id, "GET", f"{repo_path(repo)}/issues/comments/{comment_id}")
        return _port_comment(found, await self._own_bot_id(installation_id))

    async def find_comments(self, installation_id: int, repo: str, number: int, *, marker: str) -> list[Comment]:
        """See the port. GitHub lists an issue's comments by ascending id."""
        path = f"{repo_path(repo)}/issues/{number}/comments?per_page=100"
        candidates: list[payloads.Comment] = []
        for _page in range(PAGES_MAX):
            response = await self._call(installation_id, "GET", path)
            candidates += [found for found in decode(_comments, response) if (found.body or "").startswith(marker)]
            following = response.links.get("next", {}).get("url")
            if following is None:
                break
            path = following
        else:
            raise GitHubUnavailable(f"the comments of {repo}#{number} have more than {PAGES_MAX} pages")
        if not candidates:
            return []  # who we are matters only where something was found
        bot_id = await self._own_bot_id(installation_id)
        ours = [found for found in candidates if found.user is not None and found.user.id == bot_id]
        return [_port_comment(found, bot_id) for found in sorted(ours, key=lambda found: (found.created_at, found.id))]

    async def create_comment(self, installation_id: int, repo: str, number: int, body: str) -> Comment:
        """See the port."""
        created = await self._read(_comment, installation_id, "POST", f"{repo_path(repo)}/issues/{number}/comments", {"body": body})
        # Whoever writes it is this App's bot; its id comes with the answer and need not be asked for.
        return _port_comment(created, created.user.id if created.user else -1)

    async def update_comment(self, installation_id: int, repo: str, comment_id: int, body: str) -> None:
        """See the port."""
        await self._call(installation_id, "PATCH", f"{repo_path(repo)}/issues/comments/{comment_id}", {"body": body})

    async def delete_comment(self, installation_id: int, repo: str, comment_id: int) -> None:
        """See the port."""
        try:
            await self._call(installation_id, "DELETE", f"{repo_path(repo)}/issues/comments/{comment_id}")
        except NotFound:
            return

    async def react(self, installation_id: int, repo: str, comment_id: int, content: str) -> None:
        """See the port. https://docs.github.com/en/rest/reactions/reactions#create-reaction-for-an-issue-comment"""
        await self._call(installation_id, "POST", f"{repo_path(repo)}/issues/comments/{comment_id}/reactions", {"content": content})

    # -- start-up and doctor ----------------------------------------------------------------------------------------

    async def app_slug(self) -> str:
        """The App's slug, asked with its JWT: GitHub answers and knows the App id and key.

        Raises:
            GitHubUnavailable: no answer, or GitHub refuses the App's identity (wrong key, wrong id, wrong clock).
        """
        return decode(_app, await self._call_as_app("GET", "/app")).slug

    # -- requests ---------------------------------------------------------------------------------------------------

    async def _read(
        self, decoder: msgspec.json.Decoder[_T], installation_id: int, method: str, path: str, body: dict[str, str] | None = None
    ) -> _T:
        return decode(decoder, await self._call(installation_id, method, path, body))

    async def _call(self, installation_id: int, method: str, path: str, body: dict[str, str] | None = None) -> httpx2.Response:
        """One call as an installation; tried again only while a token that has just been bought is refused, and never a POST.

        `path` is a path of the API, or an absolute address that GitHub gave (the next page).
        """
        url = self._base + path if path.startswith("/") else self._own_url(path)
        content = msgspec.json.encode(body) if body is not None else None
        waits = iter(FRESH_RETRY_SECONDS)
        renewed = False
        while True:
            token = await self._tokens.get(installation_id)
            response = await self._send(method, url, f"Bearer {token.value}", content)
            if response.status_code not in (401, 403) or method == "POST" or self._rate_limited(response):
                break
            if self._clock.boottime() - token.obtained_at < FRESH_SECONDS:
                wait = next(waits, None)
                if wait is None:
                    break
                await asyncio.sleep(wait)
            elif response.status_code == 401 and not renewed:
                # Revoked, or ended early: buy another one, once.
                renewed = True
                self._tokens.forget(installation_id, token)
            else:
                break
        error = self._error(response, f"{method} {url.removeprefix(self._base)}")
        if error is not None:
            raise error
        return response

    async def _call_as_app(self, method: str, path: str) -> httpx2.Response:
        """One call with the App's JWT, never tried again; `path` as in `_call`.

        Raises:
            GitHubUnavailable: no answer, or the App's identity is refused.
        """
        url = self._base + path if path.startswith("/") else self._own_url(path)
        response = await self._send(method, url, f"Bearer {self._identity.jwt()}", None)
        _raise_jwt_error(self._error(response, f"{method} {url.removeprefix(self._base).partition('?')[0]}"))
        return response

    async def _send(self, method: str, url: str, authorization: str, content: bytes | None) -> httpx2.Response:
        """One request and its redirects, on our own host alone.

        A redirect is repeated verbatim, as GitHub's documentation asks; it means that nothing has been done yet.
        """
        headers = {"authorization": authorization}
        if content is not None:
            headers["content-type"] = "application/json"
        for _leg in range(REDIRECTS_MAX + 1):
            try:
                async with asyncio.timeout(REQUEST_SECONDS_MAX):
                    response = await self._http.request(method, url, headers=headers, content=content)
            except TimeoutError as exc:
                raise GitHubUnavailable(f"no answer from GitHub to {method} within {REQUEST_SECONDS_MAX:.0f} s") from exc
            except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as exc:
                what = foreign_text(str(exc), limit=120) or type(exc).__name__
                raise GitHubUnavailable(f"no answer from GitHub to {method}: {what}") from exc
            if response.status_code not in (301, 302, 307, 308):
                return response
            location = response.headers.get("location")
            if not location:
                break
            url = self._own_url(location)
        raise GitHubUnavailable(f"GitHub redirects to nowhere, or more than {REDIRECTS_MAX} times")

    def _own_url(self, location: str) -> str:
        """`location`, absolute; refused where it leaves the API's host, since the token would go along."""
        try:
            url = self._root.join(location)
        except httpx2.InvalidURL as exc:
            raise GitHubUnavailable("GitHub names an address that cannot be read") from exc
        if (url.scheme, url.host, url.port) != (self._root.scheme, self._root.host, self._root.port):
            raise GitHubUnavailable(f"GitHub names another host, {foreign_text(url.host, limit=80)}: not followed")
        return str(url)

    def _rate_limited(self, response: httpx2.Response) -> bool:
        return rate_limit_wait(response.status_code, response.headers, response.content, self._clock.now()) is not None

    def _error(self, response: httpx2.Response, what: str) -> PrevueError | None:
        if response.is_success:
            return None
        return error_of(response.status_code, response.headers, response.content, what=what, now=self._clock.now())

    # -- tokens and who we are --------------------------------------------------------------------------------------

    async def _buy_token(self, installation_id: int) -> Token:
        path = f"/app/installations/{installation_id}/access_tokens"
        response = await self._send("POST", self._base + path, f"Bearer {self._identity.jwt()}", None)
        error = self._error(response, f"POST {path}")
        if response.status_code == 403 and isinstance(error, NotInstalled):
            raise NotInstalled(f"the installation is suspended: {error}") from error
        if isinstance(error, NotFound):
            raise NotInstalled(f"the App is not installed there: {error}") from error
        _raise_jwt_error(error)
        bought = decode(_token, response)
        obtained_at = self._clock.boottime()
        lifetime = (bought.expires_at - (server_time(response.headers) or self._clock.now())).total_seconds()
        return Token(
            value=bought.token,
            obtained_at=obtained_at,
            usable_until=token_usable_until(obtained_at=obtained_at, lifetime_seconds=lifetime),
        )

    async def _own_bot_id(self, installation_id: int) -> int:
        """The numeric id of the App's bot user; logins can be renamed, ids stay."""
        if self._bot_id is None:
            async with self._bot_lock:
                if self._bot_id is None:
                    login = f"{await self.app_slug()}[bot]"
                    response = await self._call(installation_id, "GET", f"/users/{quote(login, safe='')}")
                    self._bot_id = decode(_account, response).id
        return self._bot_id


def _raise_jwt_error(error: PrevueError | None) -> None:
    """Raise `error`; a refused JWT is the operator's to mend (key, App id, clock) and hits every request, so it is an outage."""
    if isinstance(error, NotInstalled):
        raise GitHubUnavailable(f"GitHub refuses the App's identity (github.app_id, its private key, or this machine's clock): {error}")
    if error is not None:
        raise error


def _port_comment(found: payloads.Comment, bot_id: int) -> Comment:
    author = found.user
    return Comment(
        id=found.id,
        body=found.body or "",
        author=author.login if author else "",
        is_ours=author is not None and author.id == bot_id,
        created_at=found.created_at,
    )


if TYPE_CHECKING:
    _conforms: type[GitHub] = GitHubClient
    _app_conforms: type[GitHubApp] = GitHubClient
    _repositories_conform: type[Repositories] = GitHubClient
