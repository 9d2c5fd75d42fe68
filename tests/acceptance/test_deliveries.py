"""Webhooks at the App's real door: repeated, forged, refused, and while something else is down."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from prevue.local.client import HELLO, LocalGitHub, Pull, served_commit

HEADERS = {
    "X-GitHub-Event": "issue_comment",
    "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
    "Content-Type": "application/json",
}

pytestmark = [pytest.mark.cluster, pytest.mark.postgres, pytest.mark.timeout(240)]


async def test_the_same_delivery_twenty_times_at_once(stack: Any, github: LocalGitHub, http: httpx2.AsyncClient) -> None:
    """The first attempt of the delivery fails, so that all of the twenty race each other."""
    pull = await github.open_pull()
    await github.fault(f"/repos/{HELLO}/pulls/{pull.number}", status=500, times=20)
    delivery = await github.delivery_of(await github.comment(pull))
    assert delivery["response"]["status_code"] == 503
    await github.clear_faults()

    answers = await asyncio.gather(*(stack.post(http, delivery) for _ in range(20)))

    assert {answer.status_code for answer in answers} == {202}
    ready = await github.wait_answer(pull, "Preview ready", seconds=100)
    await asyncio.sleep(10)
    assert await served_commit(ready.url) == pull.head_sha
    assert [request["state"] for request in await stack.requests_of(pull)] == ["deployed"]
    history = stack.history(await stack.namespace(github, pull), f"preview-pr-{pull.number}")
    assert [one["revision"] for one in history] == [1]
    assert [comment.id for comment in await github.answers(pull)] == [ready.id]


async def test_a_redelivery_after_the_end_changes_nothing(stack: Any, github: LocalGitHub, http: httpx2.AsyncClient) -> None:
    pull = await github.open_pull()
    comment_id = await github.comment(pull)
    ready = await github.wait_answer(pull, "Preview ready", seconds=100)
    delivery = await github.delivery_of(comment_id)

    answers = await asyncio.gather(*(stack.post(http, delivery) for _ in range(5)))

    assert {answer.status_code for answer in answers} == {202}
    await asyncio.sleep(3)
    assert len(await stack.requests_of(pull)) == 1
    history = stack.history(await stack.namespace(github, pull), f"preview-pr-{pull.number}")
    assert [one["revision"] for one in history] == [1]
    assert [comment.text for comment in await github.answers(pull)] == [ready.text]


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ({"status": 500}, "500"),
        ({"status": 403, "message": "Resource not accessible by integration"}, "403"),
        ({"status": 429, "headers": {"retry-after": "1"}}, "429"),
        ({"delay_ms": 9000}, "nothing"),
    ],
    ids=["500", "403", "429", "no answer"],
)
async def test_github_fails_while_the_command_is_received(stack: Any, github: LocalGitHub, fault: dict[str, Any], name: str) -> None:
    """503 and nothing enqueued, or, where GitHub says no for good, 200; sent again by hand, a 503'd delivery is carried out once."""
    pull = await github.open_pull()
    await github.fault(f"/repos/{HELLO}/pulls/{pull.number}", times=50, **fault)
    delivery = await github.delivery_of(await github.comment(pull))
    status = delivery["response"]["status_code"]
    assert status == 503, delivery["response"]
    assert delivery["duration"] < 10, "GitHub gives up after 10 s"
    await github.clear_faults()
    await asyncio.sleep(0.5)
    assert await stack.requests_of(pull) == [], name

    await github.redeliver(delivery["guid"])

    ready = await github.wait_answer(pull, "Preview ready", seconds=100)
    assert await served_commit(ready.url) == pull.head_sha
    assert [request["state"] for request in await stack.requests_of(pull)] == ["deployed"]


@pytest.mark.parametrize("status", [500, 0], ids=["500", "no answer"])
async def test_github_fails_while_the_deployer_reads_and_tells(github: LocalGitHub, stack: Any, status: int) -> None:
    """Nothing is lost: the claim is given back and taken again, and the comment is written when GitHub takes it."""
    pull = await github.open_pull()
    await github.fault(f"/repos/{HELLO}/issues/{pull.number}/comments", method="POST", status=status, times=3)
    await github.comment(pull)
    await github.fault(f"/repos/{HELLO}/pulls/{pull.number}", status=status, times=3)

    ready = await github.wait_answer(pull, "Preview ready", seconds=100)

    assert await served_commit(ready.url) == pull.head_sha
    assert [comment.id for comment in await github.answers(pull)] == [ready.id]
    (request,) = await stack.requests_of(pull)
    assert request["state"] == "deployed"


async def test_a_comment_whose_answer_was_lost_stands_once(github: LocalGitHub) -> None:
    """GitHub does the work, then fails: the same comment is found again, not written twice."""
    pull = await github.open_pull()
    await github.fault(f"/repos/{HELLO}/issues/{pull.number}/comments", method="POST", status=500, times=2, after=True)
    await github.comment(pull)

    ready = await github.wait_answer(pull, "Preview ready", seconds=100)

    await asyncio.sleep(3)
    assert [comment.id for comment in await github.answers(pull)] == [ready.id]


