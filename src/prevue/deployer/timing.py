"""How long each step of a claim took, and what it saw: for the ledger, `prevue previews show` and the benchmarks' profile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prevue.clock import Clock


class StepTimes:
    """Milliseconds a step, added up where a step comes twice; and facts that are evidence later."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.milliseconds: dict[str, int] = {}
        self.facts: dict[str, str | int | float | bool] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure the block, also one that raises."""
        started = self._clock.boottime()
        try:
            yield
        finally:
            self.milliseconds[name] = self.milliseconds.get(name, 0) + round((self._clock.boottime() - started) * 1000)
