"""The queue's contract, kept by Cloud Tasks, as far as its emulator can show it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import httpx2
import pytest
import structlog
import uvicorn
from google.cloud.tasks_v2 import CloudTasksAsyncClient, HttpRequest, OidcToken, Queue, RateLimits, RetryConfig, Task
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prevue.config import CloudTasksSettings
from prevue.local.emulators import CloudTasksEmulator
from prevue.local.ports import free_ports
from prevue.queue.addresses import CloudTasksAddress
from prevue.queue.cloud_tasks import CloudTasksConsumer, CloudTasksEnqueuer, open_client
from prevue.queue.cloud_tasks_admin import CloudTasksGauge
from prevue.queue.port import Handler
from prevue.serving import Server, listen
from prevue.testing.contracts import queue as contract
from prevue.testing.proxy import Proxy

ACCOUNT = "tasks@test.iam.gserviceaccount.com"
DISPATCH_SECONDS = 15
"""The shortest dispatch deadline that Google allows."""
_numbers = itertools.count(1)


@dataclass(eq=False)
class _Dispatch:
    port: int
    began: float
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Front:
    """The target of the tasks: the load balancer, and what Google does and its emulator does not.

    It considers Retry-After, its dispatch deadline passes when the test says so, and it shares the tasks out among the doors in turn.
    """

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self.doors: list[int] = []
        self.is_out = False
        self.is_over = False
        self._client = client
        self._turn = 0
        self._passed = 0.0
        self._not_before: dict[str, float] = {}
        self._inside: set[_Dispatch] = set()
        self.app = Starlette(routes=[Route("/tasks", self._dispatch, methods=["POST"])])

    def advance(self, seconds: float) -> None:
        self._passed += seconds
        for dispatch in self._inside:
            if self._now() - dispatch.began > DISPATCH_SECONDS:
                dispatch.over.set()

    def lose(self, port: int) -> None:
        """This door's process is gone, and every connection with it."""
        if port in self.doors:
            self.doors.remove(port)
        for dispatch in self._inside:
            if dispatch.port == port:
                dispatch.over.set()

    async def _dispatch(self, request: Request) -> Response:
        name = request.headers["x-cloudtasks-taskname"]
        while self.is_out or not self.doors or self._now() < self._not_before.get(name, 0):
            if self.is_over:
                return Response(status_code=503)
            await asyncio.sleep(0.02)  # not sent yet: answered, the emulator would ask again at once
        self._turn += 1
        dispatch = _Dispatch(self.doors[self._turn % len(self.doors)], self._now())
        headers = {"Authorization": request.headers["authorization"], "X-CloudTasks-TaskName": name}
        posting = asyncio.ensure_future(
            self._client.post(f"http://127.0.0.1:{dispatch.port}/tasks", content=await request.body(), headers=headers, timeout=None)
        )
        self._inside.add(dispatch)
        over = asyncio.ensure_future(dispatch.over.wait())
        await asyncio.wait({posting, over}, return_when=asyncio.FIRST_COMPLETED)
        self._inside.discard(dispatch)
        over.cancel()
        posting.cancel()
        await asyncio.wait({posting})
        if posting.cancelled() or posting.exception():
            return Response(status_code=504)
        answer = posting.result()
        if answer.status_code in (429, 503):
            self._not_before[name] = self._now() + float(answer.headers["retry-after"])
        return Response(status_code=answer.status_code)

    def _now(self) -> float:
        return time.monotonic() + self._passed


class CloudTasksQueue(contract.OpenedQueue):
    """While it runs, the front knows its door."""

    def __init__(
        self, enqueuer: CloudTasksEnqueuer, consumer: CloudTasksConsumer, gauge: CloudTasksGauge, network: Proxy, front: Front, port: int
    ) -> None:
        def crash() -> None:
            network.sever()
            front.lose(port)

        super().__init__(enqueuer, consumer, gauge, crash)
        self._front = front
        self._port = port

    async def run(self, handler: Handler, *, slots: int, stop: asyncio.Event) -> None:
        self._front.doors.append(self._port)
        try:
            await super().run(handler, slots=slots, stop=stop)
        finally:
            self._front.lose(self._port)