async def test_a_forged_signature(stack: Any, github: LocalGitHub, http: httpx2.AsyncClient) -> None:
    body = b'{"action": "created"}'
    headers = {**HEADERS, "X-Hub-Signature-256": "sha256=" + "0" * 64}
    assert (await http.post(stack.dev.webhook_url, content=body, headers=headers)).status_code == 401


async def test_malformed_json(stack: Any, http: httpx2.AsyncClient) -> None:
    body = b'{"action": '
    answer = await http.post(stack.dev.webhook_url, content=body, headers={**HEADERS, "X-Hub-Signature-256": stack.sign(body)})
    assert answer.status_code == 400


async def test_a_body_of_26_mib_without_a_length(stack: Any, http: httpx2.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(26):
            yield b" " * 1024 * 1024

    headers = {**HEADERS, "X-Hub-Signature-256": "sha256=" + "0" * 64}
    answer = await http.post(stack.dev.webhook_url, content=chunks(), headers=headers)
    assert "content-length" not in answer.request.headers
    assert answer.status_code == 413


async def refused(stack: Any, github: LocalGitHub, pull: Pull, *, user: str = "writer") -> tuple[int, str]:
    delivery = await github.delivery_of(await github.comment(pull, user=user))
    assert [request for request in await stack.requests_of(pull) if request["action"] == "deploy"] == []
    return delivery["response"]["status_code"], delivery["response"]["payload"]


async def test_a_readers_command_is_refused_with_the_reason(stack: Any, github: LocalGitHub) -> None:
    pull = await github.open_pull()
    status, _ = await refused(stack, github, pull, user="reader")
    assert status == 200
    answer = await github.wait_answer(pull, "write access", seconds=20)
    await asyncio.sleep(1)
    assert [comment.id for comment in await github.answers(pull)] == [answer.id]


async def test_a_command_on_a_closed_pull_request_is_refused(stack: Any, github: LocalGitHub) -> None:
    pull = await github.open_pull()
    await github.close(pull)
    status, _ = await refused(stack, github, pull)
    assert status == 200
    await github.wait_answer(pull, "closed", seconds=20)


async def test_a_command_on_a_fork_is_refused(stack: Any, github: LocalGitHub) -> None:
    pull = await github.open_pull(fork=True)
    status, _ = await refused(stack, github, pull)
    assert status == 200
    await github.wait_answer(pull, "fork", seconds=20)


async def test_a_bots_command_is_ignored(stack: Any, github: LocalGitHub) -> None:
    pull = await github.open_pull()
    status, reason = await refused(stack, github, pull, user="renovate[bot]")
    assert (status, await github.answers(pull)) == (200, [])
    assert "bot" in json.loads(reason)["reason"]


async def test_a_command_on_a_plain_issue_is_ignored(github: LocalGitHub) -> None:
    issue = await github.open_issue()
    delivery = await github.delivery_of(await github.comment(issue))
    assert delivery["response"]["status_code"] == 200
    assert await github.answers(issue) == []


async def test_text_that_is_no_command_is_ignored(stack: Any, github: LocalGitHub) -> None:
    pull = await github.open_pull()
    for body in ("please /preview this", "> /preview", "```\n/preview\n```", "/previewing"):
        delivery = await github.delivery_of(await github.comment(pull, body))
        assert delivery["response"]["status_code"] == 200, body
    assert await stack.requests_of(pull) == []
    assert await github.answers(pull) == []


@contextmanager
def polling_deployer(stack: Any) -> Iterator[None]:
    """`prevue deployer --poll-deliveries`, and neither the App nor another deployer."""
    command = [sys.executable, "-m", "prevue", "deployer", "--poll-deliveries", "--config", ".prevue/prevue.yaml"]
    with stack.without("github-app", "deployer"), (stack.home / "polling.log").open("wb") as log:
        deployer = subprocess.Popen(command, cwd=stack.home, stdout=log, stderr=log)
        try:
            yield
        finally:
            deployer.terminate()
            deployer.wait(30)


async def test_without_a_public_webhook_address(stack: Any, github: LocalGitHub) -> None:
    """Nobody listens for webhooks; commands and closes are read from GitHub's log."""
    with polling_deployer(stack):
        pull = await github.open_pull()
        delivery = await github.delivery_of(await github.comment(pull))
        assert delivery["response"]["status_code"] == 0
        ready = await github.wait_answer(pull, "Preview ready", seconds=100)
        assert await served_commit(ready.url) == pull.head_sha
        await github.close(pull)
        await github.wait_answer(pull, "Preview removed", seconds=100)
        assert not stack.has_namespace(await stack.namespace(github, pull))
    # The sweeper may have seen the closed pull request's namespace before it was gone: its own request finds nothing left to do.
    asked = [(one["source"], one["state"]) for one in await stack.requests_of(pull) if one["source"] != "sweep"]
    assert asked == [("comment", "deployed"), ("close", "destroyed")]
    assert len(await github.answers(pull)) == 2
