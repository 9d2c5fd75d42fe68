"""What Google's two queues have in common: the channel, what an outage is, and the waits between attempts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.api_core.exceptions import GoogleAPICallError, RetryError
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError

from prevue.errors import ConfigError, QueueUnavailable
from prevue.masking import foreign_text

ENQUEUE_SECONDS_MAX = 3.0
"""An enqueue that takes longer has failed: GitHub waits 10 s for its answer, and lists the delivery as failed, which is repaired."""
CALL_SECONDS_MAX = 5.0
"""Every other call."""

CHANNEL_OPTIONS = (
    # gRPC's own waits grow to two minutes: a queue that is back would not be noticed.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Not a wait, but how long one attempt to connect may take: TCP, TLS and HTTP/2, on a bad day.
    ("grpc.min_reconnect_backoff_ms", int(ENQUEUE_SECONDS_MAX * 1000)),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.keepalive_time_ms", 30_000),
)


def open_channel(transport: Any, endpoint: str) -> grpc.aio.Channel:
    """A channel to Google with the environment's credentials, or in plain text to `endpoint`, an emulator, with none.

    Raises:
        ConfigError: there are no credentials.
    """
    if endpoint:
        return grpc.aio.insecure_channel(endpoint, options=CHANNEL_OPTIONS)
    try:
        return transport.create_channel(transport.DEFAULT_HOST, options=CHANNEL_OPTIONS)
    except DefaultCredentialsError as exc:
        raise ConfigError(f"queue.url: no Google credentials: {foreign_text(str(exc))}") from exc


@contextmanager
def outages_as_unavailable() -> Iterator[None]:
    """Whatever Google's clients raise becomes `QueueUnavailable`: a missing queue or right too, which an operator mends."""
    try:
        yield
    except (GoogleAPICallError, RetryError, GoogleAuthError) as exc:
        raise QueueUnavailable(f"{type(exc).__name__}: {foreign_text(str(exc))}") from exc
