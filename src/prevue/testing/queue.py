"""The queue's fake: one object is one process's view, the `QueueDisk` is what survives it.

A test crashes a process with `crash()` and opens another `FakeQueue` on the same disk. Time is the event loop's, plus what a test lets
pass with `QueueDisk.advance`; nothing is random, and messages come in the order in which they became available.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import uuid4

from prevue.errors import MessageInvalid, QueueUnavailable
from prevue.model import Message, decode_message, encode_message
from prevue.queue.identity import message_identity
from prevue.queue.port import AlreadyEnqueued, Consumer, Depth, Done, Enqueued, Enqueuer, Gauge, Handler, Release, RetryAfter, Settlement

LEASE_SECONDS = 10.0
"""How long a received message is kept from others; extended while its handler runs."""
BACKOFF_SECONDS = 1.0
"""A message whose handler raised comes back after this, doubled with each delivery, at most `BACKOFF_SECONDS_MAX`."""
BACKOFF_SECONDS_MAX = 60.0

_logger = logging.getLogger(__name__)


@dataclass
class Entry:
    """One unsettled message; `receipt` is 0 until it is received."""

    identity: str
    body: bytes
    available_at: float
    enqueued_at: float
    receipt: int = 0
    deliveries: int = 0


@dataclass
class QueueDisk:
    """What is durable."""

    entries: list[Entry] = field(default_factory=list)
    rejected: list[tuple[bytes, str]] = field(default_factory=list)
    """Bodies that could not be decoded, with the reason."""
    offset: float = 0.0
    outage: bool = False
    """While true, every call fails as if the queue were down."""
    receipts: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def now(self) -> float:
        """Seconds; only differences have a meaning."""
        return asyncio.get_running_loop().time() + self.offset

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass for leases and delays."""
        self.offset += seconds
        self.changed.set()

    def put_raw(self, body: bytes) -> None:
        """Place bytes that `enqueue` would never write."""
        self.entries.append(Entry(uuid4().hex, body, self.now(), self.now()))
        self.changed.set()

    def messages(self) -> list[Message]:
        """The unsettled messages, oldest first."""
        return [decode_message(entry.body) for entry in self.entries]


class FakeQueue:
    """Enqueuer, Consumer and Gauge on one disk."""

    def __init__(self, disk: QueueDisk | None = None, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self.disk = disk if disk is not None else QueueDisk()
        self._lease_seconds = lease_seconds
        self._crashed = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def enqueue(self, message: Message) -> Enqueued | AlreadyEnqueued:
        """As the port says."""
        body = encode_message(message)
        await self.check()
        identity = message_identity(message)
        if any(entry.identity == identity for entry in self.disk.entries):
            return AlreadyEnqueued()
        now = self.disk.now()
        self.disk.entries.append(Entry(identity, body, now, now))
        self.disk.changed.set()
        return Enqueued()

    async def check(self) -> None:
        """As the port says."""
        await asyncio.sleep(0)
        if self.disk.outage:
            raise QueueUnavailable("the fake queue is down")

    async def depth(self) -> Depth:
        """As the port says; exact."""
        await self.check()
        entries = self.disk.entries
        return Depth(len(entries), max((self.disk.now() - entry.enqueued_at for entry in entries), default=0.0))

    def crash(self) -> None:
        """Die as by SIGKILL: handlers are cancelled and nothing is given back; leases run out by themselves."""
        self._crashed = True
        for task in self._tasks:
            task.cancel()
        self.disk.changed.set()

    async def run(self, handler: Handler, *, slots: int, stop: asyncio.Event) -> None:
        """As the port says."""
        stopped = asyncio.create_task(self._wake_when(stop), name="fake-queue-stop")
        try:
            while not stop.is_set() and not self._crashed:
                self.disk.changed.clear()
                while len(self._tasks) < slots and (entry := self._take()) is not None:
                    task = asyncio.create_task(self._handle(handler, entry, entry.receipt), name=f"fake-queue-{entry.receipt}")
                    self._tasks.add(task)
                    task.add_done_callback(self._forget)
                await self._pause(has_room=len(self._tasks) < slots)
            await self._drain()
        except asyncio.CancelledError:
            for task in self._tasks:
                task.cancel()
            await self._drain()
            raise
        finally:
            stopped.cancel()

    async def _wake_when(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.disk.changed.set()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.disk.changed.set()

    async def _drain(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take(self) -> Entry | None:
        """The oldest available message, now leased; one that cannot be decoded is set aside on the way."""
        if self.disk.outage:
            return None
        now = self.disk.now()
        for entry in sorted(self.disk.entries, key=lambda each: each.available_at):
            if entry.available_at > now:
                return None
            try:
                decode_message(entry.body)
            except MessageInvalid as exc:
                _logger.warning("message set aside: %s", exc)
                self.disk.entries.remove(entry)
                self.disk.rejected.append((entry.body, str(exc)))
                continue
            self.disk.receipts += 1
            entry.receipt = self.disk.receipts
            entry.deliveries += 1
            entry.available_at = now + self._lease_seconds
            return entry
        return None

    async def _pause(self, *, has_room: bool) -> None:
        """Until something changed, the next message becomes available, or the stop; running messages are extended meanwhile."""
        now = self.disk.now()
        waits = [entry.available_at - now for entry in self.disk.entries] if has_room else []
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.01 if self.disk.outage else 0.001, min([*waits, self._lease_seconds / 3]))):
                await self.disk.changed.wait()

    async def _handle(self, handler: Handler, entry: Entry, receipt: int) -> None:
        keeper = asyncio.create_task(self._extend(entry, receipt), name=f"fake-queue-extend-{receipt}")
        settlement: Settlement
        try:
            settlement = await handler(decode_message(entry.body))
        except (Exception, asyncio.CancelledError) as exc:
            task = asyncio.current_task()
            if isinstance(exc, asyncio.CancelledError) and task is not None and task.cancelling() > 0:
                if not self._crashed:
                    self._settle(entry, receipt, Release())
                raise
            _logger.exception("a handler failed; its message comes back")
            settlement = RetryAfter(min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2 ** (entry.deliveries - 1)))
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        while self.disk.outage:  # noqa: ASYNC110 (waited out, as a real backend does; a test sets the flag, plainly)
            await asyncio.sleep(0.01)
        self._settle(entry, receipt, settlement)

    async def _extend(self, entry: Entry, receipt: int) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            if entry.receipt == receipt and not self.disk.outage:
                entry.available_at = self.disk.now() + self._lease_seconds

    def _settle(self, entry: Entry, receipt: int, settlement: Settlement) -> None:
        """Nothing happens where the message was received by another since."""
        if entry.receipt != receipt or entry not in self.disk.entries:
            return
        match settlement:
            case Done():
                self.disk.entries.remove(entry)
            case RetryAfter(delay):
                entry.available_at = self.disk.now() + delay
            case Release():
                entry.available_at = self.disk.now()
        entry.receipt = 0
        self.disk.changed.set()


_enqueuer: type[Enqueuer] = FakeQueue
_consumer: type[Consumer] = FakeQueue
_gauge: type[Gauge] = FakeQueue
