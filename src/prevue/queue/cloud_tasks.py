"""The queue in Google Cloud Tasks, which pushes: enqueuing makes a task, and a deployer's consumer is a door that tasks are posted to.

Tasks have no name of ours. A name would make Cloud Tasks recognise a repeat, but a name stays taken for up to a day after its task is
done, so the sweeper's honest reminder of the same request would be swallowed; and named tasks are slower to make. A task that was made
twice finds its request done (docs/adr/0007-cloud-tasks-push.md).

- At least once, no order, sometimes minutes late: https://docs.cloud.google.com/tasks/docs/common-pitfalls
- A dispatch is waited for 15 s to 30 min, then the task is sent again: docs/queues/cloud-tasks.md
- Sent again is everything but a 2xx; 429 and 503 slow the whole queue down for a while, and `Retry-After` is considered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import httpx2
import uvicorn
from google.cloud.tasks_v2 import CloudTasksAsyncClient, HttpMethod, HttpRequest, OidcToken, Queue, Task
from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksGrpcAsyncIOTransport

from prevue.config import CloudTasksSettings
from prevue.errors import ConfigError, QueueUnavailable
from prevue.model import Message, encode_message
from prevue.queue.addresses import CloudTasksAddress
from prevue.queue.google import ENQUEUE_SECONDS_MAX, open_channel, outages_as_unavailable
from prevue.queue.oidc import KeySet, Verifier
from prevue.queue.port import Consumer, Enqueued, Enqueuer, Handler
from prevue.queue.tasks_door import TasksDoor
from prevue.serving import Server, listen

CONNECTIONS_MAX = 1_000
"""Beyond the slots: those that are turned away, and those that idle."""
KEEP_ALIVE_SECONDS = 620
"""Longer than Google's load balancers keep an idle connection (600 s), so that it is the balancer that closes first."""
ANSWERS_SECONDS_MAX = 5
"""At the end: for answers that are on their way."""


class CloudTasksEnqueuer:
    """What the GitHub App opens: one CreateTask a message."""

    def __init__(self, client: CloudTasksAsyncClient, address: CloudTasksAddress, settings: CloudTasksSettings) -> None:
        self._client = client
        self._queue = address.name
        self._url = settings.target_url
        self._token = OidcToken(service_account_email=settings.service_account, audience=settings.audience or settings.target_url)
        self._deadline = timedelta(seconds=settings.dispatch_deadline_seconds)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, settings: CloudTasksSettings) -> AsyncIterator[CloudTasksEnqueuer]:
        """An enqueuer; it connects when it is first used.

        Raises:
            ConfigError: the URL, the target or the service account is missing or wrong.
        """
        address = CloudTasksAddress.parse(url)
        _check(settings)
        async with open_client(settings) as client:
            yield cls(client, address, settings)

    async def enqueue(self, message: Message) -> Enqueued:
        """As the port says; an unnamed task, so no repeat is recognised."""
        request = HttpRequest(
            http_method=HttpMethod.POST,
            url=self._url,
            headers={"Content-Type": "application/json"},
            body=encode_message(message),
            oidc_token=self._token,
        )
        task = Task(http_request=request, dispatch_deadline=self._deadline)
        with outages_as_unavailable():
            await self._client.create_task(parent=self._queue, task=task, retry=None, timeout=ENQUEUE_SECONDS_MAX)
        return Enqueued()

    async def check(self) -> None:
        """As the port says: the queue is there and not disabled; needs `cloudtasks.queues.get`."""
        with outages_as_unavailable():
            queue = await self._client.get_queue(name=self._queue, retry=None, timeout=ENQUEUE_SECONDS_MAX)
        if queue.state is Queue.State.DISABLED:
            raise QueueUnavailable(f"{self._queue} is disabled")


class CloudTasksConsumer:
    """What a deployer opens: the door. It needs no right in Google Cloud, and talks to nobody but the issuer of the tasks' tokens."""

    def __init__(self, settings: CloudTasksSettings, verifier: Verifier) -> None:
        self._host = settings.listen_host
        self._port = settings.listen_port
        self._verifier = verifier

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: CloudTasksSettings) -> AsyncIterator[CloudTasksConsumer]:
        """A consumer; it listens while it runs.

        Raises:
            ConfigError: the target or the service account is missing: nobody could be admitted.
        """
        _check(settings)
        async with httpx2.AsyncClient() as http:
            verifier = Verifier(
                KeySet(settings.certificates_url, http),
                issuer=settings.issuer,
                audience=settings.audience or settings.target_url,
                account=settings.service_account,
            )
            yield cls(settings, verifier)

    async def run(self, handler: Handler, *, slots: int, stop: asyncio.Event) -> None:
        """As the port says. While the running handlers end the door stays open, and answers 429.

        Raises:
            ConfigError: the door's address cannot be listened on.
        """
        listener = listen(self._host, self._port, setting="queue.cloud_tasks.listen_host, queue.cloud_tasks.listen_port")
        serving: asyncio.Task[None] | None = None
        try:
            # A group: a caller that cancels cancels the handlers, and their requests are answered before the server ends.
            async with asyncio.TaskGroup() as group:
                door = TasksDoor(self._verifier, handler, slots=slots, stop=stop, group=group)
                server = Server(_server_config(door, slots))
                serving = asyncio.create_task(server.serve(sockets=[listener]), name="queue-door")
                try:
                    await _until(stop, serving)
                    while door.handlers:
                        await asyncio.wait(door.handlers)
                finally:
                    door.is_closed = True
        finally:
            if serving is not None:
                server.should_exit = True
                await asyncio.wait({serving})
            listener.close()


async def _until(stop: asyncio.Event, serving: asyncio.Task[None]) -> None:
    """Wait for the stop; a server that ends before it is an error."""
    stopping = asyncio.create_task(stop.wait(), name="queue-stop")
    try:
        await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
    if not stop.is_set():
        serving.result()
        raise RuntimeError("the door's server ended by itself")


def _server_config(door: TasksDoor, slots: int) -> uvicorn.Config:
    return uvicorn.Config(
        door.app,
        log_config=None,
        access_log=False,
        lifespan="off",
        limit_concurrency=slots + CONNECTIONS_MAX,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=ANSWERS_SECONDS_MAX,
    )


def _check(settings: CloudTasksSettings) -> None:
    for name in ("target_url", "service_account"):
        if not getattr(settings, name):
            raise ConfigError(f"queue.cloud_tasks.{name}: is required with cloudtasks://")


@asynccontextmanager
async def open_client(settings: CloudTasksSettings) -> AsyncIterator[CloudTasksAsyncClient]:
    """Google's own client, of an emulator where the settings name one.

    Raises:
        ConfigError: there are no credentials.
    """
    channel = open_channel(CloudTasksGrpcAsyncIOTransport, settings.endpoint)
    try:
        yield CloudTasksAsyncClient(transport=CloudTasksGrpcAsyncIOTransport(channel=channel))
    finally:
        await channel.close()


_enqueuer: type[Enqueuer] = CloudTasksEnqueuer
_consumer: type[Consumer] = CloudTasksConsumer
