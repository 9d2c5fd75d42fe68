"""The queue's contract, kept by Pub/Sub, as far as its emulator can show it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx2
import pytest
from google.pubsub_v1 import PublisherAsyncClient, PubsubMessage, SubscriberAsyncClient

from prevue.config import PubSubSettings
from prevue.local.emulators import PubSubEmulator
from prevue.queue.pubsub import PubSubConsumer, PubSubEnqueuer, open_publisher, open_subscriber
from prevue.queue.pubsub_admin import PubSubGauge
from prevue.testing.contracts.queue import OpenedQueue, Queue, QueueContract, QueueHarness
from prevue.testing.proxy import Proxy

PROJECT = "test"
PASSED_SECONDS_MAX = 500
"""The emulator drops a message that nobody has acknowledged ten minutes after it was published; no delay under test is longer."""
_numbers = itertools.count(1)


class PubSubHarness:
    """Time passes by the emulator's clock; the network between is a proxy for each process that can be cut."""

    def __init__(self, emulator: PubSubEmulator, publisher: PublisherAsyncClient, subscriber: SubscriberAsyncClient) -> None:
        number = next(_numbers)
        self._emulator = emulator
        self._publisher = publisher
        self._subscriber = subscriber
        self._topics = [f"projects/{PROJECT}/topics/t{number}", f"projects/{PROJECT}/topics/d{number}"]
        self._subscriptions = [f"projects/{PROJECT}/subscriptions/t{number}", f"projects/{PROJECT}/subscriptions/d{number}"]
        self._url = f"pubsub://{PROJECT}/t{number}?subscription=t{number}&dead_letter=d{number}"
        self._networks: list[Proxy] = []
        self._passed = 0.0

    async def make(self) -> None:
        for topic, subscription in zip(self._topics, self._subscriptions, strict=True):
            await self._publisher.create_topic(name=topic)
            await self._subscriber.create_subscription(name=subscription, topic=topic, ack_deadline_seconds=10)

    async def remove(self) -> None:
        for topic, subscription in zip(self._topics, self._subscriptions, strict=True):
            await self._subscriber.delete_subscription(subscription=subscription)
            await self._publisher.delete_topic(topic=topic)

    @asynccontextmanager
    async def open(self, *, lease_seconds: float = 10) -> AsyncIterator[Queue]:
        async with AsyncExitStack() as stack:
            network = await stack.enter_async_context(Proxy.to(f"tcp://{self._emulator.endpoint}"))
            self._networks.append(network)
            settings = PubSubSettings(endpoint=f"127.0.0.1:{network.port}")
            enqueuer = await stack.enter_async_context(PubSubEnqueuer.open(self._url, settings))
            consumer = await stack.enter_async_context(PubSubConsumer.open(self._url, settings, lease_seconds=lease_seconds))
            gauge = await stack.enter_async_context(PubSubGauge.open(self._url, settings))
            yield OpenedQueue(enqueuer, consumer, gauge, crash=network.sever)  # its network is its own
            self._networks.remove(network)

    async def let_time_pass(self, seconds: float) -> None:
        step = min(seconds, PASSED_SECONDS_MAX - self._passed)
        self._passed += step
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.post(f"http://127.0.0.1:{self._emulator.clock_port}/advance", params={"seconds": step})
            answer.raise_for_status()

    async def put_raw(self, body: str) -> None:
        await self._publisher.publish(topic=self._topics[0], messages=[PubsubMessage(data=body.encode())])

    async def rejected(self) -> list[str]:
        pulled = await self._subscriber.pull(subscription=self._subscriptions[1], max_messages=100)
        assert all(each.message.attributes["prevue-reason"] for each in pulled.received_messages)
        return [each.message.data.decode() for each in pulled.received_messages]

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        for network in self._networks:
            await network.cut()
        try:
            yield
        finally:
            for network in self._networks:
                await network.mend()


class TestPubSubQueue(QueueContract):
    @pytest.fixture
    async def harness(self, pubsub_emulator: PubSubEmulator) -> AsyncIterator[QueueHarness]:
        settings = PubSubSettings(endpoint=pubsub_emulator.endpoint)
        async with open_publisher(settings) as publisher, open_subscriber(settings) as subscriber:
            harness = PubSubHarness(pubsub_emulator, publisher, subscriber)
            await harness.make()
            yield harness
            await harness.remove()
