"""What must happen although nobody asks: lost deliveries, commands without one, closed pull requests, orphans, a restored database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from prevue.local.client import HELLO, LocalGitHub, connect, served_commit, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.postgres, pytest.mark.timeout(240)]


async def states(stack: Any, pull: Any) -> list[tuple[str, str]]:
    return [(request["source"], request["state"]) for request in await stack.requests_of(pull)]


async def until_gone(stack: Any, namespace: str, *, seconds: float = 90) -> None:
    async def look() -> bool | None:
        return None if await asyncio.to_thread(stack.has_namespace, namespace) else True

    await wait_for(look, seconds=seconds, what=f"the end of {namespace}")


async def test_delivery_that_the_app_did_not_take_is_sent_again(stack: Any, github: LocalGitHub) -> None:
    """GitHub never repeats a delivery by itself."""
    pull = await github.open_pull()
    await github.fault(f"/repos/{HELLO}/pulls/{pull.number}", status=500, times=1)
    delivery = await github.delivery_of(await github.comment(pull))
    assert delivery["response"]["status_code"] == 503
    ready = await github.wait_answer(pull, "Preview ready", seconds=90)
    assert await served_commit(ready.url) == pull.head_sha
    assert await states(stack, pull) == [("comment", "deployed")]


async def test_command_whose_webhook_was_never_sent_is_carried_out_once(stack: Any, github: LocalGitHub) -> None:
    pull = await github.open_pull()
    await github.lose_webhooks()
    await github.comment(pull)
    ready = await github.wait_answer(pull, "Preview ready", seconds=90)
    assert await served_commit(ready.url) == pull.head_sha
    await asyncio.sleep(5)
    assert await states(stack, pull) == [("comment", "deployed")]
    assert [comment.id for comment in await github.answers(pull)] == [ready.id]


async def test_close_whose_webhook_was_never_sent_leaves_nothing(stack: Any, github: LocalGitHub, deploy: Callable[..., Any]) -> None:
    pull, _ = await deploy()
    namespace = await stack.namespace(github, pull)
    await github.lose_webhooks()
    await github.close(pull)
    await until_gone(stack, namespace)
    await github.wait_answer(pull, "Preview removed", seconds=30)
    # A sweep by the rule that looked at the same moment may stand between them, superseded without a word.
    ended = [one for one in await states(stack, pull) if one != ("sweep", "superseded")]
    assert ended == [("comment", "deployed"), ("close", "destroyed")]


async def test_namespace_that_is_left_after_a_teardown_is_swept(stack: Any, github: LocalGitHub, deploy: Callable[..., Any]) -> None:
    """As by a worker that was stopped before step 3 and goes on after the end."""
    pull, _ = await deploy()
    namespace = await stack.namespace(github, pull)
    made = json.loads(stack.kubectl("get", "namespace", namespace, "-o", "json"))
    await github.close(pull)
    await until_gone(stack, namespace)
    labels = {name: value for name, value in made["metadata"]["labels"].items() if name.startswith("prevue.dev/")}
    stack.kubectl("create", "namespace", namespace)
    stack.kubectl("annotate", "namespace", namespace, "prevue.dev/fence=1")
    stack.kubectl("label", "namespace", namespace, *(f"{name}={value}" for name, value in labels.items()))
    await until_gone(stack, namespace)

    async def look() -> bool | None:
        return (await states(stack, pull))[-1] == ("sweep", "destroyed") or None

    await wait_for(look, seconds=10, what="the sweep's end")
    assert len(await github.answers(pull)) == 2  # ready and removed; a sweep says nothing


async def test_what_the_restored_database_has_forgotten_comes_back(running_stack: Any, tmp_path: Path) -> None:
    """Goal: after a restore no token is given out twice and no command stays lost. Method: rows and sequence as of before a deploy."""
    with running_stack(tmp_path) as stack:
        async with connect(stack.dev.github_url) as github:
            first = await github.open_pull()
            await github.comment(first)
            await github.wait_answer(first, "Preview ready", seconds=90)
            connection = await asyncpg.connect(stack.dev.database_url, timeout=10)
            try:
                last = await connection.fetchval("SELECT last_value FROM claim_token")
                await asyncio.sleep(4)
                second = await github.open_pull()
                await github.comment(second)
                await github.wait_answer(second, "Preview ready", seconds=90)
                stack.kubectl("annotate", "namespace", await stack.namespace(github, second), "prevue.dev/fence=500", "--overwrite")
                await connection.execute("DELETE FROM outbox WHERE pr_number = $1", second.number)
                await connection.execute("DELETE FROM request WHERE pr_number = $1", second.number)
                await connection.execute("DELETE FROM preview WHERE pr_number = $1", second.number)
                await connection.execute("SELECT setval('claim_token', $1)", last)
                await connection.execute("UPDATE cursor SET value = '2020-01-01T00:00:00+00:00' WHERE name LIKE 'comments/%'")

                async def look() -> bool | None:
                    is_raised = await connection.fetchval("SELECT last_value FROM claim_token") > 500
                    return True if is_raised and ("comment", "deployed") in await states(stack, second) else None

                await wait_for(look, seconds=150, what="the second preview, again")
            finally:
                await connection.close()
        done = stack.prevue("verify", seconds=120)
        assert done.returncode == 0, done.stdout + done.stderr
