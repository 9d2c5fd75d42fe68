"""A small balancer in front of the Apps, as a Kubernetes Service is: connections in turn, and none to an App that does not listen."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

LOOPBACK = "127.0.0.1"
CHUNK = 65_536


class Balancer:
    """Passes bytes on; knows nothing of HTTP."""

    def __init__(self, backends: Sequence[int]) -> None:
        self._backends = tuple(backends)
        self._turns = itertools.count()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection from end to end."""
        first = next(self._turns)
        try:
            for offset in range(len(self._backends)):
                with suppress(OSError):
                    backend = await asyncio.open_connection(LOOPBACK, self._backends[(first + offset) % len(self._backends)])
                    await _both_ways((reader, writer), backend)
                    return
        finally:
            writer.close()


async def _both_ways(
    one: tuple[asyncio.StreamReader, asyncio.StreamWriter], other: tuple[asyncio.StreamReader, asyncio.StreamWriter]
) -> None:
    ways = [asyncio.create_task(_pass_on(one[0], other[1])), asyncio.create_task(_pass_on(other[0], one[1]))]
    try:
        # A side that ends or breaks ends the connection: nobody here half-closes one and goes on.
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        other[1].close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def balance(port: int, backends: Sequence[int]) -> AsyncIterator[None]:
    """Listen on `port` inside the block."""
    server = await asyncio.start_server(Balancer(backends), LOOPBACK, port)
    try:
        yield
    finally:
        server.close()
