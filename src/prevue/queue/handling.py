"""What the backends have in common when they call a handler, and act on its answer: failures, backoff, a queue that is away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from prevue.model import Message
from prevue.queue.port import Handler, RetryAfter, Settlement

BACKOFF_SECONDS, BACKOFF_SECONDS_MAX = 1.0, 60.0
"""A message whose handler raised comes back after this, doubled with each failure."""
OUTAGE_SECONDS, OUTAGE_SECONDS_MAX = 0.1, 5.0
"""Waits between attempts while the queue is away, doubled each time."""

_log = structlog.get_logger(__name__)


async def ask(handler: Handler, message: Message) -> Settlement | BaseException:
    """The handler's settlement, or what it raised: a `CancelledError` too, where something inside was cancelled and the handler was not.

    Raises:
        CancelledError: the running task itself was asked to end.
    """
    try:
        return await handler(message)
    except asyncio.CancelledError as exc:
        task = asyncio.current_task()
        if task is not None and task.cancelling() > 0:
            raise
        return exc
    except Exception as exc:  # noqa: BLE001 (whatever it is: the message comes back, and the others go on)
        return exc


def after_failure(exc: BaseException, *, earlier: int, queue_message: object) -> RetryAfter:
    """When a message whose handler raised `exc` comes back; `earlier`: how often it failed or was delivered before."""
    backoff = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2 ** min(max(earlier, 0), 10)) * random.uniform(0.8, 1.2)  # noqa: S311
    _log.error("queue_handler_failed", queue_message=queue_message, retry_seconds=round(backoff, 1), exc_info=exc)
    return RetryAfter(backoff)


async def settle(step: Callable[[], Awaitable[bool]], *, lease_seconds: float) -> None:
    """Repeat `step` until it says that it is done, or the lease must have ended: from then on the message comes back anyway."""
    outage = OUTAGE_SECONDS
    until = asyncio.get_running_loop().time() + lease_seconds
    while not await step() and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(outage)
        outage = min(OUTAGE_SECONDS_MAX, outage * 2)
