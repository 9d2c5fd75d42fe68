"""The fake GitHub as an HTTP transport: production's client talks to it without a socket."""

from __future__ import annotations

import asyncio

import httpx2

from prevue.testing.github.records import Request
from prevue.testing.github.rest import FakeGitHub


class FakeGitHubTransport(httpx2.AsyncBaseTransport):
    """Hands every request of an httpx2 client to `github`; delays pass on the event loop's clock."""

    def __init__(self, github: FakeGitHub) -> None:
        self._github = github

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """One request, one answer; a fault without an answer is a broken connection."""
        body = await request.aread()
        answer = self._github.handle(
            Request(
                method=request.method,
                path=request.url.raw_path.decode().partition("?")[0],
                query=request.url.query.decode(),
                headers=dict(request.headers),
                body=body,
            )
        )
        await asyncio.sleep(answer.delay_seconds)
        if answer.status == 0:
            raise httpx2.ReadError("the fake GitHub closed the connection", request=request)
        return httpx2.Response(answer.status, headers=dict(answer.headers), content=answer.body, request=request)
