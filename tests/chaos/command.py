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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from tests.chaos import stack as chaos_stack
from tests.chaos.check import Judgement, judge
from tests.chaos.cluster import ClusterView, look
from tests.chaos.conversations import Conversations
from tests.chaos.killer import Killer
from tests.chaos.people import People
from tests.chaos.records import Evidence
from tests.chaos.report import Result, as_json, as_text
from tests.chaos.steps import Observer
from tests.chaos.store import StoreView
from tests.chaos.troubles import Troubles

from prevue.local.client import LocalGitHub, connect, served_commit

LEASE_SECONDS = 30.0
"""Production's default, which the stack keeps."""
KILL_SECONDS = 3.5
WRITE_SECONDS = 5.0
STORM_SECONDS_MAX = 900.0
"""The kills must come within this time, else the run has too few, and fails."""
QUIET_SECONDS_MAX = 300.0
"""Leases, deadlines, backoff, the sweeper's turns and the outbox's verify pass, one after another."""
PULLS_MIN, PULLS_MAX = 10, 26


@dataclass(kw_only=True)
class Run:
    """One run's parts, while the stack is up."""

    kills: int
    rng: random.Random
    github: LocalGitHub
    stack: chaos_stack.ChaosStack
    store: StoreView
    cluster: ClusterView

    async def storm(self) -> Evidence:
        """People write and processes die; then the faults end, and all must become quiet."""
        people = People(self.github, random.Random(self.rng.random()))
        troubles = Troubles(self.github, random.Random(self.rng.random()))
        observer = Observer(self.store, self.cluster)
        killer = Killer(self.stack, observer, random.Random(self.rng.random()))
        conversations = Conversations(self.github, people)
        loop = asyncio.get_running_loop()
        _say(f"{self.kills} kills begin")
        await people.begin(max(PULLS_MIN, min(PULLS_MAX, self.kills // 6)))
        done = asyncio.Event()
        writing = asyncio.create_task(people.write(WRITE_SECONDS, done.is_set))
        troubling = asyncio.create_task(troubles.run())
        following = asyncio.create_task(conversations.follow(lambda: people.keys))
        telling = asyncio.create_task(self._tell(killer))
        try:
            await killer.run(self.kills, seconds_between=KILL_SECONDS, give_up_at=loop.time() + STORM_SECONDS_MAX)
            done.set()
            troubling.cancel()
            await killer.end_pauses()
            await troubles.end()
            await writing
            _say("the faults are over; waiting until all is quiet")
            await self._quiet(people, conversations)
        finally:
            tasks = (writing, troubling, following, telling)
            for task in tasks:
                task.cancel()
            await killer.end_pauses(now=True)
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        if failed := [end for end in ends if isinstance(end, Exception)]:
            raise failed[0]
        evidence = await self._collect(people, conversations)
        evidence.hits, evidence.faults = killer.hits, dict(troubles.made)
        evidence.leases_seen = list(observer.leases.values())
        return evidence

    async def _tell(self, killer: Killer) -> None:
        while True:
            await asyncio.sleep(30)
            _say(f"{len(killer.hits)} kills, {sum(bool(hit.held) for hit in killer.hits)} of a claim's holder")

    async def _quiet(self, people: People, conversations: Conversations) -> None:
        """Return when nothing is under way and everybody was answered, or the patience is over: the judge says what is missing."""
        give_up_at = time.monotonic() + QUIET_SECONDS_MAX
        commands = {act.comment_id for act in people.acts if act.comment_id}
        while time.monotonic() < give_up_at:
            if await self.store.open_work() == 0:
                answered = {remark.answers for remark in await conversations.remarks(people.keys)}
                if commands <= answered and await self.store.open_work() == 0:
                    await asyncio.sleep(2)
                    return
            await asyncio.sleep(1)

    async def _collect(self, people: People, conversations: Conversations) -> Evidence:
        await self.cluster.read()
        remarks = await conversations.remarks(people.keys)
        async with httpx2.AsyncClient(trust_env=False, timeout=5) as http:
            served = {url: await served_commit(url, http) for url in {remark.url for remark in remarks if remark.url}}
        return Evidence(
            lease_seconds=LEASE_SECONDS,
            acts=people.acts,
            requests=await self.store.requests(),
            ledger=await self.store.ledger(),
            namespaces={key: seen.name for key, seen in self.cluster.namespaces.items()},
            revisions=list(self.cluster.standing.values()),
            revisions_seen=list(self.cluster.revisions.values()),
            remarks=remarks,
            served=served,
            ready_seen=conversations.ready_seen,
        )


async def run(*, kills: int, seed: int, logs: Path | None) -> Result:
    """One run; nothing of it is left, however it ends."""
    began, load = time.monotonic(), os.getloadavg()
    async with chaos_stack.running(keep_logs=logs) as (stack, dev_file), connect(dev_file.github_url) as github:
        store = StoreView(dev_file.database_url)
        try:
            async with look(dev_file.kubeconfig, stack.repository_ids) as cluster:
                one = Run(kills=kills, rng=random.Random(seed), github=github, stack=stack, store=store, cluster=cluster)
                evidence = await one.storm()
            if logs is not None:
                (stack.folder.logs / "evidence.pickle").write_bytes(pickle.dumps(evidence))
            verified = await asyncio.to_thread(_verify, stack.folder.settings, cluster.names)
        finally:
            await store.close()
    return Result(
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
        return [f"prevue verify ended with code {done.returncode}: {done.stderr[-500:]}"]
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
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None, help="of everything that the driver draws; without one it is drawn, and printed")
    parser.add_argument("--json", action="store_true", help="the result as JSON on standard output")
    parser.add_argument("--logs", type=Path, default=None, help="a folder for the processes' logs; without one they go with the stack")
    options = parser.parse_args(arguments)
    seed = secrets.randbits(31) if options.seed is None else options.seed
    _say(f"seed {seed}")
    try:
        result = asyncio.run(_interruptible(kills=options.kills, seed=seed, logs=options.logs))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _say("ended by a signal; nothing of it is left")
        return 130
    found = failures(result)
    print(json.dumps(as_json(result, found), indent=2) if options.json else as_text(result, found), flush=True)
    return 1 if found else 0


async def _interruptible(*, kills: int, seed: int, logs: Path | None) -> Result:
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
    return await run(kills=kills, seed=seed, logs=logs)


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)
