"""A TCP proxy on 127.0.0.1 that a test can cut: how a server that is down or unreachable looks to its clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class Proxy:
    """Passes bytes both ways; `cut` resets every connection and refuses new ones until `mend`."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @classmethod
    @asynccontextmanager
    async def to(cls, url: str) -> AsyncIterator[Proxy]:
        """A proxy to the host and port of `url`."""
        address = urlsplit(url)
        if address.hostname is None or address.port is None:
            raise ValueError("the URL must name host and port")
        proxy = cls(address.hostname, address.port)
        await proxy.mend()
        try:
            yield proxy
        finally:
            await proxy.cut()

    async def mend(self) -> None:
        """Take connections, on the same port as before."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    def sever(self) -> None:
        """Refuse new connections and reset those there are, as soon as the loop turns."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._tasks:
            task.cancel()

    async def cut(self) -> None:
        """As `sever`; returns when all are reset."""
        self.sever()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        writers = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            writers.append(far_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, far_writer))
                group.create_task(_copy(far_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass  # cut, or the far side is gone: the near side sees a reset, which is what it is for
        finally:
            for each in writers:
                each.transport.abort()
            for each in writers:
                with suppress(OSError):
                    await each.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
