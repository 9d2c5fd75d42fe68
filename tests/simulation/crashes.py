"""Every crash point of the happy path: one command, carried out, told and verified, with a kill after each await of App and deployer.

No chance is in it but the seed's own interleaving: a process is killed after its first callback, after its second, and so on until the
path ends without a kill. Pairs: the process that comes after is killed at each of its own callbacks, too, and after each kill of the App
the deployer. For a pair's first kill one callback stands for all that follow each other without changing anything that outlives the
process: kills at either leave the same world to whoever comes after.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.simulation.invariants import Violation
from tests.simulation.loop import Process
from tests.simulation.quiet import QuietCheck, ours, unquiet
from tests.simulation.world import Numbers, Settings, World

SEED = 1
QUIET_WITHIN_SECONDS = 600.0
ROLES = {"app": "crash_app", "deployer": "crash_deployer"}
PAIRS = (("app", "app"), ("app", "deployer"), ("deployer", "deployer"))

Kill = tuple[str, int]
"""A role, and the callback after which its process is killed; the second kill of one role is that of the process that comes after."""


@dataclass(kw_only=True)
class Points:
    """The callbacks of one process: how many there are, and which changed something durable."""

    callbacks: int = 0
    changes: list[int] = field(default_factory=list)


@dataclass(kw_only=True)
class Result:
    """What was covered, and what broke."""

    singles: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    firsts: int = 0
    pairs: int = 0
    """Runs in which both kills came."""
    unreached: int = 0
    """Runs in which the path was over before one of them."""
    violations: list[str] = field(default_factory=list)

    def add(self, other: Result) -> None:
        """Together."""
        self.runs += other.runs
        self.firsts += other.firsts
        self.pairs += other.pairs
        self.unreached += other.unreached
        self.violations += other.violations

    @property
    def text(self) -> str:
        """For people."""
        singles = ", ".join(f"{count} of the {role}" for role, count in self.singles.items())
        pairs = f"; {self.pairs:,} pairs after {self.firsts} first kills, {self.unreached} not reached" if self.pairs else ""
        lines = [f"crash points: {singles}{pairs}: {self.runs:,} runs, {len(self.violations)} violations"]
        return "\n".join([*lines, *self.violations[:20]])


def every_point() -> Result:
    """One kill, at every point."""
    result = Result()
    for role in ROLES:
        points = _points(result, [], role)
        result.singles[role] = points.callbacks
        for callback in range(1, points.callbacks + 1):
            _run(result, [(role, callback)])
    return result


def first_kills() -> list[tuple[Kill, str]]:
    """Of all pairs: the first kill, and the role of the second."""
    result = Result()
    changes = {role: _points(result, [], role).changes for role in ROLES}
    return [((first, callback), second) for first, second in PAIRS for callback in changes[first]]


def every_second_point(pair: tuple[Kill, str]) -> Result:
    """The first kill, and with it a second one at every point of that role's next process."""
    first, second = pair
    result = Result(firsts=1)
    count = _points(result, [first], second).callbacks
    for callback in range(1, count + 1):
        _run(result, [first, (second, callback)])
    return result


def _points(result: Result, kills: list[Kill], role: str) -> Points:
    """What the process of `role` does that is not killed any more."""
    points = Points()
    passed = sum(each == role for each, _ in kills)
    seen = ""

    def watch(world: World, process: Process) -> None:
        nonlocal passed
        passed -= 1
        if passed != -1:
            return
        after_step = world.loop.after_step

        def look() -> None:
            nonlocal seen
            after_step()
            if process.steps > points.callbacks:
                points.callbacks = process.steps
                durable = _durable(world)
                if durable != seen:
                    points.changes.append(process.steps)
                seen = durable

        world.loop.after_step = look

    _run(result, kills, watch=lambda world, started, process: watch(world, process) if started == role else None)
    return points


def _durable(world: World) -> str:
    """All that outlives a process."""
    comments = [(comment.id, comment.body, comment.reactions) for pull in world.people.pulls for comment in ours(world, pull)]
    return repr((world.store, world.queue.entries, world.cluster.namespaces, world.cluster.journal, comments, world.wire.unsettled))


def _run(result: Result, kills: list[Kill], *, watch: Callable[[World, str, Process], None] = lambda *_: None) -> None:
    """One run with these kills."""
    settings = Settings(apps=1, deployers=1, only=frozenset(), policy=True, has_sweeper_rules=False, numbers=Numbers())
    world = World(SEED, settings)
    result.runs += 1
    waiting = list(kills)
    struck: list[Kill] = []

    def arm(role: str, process: Process) -> None:
        kill = next((each for each in waiting if each[0] == role), None)
        if kill is not None:
            waiting.remove(kill)
            process.strike_at = kill[1]
            process.strike = lambda: strike(kill, process)
        watch(world, role, process)

    def strike(kill: Kill, process: Process) -> None:
        struck.append(kill)
        world.strike(process, ROLES[kill[0]])

    world.on_start = arm
    try:
        world.loop.run(_happy_path(world))
    except Violation as violation:
        result.violations.append(f"kills at {kills}: {violation}")
    world.loop.close()
    if len(kills) == 2 and len(struck) == 2:
        result.pairs += 1
    elif len(struck) < len(kills):
        # A deployer that dies first changes how the rest is interleaved: the App may have ended one callback earlier.
        result.unreached += 1


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
