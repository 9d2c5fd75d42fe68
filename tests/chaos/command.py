"""`python -m tests.chaos --kills N --seed S`: a run from end to end, its judgement, and what is printed of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pickle
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.chaos.check import Judgement, judge
from tests.chaos.cluster import look
from tests.chaos.report import Result, as_json, as_text
from tests.chaos.stack import running
from tests.chaos.store import StoreView
from tests.chaos.storm import Storm, say

from prevue.local.client import connect
from prevue.local.stack import QUEUES


async def run(*, queue: str, kills: int, seed: int, logs: Path | None) -> Result:
    """One run; nothing of it is left, however it ends."""
    began, load = time.monotonic(), os.getloadavg()
    async with running(queue=queue, keep_logs=logs) as (stack, dev_file), connect(dev_file.github_url) as github:
        store = StoreView(dev_file.database_url)
        try:
            async with look(dev_file.kubeconfig, stack.repository_ids) as cluster:
                storm = Storm(kills=kills, rng=random.Random(seed), github=github, stack=stack, store=store, cluster=cluster)
                evidence = await storm.run()
            if logs is not None:
                (stack.folder.logs / "evidence.pickle").write_bytes(pickle.dumps(evidence))
            verified = await asyncio.to_thread(_verify, stack.folder.settings, cluster.names)
        finally:
            await store.close()
    return Result(
        queue=queue,
        seed=seed,
        kills_wanted=kills,
        evidence=evidence,
        judgement=judge(evidence),
        verified=verified,
        seconds=time.monotonic() - began,
        load=(load, os.getloadavg()),
    )


def _verify(settings: Path, namespaces: set[str]) -> list[str]:
    """`prevue verify --quiet`: what it found. Namespaces that are not ours are another stack's on the same cluster."""
    command = [sys.executable, "-m", "prevue", "verify", "--quiet", "--json", "--config", str(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return [f"prevue verify ended with code {done.returncode}: {done.stderr[-500:] or done.stdout[-500:]}"]
    found = [f"{each['invariant']}: {one['where']}: {one['text']}" for each in report["invariants"] for one in each["violations"]]
    unreadable = [one for one in report["unreadable"] if not one.startswith("pv-") or one.partition(":")[0] in namespaces]
    return [*found, *(f"unreadable: {one}" for one in unreadable)]


def failures(result: Result) -> list[str]:
    """Why a run has failed; empty: it has not."""
    judgement: Judgement = result.judgement
    found = judgement.failures
    if judgement.hits < result.kills_wanted:
        found.append(f"only {judgement.hits} of {result.kills_wanted} kills")
    if result.verified:
        found.append(f"prevue verify found {len(result.verified)}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0: every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Kill real processes, and judge what is left.")
    parser.add_argument("--queue", choices=QUEUES, default=QUEUES[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None, help="of everything that the driver draws; without one it is drawn, and printed")
    parser.add_argument("--json", action="store_true", help="the result as JSON on standard output")
    parser.add_argument("--logs", type=Path, default=None, help="a folder for the processes' logs; without one they go with the stack")
    options = parser.parse_args(arguments)
    seed = secrets.randbits(31) if options.seed is None else options.seed
    say(f"seed {seed}")
    try:
        result = asyncio.run(_interruptible(queue=options.queue, kills=options.kills, seed=seed, logs=options.logs))
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("ended by a signal; nothing of it is left")
        return 130
    found = failures(result)
    print(json.dumps(as_json(result, found), indent=2) if options.json else as_text(result, found), flush=True)
    return 1 if found else 0


async def _interruptible(*, queue: str, kills: int, seed: int, logs: Path | None) -> Result:
    """SIGTERM ends it as Ctrl-C does; a second signal must not leave half of it running."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    is_asked = False

    def end() -> None:
        nonlocal is_asked
        if not is_asked:
            is_asked = True
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    return await run(queue=queue, kills=kills, seed=seed, logs=logs)
