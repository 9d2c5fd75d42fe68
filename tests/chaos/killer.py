"""Whom to kill, where, and when: SIGKILL and SIGSTOP at a chosen step of a held claim, kills of Apps and of the servers that keep data."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

from tests.chaos.records import Held, Hit
from tests.chaos.stack import ChaosStack
from tests.chaos.steps import Observer, Step
from tests.chaos.store import OUTAGES, ClaimRow

from prevue.testing.process_tree import descendants

DECK = {"SIGKILL deployer": 13, "SIGSTOP deployer": 1, "SIGKILL github-app": 3, "SIGKILL postgres": 2, "SIGKILL any deployer": 1}
"""Of twenty. The first two are aimed at the holder of a claim, the last one is not."""
REDIS_DECK = {**DECK, "SIGKILL postgres": 1, "SIGKILL redis": 1}
"""Where Redis is the queue. The emulators of Google's queues are spared: they keep in memory what the services keep on disk."""
PAUSE_SECONDS = (33.0, 42.0)
"""Longer than the lease of 30 s."""
APART_SECONDS = 0.5
LOOK_SECONDS = 0.02
AIM_SECONDS = 2.5
"""So long the steps that were hit least are waited for; then whatever claim is held will do."""
LOCK_SECONDS = 2.5
READY_MIN = 2
"""So many deployers take messages when one is killed: one at least goes on, as a disruption budget of Kubernetes sees to it."""
NOBODY_SECONDS = 0.25
ATTEMPTS_SPARED = 4
"""A request on its last attempts is spared where there is another: the run is to show recovery, not dead letters alone."""

Aim = tuple[int, dict[int, Step]]
"""A deployer, and the steps of the claims that it holds, by token."""


