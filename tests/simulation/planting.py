"""Planted bugs: how one is registered and planted; the bugs themselves are in `bugs_claim.py` and `bugs.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from tests.simulation.world import Settings

from prevue import lifecycle
from prevue.testing import statestore

Plant = Callable[[], list[Any]]


def world_of(*kinds: str, **more: Any) -> Settings:
    """A world in which only some things go wrong: where a bug needs two rare ones, a full swarm would seldom have both."""
    return Settings(only=frozenset(kinds), **more)


UNFENCED = world_of("pause_deployer", "crash_deployer", "helm_slow", "store_hangs", "graceful_stop", "clock_jump", policy=False)
"""No admission policy: lease, token and deadline alone hold."""


@dataclass(frozen=True, kw_only=True)
class Bug:
    """One planted bug: what it is, the patches that plant it, and the world that it is looked for in."""

    name: str
    what: str
    breaks: tuple[str, ...]
    """The invariant that is there against it, or several where either is as good; caught under another one it counts as not found."""
    plant: Plant
    settings: Settings


BUGS: dict[str, Bug] = {}


def bug(what: str, *, breaks: tuple[str, ...], settings: Settings | None = None) -> Callable[[Plant], Plant]:
    """Register a planted bug under its function's name."""

    def register(plant: Plant) -> Plant:
        BUGS[plant.__name__] = Bug(name=plant.__name__, what=what, breaks=breaks, plant=plant, settings=settings or Settings())
        return plant

    return register


def _any_step(table: dict[Any, Any]) -> Callable[[Any, Any], Any]:
    """A look-up that also takes an event where it cannot happen: a planted bug is for the oracle to find, not for the fake's table."""
    by_event = {event: step for (_, event), step in table.items()}
    return lambda state, event: table.get((state, event), by_event[event])


@contextmanager
def planted(name: str) -> Iterator[Bug]:
    """Inside, the bug is there."""
    found = BUGS[name]
    patches = [
        patch.object(statestore, "request_step", _any_step(lifecycle.REQUEST)),
        patch.object(statestore, "preview_step", _any_step(lifecycle.PREVIEW)),
        *found.plant(),
    ]
    for each in patches:
        each.start()
    try:
        yield found
    finally:
        for each in patches:
            each.stop()
