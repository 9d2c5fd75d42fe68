"""The GitHub client's rules about single requests: tokens, retries, redirects, limits, and what it never does twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import httpx2
import jwt
import pytest

from prevue.config import GitHubSettings
from prevue.errors import ConfigError, GitHubUnavailable, NotFound, NotInstalled, PermanentError, PrevueError, RateLimited
from prevue.github import client as client_module
from prevue.github.client import GitHubClient
from prevue.github.port import Permission
from prevue.github.tokens import token_usable_until
from prevue.model import format_time
from prevue.testing.clock import FakeClock
from prevue.testing.github.app_key import AppKey

Answer = httpx2.Response | Exception
Responder = Callable[[httpx2.Request], Answer | None]

API = "https://github.example/api/v3"
PULL = {
    "number": 7,
    "state": "open",
    "closed_at": None,
    "head": {"sha": "ab" * 20, "ref": "change", "repo": {"id": 42, "full_name": "acme/new"}},
    "base": {"repo": {"id": 42, "full_name": "acme/new"}},
}


class GitHubScript:
    """Answers by a function; tokens are sold unless the function has its own answer. Remembers every request."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.requests: list[httpx2.Request] = []
        self.answer: Responder = lambda _request: None
        self.tokens = 0

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        await asyncio.sleep(0)
        answer = self.answer(request)
        if isinstance(answer, Exception):
            raise answer
        if answer is not None:
            return answer
        if request.url.path.endswith("/access_tokens"):
            self.tokens += 1
            ends = format_time(self.clock.now() + timedelta(hours=1))
            return httpx2.Response(201, json={"token": f"ghs_token{self.tokens}", "expires_at": ends})
        return httpx2.Response(200, json=PULL)

    def asked(self, method: str, end: str) -> list[httpx2.Request]:
        return [request for request in self.requests if request.method == method and request.url.path.endswith(end)]


@pytest.fixture(scope="session")
def key() -> AppKey:
    return AppKey.generate()


@pytest.fixture
def settings(key: AppKey, tmp_path: Path) -> GitHubSettings:
    path = tmp_path / "app.pem"
    path.write_bytes(key.private_pem)
    return GitHubSettings(app_id=17, private_key_file=str(path), api_url=API)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def script(clock: FakeClock) -> GitHubScript:
    return GitHubScript(clock)


@pytest.fixture
async def client(settings: GitHubSettings, clock: FakeClock, script: GitHubScript) -> AsyncIterator[GitHubClient]:
    async with GitHubClient.open(settings, clock=clock, transport=httpx2.MockTransport(script)) as opened:
        yield opened


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> list[float]:
    """Waits pass on the fake clock; returns them."""
    waits: list[float] = []

    class Instant:
        """The part of asyncio that the client uses, with a sleep that takes no time."""

        timeout = asyncio.timeout
        Lock = asyncio.Lock

        @staticmethod
        async def sleep(seconds: float) -> None:
            waits.append(seconds)
            clock.advance(seconds)

    monkeypatch.setattr(client_module, "asyncio", Instant)
    return waits


def refused(status: int, *, times: int, path: str = "/pulls/7") -> Responder:
    left = times

    def answer(request: httpx2.Request) -> Answer | None:
        nonlocal left
        if not request.url.path.endswith(path) or left == 0:
            return None
        left -= 1
        return httpx2.Response(status, json={"message": "Bad credentials"})

    return answer


# -- requests ---------------------------------------------------------------------------------------------------------


async def test_every_request_says_who_asks_and_which_version(client: GitHubClient, script: GitHubScript, key: AppKey) -> None:
    await client.pull_request(3, "acme/hello", 7)
    bought, asked = script.requests
    assert str(bought.url) == f"{API}/app/installations/3/access_tokens"
    assert str(asked.url) == f"{API}/repos/acme/hello/pulls/7"
    for request in script.requests:
        assert request.headers["user-agent"].startswith("prevue/")
        assert request.headers["x-github-api-version"] == "2022-11-28"
        assert request.headers["accept"] == "application/vnd.github+json"
    assert asked.headers["authorization"] == "Bearer ghs_token1"
    claims = jwt.decode(
        bought.headers["authorization"].removeprefix("Bearer "),
        key.public_pem,
        ["RS256"],
        options={"verify_exp": False, "verify_iat": False},
    )
    assert claims["iss"] == "17"
    assert claims["iat"] == script.clock.now().timestamp() - 60
    assert claims["exp"] - claims["iat"] == 540


