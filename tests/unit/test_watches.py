"""Shared watches against a scripted API server: one list and one watch a kind, resumed, and listed again after a 410."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import msgspec
import pytest

from prevue.cluster.api import Api
from prevue.cluster.watches import Watches


def item(name: str, version: int, namespace: str = "pv") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace, "resourceVersion": str(version)}}


def event(type_: str, object_: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"type": type_, "object": object_}) + b"\n"


class Server(httpx2.AsyncBaseTransport):
    """Lists `items`; each watch gets the next script of lines, then ends; the last one stays open."""

    def __init__(self, items: list[dict[str, Any]], *watches: list[bytes]) -> None:
        self.items = items
        self.scripts = list(watches)
        self.lists = 0
        self.watched_from: list[str] = []
        self.open = 0
        self.go = asyncio.Event()
        self.go.set()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if "watch" not in request.url.params:
            self.lists += 1
            return httpx2.Response(200, json={"metadata": {"resourceVersion": "10"}, "items": self.items})
        self.watched_from.append(request.url.params["resourceVersion"])
        return httpx2.Response(200, content=self._stream())

    async def _stream(self) -> AsyncIterator[bytes]:
        self.open += 1
        try:
            if not self.scripts:
                await asyncio.Event().wait()
            await self.go.wait()
            for line in self.scripts.pop(0):
                # Split anywhere: an event is not a chunk.
                yield line[:7]
                yield line[7:]
        finally:
            self.open -= 1


@pytest.fixture
async def watches_of() -> AsyncIterator[Any]:
    opened: list[tuple[httpx2.AsyncClient, Watches]] = []

    def made(server: Server) -> Watches:
        client = httpx2.AsyncClient(transport=server, base_url="https://cluster.test")
        watches = Watches(Api(client))
        opened.append((client, watches))
        return watches

    yield made
    for client, watches in opened:
        await watches.close()
        await client.aclose()


async def until(what: Any) -> None:
    async with asyncio.timeout(5):
        while not what():  # noqa: ASYNC110  what is looked at has no event
            await asyncio.sleep(0.01)


async def test_one_list_and_one_watch_for_many_waiters(watches_of: Any) -> None:
    server = Server([item("a", 9)])
    watches = watches_of(server)
    with watches.waiter("pv", ["Deployment"]) as one, watches.waiter("pv", ["Deployment"]) as two, watches.waiter("x", ["Deployment"]):
        assert await one.changed(5)
        assert await two.changed(5)
        await until(lambda: server.open == 1)
        assert (server.lists, server.watched_from) == (1, ["10"])
        assert watches.workload("Deployment", "pv", "a") is not None
    with watches.waiter("pv", ["Deployment"]):
        await asyncio.sleep(0.05)
        assert (server.lists, len(server.watched_from)) == (1, 1), "it goes on after its waiters"


async def test_events_wake_their_namespace_alone(watches_of: Any) -> None:
    server = Server([], [event("ADDED", item("a", 11))])
    server.go.clear()
    watches = watches_of(server)
    with watches.waiter("pv", ["Deployment"]) as mine, watches.waiter("other", ["Deployment"]) as other:
        assert await mine.changed(5)
        assert await other.changed(5), "the first list wakes everybody"
        server.go.set()
        assert await mine.changed(5)
        assert watches.workload("Deployment", "pv", "a") is not None
        assert not await other.changed(0.05)


async def test_ended_watch_goes_on_from_the_last_version(watches_of: Any) -> None:
    server = Server([], [event("ADDED", item("a", 11)), event("BOOKMARK", item("", 42))], [event("DELETED", item("a", 43))])
    watches = watches_of(server)
    with watches.waiter("pv", ["Deployment"]):
        await until(lambda: len(server.watched_from) == 3)
        assert (server.lists, server.watched_from) == (1, ["10", "42", "43"])
        assert watches.workload("Deployment", "pv", "a") is None


async def test_a_pods_bookmark_is_no_pod(watches_of: Any) -> None:
    """As a real API server writes it, about once a minute."""
    bookmark = {"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": "42"}, "spec": {"containers": None}, "status": {}}
    server = Server([], [event("ADDED", item("p", 11)), event("BOOKMARK", bookmark)])
    watches = watches_of(server)
    with watches.waiter("pv", ["Pod"]):
        await until(lambda: len(server.watched_from) == 2)
        assert (server.lists, server.watched_from) == (1, ["10", "42"])


async def test_expired_version_is_listed_again(watches_of: Any) -> None:
    server = Server([item("a", 9)], [event("ERROR", {"kind": "Status", "code": 410, "message": "too old"})])
    watches = watches_of(server)
    with watches.waiter("pv", ["Deployment"]):
        await until(lambda: len(server.watched_from) == 2)
        assert (server.lists, server.watched_from) == (2, ["10", "10"])


async def test_pods_are_kept_for_waiters_only(watches_of: Any) -> None:
    server = Server([item("p", 9), item("q", 9, "elsewhere")])
    watches = watches_of(server)
    with watches.waiter("pv", ["Pod"]):
        await until(lambda: watches.pods("pv"))
        assert watches.pods("elsewhere") == []
    assert watches.pods("pv") == []


async def test_garbage_does_not_end_it(watches_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prevue.cluster.watches.RECONNECT_SECONDS", 0.0)
    server = Server([], [b"<html>\n"], [event("ADDED", item("a", 11))])
    watches = watches_of(server)
    with watches.waiter("pv", ["Deployment"]):
        await until(lambda: watches.workload("Deployment", "pv", "a"))
