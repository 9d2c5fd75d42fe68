"""Tokens for claims and the choice among the fences, against a small API server: what it stores, and whom it believes."""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from prevue.cluster.actors import Actors
from prevue.cluster.api import Access, Api, ApiError
from prevue.cluster.choice import FenceChoice
from prevue.cluster.claims import Claims
from prevue.cluster.fence import Fences
from prevue.cluster.kubernetes import demand_fence
from prevue.cluster.port import Fence, FenceKind
from prevue.cluster.rights import service_account
from prevue.cluster.watches import Watches
from prevue.config import ClusterSettings
from prevue.errors import ClusterUnavailable, ConfigError, StaleClaim
from prevue.settings_check import FENCES

SECRETS = re.compile(r"/api/v1/namespaces/(?P<namespace>[^/]+)/secrets(/(?P<name>.+))?")
WORKER = "system:serviceaccount:prevue-system:prevue-deployer"


class Crash(Exception):
    """The worker dies here."""


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return old | {key: merged(old.get(key, {}), value) if isinstance(value, dict) else value for key, value in new.items()}


class Server:
    """Namespaces' Secrets, tokens bound to them, and what the caller may do; `lag` tries after a deletion still find a token accepted."""

    def __init__(self, *, lag: int = 0, **may: bool) -> None:
        self.secrets: dict[tuple[str, str], dict[str, Any]] = {}
        self.tokens: dict[str, str] = {}
        self.lag = lag
        self.may = {"impersonate": True, "policy": True, "install": False, "tokens": True} | may
        self.asked: list[str] = []
        self.crash_at: int | None = None
        self._cached: dict[str, int] = {}
        self._numbers = itertools.count(1)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if self.crash_at == len(self.asked):
            raise Crash
        self.asked.append(f"{request.method} {request.url.path}")
        body = json.loads(request.content or b"{}")
        status, answer = self._answer(request, body)
        return httpx2.Response(status, json=answer if status < 300 else {"message": answer, "reason": "R"})

    def accepts(self, bearer: str) -> bool:
        """Whether its Secret is there, or the cache has not forgotten it."""
        if any(secret["metadata"]["uid"] == self.tokens.get(bearer) for secret in self.secrets.values()):
            return True
        self._cached[bearer] = self._cached.get(bearer, self.lag) - 1
        return bearer in self.tokens and self._cached[bearer] >= 0

    def _answer(self, request: httpx2.Request, body: dict[str, Any]) -> tuple[int, Any]:
        path = request.url.path
        if bearer := request.headers.get("Authorization", "").removeprefix("Bearer "):
            return (201, {}) if self.accepts(bearer) else (401, "Unauthorized")
        if "Impersonate-User" in request.headers:
            stale = request.headers["Impersonate-Extra-prevue.dev%2Ffence"] == "1"
            text = "ValidatingAdmissionPolicy 'prevue-fence' with binding 'prevue-fence' denied request: stale fencing token"
            return (403, text) if stale and self.may["policy"] else (201, {})
        if path.endswith("selfsubjectaccessreviews"):
            verb = body["spec"]["resourceAttributes"]["verb"]
            return 201, {"status": {"allowed": self.may.get(verb, True)}}
        if path.endswith("selfsubjectreviews"):
            return 201, {"status": {"userInfo": {"username": WORKER}}}
        if request.method == "PATCH" and "secrets" not in path:
            self.may["policy"] |= self.may["install"]
            return (200, {}) if self.may["install"] else (403, "may not")
        if path.endswith("/token"):
            return self._token(body)
        if found := SECRETS.fullmatch(path):
            return self._secret(request.method, found["namespace"], found["name"] or body.get("metadata", {}).get("name", ""), body)
        if path.endswith("rolebindings") and body["roleRef"]["name"] == "prevue-token-issuer" and not self.may["tokens"]:
            return 403, "may not bind"
        return 201, {}

    def _token(self, body: dict[str, Any]) -> tuple[int, Any]:
        uid = body["spec"]["boundObjectRef"]["uid"]
        if all(secret["metadata"]["uid"] != uid for secret in self.secrets.values()):
            return 409, "the Secret's uid is another"
        bearer = f"bearer-{next(self._numbers)}"
        self.tokens[bearer] = uid
        return 201, {"status": {"token": bearer}}

    def _secret(self, method: str, namespace: str, name: str, body: dict[str, Any]) -> tuple[int, Any]:
        key = (namespace, name)
        if method == "GET":
            return 200, {"items": [secret for (where, _), secret in self.secrets.items() if where == namespace]}
        if method == "POST":
            if key in self.secrets:
                return 409, "exists"
            self.secrets[key] = merged(body, {"metadata": {"uid": f"uid-{next(self._numbers)}"}})
            return 201, self.secrets[key]
        if key not in self.secrets:
            return 404, "not found"
        if method == "PATCH":
            self.secrets[key] = merged(self.secrets[key], body)
            return 200, self.secrets[key]
        del self.secrets[key]
        return 200, {}

    def written(self) -> set[str]:
        """Every token that some Secret knows."""
        found = {base64.b64decode(text).decode() for secret in self.secrets.values() for text in secret.get("data", {}).values()}
        return {bearer for text in found for bearer in text.split()}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's cache counts tries, not seconds."""
    monkeypatch.setattr("prevue.cluster.claims.LEARN_SECONDS", 0.0)
    monkeypatch.setattr("prevue.cluster.rights.KNOWN_SECONDS_MAX", 0.0)