async def test_names_are_quoted_and_cannot_leave_their_place(client: GitHubClient, script: GitHubScript) -> None:
    script.answer = lambda request: httpx2.Response(404) if "collaborators" in request.url.path else None
    assert await client.permission(3, "acme/hello", "x/../../y?z") is Permission.NONE
    assert script.requests[-1].url.raw_path == b"/api/v3/repos/acme/hello/collaborators/x%2F..%2F..%2Fy%3Fz/permission"
    for repo in ("acme", "acme/hello/x", "/x", "acme/..", ""):
        with pytest.raises(NotFound):
            await client.pull_request(3, repo, 7)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"permission": "write", "role_name": "maintain"}, Permission.MAINTAIN),
        ({"permission": "read", "role_name": "triage"}, Permission.TRIAGE),
        ({"permission": "write", "role_name": "release engineer"}, Permission.WRITE),
        ({"permission": "none", "role_name": ""}, Permission.NONE),
        ({"permission": "admin"}, Permission.ADMIN),
    ],
)
async def test_custom_roles_become_their_base(
    client: GitHubClient, script: GitHubScript, answer: dict[str, str], expected: Permission
) -> None:
    script.answer = lambda request: httpx2.Response(200, json=answer) if "collaborators" in request.url.path else None
    assert await client.permission(3, "acme/hello", "ada") is expected


async def test_a_permission_that_nobody_knows_is_no_permission_and_no_refusal(client: GitHubClient, script: GitHubScript) -> None:
    script.answer = lambda request: httpx2.Response(200, json={"permission": "owner"}) if "collaborators" in request.url.path else None
    with pytest.raises(GitHubUnavailable):
        await client.permission(3, "acme/hello", "ada")


async def test_a_fork_is_told_by_ids_and_may_be_gone(client: GitHubClient, script: GitHubScript) -> None:
    for repo in ({"id": 43, "full_name": "acme/new"}, None):
        pull = {**PULL, "head": {"sha": "ab" * 20, "ref": "change", "repo": repo}}
        script.answer = lambda request, pull=pull: httpx2.Response(200, json=pull) if request.method == "GET" else None  # type: ignore[misc]
        assert (await client.pull_request(3, "acme/hello", 7)).is_fork


# -- redirects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("location", [f"{API}/repositories/42/pulls/7", "/api/v3/repositories/42/pulls/7"])
async def test_a_renamed_repository_is_followed(client: GitHubClient, script: GitHubScript, status: int, location: str) -> None:
    moved = httpx2.Response(status, headers={"location": location})
    script.answer = lambda request: moved if "/repos/" in request.url.path else None
    assert (await client.pull_request(3, "acme/old", 7)).repo == "acme/new"
    assert str(script.requests[-1].url) == f"{API}/repositories/42/pulls/7"
    assert script.requests[-1].headers["authorization"] == "Bearer ghs_token1"


async def test_a_redirected_post_is_sent_again_as_it_was(client: GitHubClient, script: GitHubScript) -> None:
    created = {"id": 9, "created_at": "2026-01-01T00:00:00Z", "body": "text", "user": {"id": 1, "login": "prevue[bot]"}}

    def answer(request: httpx2.Request) -> Answer | None:
        if request.url.path.endswith("/repositories/42/issues/7/comments"):
            return httpx2.Response(201, json=created)
        return (
            httpx2.Response(307, headers={"location": f"{API}/repositories/42/issues/7/comments"})
            if "/issues/" in request.url.path
            else None
        )

    script.answer = answer
    assert (await client.create_comment(3, "acme/old", 7, "text")).id == 9
    assert [(r.method, json.loads(r.content)) for r in script.requests[1:]] == [("POST", {"body": "text"})] * 2


