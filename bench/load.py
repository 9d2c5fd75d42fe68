"""A load generator that is not the bottleneck: raw HTTP/1.1 over kept connections, each with one request in flight.

A general client costs more than the servers that are measured here. Requests are bytes made beforehand; of an answer only status and
length are read. Answers must have a Content-Length.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from time import perf_counter
from typing import cast

import msgspec

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Measured(msgspec.Struct):
    """What one run saw. `latencies` in seconds."""

    seconds: float
    latencies: list[float]
    statuses: dict[int, int]

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds


class _Connection(asyncio.Protocol):
    def __init__(self, requests: Iterator[bytes], latencies: list[float], statuses: Counter[int]) -> None:
        self._requests = requests
        self._latencies = latencies
        self._statuses = statuses
        self._buffer = b""
        self._sent_at = 0.0
        self._transport: asyncio.WriteTransport
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's own class inherits from nothing of asyncio's

    def start(self) -> None:
        """Send the next request, or end."""
        request = next(self._requests, None)
        if request is None:
            self._transport.close()
            return
        self._sent_at = perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(self._buffer, 0, head)
        if length is None:
            self.ended.set_exception(RuntimeError(f"an answer without Content-Length: {self._buffer[:200]!r}"))
            return
        if len(self._buffer) < head + 4 + int(length[1]):
            return
        self._latencies.append(perf_counter() - self._sent_at)
        self._statuses[int(self._buffer[9:12])] += 1
        self._buffer = b""
        self.start()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            if exc is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(exc)


async def run_load(port: int, requests: Iterator[bytes], *, connections: int) -> Measured:
    """Send all of `requests` to a server on this machine, `connections` at a time; each is sent once.

    Raises:
        RuntimeError: a connection was closed under a request: the figures would be wrong.
    """
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    loop = asyncio.get_running_loop()
    made = [
        (await loop.create_connection(lambda: _Connection(requests, latencies, statuses), "127.0.0.1", port))[1] for _ in range(connections)
    ]
    started = perf_counter()
    for connection in made:
        connection.start()
    await asyncio.gather(*(connection.ended for connection in made))
    seconds = perf_counter() - started
    if next(requests, None) is not None:
        raise RuntimeError("the server closed its connections before all requests were sent")
    return Measured(seconds, latencies, dict(statuses))
