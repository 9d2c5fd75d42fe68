"""Ports of loopback for what this machine runs."""

from __future__ import annotations

import random
import socket

from prevue.errors import PrevueError

LOOPBACK = "127.0.0.1"
PORTS = range(20_000, 29_000)
"""Below the kernel's ephemeral ports (32768 on Linux), where an outgoing connection could take one before its process listens, and
below Kubernetes' node ports (30000): a port stays ours between two starts."""

_chance = random.SystemRandom()
_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """So many ports that nobody listens on just now, and that this process was not given before.

    A stack asks several times before its processes listen: two of them would get one port, once in some hundred starts.

    Raises:
        PrevueError: there are not so many.
    """
    held: list[socket.socket] = []
    try:
        for port in _chance.sample(PORTS, len(PORTS)):
            if port in _given:
                continue
            probe = socket.socket()
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                probe.close()
                continue
            held.append(probe)
            if len(held) == count:
                break
        else:
            raise PrevueError(f"no free ports between {PORTS.start} and {PORTS.stop} on {LOOPBACK}")
        found = [probe.getsockname()[1] for probe in held]
        _given.update(found)
        return found
    finally:
        for probe in held:
            probe.close()


def listens(port: int) -> bool:
    """Whether somebody takes connections on this port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOOPBACK, port)) == 0