class CloudTasksHarness:
    """Time passes at the front; an outage cuts the way to the emulator, and the front takes no dispatch. Answers under way arrive."""

    def __init__(self, emulator: CloudTasksEmulator, client: CloudTasksAsyncClient, front: Front, target_url: str) -> None:
        self._emulator = emulator
        self._client = client
        self._front = front
        self._target_url = target_url
        self._url = f"cloudtasks://test/here/contract-{next(_numbers)}"
        self._address = CloudTasksAddress.parse(self._url)
        self._networks: list[Proxy] = []
        self.logged: list[structlog.typing.EventDict] = []

    async def make(self) -> None:
        # The emulator takes -1 attempts, without limit, for none left.
        retry = RetryConfig(max_attempts=1_000_000, min_backoff=timedelta(seconds=0.05), max_backoff=timedelta(seconds=0.2))
        queue = Queue(name=self._address.name, retry_config=retry, rate_limits=RateLimits(max_concurrent_dispatches=60))
        await self._client.create_queue(parent=self._address.parent, queue=queue)

    async def remove(self) -> None:
        await self._client.delete_queue(name=self._address.name)

    @asynccontextmanager
    async def open(self, *, lease_seconds: float = 10) -> AsyncIterator[contract.Queue]:
        """A lease is a dispatch that is waited for, and never shorter than Google's shortest deadline."""
        async with AsyncExitStack() as stack:
            network = await stack.enter_async_context(Proxy.to(f"tcp://{self._emulator.endpoint}"))
            self._networks.append(network)
            port = free_ports(1)[0]
            settings = CloudTasksSettings(
                target_url=self._target_url,
                service_account=ACCOUNT,
                listen_port=port,
                endpoint=f"127.0.0.1:{network.port}",
                issuer=self._emulator.issuer,
                certificates_url=self._emulator.certificates_url,
            )
            enqueuer = await stack.enter_async_context(CloudTasksEnqueuer.open(self._url, settings))
            consumer = await stack.enter_async_context(CloudTasksConsumer.open(settings))
            gauge = await stack.enter_async_context(CloudTasksGauge.open(self._url, settings))
            yield CloudTasksQueue(enqueuer, consumer, gauge, network, self._front, port)
            self._networks.remove(network)

    async def let_time_pass(self, seconds: float) -> None:
        self._front.advance(seconds)

    async def put_raw(self, body: str) -> None:
        request = HttpRequest(
            url=self._target_url, body=body.encode(), oidc_token=OidcToken(service_account_email=ACCOUNT, audience=self._target_url)
        )
        await self._client.create_task(parent=self._address.name, task=Task(http_request=request))

    async def rejected(self) -> list[str]:
        """Cloud Tasks has nowhere to keep them: the log does, whole."""
        return [entry["body"] for entry in self.logged if entry["event"] == "queue_message_set_aside"]

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        self._front.is_out = True
        for network in self._networks:
            await network.cut()
        try:
            yield
        finally:
            for network in self._networks:
                await network.mend()
            self._front.is_out = False


class TestCloudTasksQueue(contract.QueueContract):
    @pytest.fixture
    async def harness(self, cloud_tasks_emulator: CloudTasksEmulator) -> AsyncIterator[contract.QueueHarness]:
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(httpx2.AsyncClient(trust_env=False, limits=httpx2.Limits(max_connections=None)))
            front = Front(http)
            port = free_ports(1)[0]
            config = uvicorn.Config(front.app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
            server = Server(config)
            listener = stack.enter_context(listen("127.0.0.1", port, setting="front"))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            client = await stack.enter_async_context(open_client(CloudTasksSettings(endpoint=cloud_tasks_emulator.endpoint)))
            harness = CloudTasksHarness(cloud_tasks_emulator, client, front, f"http://127.0.0.1:{port}/tasks")
            await harness.make()
            with structlog.testing.capture_logs() as harness.logged:
                yield harness
            await harness.remove()
            front.is_over = True
            server.should_exit = True
            await serving
