"""The queue port: durable, at least once, and nothing more.

A queue may repeat a message, reorder messages and hold them back. Being done once, in the right order, is the statestore's promise;
attempts and dead letters are counted there too, alike for every queue. How a backend receives, extends and redelivers is its own affair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from prevue.model import Message


class Enqueued(msgspec.Struct, frozen=True):
    """The message is durable in the queue."""


class AlreadyEnqueued(msgspec.Struct, frozen=True):
    """An unsettled message of the same identity is in the queue; the call changed nothing."""


class Done(msgspec.Struct, frozen=True):
    """Settle the message: its request is durable in the statestore, or it can never be carried out."""


class RetryAfter(msgspec.Struct, frozen=True):
    """Deliver again, not before `delay` seconds have passed, or its backend's longest delay where that is less."""

    delay: float


class Release(msgspec.Struct, frozen=True):
    """Give back at once, to whoever is there: this deployer is stopping."""


Settlement = Done | RetryAfter | Release
Handler = Callable[[Message], Awaitable[Settlement]]


class Enqueuer(Protocol):
    """What the GitHub App and the sweeper need of a queue."""

    async def enqueue(self, message: Message) -> Enqueued | AlreadyEnqueued:
        """Make `message` durable; at return it survives a crash of anybody.

        `AlreadyEnqueued` only while an unsettled message of the same identity (github_host, repository_id, pr_number, source,
        source_id) is there; never merely because of an equal `idempotency_key`. A backend may always answer `Enqueued`. A settled
        message never blocks a new one.

        Raises:
            QueueUnavailable: nothing can be said; the message may or may not be in the queue, and enqueuing it again is harmless.
            MessageInvalid: the message is too large.
        """
        ...

    async def check(self) -> None:
        """Return if the queue can be reached and would take a message.

        Raises:
            QueueUnavailable: it cannot.
        """
        ...


class Consumer(Protocol):
    """What a deployer needs of a queue."""

    async def run(self, handler: Handler, *, slots: int, stop: asyncio.Event) -> None:
        """Receive messages and hand each to `handler`, at most `slots` at once, until `stop` is set; then wait for the running handlers.

        Every received message is settled by the handler's answer or comes back: when the handler raises, when the process dies, when
        the connection is lost. While a handler runs the backend keeps the message from others as well as it can; a repeat is allowed.
        A message that cannot be decoded is logged and set aside; it never stops the others. After `stop` no further message is taken;
        if the caller cancels, handlers are cancelled and their messages come back. An outage of the queue is waited out, with backoff.
        """
        ...


class Depth(msgspec.Struct, frozen=True):
    """How much waits in a queue: the base for autoscaling. None: this queue cannot say."""

    messages: int | None
    """Unsettled messages, those that are being worked on included where the queue counts them; an estimate where its vendor gives one."""
    oldest_seconds: float | None
    """Age of the oldest unsettled message; 0.0 when there is none."""


class Gauge(Protocol):
    """What `prevue queue depth` and the metrics need of a queue."""

    async def depth(self) -> Depth:
        """Ask the queue now.

        Raises:
            QueueUnavailable: it does not answer.
        """
        ...


class Change(msgspec.Struct, frozen=True):
    """Where a queue at its vendor is not as Prevue wants it."""

    resource: str
    setting: str
    """Empty: the resource itself."""
    found: str
    """Empty: it is not there."""
    wanted: str


class Creator(Protocol):
    """What `prevue queue create` needs of a queue that is made at its vendor."""

    async def create(self, *, slots: int, check: bool) -> list[Change]:
        """Make what is missing and change what differs; returns that. `check`: change nothing. Twice is harmless.

        `slots`: of all deployers together, where the queue limits how much it hands out at once.

        Raises:
            QueueUnavailable: the vendor does not answer, or refuses.
        """
        ...
