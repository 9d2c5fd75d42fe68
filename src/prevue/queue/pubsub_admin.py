"""Measure and make the Pub/Sub topic and subscription: for operators and autoscaling, apart from what the processes need at every start."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

from google.api_core.exceptions import NotFound
from google.cloud.monitoring_v3 import ListTimeSeriesRequest, MetricServiceAsyncClient, TimeInterval
from google.cloud.monitoring_v3.services.metric_service.transports import MetricServiceGrpcAsyncIOTransport
from google.protobuf.field_mask_pb2 import FieldMask
from google.pubsub_v1 import DeadLetterPolicy, ExpirationPolicy, PublisherAsyncClient, RetryPolicy, SubscriberAsyncClient, Subscription

from prevue.config import PubSubSettings
from prevue.queue.addresses import PubSubAddress
from prevue.queue.google import CALL_SECONDS_MAX, open_channel, outages_as_unavailable
from prevue.queue.port import Change, Creator, Depth, Gauge
from prevue.queue.pubsub import LEASE_SECONDS, endpoint_of, open_publisher, open_subscriber

METRIC_SECONDS = 600
"""How far back the newest value is looked for; Pub/Sub's are written every minute and can be seen some minutes later."""
RETENTION = timedelta(days=7)
DELIVERIES_MAX = 100
"""Before the dead-letter topic; Pub/Sub's own limit."""
RETRY = RetryPolicy(minimum_backoff=timedelta(seconds=1), maximum_backoff=timedelta(seconds=60))


class PubSubGauge:
    """Cloud Monitoring's counts, minutes old. An emulator has none: it is asked whether the subscription is there, and nothing is known."""

    def __init__(self, address: PubSubAddress, subscriber: SubscriberAsyncClient, metrics: MetricServiceAsyncClient | None) -> None:
        self._address = address
        self._subscriber = subscriber
        self._metrics = metrics

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, settings: PubSubSettings) -> AsyncIterator[PubSubGauge]:
        """A gauge; needs `roles/monitoring.viewer`."""
        address = PubSubAddress.parse(url)
        async with AsyncExitStack() as stack:
            subscriber = await stack.enter_async_context(open_subscriber(settings))
            metrics = None
            if not endpoint_of(settings):
                channel = open_channel(MetricServiceGrpcAsyncIOTransport, "")
                stack.push_async_callback(channel.close)
                metrics = MetricServiceAsyncClient(transport=MetricServiceGrpcAsyncIOTransport(channel=channel))
            yield cls(address, subscriber, metrics)

    async def depth(self) -> Depth:
        """As the port says; None for what Monitoring does not tell (yet)."""
        with outages_as_unavailable():
            if self._metrics is None:
                await self._subscriber.get_subscription(subscription=self._address.subscription, retry=None, timeout=CALL_SECONDS_MAX)
                return Depth(None, None)
            messages = await self._newest(self._metrics, "num_undelivered_messages")
            oldest = await self._newest(self._metrics, "oldest_unacked_message_age")
        if messages == 0:
            oldest = 0
        return Depth(messages, None if oldest is None else float(oldest))

    async def _newest(self, metrics: MetricServiceAsyncClient, name: str) -> int | None:
        now = int(time.time())
        request = ListTimeSeriesRequest(
            name=f"projects/{self._address.project}",
            filter=f'metric.type="pubsub.googleapis.com/subscription/{name}"'
            f' AND resource.labels.subscription_id="{self._address.subscription_id}"',
            interval=TimeInterval(start_time={"seconds": now - METRIC_SECONDS}, end_time={"seconds": now}),
        )
        async for series in await metrics.list_time_series(request=request, retry=None, timeout=CALL_SECONDS_MAX):
            for point in series.points:  # newest first
                return int(point.value.int64_value)
        return None


