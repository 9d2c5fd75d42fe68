"""A load balancer for one machine: `python -m prevue.local.balancer --port 9000 --to 9001,9002` hands connections out in turn.

What stands in front of several Apps, or of the deployers' doors where Cloud Tasks' emulator posts to one address. A door that does not
listen is passed by.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from collections.abc import Sequence
from contextlib import suppress

from prevue.local.ports import LOOPBACK


async def serve(port: int, doors: Sequence[int]) -> None:
    """Serve until cancelled."""
    turns = itertools.count()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        turn = next(turns)
        try:
            for offset in range(len(doors)):
                with suppress(OSError):
                    far_reader, far_writer = await asyncio.open_connection(LOOPBACK, doors[(turn + offset) % len(doors)])
                    await _join(reader, writer, far_reader, far_writer)
                    return
        finally:
            writer.close()

    server = await asyncio.start_server(handle, LOOPBACK, port, backlog=1024)
    async with server:
        await server.serve_forever()


async def _join(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, far_reader: asyncio.StreamReader, far_writer: asyncio.StreamWriter
) -> None:
    """Pass bytes both ways until one side is gone; then the other learns of it."""
    ways = [asyncio.create_task(_copy(reader, far_writer)), asyncio.create_task(_copy(far_reader, writer))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        far_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()


def main() -> None:
    """The process, until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m prevue.local.balancer")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--to", required=True, help="ports, separated by commas")
    options = parser.parse_args()
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(options.port, [int(port) for port in options.to.split(",")]))


if __name__ == "__main__":
    main()
