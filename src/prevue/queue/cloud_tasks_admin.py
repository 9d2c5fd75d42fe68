"""Measure and make the Cloud Tasks queue: for operators and autoscaling, apart from what the processes need at every start."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from google.api_core.exceptions import MethodNotImplemented, NotFound
from google.cloud.tasks_v2 import CloudTasksAsyncClient, Queue, RateLimits, RetryConfig
from google.cloud.tasks_v2beta3 import CloudTasksAsyncClient as StatisticsClient
from google.cloud.tasks_v2beta3 import GetQueueRequest
from google.cloud.tasks_v2beta3.services.cloud_tasks.transports import CloudTasksGrpcAsyncIOTransport
from google.protobuf.field_mask_pb2 import FieldMask

from prevue.config import CloudTasksSettings
from prevue.queue.addresses import CloudTasksAddress
from prevue.queue.cloud_tasks import open_client
from prevue.queue.google import CALL_SECONDS_MAX, open_channel, outages_as_unavailable
from prevue.queue.port import Change, Creator, Depth, Gauge

COUNT_MAX = 10_000
"""Tasks are listed so far where the queue has no statistics; more are told as so many."""
CONCURRENT_DISPATCHES_MAX = 5_000
"""https://docs.cloud.google.com/tasks/docs/reference/rpc/google.cloud.tasks.v2#ratelimits"""
RETRY = RetryConfig(
    max_attempts=-1,  # attempts are the statestore's
    max_retry_duration=timedelta(0),  # none: a task stays until it is answered 200, or Google's 31 days are over
    min_backoff=timedelta(seconds=1),
    max_backoff=timedelta(seconds=60),
    max_doublings=6,
)


class CloudTasksGauge:
    """The queue's own statistics, an estimate; an endpoint that has none (the emulator) has its tasks listed and counted."""

    def __init__(self, client: CloudTasksAsyncClient, statistics: StatisticsClient, queue: str) -> None:
        self._client = client
        self._statistics = statistics
        self._queue = queue

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, settings: CloudTasksSettings) -> AsyncIterator[CloudTasksGauge]:
        """A gauge; needs `cloudtasks.queues.get`."""
        address = CloudTasksAddress.parse(url)
        channel = open_channel(CloudTasksGrpcAsyncIOTransport, settings.endpoint)
        try:
            async with open_client(settings) as client:
                yield cls(client, StatisticsClient(transport=CloudTasksGrpcAsyncIOTransport(channel=channel)), address.name)
        finally:
            await channel.close()

    async def depth(self) -> Depth:
        """As the port says; those that are being worked on are counted."""
        request = GetQueueRequest(name=self._queue, read_mask=FieldMask(paths=["stats"]))
        with outages_as_unavailable():
            try:
                stats = (await self._statistics.get_queue(request=request, retry=None, timeout=CALL_SECONDS_MAX)).stats
            except MethodNotImplemented:
                return await self._listed()
        return Depth(stats.tasks_count, _age(stats.oldest_estimated_arrival_time) if stats.tasks_count else 0.0)

    async def _listed(self) -> Depth:
        oldest: datetime | None = None
        count = 0
        async for task in await self._client.list_tasks(parent=self._queue, retry=None, timeout=CALL_SECONDS_MAX):
            count += 1
            oldest = task.create_time if oldest is None else min(oldest, task.create_time)
            if count == COUNT_MAX:
                break
        return Depth(count, 0.0 if oldest is None else _age(oldest))


class CloudTasksCreator:
    """`prevue queue create`; needs `roles/cloudtasks.queueAdmin`."""

    def __init__(self, client: CloudTasksAsyncClient, address: CloudTasksAddress) -> None:
        self._client = client
        self._address = address

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, settings: CloudTasksSettings) -> AsyncIterator[CloudTasksCreator]:
        """A creator."""
        address = CloudTasksAddress.parse(url)
        async with open_client(settings) as client:
            yield cls(client, address)

    async def create(self, *, slots: int, check: bool) -> list[Change]:
        """As the port says. Of the rate limits only the concurrent dispatches are ours: no more than there are slots."""
        name = self._address.name
        limit = min(slots, CONCURRENT_DISPATCHES_MAX)
        wanted = Queue(name=name, retry_config=RETRY, rate_limits=RateLimits(max_concurrent_dispatches=limit))
        with outages_as_unavailable():
            try:
                found = await self._client.get_queue(name=name, retry=None, timeout=CALL_SECONDS_MAX)
            except NotFound:
                if not check:
                    await self._client.create_queue(parent=self._address.parent, queue=wanted, retry=None, timeout=CALL_SECONDS_MAX)
                return [Change(name, "", "", "a queue")]
            values = {path: (_value(found, path), _value(wanted, path)) for path in _PATHS}
            changes = [Change(name, path, str(is_), str(should)) for path, (is_, should) in values.items() if is_ != should]
            if changes and not check:
                mask = FieldMask(paths=[change.setting for change in changes])
                await self._client.update_queue(queue=wanted, update_mask=mask, retry=None, timeout=CALL_SECONDS_MAX)
        return changes


_PATHS = (
    "retry_config.max_attempts",
    "retry_config.max_retry_duration",
    "retry_config.min_backoff",
    "retry_config.max_backoff",
    "retry_config.max_doublings",
    "rate_limits.max_concurrent_dispatches",
)


def _value(queue: Queue, path: str) -> Any:
    group, _, name = path.partition(".")
    return getattr(getattr(queue, group), name) or (timedelta(0) if name.endswith("duration") else 0)


def _age(at: datetime) -> float:
    return max(0.0, (datetime.now(UTC) - at).total_seconds())


_gauge: type[Gauge] = CloudTasksGauge
_creator: type[Creator] = CloudTasksCreator
