"""Commands and deliveries that the sweeper found, and what became of them.

Processes do not know each other: how a command is authorised, enqueued and acknowledged is the App's affair, and the wiring hands it in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from enum import StrEnum

import msgspec

from prevue.github.port import HookDelivery


class Answer(StrEnum):
    """What became of it."""

    TAKEN = "taken"
    """It is durable in the queue, or was there."""
    REFUSED = "refused"
    """It asks for nothing, or for what its asker may not have: looking again would end the same."""
    LATER = "later"
    """GitHub or the queue did not answer; nothing is known."""


class FoundCommand(msgspec.Struct, frozen=True, kw_only=True):
    """A `/preview` in a comment that no delivery brought."""

    installation_id: int
    repo: str
    repository_id: int
    pr_number: int
    comment_id: int
    requested_by: str
    requested_at: datetime


AcceptCommand = Callable[[FoundCommand], Awaitable[Answer]]
AcceptDelivery = Callable[[HookDelivery, bytes], Awaitable[Answer]]

WANTED = frozenset({("issue_comment", "created"), ("pull_request", "closed")})
"""Event and action of the deliveries that may ask for something; all others the App ignores."""
