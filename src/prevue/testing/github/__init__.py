"""The one fake of GitHub: state without sockets, tasks or a clock of its own.

The tests and the simulation call it directly; the local GitHub (`prevue.local.github`) is its HTTP door. It is checked
against GitHub's published OpenAPI description and webhook schemas (`tests/contract/`), so what it answers has the shape
that GitHub's answers have, and nothing else.

Invariant: the same calls at the same times with the same seed give the same bytes.
"""

from prevue.testing.github.records import (
    Comment,
    Delivery,
    DeliveryResponse,
    Fault,
    Issue,
    Limits,
    Repository,
    Request,
    Response,
    User,
)
from prevue.testing.github.rest import FakeGitHub
from prevue.testing.github.state import ControlError

__all__ = [
    "FakeGitHub",
    "ControlError",
    "Request",
    "Response",
    "Delivery",
    "DeliveryResponse",
    "Fault",
    "Limits",
    "Repository",
    "Issue",
    "Comment",
    "User",
]
