"""The queue in Redis, with RQ: for those who run Redis already.

RQ's client is a blocking one, so every command runs in a thread of ours and the deployer's one event loop only waits for it; handlers
run in that loop, as with every queue. No process, signal handler or log of RQ's is involved. A deployer takes a message only when a slot
is free, and extends its lease at a third of it; a deployer that dies is noticed when the lease ends, by whichever lives.

What "durable" means is the server's to say (`durability`): with AOF and Redis 7.2 each enqueue waits until it is on disk.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Concatenate, ParamSpec, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import structlog
from redis import BlockingConnectionPool, ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from prevue.errors import ConfigError, MessageInvalid, QueueUnavailable
from prevue.model import Message, decode_message, encode_message
from prevue.queue.handling import OUTAGE_SECONDS, OUTAGE_SECONDS_MAX, after_failure, ask, settle
from prevue.queue.port import AlreadyEnqueued, Consumer, Depth, Done, Enqueued, Enqueuer, Gauge, Handler, Release, RetryAfter, Settlement
from prevue.queue.redis_durability import doubts, sync_to_disk
from prevue.queue.redis_jobs import Delivery, RedisJobs

SCHEMES = ("redis", "rediss")
ENQUEUE_SECONDS_MAX = 3.0
"""An enqueue that takes longer has failed: GitHub waits 10 s for its answer, and lists the delivery as failed, which is repaired."""
ENQUEUE_THREADS = 64
"""Per App process, made as they are needed, each with a connection: one that waits for the disk (up to 1 s) does not hold up the others."""
LEASE_SECONDS = 15.0
"""How long a received message is kept from others; extended at a third of it. A dead deployer's messages come back after it. Longer than
PostgreSQL's, since it is measured by the deployers' clocks, which may differ by seconds."""
POLL_SECONDS = 1.0
"""One blocking wait for a message, and how often delays and leases that have ended are looked for; a stop is noticed after it."""
COMMAND_SECONDS_MAX = 5.0
"""Each command of a consumer; longer than a blocking wait, shorter than the lease."""
CONSUMER_THREADS = 4
"""One waits for messages; the others extend, settle and recover, each in under a millisecond."""

_P = ParamSpec("_P")
_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


class _Threads:
    """Blocking calls in threads of their own; a failure of Redis is `QueueUnavailable`."""

    def __init__(self, size: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(size, thread_name_prefix=name)

    def start(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> asyncio.Future[_T]:
        """The call, under way; cancelling the future does not end it."""
        return asyncio.get_running_loop().run_in_executor(self._pool, lambda: _translated(function, *args, **kwargs))

    async def close(self) -> None:
        """Wait for what runs, within its own bounds."""
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)


def _translated(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    try:
        return function(*args, **kwargs)
    except (RedisError, OSError) as exc:  # whatever Redis refuses: out of memory, read-only, password rotated, a right missing
        raise QueueUnavailable(f"Redis: {' '.join(str(exc).split())[:300] or type(exc).__name__}") from exc


class RedisEnqueuer:
    """What the GitHub App opens."""

    def __init__(self, url: str, threads: _Threads) -> None:
        self._url = url
        self._threads = threads
        self._own = threading.local()
        self._clients: list[Redis] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[RedisEnqueuer]:
        """An enqueuer; it connects when it is first used, so that a process can start although Redis is down."""
        check_url(url)
        threads = _Threads(ENQUEUE_THREADS, "redis-enqueue")
        enqueuer = cls(url, threads)
        try:
            yield enqueuer
        finally:
            await threads.close()
            for client in enqueuer._clients:
                client.close()

    async def enqueue(self, message: Message) -> Enqueued | AlreadyEnqueued:
        """As the port says; always `Enqueued`, and on disk where the server can tell."""
        body = encode_message(message).decode()
        await self._call(lambda: self._put(body, message.idempotency_key))
        return Enqueued()

    async def check(self) -> None:
        """As the port says: new enough, and it takes a write."""
        await self._call(lambda: _check(self._jobs().client))

    async def doubts(self) -> list[str]:
        """What about the server's settings could lose a message; see `redis_durability.doubts`."""
        return await self._call(lambda: doubts(self._jobs().client))

    async def _call(self, function: Callable[[], _T]) -> _T:
        try:
            async with asyncio.timeout(ENQUEUE_SECONDS_MAX):
                return await self._threads.start(function)
        except TimeoutError as exc:
            raise QueueUnavailable(f"Redis: no answer within {ENQUEUE_SECONDS_MAX:g} s") from exc

    def _put(self, body: str, description: str) -> None:
        jobs = self._jobs()
        jobs.put(body, description=description)
        sync_to_disk(jobs.client)

    def _jobs(self) -> RedisJobs:
        """This thread's, with one connection: WAITAOF speaks of what its own connection wrote."""
        if not hasattr(self._own, "jobs"):
            client = _client(self._url, connections=1, seconds_max=ENQUEUE_SECONDS_MAX)
            self._clients.append(client)
            self._own.jobs = RedisJobs(client)
        found: RedisJobs = self._own.jobs
        return found


