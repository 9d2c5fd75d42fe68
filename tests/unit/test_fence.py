"""The fence's steps against an API server that answers what the test wants: conflicts, late caches, refusals of other kinds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import msgspec
import pytest

from prevue.cluster.api import Api
from prevue.cluster.fence import Fences, ownership_labels
from prevue.cluster.port import FENCE_ANNOTATION, FENCED_BY_ANNOTATION, Fence, FenceKind
from prevue.cluster.rights import ROLE, Binding, service_account
from prevue.cluster.watches import Watches
from prevue.errors import ClusterUnavailable, NamespaceTerminating, StaleClaim
from prevue.model import PreviewKey

KEY = PreviewKey("github.com", 42, 7)
FENCE = Fence(namespace="pv", token=5, uid="u", resource_version="10", kind=FenceKind.IDENTITY)
BINDINGS = [Binding("prevue-deployer", ROLE, service_account("pv", "deployer"))]
DENIED = "configmaps \"x\" is forbidden: ValidatingAdmissionPolicy 'prevue-fence' with binding 'prevue-fence' denied request: "
STALE = DENIED + "stale fencing token"
BROKEN = DENIED + "expression failed"
RBAC = 'configmaps is forbidden: User "system:serviceaccount:pv:deployer" cannot create resource "configmaps"'


def namespace(token: int, version: int, **meta: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "pv",
            "uid": "u",
            "resourceVersion": str(version),
            "labels": ownership_labels(KEY),
            "annotations": {FENCE_ANNOTATION: str(token)},
        }
        | meta
    }


def refused(status: int, message: str) -> httpx2.Response:
    return httpx2.Response(status, json={"kind": "Status", "reason": "R", "message": message})


class Script:
    """Answers in order, by method; what was asked is kept."""

    def __init__(self, *answers: tuple[str, httpx2.Response | dict[str, Any] | Exception]) -> None:
        self._answers = list(answers)
        self.asked: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        method, answer = self._answers.pop(0)
        assert method == request.method, f"{request.method} {request.url} came, {method} was expected"
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx2.Response) else httpx2.Response(200, json=answer)

    @property
    def is_done(self) -> bool:
        return not self._answers


FencesOf = Callable[[Script], Fences]


@pytest.fixture
async def fences_of() -> AsyncIterator[FencesOf]:
    clients: list[httpx2.AsyncClient] = []

    def made(script: Script) -> Fences:
        client = httpx2.AsyncClient(transport=httpx2.MockTransport(script), base_url="https://cluster.test")
        clients.append(client)
        api = Api(client)
        return Fences(api, Watches(api), settle_seconds=0)

    yield made
    for client in clients:
        await client.aclose()


async def test_create_carries_everything(fences_of: FencesOf) -> None:
    script = Script(("POST", namespace(5, 10)), ("POST", {}))
    fence = await fences_of(script).raise_(KEY, "pv", 5, create=True, kind=FenceKind.IDENTITY, bindings=BINDINGS)
    assert fence == msgspec.structs.replace(FENCE, created=True)
    body = msgspec.json.decode(script.asked[0].content)
    assert body["metadata"]["annotations"] == {FENCE_ANNOTATION: "5", FENCED_BY_ANNOTATION: "identity"}
    assert body["metadata"]["labels"].items() >= ownership_labels(KEY).items()
    assert script.asked[1].url.path.endswith("/namespaces/pv/rolebindings")


async def test_conflict_is_read_again(fences_of: FencesOf) -> None:
    """The swap carries uid and resourceVersion; another writer in between costs a round, not the claim."""
    script = Script(
        ("POST", refused(409, "exists")),
        ("GET", namespace(3, 10)),
        ("PATCH", refused(409, "modified")),
        ("POST", refused(409, "exists")),
        ("GET", namespace(4, 11)),
        ("PATCH", namespace(5, 12)),
        ("POST", refused(409, "bound already")),
    )
    fence = await fences_of(script).raise_(KEY, "pv", 5, create=True, kind=FenceKind.IDENTITY, bindings=BINDINGS)
    assert fence is not None
    assert (fence.resource_version, fence.created) == ("12", False)
    swaps = [msgspec.json.decode(request.content)["metadata"] for request in script.asked if request.method == "PATCH"]
    assert [(swap["uid"], swap["resourceVersion"]) for swap in swaps] == [("u", "10"), ("u", "11")]


async def test_loser_of_the_swap_is_stale(fences_of: FencesOf) -> None:
    script = Script(("GET", namespace(3, 10)), ("PATCH", refused(409, "modified")), ("GET", namespace(6, 11)))
    with pytest.raises(StaleClaim):
        await fences_of(script).raise_(KEY, "pv", 5, create=False, kind=FenceKind.IDENTITY, bindings=BINDINGS)
    assert script.is_done


async def test_bites_waits_for_rights_and_annotation(fences_of: FencesOf) -> None:
    """A 403 by RBAC and an accepted write both mean: not yet. The token tried is one below the own one."""
    script = Script(("POST", refused(403, RBAC)), ("POST", {}), ("POST", refused(403, BROKEN)), ("POST", refused(403, STALE)))
    await fences_of(script).bites(FENCE)
    assert script.is_done
    assert {request.headers["Impersonate-Extra-prevue.dev%2Ffence"] for request in script.asked} == {"4"}
    assert all(request.url.params["dryRun"] == "All" for request in script.asked)


async def test_policy_that_never_bites_is_an_outage(fences_of: FencesOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prevue.cluster.fence.BITE_SECONDS_MAX", 0.0)
    with pytest.raises(ClusterUnavailable, match="did not bite"):
        await fences_of(Script(("POST", {}), ("GET", namespace(5, 10)))).bites(FENCE)


async def test_namespace_that_goes_away_meanwhile(fences_of: FencesOf) -> None:
    for answer in (refused(404, "not found"), namespace(5, 10, deletionTimestamp="2026-01-01T00:00:00Z")):
        with pytest.raises(NamespaceTerminating):
            await fences_of(Script(("POST", refused(404, 'namespaces "pv" not found')), ("GET", answer))).bites(FENCE)


async def test_delete_carries_its_preconditions(fences_of: FencesOf) -> None:
    script = Script(("DELETE", refused(409, "conflict")), ("GET", namespace(5, 12)), ("DELETE", {}), ("GET", {"items": []}))
    fences = fences_of(script)
    assert await fences._delete_once(FENCE, "10") == "12"
    assert await fences._delete_once(FENCE, "12") is None
    bodies = [msgspec.json.decode(request.content) for request in script.asked if request.method == "DELETE"]
    assert [body["preconditions"] for body in bodies] == [{"uid": "u", "resourceVersion": "10"}, {"uid": "u", "resourceVersion": "12"}]


@pytest.mark.parametrize("other", [namespace(6, 12), namespace(5, 12, uid="another"), namespace(4, 12)])
async def test_delete_of_anothers_namespace_is_stale(fences_of: FencesOf, other: dict[str, Any]) -> None:
    with pytest.raises(StaleClaim):
        await fences_of(Script(("DELETE", refused(409, "conflict")), ("GET", other)))._delete_once(FENCE, "10")


@pytest.mark.parametrize(
    ("stale", "rightful", "bites"),
    [
        (refused(403, STALE), httpx2.Response(201, json={}), True),
        (refused(403, STALE), refused(403, STALE), False),
        (httpx2.Response(201, json={}), None, False),
        (refused(403, RBAC), None, False),
        (refused(404, "not found"), None, False),
    ],
)
async def test_policy_bites_as_it_was_tried(
    fences_of: FencesOf, stale: httpx2.Response, rightful: httpx2.Response | None, bites: bool
) -> None:
    script = Script(("POST", stale), *([("POST", rightful)] if rightful else []))
    assert await fences_of(script).policy_bites() is bites
    assert script.is_done


@pytest.mark.parametrize(
    "answer",
    [httpx2.ConnectError("refused"), httpx2.ReadTimeout("slow"), refused(500, "etcd"), refused(429, "later"), refused(401, "who?")],
)
async def test_api_server_in_trouble_is_an_outage(fences_of: FencesOf, answer: httpx2.Response | Exception) -> None:
    with pytest.raises(ClusterUnavailable):
        await fences_of(Script(("POST", answer))).raise_(KEY, "pv", 5, create=True, kind=FenceKind.IDENTITY, bindings=BINDINGS)


async def test_patience_that_is_asked_for_is_passed_on(fences_of: FencesOf) -> None:
    answer = httpx2.Response(429, json={"message": "later"}, headers={"Retry-After": "7"})
    with pytest.raises(ClusterUnavailable) as failure:
        await fences_of(Script(("POST", answer))).raise_(KEY, "pv", 5, create=True, kind=FenceKind.IDENTITY, bindings=BINDINGS)
    assert failure.value.retry_after == 7


async def test_read_over_a_connection_just_closed_is_tried_again(fences_of: FencesOf) -> None:
    script = Script(("GET", httpx2.RemoteProtocolError("closed")), ("GET", refused(404, "no")))
    assert await fences_of(script).raise_(KEY, "pv", 5, create=False, kind=FenceKind.IDENTITY, bindings=BINDINGS) is None
