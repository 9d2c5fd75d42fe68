"""The whole stack with Redis as the queue: the server and a deployer are killed in the middle, and every command is carried out once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from prevue.local.client import connect, served_commit, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.postgres, pytest.mark.timeout(600)]

PREVIEWS = 4


async def test_killed_redis_and_killed_deployer(running_stack: Callable[..., AbstractContextManager[Any]], tmp_path: Path) -> None:
    with running_stack(tmp_path, deployers=2, queue="redis") as stack:
        async with connect(stack.dev.github_url) as github:
            pulls = [await github.open_pull() for _ in range(PREVIEWS)]
            await asyncio.gather(*(github.comment(pull) for pull in pulls))
            connection = await asyncpg.connect(stack.dev.database_url)
            try:

                async def some_holder() -> str | None:
                    found: str | None = await connection.fetchval("SELECT holder FROM preview WHERE holder IS NOT NULL LIMIT 1")
                    return found

                holder = await wait_for(some_holder, seconds=60, what="a claim")
            finally:
                await connection.close()
            os.kill(stack.pid("redis"), signal.SIGKILL)
            os.kill(int(holder.split("-")[-2]), signal.SIGKILL)  # the holder's name has its process in it
            for pull in pulls:
                ready = await github.wait_answer(pull, "Preview ready", "Preview failed", "Preview given up", seconds=180)
                assert "Preview ready" in ready.text
                assert await served_commit(ready.url) == pull.head_sha
                assert [comment.id for comment in await github.answers(pull)] == [ready.id]
                assert [request["state"] for request in await stack.requests_of(pull)] == ["deployed"]
                history = stack.history(await stack.namespace(github, pull), f"preview-pr-{pull.number}")
                assert [one["status"] for one in history].count("deployed") == 1

            async def queue_is_empty() -> bool | None:
                done = stack.prevue("queue", "depth", "--json", "--config", ".prevue/prevue.yaml")
                return (done.returncode == 0 and json.loads(done.stdout) == {"messages": 0, "oldest_seconds": 0.0}) or None

            await wait_for(queue_is_empty, seconds=60, what="a queue without unsettled messages")