class Killer:
    """Counts its own kills."""

    def __init__(self, stack: ChaosStack, observer: Observer, rng: random.Random) -> None:
        self.hits: list[Hit] = []
        self._stack = stack
        self._observer = observer
        self._rng = rng
        self._steps: Counter[Step] = Counter()
        self._pauses: set[asyncio.Task[None]] = set()
        self._paused: set[int] = set()
        self._deck = REDIS_DECK if stack.options.queue == "redis" else DECK
        self._cards: list[str] = []

    async def run(self, kills: int, *, seconds_between: float, give_up_at: float) -> None:
        """Until there are so many kills, or the time is over."""
        loop = asyncio.get_running_loop()
        next_at = loop.time()
        while len(self.hits) < kills and loop.time() < give_up_at:
            # A kill that had to wait for its claim delays itself alone, not all that follow.
            next_at += seconds_between * self._rng.uniform(0.4, 1.6)
            await asyncio.sleep(max(APART_SECONDS, next_at - loop.time()))
            kind = self._draw()
            if kind == "SIGSTOP deployer" and self._pauses:
                kind = "SIGKILL deployer"
            match kind:
                case "SIGKILL deployer" | "SIGSTOP deployer":
                    if (aim := await self._aim(give_up_at)) is not None:
                        await self._hit_holder(kind, aim)
                case "SIGKILL any deployer":
                    if deployers := self._deployers():
                        await self._hit_holder(kind, (self._rng.choice(deployers), {}))
                case _:
                    self._hit(kind, self._stack.pids(kind.removeprefix("SIGKILL ")))

    def _draw(self) -> str:
        """Cards without putting them back: the share of each kind is the same in a short run."""
        if not self._cards:
            self._cards = [kind for kind, count in self._deck.items() for _ in range(count)]
            self._rng.shuffle(self._cards)
        return self._cards.pop()

    async def end_pauses(self, *, now: bool = False) -> None:
        """Wait until every stopped process goes on, longer than its lease after it was stopped; or let it go on `now`."""
        pauses = list(self._pauses)
        for task in pauses if now else ():
            task.cancel()
        await asyncio.gather(*pauses, return_exceptions=True)

    @property
    def steps(self) -> Counter[Step]:
        """Claims that were hit, by the step that they had reached."""
        return self._steps

    def _deployers(self) -> list[int]:
        return [pid for pid in self._stack.pids("deployer") if pid not in self._paused]

    async def _aim(self, give_up_at: float) -> Aim | None:
        """Wait for a claim at the step that was hit least until now; after a while any claim will do."""
        loop = asyncio.get_running_loop()
        while await self._stack.ready_deployers() < READY_MIN:
            if loop.time() >= give_up_at:
                return None
            await asyncio.sleep(NOBODY_SECONDS)
        rarest = min(self._steps[step] for step in Step)
        wanted = {step for step in Step if self._steps[step] <= rarest + 1}
        settle_at = loop.time() + AIM_SECONDS
        while loop.time() < give_up_at:
            found = await self._observer.claims(self._deployers())
            spared = [(row, step) for row, step in found if row.attempts < ATTEMPTS_SPARED or row.action == "destroy"]
            for row, step in spared:
                if step in wanted:
                    return _aim_at(row, found)
                if Step.FINISH in wanted and step is Step.READY and await self._wait_in_finish(row):
                    return row.holder_pid, {**_aim_at(row, found)[1], row.token: Step.FINISH}
            if loop.time() >= settle_at and (spared or found):
                return _aim_at(min(spared or found, key=lambda one: self._steps[one[1]])[0], found)
            await asyncio.sleep(LOOK_SECONDS)
        return None

    async def _wait_in_finish(self, row: ClaimRow) -> bool:
        """Hold the preview's row until its holder waits for it in its finish, and kill it there."""
        give_up_at = asyncio.get_running_loop().time() + LOCK_SECONDS
        with suppress(*OUTAGES):
            async with self._observer.store.lock(row):
                while asyncio.get_running_loop().time() < give_up_at:
                    if await self._observer.store.waits_in_finish():
                        os.kill(row.holder_pid, signal.SIGKILL)
                        return True
                    await asyncio.sleep(LOOK_SECONDS)
        return False

    async def _hit_holder(self, kind: str, aim: Aim) -> None:
        """Which claims it really held is read after it: a finish may just have been written."""
        deployer, steps = aim
        at = datetime.now(UTC)
        if kind == "SIGSTOP deployer":
            self._pause(deployer)
        else:
            with suppress(ProcessLookupError):
                os.kill(deployer, signal.SIGKILL)
        rows = [row for row in await self._observer.store.claims() if row.holder_pid == deployer and row.is_held]
        held = tuple(
            Held(row.pull, row.token, steps.get(row.token, Step.GRANTED)) for row in rows if row.granted_at <= at or row.token in steps
        )
        self._steps.update(Step(one.step) for one in held)
        self.hits.append(Hit(at=at, kind=kind, held=held))

    def _hit(self, kind: str, pids: Sequence[int]) -> None:
        if pids:
            with suppress(ProcessLookupError):
                os.kill(self._rng.choice(list(pids)), signal.SIGKILL)
            self.hits.append(Hit(at=datetime.now(UTC), kind=kind))

    def _pause(self, deployer: int) -> None:
        """Stop it, with all that it has started or alone, as a frozen container or a hung process would be."""
        pids = [deployer, *(descendants(deployer) if self._rng.random() < 0.5 else [])]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        self._paused.add(deployer)
        task = asyncio.create_task(self._go_on_later(deployer, pids), name=f"pause-{deployer}")
        self._pauses.add(task)
        task.add_done_callback(self._pauses.discard)

    async def _go_on_later(self, deployer: int, pids: Sequence[int]) -> None:
        try:
            await asyncio.sleep(self._rng.uniform(*PAUSE_SECONDS))
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            self._paused.discard(deployer)


def _aim_at(row: ClaimRow, found: Sequence[tuple[ClaimRow, Step]]) -> Aim:
    return row.holder_pid, {other.token: step for other, step in found if other.holder_pid == row.holder_pid}
