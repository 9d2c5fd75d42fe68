"""The whole stack with each queue but PostgreSQL's: a deployer is killed in the middle, and every command is carried out once.

Redis is killed with it, since it keeps its messages on disk. Google's emulators keep them in memory, and are left alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from prevue.local.client import connect, served_commit, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.postgres, pytest.mark.timeout(600)]

PREVIEWS, DEPLOYERS = 4, 2
"""With one slot each, so that commands wait while the first are worked on."""
SERVERS = {"redis": ["redis"], "cloudtasks": [], "pubsub": []}
"""Queue → what is killed beside the deployer."""
NOTHING_LEFT = {"messages": 0, "oldest_seconds": 0.0}
UNKNOWN = {"messages": None, "oldest_seconds": None}
"""What Pub/Sub's emulator can say of its depth."""


@pytest.mark.parametrize("queue", SERVERS)
async def test_killed_deployer(running_stack: Callable[..., AbstractContextManager[Any]], tmp_path: Path, queue: str) -> None:
    with running_stack(tmp_path, deployers=DEPLOYERS, queue=queue, slots=1) as stack:
        async with connect(stack.dev.github_url) as github:
            pulls = [await github.open_pull() for _ in range(PREVIEWS)]
            await asyncio.gather(*(github.comment(pull) for pull in pulls))

            async def some_holder() -> str | None:
                rows = await stack.query("SELECT holder FROM preview WHERE holder IS NOT NULL LIMIT 1")
                return rows[0]["holder"] if rows else None

            holder = await wait_for(some_holder, seconds=60, what="a claim")
            for server in SERVERS[queue]:
                os.kill(stack.pid(server), signal.SIGKILL)
            os.kill(int(holder.split("-")[-2]), signal.SIGKILL)  # the holder's name has its process in it
            attempts = [await _carried_out_once(stack, github, pull) for pull in pulls]
            assert max(attempts) == 2, "the killed deployer's claim was taken over"

            async def queue_is_empty() -> bool | None:
                done = stack.prevue("queue", "depth", "--json", "--config", ".prevue/prevue.yaml")
                return (done.returncode == 0 and json.loads(done.stdout) in (NOTHING_LEFT, UNKNOWN)) or None

            await wait_for(queue_is_empty, seconds=60, what="a queue without unsettled messages")


async def _carried_out_once(stack: Any, github: Any, pull: Any) -> int:
    """One answer, one request, one deployed revision, and the page of that commit; returns how often it was claimed."""
    ready = await github.wait_answer(pull, "Preview ready", "Preview failed", "Preview given up", seconds=180)
    assert "Preview ready" in ready.text
    assert await served_commit(ready.url) == pull.head_sha
    assert [comment.id for comment in await github.answers(pull)] == [ready.id]
    (request,) = await stack.requests_of(pull)
    assert request["state"] == "deployed"
    history = stack.history(await stack.namespace(github, pull), f"preview-pr-{pull.number}")
    assert [one["status"] for one in history].count("deployed") == 1
    return int(request["attempts"])
