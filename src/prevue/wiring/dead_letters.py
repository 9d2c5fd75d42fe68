"""`prevue dead-letters`: grouped by cause, replayed as new requests, dropped.

A dead request never changes again. A replay is a request of its own (source `replay`, the dead one's id) of the same order: a newer command
supersedes it, and replaying twice is once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from hashlib import sha256
from typing import Protocol

import msgspec

from prevue.config import Settings
from prevue.errors import ConfigError, PrevueError
from prevue.model import replay_of
from prevue.queue.port import AlreadyEnqueued, Enqueuer
from prevue.statestore.port import DeadLetterStore, PreviewReader, RequestView
from prevue.statestore.rules import DROPPED, REPLAYED

LETTERS_MAX = 10_000
"""Looked at, at most; more of them are one cause, or a dozen."""
CAUSE_CHARACTERS_MAX = 120

_RATE = re.compile(r"([1-9]\d*)(?:/(second|minute|hour))?")
_SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0}


class Store(PreviewReader, DeadLetterStore, Protocol):
    """What the commands need of the statestore."""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters of one cause."""

    group: str
    """Its name for `--group`: the same cause has the same name tomorrow."""
    cause: str
    count: int
    newest: datetime | None
    ids: list[int]


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """What was done with one dead letter."""

    id: int
    repo: str
    pr_number: int
    result: str
    """`replayed`, `already_in_queue`, `dropped`."""


def cause(letter: RequestView) -> str:
    """The error's first line without what differs from case to case: numbers, commits, names of namespaces, times."""
    text = (letter.error or letter.reason).strip().partition("\n")[0]
    text = re.sub(r"\bpv-[a-z0-9-]+", "pv-…", text)
    text = re.sub(r"\b[0-9a-f]{7,64}\b", "…", text)
    text = re.sub(r"\d+(?:\.\d+)?", "N", text)
    return " ".join(text.split())[:CAUSE_CHARACTERS_MAX] or "unknown"


def group_of(letter: RequestView) -> str:
    """The name of its group."""
    return sha256(cause(letter).encode()).hexdigest()[:6]


def grouped(letters: Sequence[RequestView]) -> list[Group]:
    """The largest group first."""
    members: dict[str, list[RequestView]] = {}
    for letter in letters:
        members.setdefault(group_of(letter), []).append(letter)
    groups = [
        Group(
            group=name,
            cause=cause(found[0]),
            count=len(found),
            newest=max((one.finished_at for one in found if one.finished_at), default=None),
            ids=sorted(one.id for one in found),
        )
        for name, found in members.items()
    ]
    return sorted(groups, key=lambda one: (-one.count, one.cause))


def seconds_between(rate: str) -> float:
    """`10/minute` → 6.0; a number alone is a minute's.

    Raises:
        ConfigError: it is neither.
    """
    found = _RATE.fullmatch(rate.strip())
    if found is None:
        raise ConfigError(f"--rate is {rate!r}; accepted: such as 10/minute, 2/second or 100/hour")
    return _SECONDS[found[2] or "minute"] / int(found[1])


async def choose(store: Store, ids: Sequence[int], group: str | None) -> list[RequestView]:
    """The dead letters that are meant, oldest first.

    Raises:
        ConfigError: neither ids nor a group, or both.
        PrevueError: one of them is not there.
    """
    if bool(ids) == (group is not None):
        raise ConfigError("which ones? Give either their numbers or --group; `prevue dead-letters list --group` shows the groups")
    if group is not None:
        found = [one for one in await store.dead_letters(limit=LETTERS_MAX) if group_of(one) == group]
        if not found:
            raise PrevueError(f"there is no group {group}; `prevue dead-letters list --group` shows those that there are")
        return sorted(found, key=lambda one: one.id)
    chosen = []
    for number in dict.fromkeys(ids):
        letter = await store.dead_letter(number)
        if letter is None:
            raise PrevueError(f"there is no dead letter {number}; `prevue dead-letters list` shows those that there are")
        chosen.append(letter)
    return chosen


async def replay(store: Store, enqueuer: Enqueuer, letters: Sequence[RequestView], *, rate: str) -> AsyncIterator[Settled]:
    """Enqueue each as a new request, at most so many a minute.

    First the queue, then the mark: stopped in between, the letter is still listed, and its next replay is the same request.
    """
    pause = seconds_between(rate)
    for index, letter in enumerate(letters):
        if index:
            await asyncio.sleep(pause)
        message = await store.dead_message(letter.id)
        if message is None:
            continue
        enqueued = await enqueuer.enqueue(replay_of(letter.id, message))
        await store.settle_dead_letter(letter.id, REPLAYED)
        result = "already_in_queue" if isinstance(enqueued, AlreadyEnqueued) else "replayed"
        yield Settled(id=letter.id, repo=letter.repo, pr_number=letter.pr_number, result=result)


async def drop(store: Store, letters: Sequence[RequestView]) -> AsyncIterator[Settled]:
    """Mark each: it stays in the ledger and leaves the list. The pull request was told when it died."""
    for letter in letters:
        await store.settle_dead_letter(letter.id, DROPPED)
        yield Settled(id=letter.id, repo=letter.repo, pr_number=letter.pr_number, result="dropped")


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """The statestore.

    Raises:
        ConfigError: the database has another version's schema.
        OutageError: it cannot be reached.
    """
    from prevue.postgres import check_schema
    from prevue.statestore.port import ClaimLimits
    from prevue.statestore.postgres import PostgresStateStore

    await check_schema(settings.statestore.url)
    async with PostgresStateStore.open(settings.statestore.url, ClaimLimits(), cluster_name=settings.cluster.name) as store:
        yield store


@asynccontextmanager
async def open_queue(settings: Settings) -> AsyncIterator[Enqueuer]:
    """The queue into which replays go.

    Raises:
        ConfigError: queue.url is missing or wrong.
    """
    from prevue.wiring.queues import open_enqueuer

    if not settings.queue.url:
        raise ConfigError("queue.url is not set; a replay is enqueued as a new request")
    async with open_enqueuer(settings.queue) as enqueuer:
        yield enqueuer


async def groups(settings: Settings) -> list[Group]:
    """All dead letters by cause."""
    async with open_store(settings) as store:
        return grouped(await store.dead_letters(limit=LETTERS_MAX))