class PubSubCreator:
    """`prevue queue create`; needs `roles/pubsub.editor`. Dead lettering also needs rights that Pub/Sub's own account is given by hand."""

    def __init__(self, address: PubSubAddress, publisher: PublisherAsyncClient, subscriber: SubscriberAsyncClient) -> None:
        self._address = address
        self._publisher = publisher
        self._subscriber = subscriber

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, settings: PubSubSettings) -> AsyncIterator[PubSubCreator]:
        """A creator."""
        address = PubSubAddress.parse(url)
        async with open_publisher(settings) as publisher, open_subscriber(settings) as subscriber:
            yield cls(address, publisher, subscriber)

    async def create(self, *, slots: int, check: bool) -> list[Change]:  # noqa: ARG002 (deployers limit themselves)
        """As the port says. A dead-letter topic gets a subscription of its own name: without one it would keep nothing."""
        address = self._address
        wanted = Subscription(
            name=address.subscription,
            topic=address.topic,
            ack_deadline_seconds=int(LEASE_SECONDS),
            message_retention_duration=RETENTION,
            expiration_policy=ExpirationPolicy(),  # without a time: never
            retry_policy=RETRY,
        )
        changes = []
        with outages_as_unavailable():
            changes += await self._topic(address.topic, check=check)
            if address.dead_letter:
                wanted.dead_letter_policy = DeadLetterPolicy(dead_letter_topic=address.dead_letter, max_delivery_attempts=DELIVERIES_MAX)
                changes += await self._topic(address.dead_letter, check=check)
                kept = Subscription(
                    name=f"projects/{address.project}/subscriptions/{address.dead_letter_id}",
                    topic=address.dead_letter,
                    message_retention_duration=RETENTION,
                    expiration_policy=ExpirationPolicy(),
                    ack_deadline_seconds=int(LEASE_SECONDS),
                )
                changes += await self._subscription(kept, check=check)
            changes += await self._subscription(wanted, check=check)
        return changes

    async def _topic(self, name: str, *, check: bool) -> list[Change]:
        try:
            await self._publisher.get_topic(topic=name, retry=None, timeout=CALL_SECONDS_MAX)
        except NotFound:
            if not check:
                await self._publisher.create_topic(name=name, retry=None, timeout=CALL_SECONDS_MAX)
            return [Change(name, "", "", "a topic")]
        return []

    async def _subscription(self, wanted: Subscription, *, check: bool) -> list[Change]:
        try:
            found = await self._subscriber.get_subscription(subscription=wanted.name, retry=None, timeout=CALL_SECONDS_MAX)
        except NotFound:
            if not check:
                await self._subscriber.create_subscription(request=wanted, retry=None, timeout=CALL_SECONDS_MAX)
            return [Change(wanted.name, "", "", f"a subscription of {wanted.topic}")]
        changes = [Change(wanted.name, path, *pair) for path, pair in _settings(found, wanted).items() if pair[0] != pair[1]]
        if changes and not check:
            mask = FieldMask(paths=sorted({change.setting.partition(".")[0] for change in changes}))
            await self._subscriber.update_subscription(subscription=wanted, update_mask=mask, retry=None, timeout=CALL_SECONDS_MAX)
        return changes


def _settings(found: Subscription, wanted: Subscription) -> dict[str, tuple[str, str]]:
    """What is compared, as found and as wanted; a policy that is not wanted may be there."""

    def pair(read: Any) -> tuple[str, str]:
        return str(read(found)), str(read(wanted))

    compared = {
        "topic": pair(lambda one: one.topic),
        "ack_deadline_seconds": pair(lambda one: one.ack_deadline_seconds),
        "message_retention_duration": pair(lambda one: one.message_retention_duration),
        "expiration_policy": pair(lambda one: one.expiration_policy.ttl or "never"),
    }
    if "retry_policy" in wanted:
        compared["retry_policy.minimum_backoff"] = pair(lambda one: one.retry_policy.minimum_backoff)
        compared["retry_policy.maximum_backoff"] = pair(lambda one: one.retry_policy.maximum_backoff)
    if "dead_letter_policy" in wanted:
        compared["dead_letter_policy.dead_letter_topic"] = pair(lambda one: one.dead_letter_policy.dead_letter_topic)
        compared["dead_letter_policy.max_delivery_attempts"] = pair(lambda one: one.dead_letter_policy.max_delivery_attempts)
    return compared


_gauge: type[Gauge] = PubSubGauge
_creator: type[Creator] = PubSubCreator
