"""Prevue is down while commands are written: when it is back all of them are carried out, once each, at the sweeper's default pace."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from prevue.local.client import LocalGitHub, Pull, connect, served_commit, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.postgres, pytest.mark.timeout(900)]

DEFAULTS: dict[str, Any] = {}
"""Laid over the stack's settings: nothing, so lease, deadline and the sweeper's pace are those of an operator who has set none."""
PULLS = 8
COMMANDED_TWICE = 2
"""So many of them get a push and a second command."""
HOUR = 3600.0
RECOVERY_SECONDS_MAX = 300.0


async def write_commands(github: LocalGitHub) -> dict[Pull, list[int]]:
    """Pull requests with their commands' numbers; the pull request is as of its newest."""
    commanded = {pull: [await github.comment(pull)] for pull in [await github.open_pull() for _ in range(PULLS)]}
    for pull in list(commanded)[:COMMANDED_TWICE]:
        pushed, comments = await github.push(pull), commanded.pop(pull)
        commanded[pushed] = [*comments, await github.comment(pushed)]
    return commanded


async def until_served(github: LocalGitHub, commanded: dict[Pull, list[int]], *, seconds: float) -> None:
    """Return when the newest command of each has a URL that serves its commit."""

    async def look() -> bool | None:
        for pull in list(waited_for):
            ready = [one.url for one in await github.answers(pull) if "Preview ready" in one.text]
            if pull.head_sha in [await served_commit(url) for url in ready]:
                waited_for.remove(pull)
        return not waited_for or None

    waited_for = set(commanded)
    await wait_for(look, seconds=seconds, what="the previews", instead=lambda: f"all but {waited_for}", every=1)


async def carried_out_once(stack: Any, github: LocalGitHub, commanded: dict[Pull, list[int]]) -> None:
    """One request, one grant and one status comment a command; only what was overtaken by a newer one was left out."""
    grants = {one["request_id"]: one["n"] for one in await stack.query(GRANTS)}
    for pull, comments in commanded.items():
        requests = await stack.requests_of(pull)
        assert sorted(one["source_id"] for one in requests) == sorted(map(str, comments))
        by_comment = {int(one["source_id"]): one for one in requests}
        newest = by_comment[comments[-1]]
        assert (newest["state"], newest["commit_sha"], newest["attempts"]) == ("deployed", pull.head_sha, 1)
        assert grants[newest["id"]] == 1
        for older in (by_comment[comment] for comment in comments[:-1]):
            assert older["state"] in ("deployed", "superseded")
            assert grants.get(older["id"], 0) <= 1
        assert len(await github.answers(pull)) == len(comments)
        history = stack.history(await stack.namespace(github, pull), f"preview-pr-{pull.number}")
        assert len(history) <= len(comments), "a command that was overtaken may have been at work"
        assert [one["status"] for one in history].count("deployed") == 1


GRANTS = "SELECT request_id, count(*) AS n FROM ledger WHERE event = 'granted' GROUP BY request_id"


async def tries(github: LocalGitHub, commanded: dict[Pull, list[int]]) -> dict[int, list[int]]:
    """Command → the status of each try to deliver it, oldest first; 0: nobody answered, -1: on its way."""
    ours = {comment for comments in commanded.values() for comment in comments}
    found: dict[int, list[int]] = defaultdict(list)
    for one in reversed(await github.deliveries(event="issue_comment", per_page=1000)):
        payload = one["request"]["payload"]
        if payload["action"] == "created" and payload["comment"]["id"] in ours:
            found[payload["comment"]["id"]].append(one["response"]["status_code"] if one["response"] else -1)
    return found


async def until_delivered(github: LocalGitHub, commanded: dict[Pull, list[int]]) -> None:
    """Return when every delivery was taken; once it was, it is not sent again."""

    async def look() -> bool | None:
        return all(statuses[-1] == 202 for statuses in (await tries(github, commanded)).values()) or None

    await wait_for(look, seconds=120, what="the deliveries, sent again")
    await asyncio.sleep(20)  # another turn of the rule
    found = await tries(github, commanded)
    assert all(statuses[0] == 0 and statuses.index(202) == len(statuses) - 1 for statuses in found.values()), found
    assert len(found) >= PULLS + COMMANDED_TWICE


async def test_everything_is_down_for_an_hour_while_commands_are_written(running_stack: Any, tmp_path: Path) -> None:
    """Goal: within five minutes all is carried out, once each. Method: the hour is GitHub's, which dates what happens an hour ago.

    The scan's cursor is an hour old too, as silence leaves it. A command whose webhook was never sent and a close are among it.
    """
    with running_stack(tmp_path, settings=DEFAULTS) as stack:
        async with connect(stack.dev.github_url) as github:
            closed = await github.open_pull()
            await github.comment(closed)
            await github.wait_answer(closed, "Preview ready", seconds=100)
            namespace = await stack.namespace(github, closed)
            with stack.without("github-app", "deployer"):
                await stack.query(
                    "UPDATE cursor SET value = to_char((value::timestamptz - interval '1 hour') AT TIME ZONE 'UTC',"
                    " 'YYYY-MM-DD\"T\"HH24:MI:SS\"+00:00\"') WHERE name LIKE 'comments/%'"
                )
                await github.happened_ago(seconds=HOUR)
                commanded = await write_commands(github)
                unsent = await github.open_pull()
                await github.lose_webhooks()
                commanded[unsent] = [await github.comment(unsent)]
                await github.close(closed)
                await github.happened_ago(seconds=0)
            began = time.monotonic()
            await until_served(github, commanded, seconds=RECOVERY_SECONDS_MAX)
            print(f"{sum(map(len, commanded.values()))} commands carried out {time.monotonic() - began:.0f} s after the return")

            async def gone() -> bool | None:
                return not await asyncio.to_thread(stack.has_namespace, namespace) or None

            await wait_for(gone, seconds=RECOVERY_SECONDS_MAX, what="the end of what was closed meanwhile")
            await until_delivered(github, commanded)
            print((await stack.quiet(seconds=200)).splitlines()[-1])
            await carried_out_once(stack, github, commanded)


async def test_the_app_is_down_while_commands_are_written(running_stack: Any, tmp_path: Path) -> None:
    """The deployers' sweeper finds them meanwhile; when the App is back their deliveries are sent again, and change nothing."""
    with running_stack(tmp_path, settings=DEFAULTS) as stack:
        async with connect(stack.dev.github_url) as github:
            with stack.without("github-app"):
                began = time.monotonic()
                commanded = await write_commands(github)
                await until_served(github, commanded, seconds=RECOVERY_SECONDS_MAX)
                print(f"{sum(map(len, commanded.values()))} commands carried out after {time.monotonic() - began:.0f} s, without the App")
                assert all(202 not in statuses for statuses in (await tries(github, commanded)).values())
            await until_delivered(github, commanded)
            print((await stack.quiet(seconds=200)).splitlines()[-1])
            await carried_out_once(stack, github, commanded)
