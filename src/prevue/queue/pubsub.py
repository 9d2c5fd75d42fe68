"""The queue in Google Pub/Sub: a topic, and one pull subscription that all deployers share.

A deployer pulls only as many messages as it has free slots, extends their acknowledgement deadline while their handlers run, and
acknowledges, delays or gives back by that same deadline. What Pub/Sub repeats finds the claim.

- An acknowledgement deadline is 10 to 600 s; a longer delay comes back early, and the claim's verdict delays it again:
  https://cloud.google.com/pubsub/docs/lease-management
- Dead lettering counts every delivery, those that were only delayed too, and is best effort:
  https://cloud.google.com/pubsub/docs/handling-failures
- There is no count of what waits; Cloud Monitoring has one, minutes old: https://cloud.google.com/pubsub/docs/monitoring
"""

from __future__ import annotations

import asyncio
import functools
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import structlog
from google.api_core.exceptions import DeadlineExceeded
from google.pubsub_v1 import PublisherAsyncClient, PubsubMessage, ReceivedMessage, SubscriberAsyncClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport

from prevue.config import PubSubSettings
from prevue.errors import MessageInvalid, QueueUnavailable
from prevue.masking import without_secrets
from prevue.model import Message, decode_message, encode_message
from prevue.queue.addresses import PubSubAddress
from prevue.queue.google import CALL_SECONDS_MAX, ENQUEUE_SECONDS_MAX, open_channel, outages_as_unavailable
from prevue.queue.handling import OUTAGE_SECONDS, OUTAGE_SECONDS_MAX, after_failure, ask, settle
from prevue.queue.port import Consumer, Done, Enqueued, Enqueuer, Handler, Release, RetryAfter, Settlement

LEASE_SECONDS = 30.0
"""How long a received message is kept from others; extended at a third of it. A dead deployer's messages come back after it."""
PULL_SECONDS = 60.0
"""A pull that has brought nothing is begun anew."""
DELAY_SECONDS_MAX = 600
"""Longest acknowledgement deadline."""

_log = structlog.get_logger(__name__)


def endpoint_of(settings: PubSubSettings) -> str:
    """The emulator's address, from the settings or the vendor's own variable; empty: Google."""
    return settings.endpoint or os.environ.get("PUBSUB_EMULATOR_HOST", "")


class PubSubEnqueuer:
    """What the GitHub App opens: one Publish a message."""

    def __init__(self, publisher: PublisherAsyncClient, topic: str) -> None:
        self._publisher = publisher
        self._topic = topic

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, settings: PubSubSettings) -> AsyncIterator[PubSubEnqueuer]:
        """An enqueuer; it connects when it is first used."""
        address = PubSubAddress.parse(url)
        async with open_publisher(settings) as publisher:
            yield cls(publisher, address.topic)

    async def enqueue(self, message: Message) -> Enqueued:
        """As the port says; Pub/Sub recognises no repeats."""
        body = PubsubMessage(data=encode_message(message))
        with outages_as_unavailable():
            await self._publisher.publish(topic=self._topic, messages=[body], retry=None, timeout=ENQUEUE_SECONDS_MAX)
        return Enqueued()

    async def check(self) -> None:
        """As the port says: the topic is there; needs `pubsub.topics.get`."""
        with outages_as_unavailable():
            await self._publisher.get_topic(topic=self._topic, retry=None, timeout=ENQUEUE_SECONDS_MAX)


class _Received(NamedTuple):
    """One delivery of one message."""

    ack_id: str
    message_id: str
    deliveries: int
    """0: Pub/Sub counts them only under a dead-letter policy."""
    message: Message


