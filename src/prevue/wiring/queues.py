"""The queue by its URL: one table from scheme to backend, each imported only when it is chosen.

So the App imports its own queue's library and no other (docs/queues.md has the numbers).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog

from prevue.config import QueueSettings
from prevue.errors import ConfigError, QueueUnavailable
from prevue.queue.port import Change, Consumer, Creator, Depth, Enqueuer, Gauge

DOUBTS_SECONDS_MAX = 5.0
"""A process does not wait longer for them before it starts."""

# Read when Google's libraries are imported. A process forks only to run Helm, where gRPC's handlers do nothing but complain.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Backend:
    """How one kind of queue is opened; each function imports its backend."""

    enqueuer: Callable[[QueueSettings], AbstractAsyncContextManager[Enqueuer]]
    consumer: Callable[[QueueSettings], AbstractAsyncContextManager[Consumer]]
    gauge: Callable[[QueueSettings], AbstractAsyncContextManager[Gauge]]
    next_step: str
    """What an operator looks at where it takes no message."""
    extra: str = ""
    """What must be installed beside Prevue: `prevue[extra]`; empty where Prevue brings it."""
    doubts: Callable[[QueueSettings], Awaitable[list[str]]] | None = None
    """What about the server's own settings could lose a message; for `prevue doctor`."""
    creator: Callable[[QueueSettings], AbstractAsyncContextManager[Creator]] | None = None
    """None: nothing is made at a vendor."""


def _postgres_enqueuer(settings: QueueSettings) -> AbstractAsyncContextManager[Enqueuer]:
    from prevue.queue.postgres import PostgresEnqueuer

    return PostgresEnqueuer.open(settings.url)


def _postgres_consumer(settings: QueueSettings) -> AbstractAsyncContextManager[Consumer]:
    from prevue.queue.postgres import PostgresConsumer

    return PostgresConsumer.open(settings.url)


def _postgres_gauge(settings: QueueSettings) -> AbstractAsyncContextManager[Gauge]:
    from prevue.queue.postgres import PostgresGauge

    return PostgresGauge.open(settings.url)


def _redis_enqueuer(settings: QueueSettings) -> AbstractAsyncContextManager[Enqueuer]:
    from prevue.queue.redis import RedisEnqueuer

    return RedisEnqueuer.open(settings.url)


def _redis_consumer(settings: QueueSettings) -> AbstractAsyncContextManager[Consumer]:
    from prevue.queue.redis import RedisConsumer

    return RedisConsumer.open(settings.url)


def _redis_gauge(settings: QueueSettings) -> AbstractAsyncContextManager[Gauge]:
    from prevue.queue.redis import RedisGauge

    return RedisGauge.open(settings.url)


async def _redis_doubts(settings: QueueSettings) -> list[str]:
    from prevue.queue.redis import RedisEnqueuer

    async with RedisEnqueuer.open(settings.url) as enqueuer:
        return await enqueuer.doubts()


def _cloud_tasks_enqueuer(settings: QueueSettings) -> AbstractAsyncContextManager[Enqueuer]:
    from prevue.queue.cloud_tasks import CloudTasksEnqueuer

    return CloudTasksEnqueuer.open(settings.url, settings.cloud_tasks)


def _cloud_tasks_consumer(settings: QueueSettings) -> AbstractAsyncContextManager[Consumer]:
    from prevue.queue.cloud_tasks import CloudTasksConsumer

    return CloudTasksConsumer.open(settings.cloud_tasks)


def _cloud_tasks_gauge(settings: QueueSettings) -> AbstractAsyncContextManager[Gauge]:
    from prevue.queue.cloud_tasks_admin import CloudTasksGauge

    return CloudTasksGauge.open(settings.url, settings.cloud_tasks)


def _cloud_tasks_creator(settings: QueueSettings) -> AbstractAsyncContextManager[Creator]:
    from prevue.queue.cloud_tasks_admin import CloudTasksCreator

    return CloudTasksCreator.open(settings.url, settings.cloud_tasks)


def _pubsub_enqueuer(settings: QueueSettings) -> AbstractAsyncContextManager[Enqueuer]:
    from prevue.queue.pubsub import PubSubEnqueuer

    return PubSubEnqueuer.open(settings.url, settings.pubsub)


def _pubsub_consumer(settings: QueueSettings) -> AbstractAsyncContextManager[Consumer]:
    from prevue.queue.pubsub import PubSubConsumer

    return PubSubConsumer.open(settings.url, settings.pubsub)


def _pubsub_gauge(settings: QueueSettings) -> AbstractAsyncContextManager[Gauge]:
    from prevue.queue.pubsub_admin import PubSubGauge

    return PubSubGauge.open(settings.url, settings.pubsub)


def _pubsub_creator(settings: QueueSettings) -> AbstractAsyncContextManager[Creator]:
    from prevue.queue.pubsub_admin import PubSubCreator

    return PubSubCreator.open(settings.url, settings.pubsub)


