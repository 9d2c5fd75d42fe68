"""Ports for what has not started yet."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from prevue.errors import PrevueError
from prevue.local import ports


def test_no_port_is_given_twice_though_nobody_listens_yet() -> None:
    """A deployer once found its health port taken by another server of its own stack: two calls had been given one number."""
    few = range(ports.PORTS.start, ports.PORTS.start + 60)
    with patch.object(ports, "PORTS", few), patch.object(ports, "_given", set()):
        found = [port for _ in range(10) for port in ports.free_ports(5)]
        assert len(set(found)) == 50
        assert set(found) <= set(few)
        with pytest.raises(PrevueError, match="no free ports between"):
            ports.free_ports(20)