class PubSubConsumer:
    """What a deployer opens; any number of processes may run one, each takes only as many messages as it has free slots."""

    def __init__(
        self,
        subscriber: SubscriberAsyncClient,
        publisher: PublisherAsyncClient,
        address: PubSubAddress,
        *,
        lease_seconds: float,
        hold_seconds_max: float,
    ) -> None:
        self._subscriber = subscriber
        self._publisher = publisher
        self._subscription = address.subscription
        self._dead_letter = address.dead_letter
        self._lease_seconds = lease_seconds
        self._hold_seconds_max = hold_seconds_max
        self._slot_free = asyncio.Event()
        self._held: dict[str, float] = {}
        """Acknowledgement ids of running handlers, and until when they are extended."""
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, settings: PubSubSettings, *, lease_seconds: float = LEASE_SECONDS) -> AsyncIterator[PubSubConsumer]:
        """A consumer; it connects when it is first used."""
        address = PubSubAddress.parse(url)
        hold = settings.hold_seconds_max
        async with open_subscriber(settings) as subscriber, open_publisher(settings) as publisher:
            yield cls(subscriber, publisher, address, lease_seconds=lease_seconds, hold_seconds_max=hold)

    async def run(self, handler: Handler, *, slots: int, stop: asyncio.Event) -> None:
        """As the port says."""
        # A group: a side task that fails ends everything, and a caller that cancels cancels the handlers, whose messages come back.
        async with asyncio.TaskGroup() as group:
            extending = group.create_task(self._extend(), name="queue-extend")
            stopping = group.create_task(stop.wait(), name="queue-stop")
            await self._receive_until(stopping, handler, slots, group)
            while self._tasks:  # their deadlines are still extended
                await asyncio.wait(self._tasks)
            extending.cancel()

    async def _receive_until(self, stopping: asyncio.Task[bool], handler: Handler, slots: int, group: asyncio.TaskGroup) -> None:
        outage = OUTAGE_SECONDS
        while not stopping.done():
            self._slot_free.clear()
            free = slots - len(self._tasks)
            if free <= 0:
                await _first_of(stopping, self._slot_free.wait())
                continue
            try:
                received = await self._receive(free, stopping)
            except QueueUnavailable as exc:
                _log.warning("queue_unavailable", error=str(exc), retry_seconds=outage)
                await _first_of(stopping, asyncio.sleep(outage))
                outage = min(OUTAGE_SECONDS_MAX, outage * 2)
                continue
            outage = OUTAGE_SECONDS
            for each in received:
                task = group.create_task(self._handle(handler, each), name=f"queue-message-{each.message_id}")
                self._tasks.add(task)
                task.add_done_callback(self._forget)

    async def _receive(self, limit: int, stopping: asyncio.Task[bool]) -> list[_Received]:
        """Take at most `limit` messages, or none when the stop comes first; one that cannot be decoded is set aside."""
        pull = asyncio.ensure_future(
            self._subscriber.pull(subscription=self._subscription, max_messages=limit, retry=None, timeout=PULL_SECONDS)
        )
        await _first_of(stopping, pull)
        if pull.cancelled():
            return []
        try:
            with outages_as_unavailable():
                messages = list(pull.result().received_messages)
        except QueueUnavailable as exc:
            if isinstance(exc.__cause__, DeadlineExceeded):
                return []  # nothing came in that time
            raise
        # From here on by our own lease, whatever deadline the subscription has; after the stop, back at once.
        await self._try_deadline([each.ack_id for each in messages], 0 if stopping.done() else self._lease_seconds)
        if stopping.done():
            return []
        return [received for each in messages if (received := await self._decoded(each)) is not None]

    async def _decoded(self, raw: ReceivedMessage) -> _Received | None:
        try:
            message = decode_message(raw.message.data)
        except MessageInvalid as exc:
            await self._set_aside(raw, str(exc))
            return None
        self._held[raw.ack_id] = time.monotonic() + self._hold_seconds_max
        return _Received(raw.ack_id, raw.message.message_id, raw.delivery_attempt, message)

    async def _set_aside(self, raw: ReceivedMessage, reason: str) -> None:
        """To the dead-letter topic where there is one, else into the log; then it is acknowledged. Failing that, it comes back."""
        body = raw.message.data.decode(errors="replace")
        kept = {} if self._dead_letter else {"body": without_secrets(body)}
        _log.error("queue_message_set_aside", queue_message=raw.message.message_id, error=reason, **kept)
        try:
            if self._dead_letter:
                copy = PubsubMessage(data=raw.message.data, attributes={"prevue-reason": reason[:1000]})
                with outages_as_unavailable():
                    await self._publisher.publish(topic=self._dead_letter, messages=[copy], retry=None, timeout=CALL_SECONDS_MAX)
        except QueueUnavailable as exc:
            _log.warning("queue_settlement_failed", error=str(exc))
        else:
            await self._try_acknowledge(raw.ack_id)

    async def _handle(self, handler: Handler, received: _Received) -> None:
        """One delivery, from the handler to the settlement. Nothing but cancellation leaves this."""
        try:
            answer = await ask(handler, received.message)
            if isinstance(answer, BaseException):
                answer = after_failure(answer, earlier=received.deliveries - 1, queue_message=received.message_id)
            await settle(functools.partial(self._settle_once, received, answer), lease_seconds=self._lease_seconds)
        except asyncio.CancelledError:
            # The caller cancelled the handler: give the message back now, if that is quick; else its lease ends.
            self._held.pop(received.ack_id, None)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._try_deadline([received.ack_id], 0), CALL_SECONDS_MAX)
            raise
        finally:
            self._held.pop(received.ack_id, None)

    async def _settle_once(self, received: _Received, settlement: Settlement) -> bool:
        match settlement:
            case Done():
                return await self._try_acknowledge(received.ack_id)
            case RetryAfter(delay):
                self._held.pop(received.ack_id, None)  # an extension would undo the delay
                return await self._try_deadline([received.ack_id], max(delay, _spread(received.deliveries)))
            case Release():
                self._held.pop(received.ack_id, None)
                return await self._try_deadline([received.ack_id], 0)

    async def _extend(self) -> None:
        """Keep the messages of running handlers ours; losing one is allowed, its repeat finds the claim."""
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            now = time.monotonic()
            await self._try_deadline([ack_id for ack_id, until in self._held.items() if until > now], self._lease_seconds)

    async def _try_acknowledge(self, ack_id: str) -> bool:
        try:
            with outages_as_unavailable():
                await self._subscriber.acknowledge(subscription=self._subscription, ack_ids=[ack_id], retry=None, timeout=CALL_SECONDS_MAX)
        except QueueUnavailable as exc:
            _log.warning("queue_settlement_failed", error=str(exc))
            return False
        return True

    async def _try_deadline(self, ack_ids: Sequence[str], seconds: float) -> bool:
        """Their deadline is `seconds` from now; 0: they are for anybody at once."""
        if not ack_ids:
            return True
        whole = min(DELAY_SECONDS_MAX, max(0, math.ceil(seconds)))
        try:
            with outages_as_unavailable():
                await self._subscriber.modify_ack_deadline(
                    subscription=self._subscription,
                    ack_ids=list(ack_ids),
                    ack_deadline_seconds=whole,
                    retry=None,
                    timeout=CALL_SECONDS_MAX,
                )
        except QueueUnavailable as exc:
            _log.warning("queue_settlement_failed", error=str(exc))
            return False
        return True

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slot_free.set()


