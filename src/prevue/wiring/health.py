"""A deployer's /healthz, /readyz and /metrics: alive at all, taking messages, and in numbers."""

from __future__ import annotations

import asyncio

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from prevue.serving import Server
from prevue.wiring.metrics import CONTENT_TYPE, MetricsPage


async def serve_health(host: str, port: int, *, page: MetricsPage, stopping: asyncio.Event, until: asyncio.Event) -> None:
    """Serve until `until`; /readyz turns 503 as soon as `stopping` is set, before draining begins."""

    async def healthz(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    async def readyz(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("stopping", 503) if stopping.is_set() else PlainTextResponse("ok")

    async def metrics(_request: Request) -> Response:
        return Response(await page.render(), media_type=CONTENT_TYPE)

    app = Starlette(routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)])
    server = Server(uvicorn.Config(app, host=host, port=port, log_config=None, access_log=False, lifespan="off"))
    task = asyncio.create_task(server.serve(), name="health-server")
    await until.wait()
    server.should_exit = True
    await task
