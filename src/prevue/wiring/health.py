"""A deployer's /healthz and /readyz: alive at all, and taking messages."""

from __future__ import annotations

import asyncio

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from prevue.serving import Server


async def serve_health(host: str, port: int, *, stopping: asyncio.Event, until: asyncio.Event) -> None:
    """Serve until `until`; /readyz turns 503 as soon as `stopping` is set, before draining begins."""

    async def healthz(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    async def readyz(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("stopping", 503) if stopping.is_set() else PlainTextResponse("ok")

    app = Starlette(routes=[Route("/healthz", healthz), Route("/readyz", readyz)])
    server = Server(uvicorn.Config(app, host=host, port=port, log_config=None, access_log=False, lifespan="off"))
    task = asyncio.create_task(server.serve(), name="health-server")
    await until.wait()
    server.should_exit = True
    await task
