"""One seed from its start to its verdict."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field

import structlog
from tests.simulation.invariants import Violation
from tests.simulation.quiet import QuietCheck, has_commands_without_request, is_told_wrongly, snapshot, unquiet
from tests.simulation.world import LANE_SECONDS, POLL_SECONDS, REQUEST_SECONDS, UNREACHABLE_SECONDS, Settings, World

from prevue.github import client
from prevue.queue.port import Enqueued
from prevue.sweeper import outbox

SEEDS_A_COLLECTION = 5
"""A world is one heap of cycles, some 3 MB; taking it apart costs as much as a hundredth of a seed, whether with one or with five."""
QUIET_WITHIN_SECONDS = 1800.0
"""Virtual time from the end of all faults until nothing is left to do: poison spends its attempts one lease at a time."""
STILL_SECONDS = 5.0
SCANNED_WITHIN_SECONDS = 60.0
STUCK_SECONDS = 60
"""Of the processor: a seed takes a tenth of a second, or hangs in a loop without an await. A machine that slept is no such loop."""


class _StuckError(KeyboardInterrupt):
    """Of the kind that no task keeps for itself."""


def _stuck(_number: int, _frame: object) -> None:
    raise _StuckError


@dataclass(kw_only=True)
class Outcome:
    """What became of a seed."""

    seed: int
    invariant: str = ""
    text: str = ""
    virtual_seconds: float = 0.0
    real_seconds: float = 0.0
    steps: int = 0
    digest: str = ""
    fired: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)


def prepare() -> None:
    """No log lines: rendering them would cost more than all the rest."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL), cache_logger_on_first_use=True)
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
    sys.unraisablehook = lambda _: None  # coroutines of killed processes are thrown away in the middle of an await
    logging.disable(logging.CRITICAL)
    # Times of the outbox and of the GitHub client, in proportion to the shorter lease; see `world.Numbers`.
    vars(client)["REQUEST_SECONDS_MAX"] = REQUEST_SECONDS
    outbox.LANE_SECONDS, outbox.UNREACHABLE_SECONDS, outbox.POLL_SECONDS = LANE_SECONDS, UNREACHABLE_SECONDS, POLL_SECONDS
    asyncio.tasks._all_tasks.add = lambda _task: None  # type: ignore[attr-defined]  # nobody asks for all tasks
    signal.signal(signal.SIGVTALRM, _stuck)
    gc.disable()
    gc.freeze()


def run_seed(seed: int, settings: Settings | None = None) -> Outcome:
    """Run one seed; never raises for what production code does."""
    started = time.perf_counter()
    world = World(seed, settings)
    outcome = Outcome(seed=seed)
    signal.setitimer(signal.ITIMER_VIRTUAL, STUCK_SECONDS)
    try:
        world.loop.run(_story(world))
    except Violation as violation:
        outcome.invariant, outcome.text = violation.invariant, violation.text
    except _StuckError:
        outcome.invariant, outcome.text = "no_unexpected_error", f"one callback ran for ever, {world.loop.time():.0f} s after the start"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    world.loop.close()
    world.trace(f"end {world.loop.steps} {world.random.random()} {outcome.invariant}")
    outcome.virtual_seconds = world.loop.time()
    outcome.steps = world.loop.steps
    outcome.digest = world.digest.hexdigest()
    outcome.fired = world.faults.fired
    outcome.states = Counter(row.state.value for row in world.store.requests.values())
    outcome.lines = world.lines
    outcome.real_seconds = time.perf_counter() - started
    del world
    if seed % SEEDS_A_COLLECTION == 0:
        gc.collect()
    return outcome


async def _story(world: World) -> None:
    """People act while things go wrong; then nothing goes wrong any more, and all must become quiet; then everything is said twice."""
    world.people.settle_in()
    world.start()
    await world.people.act()
    await asyncio.sleep(world.random.uniform(0, 10))
    world.heal()
    # A command that was refused, and not told so, is asked about again for as long as the comment scan reads it.
    scanned_at = world.loop.time() + SCANNED_WITHIN_SECONDS
    await _become_quiet(world)
    if has_commands_without_request(world) and world.loop.time() < scanned_at:
        await asyncio.sleep(scanned_at - world.loop.time())
        await _become_quiet(world)
    if world.settings.has_sweeper_rules and is_told_wrongly(world):
        await asyncio.sleep(SCANNED_WITHIN_SECONDS)
        await _become_quiet(world)
    QuietCheck(world, world.oracle.report).check()
    before = snapshot(world)
    await _say_everything_twice(world)
    after = snapshot(world)
    if before != after:
        changed = [name for name in before if before[name] != after[name]]
        world.oracle.report("redelivery_changes_nothing", f"after redeliveries other {', '.join(changed)}")
    await asyncio.sleep(0)


async def _become_quiet(world: World) -> None:
    give_up_at = world.loop.time() + QUIET_WITHIN_SECONDS
    still_since = None
    while True:
        reason = unquiet(world)
        now = world.loop.time()
        if reason:
            still_since = None
        elif still_since is None:
            still_since = now
        elif now - still_since >= STILL_SECONDS:
            return
        if now > give_up_at:
            name = "quiet_after_faults_stop"
            if reason.startswith(("request", "the command")):
                name = "accepted_reaches_terminal_state"
            elif "closed" in reason:
                name = "closed_pull_request_leaves_nothing"
            elif "expire" in reason:
                name = "expired_preview_leaves_nothing"
            world.oracle.report(name, f"{QUIET_WITHIN_SECONDS:.0f} s after the last fault: {reason}")
        await asyncio.sleep(2)


async def _say_everything_twice(world: World) -> None:
    """Redeliver webhooks, enqueue known requests once more."""
    random = world.random
    for delivery in random.sample(world.wire.accepted, min(4, len(world.wire.accepted))):
        world.wire.send(delivery)
    rows = list(world.store.requests.values())
    for row in random.sample(rows, min(4, len(rows))):
        result = await world.deployers[0].queue.enqueue(row.message)
        world.trace(f"said twice: request {row.id} {isinstance(result, Enqueued)}")
    await asyncio.sleep(1)
    await _become_quiet(world)
