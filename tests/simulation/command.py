"""`make simulate`, `make simulate-bugs`, and what the tests call: seeds in several processes, told as a table or as JSON."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.simulation import crashes
from tests.simulation.bugs import BUGS, planted
from tests.simulation.faults import EVERY_KIND_SEEDS, RATES
from tests.simulation.seeds import Outcome, prepare, run_seed
from tests.simulation.table import write_bugs_table
from tests.simulation.world import Settings

BATCH = 25
TASKS_A_PROCESS = 100
"""Then a fresh interpreter: what a process keeps (signed JWTs, dates) stays below some 20 MB."""
BUG_SEEDS_MAX = 1500
FOUND_MAX = 20
"""A run that finds so many violations has found enough."""


@dataclass(kw_only=True)
class Total:
    """A run over many seeds."""

    seeds: int = 0
    virtual_seconds: float = 0.0
    steps: int = 0
    fired: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    violations: list[tuple[int, str, str]] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """One more."""
        self.seeds += 1
        self.virtual_seconds += outcome.virtual_seconds
        self.steps += outcome.steps
        self.fired.update(outcome.fired)
        self.states.update(outcome.states)
        if outcome.invariant:
            self.violations.append((outcome.seed, outcome.invariant, outcome.text))

    @property
    def never_fired(self) -> list[str]:
        """Kinds of faults that have not been seen: the run says nothing about them."""
        return [kind for kind in RATES if not self.fired[kind]]


def _batch(seeds: list[int]) -> list[Outcome]:
    return [run_seed(seed) for seed in seeds]


def _parallel(work: Any, items: Iterable[Any], processes: int) -> Iterator[Any]:
    """As they end; a fresh interpreter each, so that nothing of this process gets into a seed."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, initializer=prepare, maxtasksperchild=TASKS_A_PROCESS) as pool:
        yield from pool.imap_unordered(work, items)


def simulate(first: int, count: int, processes: int, *, is_quiet: bool = False) -> Total:
    """Run seeds `first` … `first + count - 1`."""
    total, begun = Total(), time.monotonic()
    batches = [list(range(start, min(start + BATCH, first + count))) for start in range(first, first + count, BATCH)]
    for outcomes in _parallel(_batch, batches, processes):
        for outcome in outcomes:
            total.add(outcome)
            if outcome.invariant and not is_quiet:
                print(f"seed {outcome.seed} breaks {outcome.invariant}: {outcome.text}\n    {_replay(outcome.seed)}", flush=True)
        if not is_quiet and total.seeds % 1000 < BATCH:
            print(f"{total.seeds} seeds, {time.monotonic() - begun:.0f} s, {len(total.violations)} violations", flush=True)
        if len(total.violations) >= FOUND_MAX:
            break
    return total


def _replay(seed: int) -> str:
    return f"python -m tests.simulation replay {seed}"


def _tell(total: Total, seconds: float, processes: int) -> None:
    days = total.virtual_seconds / 86_400
    a_seed = 1000 * seconds * processes / max(1, total.seeds)
    print(f"\n{total.seeds} seeds in {seconds:.0f} s with {processes} processes: {a_seed:.0f} ms a seed")
    print(f"virtual time {days:.1f} days, {total.steps:,} callbacks; requests: {dict(total.states.most_common())}")
    print(f"faults fired: {sum(total.fired.values()):,}, {sum(total.fired.values()) / max(1, total.seeds):.1f} a seed")
    for kind in RATES:
        print(f"    {kind:28} {total.fired[kind]:8,}")
    print(f"violations: {len(total.violations)}")


def _find_bug(name: str, limit: int = BUG_SEEDS_MAX) -> tuple[str, str, int, str]:
    """The bug's name, the invariant that it broke and should (empty: none), the seeds that it took, what was seen.

    A seed that breaks anything without the bug, too, has not found it.
    """
    others: Counter[str] = Counter()
    for seed in range(limit):
        with planted(name) as bug:
            outcome = run_seed(seed, bug.settings)
        if outcome.invariant in bug.breaks and not run_seed(seed, bug.settings).invariant:
            return name, outcome.invariant, seed + 1, outcome.text
        others.update([outcome.invariant] if outcome.invariant else [])
    return name, "", limit, f"others: {dict(others)}" if others else ""