@pytest.mark.parametrize(
    "location",
    [
        "https://elsewhere.example/x",
        "http://github.example/api/v3/x",
        "https://github.example:444/x",
        "//elsewhere.example/x",
        "https://[",
        "",
    ],
)
async def test_the_token_goes_to_no_other_host(client: GitHubClient, script: GitHubScript, location: str) -> None:
    script.answer = lambda request: httpx2.Response(301, headers={"location": location}) if "/repos/" in request.url.path else None
    with pytest.raises(GitHubUnavailable):
        await client.pull_request(3, "acme/old", 7)
    assert {request.url.host for request in script.requests} == {"github.example"}
    assert all(request.url.scheme == "https" for request in script.requests)


async def test_redirects_end(client: GitHubClient, script: GitHubScript) -> None:
    script.answer = lambda request: httpx2.Response(301, headers={"location": str(request.url)}) if "/repos/" in request.url.path else None
    with pytest.raises(GitHubUnavailable, match="more than 3"):
        await client.pull_request(3, "acme/old", 7)


async def test_the_next_page_of_another_host_is_not_asked(client: GitHubClient, script: GitHubScript) -> None:
    link = {"link": '<https://elsewhere.example/comments?page=2>; rel="next"'}
    script.answer = lambda request: httpx2.Response(200, json=[], headers=link) if "comments" in request.url.path else None
    with pytest.raises(GitHubUnavailable, match="another host"):
        await client.find_comments(3, "acme/hello", 7, marker="<!-- x -->")


async def test_pages_end(client: GitHubClient, script: GitHubScript) -> None:
    link = {"link": f'<{API}/repos/acme/hello/issues/7/comments?page=2>; rel="next"'}
    script.answer = lambda request: httpx2.Response(200, json=[], headers=link) if "comments" in request.url.path else None
    with pytest.raises(GitHubUnavailable, match="more than 50 pages"):
        await client.find_comments(3, "acme/hello", 7, marker="<!-- x -->")


# -- tokens -----------------------------------------------------------------------------------------------------------


async def test_many_callers_buy_one_token(client: GitHubClient, script: GitHubScript) -> None:
    await asyncio.gather(*(client.pull_request(3, "acme/hello", 7) for _ in range(30)))
    assert len(script.asked("POST", "/access_tokens")) == 1
    await client.pull_request(4, "acme/hello", 7)
    assert len(script.asked("POST", "/access_tokens")) == 2


async def test_a_token_is_renewed_minutes_before_its_end(client: GitHubClient, script: GitHubScript, clock: FakeClock) -> None:
    await client.pull_request(3, "acme/hello", 7)
    clock.advance(3600 - 301)
    await client.pull_request(3, "acme/hello", 7)
    assert script.tokens == 1
    clock.advance(2)
    await client.pull_request(3, "acme/hello", 7)
    assert script.tokens == 2
    assert script.requests[-1].headers["authorization"] == "Bearer ghs_token2"


def test_short_tokens_are_used_for_most_of_their_life() -> None:
    assert token_usable_until(obtained_at=100, lifetime_seconds=3600) == 3400
    assert token_usable_until(obtained_at=100, lifetime_seconds=40) == 130
    assert token_usable_until(obtained_at=100, lifetime_seconds=-5) == 95


async def test_a_wrong_wall_clock_does_not_keep_a_dead_token(client: GitHubClient, script: GitHubScript, clock: FakeClock) -> None:
    """Our clock is an hour slow: by it the token would live two hours. GitHub's own `Date` tells."""
    now = clock.now() + timedelta(hours=1)
    sold = {"token": "ghs_x", "expires_at": format_time(now + timedelta(hours=1))}
    date = {"date": now.strftime("%a, %d %b %Y %H:%M:%S GMT")}
    script.answer = lambda request: httpx2.Response(201, json=sold, headers=date) if request.method == "POST" else None
    await client.pull_request(3, "acme/hello", 7)
    clock.advance(3400)
    await client.pull_request(3, "acme/hello", 7)
    assert len(script.asked("POST", "/access_tokens")) == 2


