"""Connections to GitHub: one request each, the last used first, never more than the bound."""

from __future__ import annotations

import asyncio

import httpx2

from prevue.github.connections import CONCURRENT_MAX, Connections


async def test_requests_share_few_clients_and_wait_for_their_turn() -> None:
    made: list[httpx2.AsyncClient] = []
    running = most = 0

    async def answer(_request: httpx2.Request) -> httpx2.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return httpx2.Response(200)

    def make() -> httpx2.AsyncClient:
        made.append(httpx2.AsyncClient(transport=httpx2.MockTransport(answer)))
        return made[-1]

    connections = Connections(make)
    for _ in range(10):
        await connections.request("GET", "https://github.example/", headers={})
    assert len(made) == 1
    await asyncio.gather(*(connections.request("GET", "https://github.example/", headers={}) for _ in range(3 * CONCURRENT_MAX)))
    assert len(made) == most == CONCURRENT_MAX
    for client in made:
        await client.aclose()


async def test_a_request_that_is_given_up_gives_its_turn_back() -> None:
    async def answer(_request: httpx2.Request) -> httpx2.Response:
        await asyncio.sleep(60)
        return httpx2.Response(200)

    async with Connections.open(headers={}, transport=httpx2.MockTransport(answer)) as connections:
        for _ in range(2):
            waiting = [
                asyncio.create_task(connections.request("GET", "https://github.example/", headers={})) for _ in range(CONCURRENT_MAX + 5)
            ]
            await asyncio.sleep(0.01)
            for task in waiting:
                task.cancel()
            assert all(isinstance(each, asyncio.CancelledError) for each in await asyncio.gather(*waiting, return_exceptions=True))