def find_bugs(names: list[str], processes: int, *, is_quiet: bool) -> list[tuple[str, str, int, str]]:
    """Look for every planted bug; in the order of `BUGS`."""
    found = []
    for row in _parallel(_find_bug, names, processes):
        if not is_quiet:
            print(f"{row[0]:28} {row[1] or 'NOT FOUND':44} {row[2]:5} {row[3][:90]}", flush=True)
        found.append(row)
    return sorted(found, key=lambda row: list(BUGS).index(row[0]))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="many seeds")
    run.add_argument("--seeds", type=int, default=20_000)
    run.add_argument("--first", type=int, default=0)
    run.add_argument("--json", action="store_true")
    replay = commands.add_parser("replay", help="one seed, its trace on standard output")
    replay.add_argument("seed", type=int)
    replay.add_argument("--bug", default="")
    replay.add_argument("--digest", action="store_true", help="only the digest of the trace")
    bugs = commands.add_parser("bugs", help="look for the planted bugs; writes docs/simulation.md when all are looked for")
    bugs.add_argument("names", nargs="*")
    bugs.add_argument("--json", action="store_true")
    crash = commands.add_parser("crashes", help="kill at every await of the happy path, with --double every second kill too")
    crash.add_argument("--double", action="store_true")
    crash.add_argument("--sample", type=int, default=0, help="of the pairs only those of every n-th first kill")
    crash.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    return int({"run": _run, "replay": _replay_one, "bugs": _bugs, "crashes": _crashes}[arguments.command](arguments))


def _run(arguments: argparse.Namespace) -> int:
    begun = time.monotonic()
    total = simulate(arguments.first, arguments.seeds, arguments.processes, is_quiet=arguments.json)
    if arguments.json:
        json.dump({"seeds": total.seeds, "fired": total.fired, "violations": total.violations, "states": total.states}, sys.stdout)
        return 0
    _tell(total, time.monotonic() - begun, arguments.processes)
    if total.never_fired and total.seeds >= EVERY_KIND_SEEDS:
        print(f"never fired: {', '.join(total.never_fired)}: this run proves nothing about them")
        return 1
    return 1 if total.violations else 0


def _replay_one(arguments: argparse.Namespace) -> int:
    prepare()
    if arguments.bug:
        with planted(arguments.bug) as bug:
            bug.settings.keep_trace = not arguments.digest
            outcome = run_seed(arguments.seed, bug.settings)
    else:
        outcome = run_seed(arguments.seed, Settings(keep_trace=not arguments.digest))
    print("\n".join(outcome.lines))
    print(f"{outcome.digest} {outcome.invariant} {outcome.text}".strip())
    return 1 if outcome.invariant else 0


def _bugs(arguments: argparse.Namespace) -> int:
    found = find_bugs(arguments.names or list(BUGS), arguments.processes, is_quiet=arguments.json)
    if arguments.json:
        json.dump([{"bug": name, "invariant": invariant, "seeds": seeds} for name, invariant, seeds, _ in found], sys.stdout)
        return 0
    missing = [name for name, invariant, _, _ in found if not invariant]
    if not arguments.names:
        write_bugs_table(found)
    print(f"{len(found) - len(missing)} of {len(found)} planted bugs found" + (f"; not found: {', '.join(missing)}" if missing else ""))
    return 1 if missing else 0


def _crashes(arguments: argparse.Namespace) -> int:
    prepare()
    begun = time.monotonic()
    result = crashes.every_point()
    if arguments.double or arguments.sample:
        firsts = crashes.first_kills()
        for part in _parallel(crashes.every_second_point, firsts[:: arguments.sample or 1], arguments.processes):
            result.add(part)
    if arguments.json:
        json.dump({"points": result.singles, "pairs": result.pairs, "runs": result.runs, "violations": result.violations}, sys.stdout)
        return 0
    print(f"{result.text}\n{time.monotonic() - begun:.0f} s with {arguments.processes} processes")
    return 1 if result.violations else 0
