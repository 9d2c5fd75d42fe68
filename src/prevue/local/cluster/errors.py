"""What can go wrong with the local cluster; the message always says what to do next."""

from __future__ import annotations

from prevue.errors import PrevueError


class LocalClusterError(PrevueError):
    """The local cluster cannot be used: the message names what failed and the next step."""
