"""The queue by its URL: one dict from scheme to backend, each imported only when it is chosen."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from urllib.parse import urlsplit

from prevue.errors import ConfigError
from prevue.queue.port import Consumer, Enqueuer


def _postgres_enqueuer(url: str) -> AbstractAsyncContextManager[Enqueuer]:
    from prevue.queue.postgres import PostgresEnqueuer

    return PostgresEnqueuer.open(url)


def _postgres_consumer(url: str) -> AbstractAsyncContextManager[Consumer]:
    from prevue.queue.postgres import PostgresConsumer

    return PostgresConsumer.open(url)


ENQUEUERS: dict[str, Callable[[str], AbstractAsyncContextManager[Enqueuer]]] = {
    "postgresql": _postgres_enqueuer,
    "postgres": _postgres_enqueuer,
}
CONSUMERS: dict[str, Callable[[str], AbstractAsyncContextManager[Consumer]]] = {
    "postgresql": _postgres_consumer,
    "postgres": _postgres_consumer,
}


def open_enqueuer(url: str) -> AbstractAsyncContextManager[Enqueuer]:
    """The enqueuing side of the queue at `url`.

    Raises:
        ConfigError: no backend has this scheme; the message lists those that there are.
    """
    return ENQUEUERS[_scheme(url)](url)


def open_consumer(url: str) -> AbstractAsyncContextManager[Consumer]:
    """The consuming side of the queue at `url`.

    Raises:
        ConfigError: as `open_enqueuer`.
    """
    return CONSUMERS[_scheme(url)](url)


def _scheme(url: str) -> str:
    scheme = urlsplit(url).scheme
    if scheme not in ENQUEUERS:
        raise ConfigError(f"queue.url: no queue has the scheme {scheme or '(none)'!r}; accepted: {', '.join(f'{s}://' for s in ENQUEUERS)}")
    return scheme
