"""The queue's contract, kept by Redis on a real server; and what is Redis' own: restarts, dead deployers, rights, durability."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis import Redis

from prevue.local.cluster.programs import redis_program
from prevue.local.redis import LocalRedis, environment
from prevue.model import Message
from prevue.queue.port import AlreadyEnqueued, Depth, Enqueued, Handler
from prevue.queue.redis import RedisConsumer, RedisEnqueuer, RedisGauge
from prevue.queue.redis_jobs import REJECTED_KEY, UNSETTLED_KEY, RedisJobs
from prevue.testing.contracts.queue import Queue, QueueContract, QueueHarness
from prevue.testing.proxy import Proxy

TIMED_KEYS = ("rq:wip:prevue", "rq:scheduled:prevue", UNSETTLED_KEY)
FIRST_SEEN = "rq:queue:prevue:intermediate:first_seen:*"


class RedisQueue:
    """Both sides, as one process would open them."""

    def __init__(self, enqueuer: RedisEnqueuer, consumer: RedisConsumer, gauge: RedisGauge) -> None:
        self._enqueuer = enqueuer
        self._consumer = consumer
        self._gauge = gauge

    async def enqueue(self, message: Message) -> Enqueued | AlreadyEnqueued:
        return await self._enqueuer.enqueue(message)

    async def check(self) -> None:
        await self._enqueuer.check()

    async def run(self, handler: Handler, *, slots: int, stop: asyncio.Event) -> None:
        await self._consumer.run(handler, slots=slots, stop=stop)

    async def depth(self) -> Depth:
        return await self._gauge.depth()

    def crash(self) -> None:
        pool = self._consumer._jobs.client.connection_pool
        pool.connection_kwargs["port"] = 1  # nobody listens there
        pool.disconnect()


class RedisHarness:
    """Time passes by moving the scores back; the network between is a proxy that can be cut."""

    def __init__(self, url: str, proxy: Proxy, client: Any) -> None:
        address = urlsplit(url)
        self.url = address._replace(netloc=f":{address.password}@127.0.0.1:{proxy.port}").geturl()
        self.proxy = proxy
        self.client = client

    @asynccontextmanager
    async def open(self, *, lease_seconds: float = 10) -> AsyncIterator[Queue]:
        async with (
            RedisEnqueuer.open(self.url) as enqueuer,
            RedisConsumer.open(self.url, lease_seconds=lease_seconds, poll_seconds=0.1) as consumer,
            RedisGauge.open(self.url) as gauge,
        ):
            yield RedisQueue(enqueuer, consumer, gauge)

    async def let_time_pass(self, seconds: float) -> None:
        for key in TIMED_KEYS:
            for member in self.client.zrange(key, 0, -1):
                self.client.zadd(key, {member: -seconds}, incr=True, xx=True)
        for key in self.client.keys(FIRST_SEEN):
            self.client.incrbyfloat(key, -seconds)

    async def put_raw(self, body: str) -> None:
        RedisJobs(self.client).put(body, description="raw")

    async def rejected(self) -> list[str]:
        entries = [json.loads(entry) for entry in self.client.lrange(REJECTED_KEY, 0, -1)]
        return [entry["body"] for entry in entries if entry["reason"] and entry["at"]]

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        await self.proxy.cut()
        try:
            yield
        finally:
            await self.proxy.mend()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRedis]:
    """A real server; the first run on a machine fetches it."""
    program, libraries = redis_program(print)
    one = LocalRedis(tmp_path_factory.mktemp("redis"), program, environment(libraries))
    one.start()
    try:
        yield one
    finally:
        one.stop()
        one.remove()


@pytest.fixture
def client(server: LocalRedis) -> Iterator[Any]:
    """The server, empty."""
    with Redis.from_url(server.url()) as one:
        one.flushall()
        yield one


class TestRedisQueue(QueueContract):
    @pytest.fixture
    async def harness(self, server: LocalRedis, client: Any) -> AsyncIterator[QueueHarness]:
        async with Proxy.to(server.url()) as proxy:
            yield RedisHarness(server.url(), proxy, client)
