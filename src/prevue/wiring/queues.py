"""The queue by its URL: one table from scheme to backend, each imported only when it is chosen.

So the App imports its own queue's library and no other (docs/queues.md has the numbers).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from urllib.parse import urlsplit

from prevue.config import QueueSettings
from prevue.errors import ConfigError
from prevue.queue.port import Consumer, Enqueuer, Gauge


@dataclass(frozen=True)
class Backend:
    """How one kind of queue is opened; each function imports its backend."""

    enqueuer: Callable[[QueueSettings], AbstractAsyncContextManager[Enqueuer]]
    consumer: Callable[[QueueSettings], AbstractAsyncContextManager[Consumer]]
    gauge: Callable[[QueueSettings], AbstractAsyncContextManager[Gauge]]


def _postgres_enqueuer(settings: QueueSettings) -> AbstractAsyncContextManager[Enqueuer]:
    from prevue.queue.postgres import PostgresEnqueuer

    return PostgresEnqueuer.open(settings.url)


def _postgres_consumer(settings: QueueSettings) -> AbstractAsyncContextManager[Consumer]:
    from prevue.queue.postgres import PostgresConsumer

    return PostgresConsumer.open(settings.url)


def _postgres_gauge(settings: QueueSettings) -> AbstractAsyncContextManager[Gauge]:
    from prevue.queue.postgres import PostgresGauge

    return PostgresGauge.open(settings.url)


_POSTGRES = Backend(_postgres_enqueuer, _postgres_consumer, _postgres_gauge)
BACKENDS: dict[str, Backend] = {"postgresql": _POSTGRES, "postgres": _POSTGRES}


def open_enqueuer(settings: QueueSettings) -> AbstractAsyncContextManager[Enqueuer]:
    """The enqueuing side of the queue that `settings` name.

    Raises:
        ConfigError: no backend has this scheme; the message lists those that there are.
    """
    return _backend(settings).enqueuer(settings)


def open_consumer(settings: QueueSettings) -> AbstractAsyncContextManager[Consumer]:
    """The consuming side of the queue that `settings` name.

    Raises:
        ConfigError: as `open_enqueuer`.
    """
    return _backend(settings).consumer(settings)


def open_gauge(settings: QueueSettings) -> AbstractAsyncContextManager[Gauge]:
    """What measures the queue that `settings` name.

    Raises:
        ConfigError: as `open_enqueuer`.
    """
    return _backend(settings).gauge(settings)


def _backend(settings: QueueSettings) -> Backend:
    scheme = urlsplit(settings.url).scheme
    if scheme not in BACKENDS:
        raise ConfigError(f"queue.url: no queue has the scheme {scheme or '(none)'!r}; accepted: {', '.join(f'{s}://' for s in BACKENDS)}")
    return BACKENDS[scheme]