def _spread(deliveries: int) -> float:
    """The shortest delay under a dead-letter policy, which counts every delivery: its hundred must outlast an outage of the statestore.

    A hundred deliveries so take about seven hours; then the message goes to the dead-letter topic, and the sweeper finds its command.
    """
    return 0.0 if deliveries <= 10 else min(DELAY_SECONDS_MAX, 5.0 * 2 ** (deliveries / 10))


async def _first_of(stopping: asyncio.Task[bool], other: Awaitable[object]) -> None:
    """Wait for the stop or for `other`, which is cancelled when the stop comes first."""
    waiting = asyncio.ensure_future(other)
    try:
        await asyncio.wait({stopping, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not waiting.done():
            waiting.cancel()
            await asyncio.wait({waiting})


@asynccontextmanager
async def open_publisher(settings: PubSubSettings) -> AsyncIterator[PublisherAsyncClient]:
    channel = open_channel(PublisherGrpcAsyncIOTransport, endpoint_of(settings))
    try:
        yield PublisherAsyncClient(transport=PublisherGrpcAsyncIOTransport(channel=channel))
    finally:
        await channel.close()


@asynccontextmanager
async def open_subscriber(settings: PubSubSettings) -> AsyncIterator[SubscriberAsyncClient]:
    channel = open_channel(SubscriberGrpcAsyncIOTransport, endpoint_of(settings))
    try:
        yield SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel))
    finally:
        await channel.close()


_enqueuer: type[Enqueuer] = PubSubEnqueuer
_consumer: type[Consumer] = PubSubConsumer
