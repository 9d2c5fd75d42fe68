"""One run, while the stack is up: people write, processes die, GitHub has troubles; then all must become quiet, and evidence is taken."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.chaos.check import given_up, has_ended
from tests.chaos.cluster import ClusterView
from tests.chaos.conversations import Conversations, listen
from tests.chaos.killer import Killer
from tests.chaos.people import People
from tests.chaos.records import Evidence
from tests.chaos.stack import ChaosStack
from tests.chaos.steps import Observer
from tests.chaos.store import StoreView
from tests.chaos.troubles import Troubles

from prevue.config import SweeperSettings
from prevue.local.client import LocalGitHub
from prevue.sweeper.commands import AGE_SECONDS

LEASE_SECONDS = 30.0
"""Production's default, which the stack keeps."""
KILL_SECONDS = 3.2
WRITE_SECONDS = 5.0
STORM_SECONDS_MAX = 930.0
"""The kills must come within this time, else the run has too few, and fails."""
QUIET_SECONDS_MAX = 240.0
"""Leases, deadlines, backoff, the sweeper's turns and the outbox's verify pass, one after another."""
STILL_SECONDS = SweeperSettings().comments_seconds + AGE_SECONDS + 15
"""Nothing may be under way for so long: the comment scan reads our own last comments by then, and may have one verified once more."""
TELL_SECONDS = 30.0
PULLS_MIN, PULLS_MAX = 10, 26


@dataclass(kw_only=True)
class Storm:
    """Its parts, and their one source of chance."""

    kills: int
    rng: random.Random
    github: LocalGitHub
    stack: ChaosStack
    store: StoreView
    cluster: ClusterView

    async def run(self) -> Evidence:
        """From the first command to the evidence.

        Raises:
            ExceptionGroup: the driver itself failed.
        """
        people = People(self.github, self._chance())
        troubles = Troubles(self.github, self._chance())
        observer = Observer(self.store, self.cluster)
        killer = Killer(self.stack, observer, self._chance())
        async with listen(self.github.url, people) as conversations:
            async with self._beside(people, troubles, conversations, killer):
                await killer.run(self.kills, seconds_between=KILL_SECONDS, give_up_at=asyncio.get_running_loop().time() + STORM_SECONDS_MAX)
            await killer.end_pauses()
            say("the faults are over; waiting until all is quiet")
            await self._quiet(people, conversations)
            asked_again = await people.ask_again(given_up(await conversations.remarks()))
            await self._quiet(people, conversations, still_seconds=STILL_SECONDS)
            evidence = await self._collect(people, conversations)
        evidence.hits, evidence.faults = killer.hits, dict(troubles.made)
        evidence.asked_again = asked_again
        evidence.leases_seen = list(observer.leases.values())
        return evidence

    def _chance(self) -> random.Random:
        return random.Random(self.rng.random())

    @asynccontextmanager
    async def _beside(self, people: People, troubles: Troubles, conversations: Conversations, killer: Killer) -> AsyncIterator[None]:
        """What goes on while processes die; at the end people finish what they do, and GitHub is well again."""
        done = asyncio.Event()
        say(f"{self.kills} kills begin")
        try:
            async with asyncio.TaskGroup() as side:
                begun = asyncio.Event()
                pulls = max(PULLS_MIN, min(PULLS_MAX, self.kills // 6))
                side.create_task(people.write(pulls, WRITE_SECONDS, begun, done.is_set), name="people")
                others = [
                    side.create_task(troubles.run(), name="troubles"),
                    side.create_task(conversations.follow(), name="conversations"),
                    side.create_task(_tell(killer), name="tell"),
                ]
                await begun.wait()
                yield
                done.set()
                for task in others:
                    task.cancel()
        except BaseException:
            await killer.end_pauses(now=True)
            raise
        finally:
            await troubles.end()

    async def _quiet(self, people: People, conversations: Conversations, *, still_seconds: float = 0) -> None:
        """Return when nothing has been under way for so long and everybody was answered.

        Or when the patience is over: the judge says what is missing.
        """
        give_up_at = time.monotonic() + QUIET_SECONDS_MAX + still_seconds
        busy_at = time.monotonic()
        commands = {act.comment_id for act in people.acts if act.comment_id}
        while time.monotonic() < give_up_at:
            is_still = await self.store.open_work() == 0
            # Told how it ended, not acknowledged alone: its message may be in the queue, where the store does not see it.
            if is_still and commands <= {remark.answers for remark in await conversations.remarks() if has_ended(remark.text)}:
                if time.monotonic() >= busy_at + still_seconds:
                    return
            else:
                busy_at = time.monotonic()
            await asyncio.sleep(1)

    async def _collect(self, people: People, conversations: Conversations) -> Evidence:
        await self.cluster.read()
        remarks = await conversations.remarks()
        served = {url: await conversations.served(url) for url in {remark.url for remark in remarks if remark.url}}
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


async def _tell(killer: Killer) -> None:
    while True:
        await asyncio.sleep(TELL_SECONDS)
        say(f"{len(killer.hits)} kills, {sum(bool(hit.held) for hit in killer.hits)} of a claim's holder")


def say(text: str) -> None:
    """Progress, on standard error."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)
