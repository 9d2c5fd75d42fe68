"""What a pull request is told when its preview cannot be, and that nothing is left half-done: by a chart that fails as a commit asks."""

from __future__ import annotations

from typing import Any

import pytest

from prevue.local.client import OTHER, LocalGitHub, Pull, served_commit

pytestmark = [pytest.mark.cluster, pytest.mark.postgres, pytest.mark.timeout(240)]


async def failed(stack: Any, github: LocalGitHub, pull: Pull, *, seconds: float = 100) -> str:
    await github.comment(pull)
    answer = await github.wait_answer(pull, "Preview failed", "Preview ready", "Preview given up", seconds=seconds)
    assert "Preview failed" in answer.text
    assert pull.head_sha[:12] in answer.text
    assert [comment.id for comment in await github.answers(pull)] == [answer.id]
    assert stack.preview(pull)["state"] == "failed"
    (request,) = await stack.requests_of(pull)
    assert (request["state"], request["attempts"]) == ("failed", 1), "a fault of the chart or the app is not tried again"
    return str(answer.text)


async def test_a_chart_that_does_not_render(stack: Any, github: LocalGitHub, sha: Any) -> None:
    text = await failed(stack, github, await github.open_pull(OTHER, head_sha=sha("dead")))
    assert "does not render" in text
    assert "this chart does not like the commit" in text


async def test_an_object_that_the_cluster_refuses(stack: Any, github: LocalGitHub, sha: Any) -> None:
    text = await failed(stack, github, await github.open_pull(OTHER, head_sha=sha("bad2")))
    assert "99999" in text


async def test_a_hook_that_fails(stack: Any, github: LocalGitHub, sha: Any) -> None:
    text = await failed(stack, github, await github.open_pull(OTHER, head_sha=sha("bad3")))
    assert "hook" in text


async def test_a_pod_that_crashes(stack: Any, github: LocalGitHub, sha: Any) -> None:
    text = await failed(stack, github, await github.open_pull(OTHER, head_sha=sha("bad1")), seconds=100)
    assert "CrashLoopBackOff" in text or "crash" in text.lower()
    assert "the database of this app is missing" in text, "its last log lines are shown"


async def test_an_image_that_does_not_exist(stack: Any, github: LocalGitHub, sha: Any) -> None:
    pull = await github.open_pull(OTHER, head_sha=sha("0000"), image=False)
    text = await failed(stack, github, pull)
    assert f"prevue.local/acme/other:{pull.head_sha}" in text or "image" in text.lower()


async def test_a_failure_is_mended_by_the_next_commit(stack: Any, github: LocalGitHub, sha: Any) -> None:
    pull = await github.open_pull(OTHER, head_sha=sha("bad2"))
    await failed(stack, github, pull)

    again_id = await github.comment(pull)
    again = await github.wait_answer(pull, "Preview failed", "already exists", seconds=100, after=again_id)
    assert "Preview failed" in again.text, "the same commit is tried again, and fails again"

    pushed = await github.push(pull, sha=sha("0000"))
    command_id = await github.comment(pushed)
    answer = await github.wait_answer(pull, "Preview ready", "Preview failed", "Preview given up", seconds=100, after=command_id)

    assert "Preview ready" in answer.text
    assert await served_commit(answer.url) == pushed.head_sha
    await github.close(pull)
    await github.wait_answer(pull, "Preview removed", seconds=100)
    assert not stack.has_namespace(await stack.namespace(github, pull))