_POSTGRES = Backend(
    _postgres_enqueuer,
    _postgres_consumer,
    _postgres_gauge,
    next_step="is queue.url right and the database up? `prevue migrate` brings the table",
)
_REDIS = Backend(
    _redis_enqueuer,
    _redis_consumer,
    _redis_gauge,
    next_step="is queue.url right, and is it a primary that is up and not full? docs/queues.md has the rights and settings it needs",
    extra="redis",
    doubts=_redis_doubts,
)
_CLOUD_TASKS = Backend(
    _cloud_tasks_enqueuer,
    _cloud_tasks_consumer,
    _cloud_tasks_gauge,
    next_step="`prevue queue create` makes the queue, or says what it lacks; docs/queues/cloud-tasks.md has settings and roles",
    extra="gcp",
    creator=_cloud_tasks_creator,
)
_PUBSUB = Backend(
    _pubsub_enqueuer,
    _pubsub_consumer,
    _pubsub_gauge,
    next_step="`prevue queue create` makes topic and subscription, or says what they lack; docs/queues/pubsub.md has the roles",
    extra="gcp",
    creator=_pubsub_creator,
)
BACKENDS: dict[str, Backend] = {
    "postgresql": _POSTGRES,
    "postgres": _POSTGRES,
    "redis": _REDIS,
    "rediss": _REDIS,
    "cloudtasks": _CLOUD_TASKS,
    "pubsub": _PUBSUB,
}


def open_enqueuer(settings: QueueSettings) -> AbstractAsyncContextManager[Enqueuer]:
    """The enqueuing side of the queue that `settings` name.

    Raises:
        ConfigError: no backend has this scheme (the message lists those that there are), or its extra is not installed.
    """
    backend = _backend(settings)
    with _extra_required(backend):
        return backend.enqueuer(settings)


def open_consumer(settings: QueueSettings) -> AbstractAsyncContextManager[Consumer]:
    """The consuming side of the queue that `settings` name.

    Raises:
        ConfigError: as `open_enqueuer`.
    """
    backend = _backend(settings)
    with _extra_required(backend):
        return backend.consumer(settings)


def open_gauge(settings: QueueSettings) -> AbstractAsyncContextManager[Gauge]:
    """What measures the queue that `settings` name.

    Raises:
        ConfigError: as `open_enqueuer`.
    """
    backend = _backend(settings)
    with _extra_required(backend):
        return backend.gauge(settings)


def next_step(settings: QueueSettings) -> str:
    """What an operator looks at where the queue takes no message."""
    backend = BACKENDS.get(urlsplit(settings.url).scheme)
    return backend.next_step if backend else "docs/queues.md lists the queues and their URLs"


async def depth(settings: QueueSettings) -> Depth:
    """How much waits now.

    Raises:
        ConfigError: as `open_enqueuer`.
        QueueUnavailable: the queue does not answer.
    """
    async with open_gauge(settings) as gauge:
        return await gauge.depth()


async def create(settings: QueueSettings, *, slots: int, check: bool) -> list[Change]:
    """Make the queue at its vendor, or with `check` say what differs.

    Raises:
        ConfigError: as `open_enqueuer`, or this kind of queue is not made at a vendor.
        QueueUnavailable: the vendor does not answer, or refuses.
    """
    backend = _backend(settings)
    if backend.creator is None:
        raise ConfigError("queue.url: this queue needs nothing made at a vendor; its tables come with `prevue migrate`")
    with _extra_required(backend):
        opened = backend.creator(settings)
    async with opened as creator:
        return await creator.create(slots=slots, check=check)


async def queue_doubts(settings: QueueSettings) -> list[str]:
    """What about the queue's server could lose a message, in words that name the setting; empty where nothing is known.

    Raises:
        ConfigError: as `open_enqueuer`.
        QueueUnavailable: the server does not answer.
    """
    backend = _backend(settings)
    if backend.doubts is None:
        return []
    with _extra_required(backend):
        return await backend.doubts(settings)


async def warn_of_doubts(settings: QueueSettings) -> None:
    """Log `queue_doubts` at a process's start; a server that is down now is asked by `prevue doctor`."""
    with suppress(QueueUnavailable, TimeoutError):
        async with asyncio.timeout(DOUBTS_SECONDS_MAX):
            for text in await queue_doubts(settings):
                _log.warning("queue_durability_doubtful", text=text)


@contextmanager
def _extra_required(backend: Backend) -> Iterator[None]:
    """A library that is missing is a setting that is wrong: the queue was chosen and its extra was not installed."""
    try:
        yield
    except ModuleNotFoundError as exc:
        if not backend.extra or (exc.name or "").partition(".")[0] == "prevue":
            raise
        raise ConfigError(f"queue.url: this queue needs {exc.name}, which is not installed: pip install 'prevue[{backend.extra}]'") from exc


def _backend(settings: QueueSettings) -> Backend:
    scheme = urlsplit(settings.url).scheme
    if scheme not in BACKENDS:
        raise ConfigError(f"queue.url: no queue has the scheme {scheme or '(none)'!r}; accepted: {', '.join(f'{s}://' for s in BACKENDS)}")
    return BACKENDS[scheme]