@pytest.mark.parametrize("status", [401, 403])
async def test_a_fresh_token_may_be_unknown_for_some_seconds(
    client: GitHubClient, script: GitHubScript, no_waiting: list[float], status: int
) -> None:
    script.answer = refused(status, times=3)
    assert (await client.pull_request(3, "acme/hello", 7)).number == 7
    assert no_waiting == [0.3, 0.7, 1.0]
    assert script.tokens == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_a_fresh_token_that_stays_refused_means_no_installation(
    client: GitHubClient, script: GitHubScript, no_waiting: list[float], status: int
) -> None:
    script.answer = refused(status, times=1000)
    with pytest.raises(NotInstalled):
        await client.pull_request(3, "acme/hello", 7)
    assert 9 < sum(no_waiting) <= 10.1
    assert len(script.requests) < 20


async def test_an_old_token_that_was_revoked_is_bought_anew_once(
    client: GitHubClient, script: GitHubScript, clock: FakeClock, no_waiting: list[float]
) -> None:
    await client.pull_request(3, "acme/hello", 7)
    clock.advance(600)
    script.answer = refused(401, times=1)
    await client.pull_request(3, "acme/hello", 7)
    assert script.tokens == 2
    assert no_waiting == []


async def test_an_old_tokens_403_is_final(client: GitHubClient, script: GitHubScript, clock: FakeClock, no_waiting: list[float]) -> None:
    await client.pull_request(3, "acme/hello", 7)
    clock.advance(600)
    script.answer = refused(403, times=1)
    with pytest.raises(NotInstalled):
        await client.pull_request(3, "acme/hello", 7)
    assert no_waiting == []


@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
        (403, {}, NotInstalled),
        (404, {}, NotInstalled),
        (401, {}, GitHubUnavailable),
        (500, {}, GitHubUnavailable),
        (403, {"retry-after": "5"}, RateLimited),
    ],
    ids=["suspended", "uninstalled", "identity refused", "down", "limit"],
)
async def test_no_token_is_to_be_had(
    client: GitHubClient, script: GitHubScript, status: int, headers: dict[str, str], error: type[PrevueError]
) -> None:
    said = {"message": "This installation has been suspended"}
    script.answer = lambda request: httpx2.Response(status, json=said, headers=headers) if request.method == "POST" else None
    results = await asyncio.gather(*(client.pull_request(3, "acme/hello", 7) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [error] * 3
    assert len(script.requests) == 1


async def test_a_caller_that_leaves_does_not_take_the_token_from_the_others(client: GitHubClient, script: GitHubScript) -> None:
    first = asyncio.create_task(client.pull_request(3, "acme/hello", 7))
    second = asyncio.create_task(client.pull_request(3, "acme/hello", 7))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).number == 7
    assert script.tokens == 1


# -- what is not done twice, and what an answer means ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        httpx2.Response(500),
        httpx2.Response(401),
        httpx2.Response(403),
        httpx2.Response(429),
        httpx2.ReadError("gone"),
        httpx2.ReadTimeout("late"),
    ],
    ids=["500", "401", "403", "429", "broken", "silent"],
)
async def test_a_post_is_never_sent_again(client: GitHubClient, script: GitHubScript, failure: Answer, no_waiting: list[float]) -> None:
    script.answer = lambda request: failure if request.url.path.endswith("/comments") else None
    with pytest.raises(PrevueError):
        await client.create_comment(3, "acme/hello", 7, "text")
    assert len(script.asked("POST", "/comments")) == 1
    assert no_waiting == []


@pytest.mark.parametrize(
    "failure", [httpx2.ConnectError("refused"), httpx2.PoolTimeout("full"), httpx2.RemoteProtocolError("half an answer")]
)
async def test_no_answer_is_an_outage(client: GitHubClient, script: GitHubScript, failure: Exception) -> None:
    script.answer = lambda request: failure if request.method == "GET" else None
    with pytest.raises(GitHubUnavailable):
        await client.pull_request(3, "acme/hello", 7)


