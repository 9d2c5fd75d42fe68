"""The channel to Google: a connection may take its time to come up."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import grpc
import pytest

from prevue.queue.google import open_channel

HANDSHAKE_SECONDS = 0.6
"""What TCP, TLS and HTTP/2 take to another continent, or on a machine that has much else to do."""


async def test_a_connection_that_comes_up_slowly_is_not_an_outage() -> None:
    server = grpc.aio.server()  # without any service: whoever reaches it is told so
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    connections: list[asyncio.Task[object] | None] = []

    async def hand_on_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        await asyncio.sleep(HANDSHAKE_SECONDS)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_pass_on(reader, far_writer), _pass_on(far_reader, writer))

    front = await asyncio.start_server(hand_on_late, "127.0.0.1", 0)
    channel = open_channel(None, f"127.0.0.1:{front.sockets[0].getsockname()[1]}")
    try:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary("/prevue.Test/Call")(b"", timeout=3)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        await channel.close()
        front.close()
        await server.stop(None)
        await asyncio.gather(*filter(None, connections))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