@pytest.fixture
async def clients() -> AsyncIterator[list[httpx2.AsyncClient]]:
    made: list[httpx2.AsyncClient] = []
    yield made
    for client in made:
        await client.aclose()


def api_of(server: Server, clients: list[httpx2.AsyncClient]) -> Api:
    clients.append(httpx2.AsyncClient(transport=httpx2.MockTransport(server), base_url="https://cluster.test"))
    return Api(clients[-1])


def claims_of(server: Server, clients: list[httpx2.AsyncClient]) -> Claims:
    """A worker's."""
    api = api_of(server, clients)
    return Claims(api, api)


def fence_of(token: int) -> Fence:
    return Fence(namespace="pv", token=token, uid="u", resource_version="1", kind=FenceKind.TOKEN)


async def test_takeover_waits_until_the_old_token_is_refused(clients: list[httpx2.AsyncClient]) -> None:
    server = Server(lag=3)
    old, new = claims_of(server, clients), claims_of(server, clients)
    await old.issue("pv", 5)
    assert await old.see_refused(fence_of(5)) is False
    await new.issue("pv", 6)
    before = len(server.asked)
    assert await new.see_refused(fence_of(6)) is True
    tries = [asked for asked in server.asked[before:] if asked.endswith("/configmaps")]
    assert len(tries) == 1 + 3 + 1, "our own, three that the cache lets through, the refusal"
    assert not server.accepts(old.bearer("pv", 5))
    assert server.accepts(new.bearer("pv", 6))
    assert server.written() == {new.bearer("pv", 6)}
    with pytest.raises(StaleClaim):
        await old.see_refused(fence_of(5))
    with pytest.raises(StaleClaim):
        await old.issue("pv", 5)


async def test_issue_that_is_repeated_gives_the_same_token(clients: list[httpx2.AsyncClient]) -> None:
    server = Server()
    claims = claims_of(server, clients)
    await claims.issue("pv", 5)
    first = claims.bearer("pv", 5)
    await claims.issue("pv", 5)
    assert claims.bearer("pv", 5) == first
    assert len(server.secrets) == 1


