"""The local load balancer: connections in turn, past a door that does not listen."""

from __future__ import annotations

import asyncio

from prevue.local.balancer import serve
from prevue.local.ports import free_ports
from prevue.testing.contracts.queue import eventually


async def _door(port: int, name: bytes) -> asyncio.Server:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(name + await reader.readline())
        await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", port)


async def _ask(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"?\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_connections_are_handed_out_in_turn_past_a_door_that_is_shut() -> None:
    front, first, shut, third = free_ports(4)
    doors = [await _door(first, b"1"), await _door(third, b"3")]
    balancing = asyncio.create_task(serve(front, [first, shut, third]))
    answers: list[bytes] = []

    async def ask_until_it_listens() -> None:
        while not answers:
            try:
                answers.append(await _ask(front))
            except OSError:
                await asyncio.sleep(0.01)

    await asyncio.wait_for(ask_until_it_listens(), 10)
    answers += [await _ask(front) for _ in range(5)]
    assert answers == [b"1?\n", b"3?\n", b"3?\n"] * 2
    for door in doors:
        door.close()
    assert await _ask(front) == b"", "nobody is there: the connection ends"
    balancing.cancel()
    await asyncio.wait({balancing})
    await eventually(balancing.cancelled)
