"""Every crash point of the happy path: one command, carried out, told and verified, with a kill after each of its awaits.

No chance is in it but the seed's own interleaving: the deployer is killed after its first callback, after its second, and so on until
the path ends without a kill; then the process that comes after is killed at each of its own callbacks, too.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from tests.simulation.invariants import Violation
from tests.simulation.quiet import QuietCheck, unquiet
from tests.simulation.world import Deployer, Numbers, Settings, World

SEED = 1
QUIET_WITHIN_SECONDS = 600.0


@dataclass(kw_only=True)
class Result:
    """What was covered, and what broke."""

    runs: int = 0
    first_points: int = 0
    second_points: int = 0
    violations: list[str] = field(default_factory=list)

    def add(self, other: Result) -> None:
        """Together."""
        self.runs += other.runs
        self.second_points += other.second_points
        self.violations += other.violations

    @property
    def text(self) -> str:
        """For people."""
        pairs = f", {self.second_points:,} pairs with a second kill" if self.second_points else ""
        lines = [f"all {self.first_points} crash points{pairs}: {self.runs:,} runs, {len(self.violations)} violations"]
        return "\n".join([*lines, *self.violations[:20]])


def every_point() -> Result:
    """One kill, at every point."""
    result = Result()
    while _run(result, [result.first_points + 1]) == 1:
        result.first_points += 1
    return result


def every_second_point(first: int) -> Result:
    """A kill after the callback `first`, and a second one at every point of the process that comes after."""
    result = Result(first_points=1)
    while _run(result, [first, result.second_points + 1]) == 2:
        result.second_points += 1
    return result


def _run(result: Result, kills: list[int]) -> int:
    """One run with kills at these callbacks of one deployer after the other; how many of them were reached."""
    settings = Settings(apps=1, deployers=1, only=frozenset(), policy=True, has_sweeper_rules=False, numbers=Numbers())
    world = World(SEED, settings)
    result.runs += 1
    hits = 0
    waiting = list(kills)

    def arm(deployer: Deployer) -> None:
        if waiting:
            deployer.process.strike_at = waiting.pop(0)
            deployer.process.strike = lambda: strike(deployer)

    def strike(deployer: Deployer) -> None:
        nonlocal hits
        hits += 1
        world.strike(deployer.process, "crash_deployer")

    world.on_deployer = arm
    try:
        world.loop.run(_happy_path(world))
    except Violation as violation:
        result.violations.append(f"kills at {kills}: {violation}")
    world.loop.close()
    return hits


async def _happy_path(world: World) -> None:
    world.people.settle_in()
    world.start()
    world.people.command(world.people.pulls[0])
    # The command's own webhook takes a moment; before, everything is quiet.
    await asyncio.sleep(1)
    give_up_at = world.loop.time() + QUIET_WITHIN_SECONDS
    while reason := unquiet(world) or ("" if world.store.requests else "no request"):
        if world.loop.time() > give_up_at:
            world.oracle.report("quiet_after_faults_stop", reason)
        await asyncio.sleep(1)
    QuietCheck(world, world.oracle.report).check()
    if [row.state.value for row in world.store.requests.values()] != ["deployed"]:
        world.oracle.report(
            "accepted_reaches_terminal_state",
            f"the command ended as {[(row.state.value, row.error) for row in world.store.requests.values()]}",
        )
    await asyncio.sleep(0)