async def test_token_that_stays_accepted_is_an_outage(clients: list[httpx2.AsyncClient], monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(lag=1_000_000)
    await claims_of(server, clients).issue("pv", 5)
    new = claims_of(server, clients)
    await new.issue("pv", 6)
    monkeypatch.setattr("prevue.cluster.claims.REFUSED_SECONDS_MAX", 0.05)
    with pytest.raises(ClusterUnavailable, match="still accepted"):
        await new.see_refused(fence_of(6))


async def test_usable_token_is_never_lost_whoever_dies_where(clients: list[httpx2.AsyncClient]) -> None:
    """Workers 5, 6 and 7 take over one after the other, and 6 dies before its n-th request, for every n: 7 waits for whatever 5 and 6 can
    still use. What only a dead worker knew was never written down, and so was never used."""
    for crash_at in range(100):
        server = Server(lag=2)
        five, six, seven = (claims_of(server, clients) for _ in range(3))
        await five.issue("pv", 5)
        server.crash_at = len(server.asked) + crash_at
        finished = False
        try:
            await six.issue("pv", 6)
            await six.see_refused(fence_of(6))
            finished = True
        except Crash:
            server.crash_at = None
        for bearer in (five.bearer("pv", 5), six.bearer("pv", 6)):
            assert not bearer or not server.accepts(bearer) or bearer in server.written()
        server.crash_at = None
        await seven.issue("pv", 7)
        await seven.see_refused(fence_of(7))
        server.lag = 0
        usable = {bearer for bearer in server.tokens if server.accepts(bearer)}
        assert usable == {seven.bearer("pv", 7)}
        if finished:
            assert crash_at > 6, "each request was a place to die at"
            return
    raise AssertionError("the second worker never finished")


async def test_secret_that_a_chart_labels_like_a_claims_decides_nothing(clients: list[httpx2.AsyncClient]) -> None:
    server = Server()
    server.secrets["pv", "a-charts"] = {"metadata": {"name": "a-charts", "uid": "x", "labels": {"prevue.dev/claim": "99"}}, "data": {}}
    await claims_of(server, clients).issue("pv", 5)
    assert ("pv", "a-charts") in server.secrets


KUBECONFIG_USER = {"token": "prevues-own"}


def chosen(server: Server, clients: list[httpx2.AsyncClient], wish: str) -> tuple[FenceChoice, Actors]:
    api = api_of(server, clients)
    claims = Claims(api, api)
    access = Access(config=None, cluster={"server": "https://cluster.test"}, user=KUBECONFIG_USER)  # type: ignore[arg-type]  # not connected
    actors = Actors(access, api, claims)
    return FenceChoice(wish, api, Fences(api, Watches(api), settle_seconds=0), claims, actors), actors


@pytest.mark.parametrize(
    ("wish", "may", "kind"),
    [
        ("auto", {}, FenceKind.IDENTITY),
        ("auto", {"policy": False}, FenceKind.TOKEN),
        ("auto", {"policy": False, "install": True}, FenceKind.IDENTITY),
        ("auto", {"impersonate": False}, FenceKind.TOKEN),
        ("auto", {"impersonate": False, "tokens": False}, FenceKind.LEASE),
        ("auto", {"policy": False, "tokens": False}, FenceKind.LEASE),
        ("identity", {"policy": False}, FenceKind.LEASE),
        ("token", {}, FenceKind.TOKEN),
        ("token", {"tokens": False}, FenceKind.LEASE),
        ("lease", {}, FenceKind.LEASE),
    ],
)
async def test_strongest_that_works_is_chosen(clients: list[httpx2.AsyncClient], wish: str, may: dict[str, bool], kind: FenceKind) -> None:
    server = Server(**may)
    choice, _ = chosen(server, clients, wish)
    assert await choice.find() is kind
    assert await choice.known() is kind
    assert server.secrets == {}, "a trial leaves nothing"


async def test_who_acts_follows_the_kind(clients: list[httpx2.AsyncClient]) -> None:
    """Impersonation with the claim's number; the claim's own token; Prevue's own account where neither is to be had."""
    fence = Fence(namespace="pv", token=5, uid="", resource_version="", kind=FenceKind.LEASE)
    for may, user, bound in (
        ({}, {"as": "system:serviceaccount:pv:deployer", "as-user-extra": {"prevue.dev/fence": ["5"]}, **KUBECONFIG_USER}, "deployer"),
        ({"impersonate": False, "tokens": False}, KUBECONFIG_USER, "prevue-deployer"),
    ):
        choice, actors = chosen(Server(**may), clients, "auto")
        kind = await choice.find()
        assert json.loads(actors.kubeconfig(fence))["users"][0]["user"] == user
        assert [binding.subject["name"] for binding in actors.bindings("pv", kind)] == [bound]


async def test_two_accounts_in_a_cluster_bind_side_by_side(clients: list[httpx2.AsyncClient]) -> None:
    """A binding that is there is left as it is: under one name the second account would be bound nowhere."""
    names: list[str] = []
    for account in ("prevue-a", "prevue-b"):
        _, actors = chosen(Server(), clients, "auto")
        actors.own_subject, actors.impersonates = service_account("prevue-system", account), False
        bindings = [*actors.bindings("pv", FenceKind.TOKEN), *actors.bindings("pv", FenceKind.LEASE)]
        names += [binding.name for binding in bindings if binding.subject == actors.own_subject]
    assert len(names) == 4
    assert len(set(names)) == 4


async def test_helm_gets_the_claims_token_and_nobody_elses(clients: list[httpx2.AsyncClient]) -> None:
    server = Server(impersonate=False)
    choice, actors = chosen(server, clients, "auto")
    assert await choice.find() is FenceKind.TOKEN
    with pytest.raises(StaleClaim):
        actors.kubeconfig(fence_of(5))
    await actors._claims.issue("pv", 5)
    user = json.loads(actors.kubeconfig(fence_of(5)))["users"][0]["user"]
    assert server.accepts(user["token"])
    assert list(user) == ["token"]


@pytest.mark.parametrize(
    ("settings", "kind", "is_enough"),
    [
        ({}, FenceKind.LEASE, True),
        ({"require_fence": True}, FenceKind.LEASE, False),
        ({"require_fence": True}, FenceKind.TOKEN, True),
        ({"fence": "identity"}, FenceKind.TOKEN, False),
        ({"fence": "identity"}, FenceKind.IDENTITY, True),
        ({"fence": "token"}, FenceKind.LEASE, False),
        ({"fence": "lease"}, FenceKind.LEASE, True),
    ],
)
def test_weaker_fence_than_demanded_is_refused(settings: dict[str, Any], kind: FenceKind, is_enough: bool) -> None:
    for error in (ConfigError, ClusterUnavailable):
        if is_enough:
            demand_fence(ClusterSettings(**settings), kind, error)
            continue
        with pytest.raises(error, match=kind.meaning):
            demand_fence(ClusterSettings(**settings), kind, error)


def test_setting_names_every_kind() -> None:
    assert ("auto", *FenceKind) == FENCES
    assert len({kind.meaning for kind in FenceKind}) == len(FenceKind)
    assert "a paused machine can still write once it wakes" in FenceKind.LEASE.meaning


async def test_revocation_is_measured(clients: list[httpx2.AsyncClient]) -> None:
    server = Server(lag=2)
    choice, _ = chosen(server, clients, "token")
    assert await choice.measure_revocation() >= 0
    assert server.secrets == {}
    broken, _ = chosen(Server(tokens=False), clients, "token")
    with pytest.raises(ApiError):
        await broken.measure_revocation()