class RedisGauge:
    """Reads the set of what is not settled."""

    def __init__(self, jobs: RedisJobs, threads: _Threads) -> None:
        self._jobs = jobs
        self._threads = threads

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[RedisGauge]:
        """A gauge, on a connection of its own."""
        async with _opened(url, 1, "redis-gauge") as (client, threads):
            yield cls(RedisJobs(client), threads)

    async def depth(self) -> Depth:
        """As the port says; exact."""
        return Depth(*await self._threads.start(self._jobs.depth))


class RedisConsumer:
    """What a deployer opens; any number of processes may run one, each takes only as many messages as it has free slots."""

    def __init__(self, jobs: RedisJobs, threads: _Threads, *, lease_seconds: float, poll_seconds: float) -> None:
        self._jobs = jobs
        self._threads = threads
        self._lease_seconds = lease_seconds
        self._poll_seconds = poll_seconds
        self._held: dict[str, Delivery] = {}
        """Deliveries of running handlers by their execution's id: what is extended."""
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, lease_seconds: float = LEASE_SECONDS, poll_seconds: float = POLL_SECONDS
    ) -> AsyncIterator[RedisConsumer]:
        """A consumer; it connects when it runs."""
        async with _opened(url, CONSUMER_THREADS, "redis-consumer") as (client, threads):
            holder = f"{socket.gethostname()}-{uuid4().hex[:8]}"
            jobs = RedisJobs(client, lease_seconds=lease_seconds, holder=holder)
            yield cls(jobs, threads, lease_seconds=lease_seconds, poll_seconds=poll_seconds)

    async def run(self, handler: Handler, *, slots: int, stop: asyncio.Event) -> None:
        """As the port says; a stop is noticed within `poll_seconds`."""
        # A group: a side task that fails ends everything, and a caller that cancels cancels the handlers, whose messages come back.
        async with asyncio.TaskGroup() as group:
            side_tasks = [
                group.create_task(self._every(self._lease_seconds / 3, self._extend), name="queue-extend"),
                group.create_task(self._every(self._poll_seconds, self._recover), name="queue-recover"),
            ]
            await self._receive_until(stop, handler, slots, group)
            while self._tasks:  # their leases are still extended
                await asyncio.wait(self._tasks)
            for task in side_tasks:
                task.cancel()

    async def _receive_until(self, stop: asyncio.Event, handler: Handler, slots: int, group: asyncio.TaskGroup) -> None:
        stopped = asyncio.ensure_future(stop.wait())
        outage = OUTAGE_SECONDS
        try:
            while not stop.is_set():
                if len(self._tasks) >= slots:
                    await asyncio.wait({stopped, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
                    continue
                try:
                    delivery = await self._take()
                except QueueUnavailable as exc:
                    _log.warning("queue_unavailable", error=str(exc), retry_seconds=outage)
                    await asyncio.wait({stopped}, timeout=outage)
                    outage = min(OUTAGE_SECONDS_MAX, outage * 2)
                    continue
                outage = OUTAGE_SECONDS
                if delivery is not None and stop.is_set():  # it came while we waited for the last time
                    await self._try_once(self._jobs.release, delivery)
                elif delivery is not None:
                    await self._begin(delivery, handler, group)
        finally:
            stopped.cancel()

    async def _take(self) -> Delivery | None:
        """Wait for a message; whoever cancels meanwhile does not lose what comes just then."""
        taking = self._threads.start(self._jobs.take, self._poll_seconds)
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            with suppress(QueueUnavailable):
                if (delivery := await taking) is not None:
                    await self._try_once(self._jobs.release, delivery)
            raise

    async def _begin(self, delivery: Delivery, handler: Handler, group: asyncio.TaskGroup) -> None:
        """Start the handler; what cannot be decoded is set aside, and never comes back."""
        try:
            message = decode_message(delivery.body)
        except MessageInvalid as exc:
            _log.error("queue_message_rejected", queue_message=delivery.job.id, error=str(exc))
            await self._try_once(self._jobs.reject, delivery, str(exc))
            return
        self._held[delivery.execution.id] = delivery
        task = group.create_task(self._handle(handler, delivery, message), name=f"queue-message-{delivery.job.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, handler: Handler, delivery: Delivery, message: Message) -> None:
        """One delivery, from the handler to the settlement. Nothing but cancellation leaves this."""
        try:
            try:
                answer = await ask(handler, message)
            except asyncio.CancelledError:
                await self._release_cancelled(delivery)
                raise
            await self._act_on(delivery, answer)
        finally:
            self._held.pop(delivery.execution.id, None)

    async def _act_on(self, delivery: Delivery, answer: Settlement | BaseException) -> None:
        match answer:
            case Done():
                await self._settle(delivery, self._jobs.done)
            case RetryAfter(delay):
                await self._settle(delivery, self._jobs.delay, max(0.0, delay))
            case Release():
                await self._settle(delivery, self._jobs.release)
            case _:
                backoff = after_failure(answer, earlier=delivery.failures, queue_message=delivery.job.id)
                await self._settle(delivery, self._jobs.delay, backoff.delay, failed=True)

    async def _settle(
        self, delivery: Delivery, step: Callable[Concatenate[Delivery, _P], object], *args: _P.args, **kwargs: _P.kwargs
    ) -> None:
        await settle(lambda: self._try_once(step, delivery, *args, **kwargs), lease_seconds=self._lease_seconds)

    async def _release_cancelled(self, delivery: Delivery) -> None:
        """The caller cancelled the handler: give the message back now, if that is quick; else its lease ends."""
        self._held.pop(delivery.execution.id, None)
        try:
            await asyncio.wait_for(self._try_once(self._jobs.release, delivery), COMMAND_SECONDS_MAX)
        except TimeoutError:
            _log.warning("queue_release_timed_out", queue_message=delivery.job.id)

    async def _extend(self) -> None:
        """Keep the messages of running handlers ours; losing one is allowed, its repeat finds the claim."""
        if self._held:
            await self._try_once(self._jobs.extend, list(self._held.values()))

    async def _recover(self) -> None:
        await self._try_once(self._jobs.recover)

    async def _every(self, seconds: float, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            await step()
            await asyncio.sleep(seconds)

    async def _try_once(self, function: Callable[_P, object], *args: _P.args, **kwargs: _P.kwargs) -> bool:
        try:
            await self._threads.start(function, *args, **kwargs)
        except QueueUnavailable as exc:
            _log.warning("queue_command_failed", command=getattr(function, "__name__", ""), error=str(exc))
            return False
        return True


def check_url(url: str) -> None:
    """Whether Redis' client can read it.

    Raises:
        ConfigError: it is no URL of Redis; its password is not shown.
    """
    try:
        parts = urlsplit(url)
        database = parts.path.strip("/")
        is_right = parts.scheme in SCHEMES and bool(parts.hostname) and parts.port != 0 and (not database or database.isdigit())
    except ValueError:  # a port that is none
        is_right = False
    if not is_right:
        raise ConfigError("queue.url: expected such as redis://:password@host:6379/0, or rediss:// with TLS")


def _client(url: str, *, connections: int, seconds_max: float) -> Redis:
    """Connections wait for their turn instead of failing; a broken one is made again once, since a repeat is harmless."""
    pool: ConnectionPool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=seconds_max,
        socket_timeout=seconds_max,
        socket_connect_timeout=seconds_max,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 1),
        client_name="prevue",
    )
    return Redis.from_pool(pool)


@asynccontextmanager
async def _opened(url: str, threads_max: int, name: str) -> AsyncIterator[tuple[Redis, _Threads]]:
    check_url(url)
    client = _client(url, connections=threads_max, seconds_max=COMMAND_SECONDS_MAX)
    threads = _Threads(threads_max, name)
    try:
        yield client, threads
    finally:
        await threads.close()
        client.close()


def _check(client: Redis) -> None:
    version = str(client.info("server")["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < (6, 2):
        raise QueueUnavailable(f"Redis {version} is too old: 6.2 or newer is needed (LMOVE)")
    client.set("prevue:checked", version, ex=60)  # a replica, a full server and a role without the right refuse it


_enqueuer: type[Enqueuer] = RedisEnqueuer
_consumer: type[Consumer] = RedisConsumer
_gauge: type[Gauge] = RedisGauge
