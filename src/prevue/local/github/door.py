"""The local GitHub's HTTP door: GitHub's REST API at the root, control paths under `/_local`, pages for a browser.

One ASGI application over one `FakeGitHub`. The door carries requests in and answers out, really waits where a fault
asks for a delay, and runs the local "CI" (`on_push`) at each new head commit. Invariant: an answer of the REST API
goes out exactly as the state gave it; only a control path's errors (422, 404 with a `message`) are the door's own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from prevue.local.github import control, pages
from prevue.local.github.ci import OnPush
from prevue.local.github.pump import WebhookPump
from prevue.testing.github import FakeGitHub, Request
from prevue.testing.github.rest import API_PREFIXES

_INCOMPLETE_BYTES = 1_000
"""What an answer that never comes announces; the connection is closed instead of carrying it."""


def create_app(github: FakeGitHub, *, on_push: OnPush | None = None, pump: WebhookPump | None = None) -> ASGIApp:
    """Return the ASGI application: the API, the control paths and the pages of one GitHub.

    `on_push` makes a new head commit's image before a control path or a page's form answers; None makes none. `pump`
    runs for as long as the application's lifespan does.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        if pump is None:
            yield
            return
        task = asyncio.create_task(pump.run(), name="webhook pump")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    desk = control.Desk(github=github, on_push=on_push)
    inner = Starlette(
        routes=[
            Mount("/_local/static", StaticFiles(packages=[("prevue.local.github", "static")])),
            Mount("/_local", routes=control.routes(desk)),
            *pages.routes(desk),
        ],
        lifespan=lifespan,
        exception_handlers={control.Refused: control.refuse},
    )
    return Door(github, inner)


class Door:
    """Sends what is API to the state and everything else to `inner`."""

    def __init__(self, github: FakeGitHub, inner: ASGIApp) -> None:
        self._github = github
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's scope (ASGI)."""
        if scope["type"] == "http" and scope["path"].split("/", 2)[1] in API_PREFIXES:
            await self._serve_api(scope, receive, send)
        else:
            await self._inner(scope, receive, send)

    async def _serve_api(self, scope: Scope, receive: Receive, send: Send) -> None:
        http = HttpRequest(scope, receive)
        request = Request(
            method=http.method,
            path=scope.get("raw_path", scope["path"].encode()).decode("latin-1"),
            query=scope["query_string"].decode("latin-1"),
            headers=dict(http.headers),
            body=await http.body(),
        )
        response = self._github.handle(request)
        if response.delay_seconds > 0:
            await asyncio.sleep(response.delay_seconds)
        if response.status == 0:
            await _break_connection(send)
            return
        headers = [(name.encode(), value.encode("latin-1")) for name, value in response.headers.items()]
        if response.status not in (204, 304):
            headers.append((b"content-length", str(len(response.body)).encode()))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})


async def _break_connection(send: Send) -> None:
    """Announce a body and end without it: the server then closes the connection, and the client has no answer."""
    headers = [(b"content-length", str(_INCOMPLETE_BYTES).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
