"""uvicorn's HTTP protocol, with head and body of an answer in one write.

uvicorn hands them to the event loop apart, and uvloop sends each at once: two system calls, two packets and two wake-ups of the other
side for each answer, which is most of what a small answer costs. Here what is written within one turn of the loop goes out together.
It stands apart because it is about the server alone; without httptools uvicorn's own protocol serves as it is.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class JoinedWrites:
    """A transport whose writes of one turn of the event loop are one write; everything else is the transport's own."""

    __slots__ = ("_chunks", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._chunks: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send `data`, together with what else is written in this turn."""
        if not self._chunks:
            self._loop.call_soon(self._flush)
        self._chunks.append(data)

    def close(self) -> None:
        """Send what was written, then close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._chunks:
            data = b"".join(self._chunks)
            self._chunks.clear()
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def http_protocol() -> type[HttpToolsProtocol] | Literal["auto"]:
    """What to give uvicorn as `http`: the protocol with joined writes, or its own choice where httptools is not installed."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "auto"

    class JoiningProtocol(HttpToolsProtocol):
        """uvicorn's protocol over `JoinedWrites`."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
            super().connection_made(cast("asyncio.Transport", JoinedWrites(transport, self.loop)))

    return JoiningProtocol