async def test_an_answer_that_drips_is_an_outage(client: GitHubClient, script: GitHubScript, monkeypatch: pytest.MonkeyPatch) -> None:
    await client.pull_request(3, "acme/hello", 7)
    monkeypatch.setattr(client_module, "REQUEST_SECONDS_MAX", 0.05)

    class Dripping(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                yield b" "
                await asyncio.sleep(0.01)

    script.answer = lambda request: httpx2.Response(200, stream=Dripping()) if request.method == "GET" else None
    with pytest.raises(GitHubUnavailable, match="within"):
        await client.pull_request(3, "acme/hello", 7)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"number":"7"}', b"\xff"])
async def test_a_body_that_cannot_be_read_is_an_outage(client: GitHubClient, script: GitHubScript, body: bytes) -> None:
    script.answer = lambda request: httpx2.Response(200, content=body) if request.method == "GET" else None
    with pytest.raises(GitHubUnavailable, match="cannot be read"):
        await client.pull_request(3, "acme/hello", 7)


async def test_a_comment_that_is_gone_is_deleted(client: GitHubClient, script: GitHubScript) -> None:
    script.answer = lambda request: httpx2.Response(404, json={}) if request.method == "DELETE" else None
    await client.delete_comment(3, "acme/hello", 5)


async def test_a_request_that_github_will_not_take_is_permanent(client: GitHubClient, script: GitHubScript) -> None:
    script.answer = lambda request: httpx2.Response(422, json={"message": "Body is too long"}) if request.method == "PATCH" else None
    with pytest.raises(PermanentError, match="Body is too long"):
        await client.update_comment(3, "acme/hello", 5, "x")


async def test_only_our_own_comments_that_begin_with_the_marker_are_found_oldest_first(client: GitHubClient, script: GitHubScript) -> None:
    def comment(number: int, body: str, user: dict[str, object] | None) -> dict[str, object]:
        return {"id": number, "created_at": f"2026-01-01T00:00:{number:02}Z", "body": body, "user": user}

    ours, other = {"id": 77, "login": "prevue[bot]"}, {"id": 5, "login": "prevue[bot]"}
    pages = {
        "1": [comment(9, "<!-- m -->\nnew", ours), comment(2, "see <!-- m -->", ours), comment(3, "<!-- m -->", other)],
        "2": [
            comment(4, "<!-- m -->\nold", ours),
            comment(5, "<!-- m -->", None),
            {"id": 6, "created_at": "2026-01-01T00:00:00Z", "body": None},
        ],
    }

    def answer(request: httpx2.Request) -> Answer | None:
        path = request.url.path
        if path.endswith("/app"):
            return httpx2.Response(200, json={"id": 17, "slug": "prevue"})
        if path.endswith("/users/prevue[bot]"):
            return httpx2.Response(200, json=ours)
        if path.endswith("/comments"):
            page = request.url.params.get("page", "1")
            link = {"link": f'<{API}/repos/acme/hello/issues/7/comments?page=2>; rel="next"'} if page == "1" else {}
            return httpx2.Response(200, json=pages[page], headers=link)
        return None

    script.answer = answer
    for _ in range(2):
        found = await client.find_comments(3, "acme/hello", 7, marker="<!-- m -->")
        assert [each.id for each in found] == [4, 9]
    assert len(script.asked("GET", "/app")) == len(script.asked("GET", "/users/prevue[bot]")) == 1


# -- start ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def opened(settings: GitHubSettings) -> AsyncIterator[None]:
    async with GitHubClient.open(settings):
        yield


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"app_id": 0}, "github.app_id"),
        ({"private_key_file": ""}, "github.private_key_file"),
        ({"private_key_file": "/nowhere/app.pem"}, "cannot be read"),
        ({"private_key_file": __file__}, "no RSA private key"),
        ({"api_url": "github.example"}, "github.api_url"),
        ({"api_url": "ftp://github.example"}, "github.api_url"),
        ({"api_url": "https://user:secret@github.example"}, "github.api_url"),
    ],
)
async def test_wrong_settings_are_named_at_start(settings: GitHubSettings, changes: dict[str, object], named: str) -> None:
    values = {name: getattr(settings, name) for name in ("app_id", "private_key_file", "api_url")} | changes
    with pytest.raises(ConfigError, match=named) as raised:
        async with opened(GitHubSettings(**values)):
            pass
    assert "secret" not in str(raised.value)
