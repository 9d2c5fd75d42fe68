"""From a comment to a URL and back to nothing, on the real stack."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
import yaml

from prevue.local.client import LocalGitHub, served_commit, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.postgres, pytest.mark.timeout(240)]


async def test_a_command_becomes_a_url_that_serves_the_commit(stack: Any, github: LocalGitHub) -> None:
    pull = await github.open_pull()
    comment_id = await github.comment(pull)
    delivery = await github.delivery_of(comment_id)
    assert delivery["response"]["status_code"] == 202
    assert delivery["duration"] < 1

    answer = await github.wait_answer(pull, "Preview ready", seconds=100)

    assert await served_commit(answer.url) == pull.head_sha  # from a file inside the image
    assert pull.head_sha[:12] in answer.text
    assert re.search(r"\*\*Took\*\* \| [0-9.]+ s", answer.text)
    assert len(await github.answers(pull)) == 1, "the acknowledgement became the result"
    shown = stack.preview(pull)
    assert (shown["state"], shown["commit_sha"], shown["url"], shown["attempts"]) == ("ready", pull.head_sha, answer.url, 1)
    namespace = await stack.namespace(github, pull)
    assert (shown["namespace"], shown["release"]) == (namespace, f"preview-pr-{pull.number}")
    assert [(one["revision"], one["status"]) for one in stack.history(namespace, shown["release"])] == [(1, "deployed")]


async def test_a_new_command_on_the_live_commit_runs_no_helm(stack: Any, github: LocalGitHub, deploy: Any) -> None:
    pull, first = await deploy()

    second_id = await github.comment(pull)
    second = await github.wait_answer(pull, "Preview already exists", seconds=100, after=second_id)

    assert second.url == first.url
    assert second.id != first.id, "an own comment: the first keeps what it said"
    assert len(await github.answers(pull)) == 2
    history = stack.history(await stack.namespace(github, pull), f"preview-pr-{pull.number}")
    assert [one["revision"] for one in history] == [1]


async def test_a_new_commit_is_served_at_the_url(stack: Any, github: LocalGitHub, deploy: Any) -> None:
    pull, first = await deploy()

    pushed = await github.push(pull)
    assert await served_commit(first.url) == pull.head_sha, "a push alone changes nothing"
    command_id = await github.comment(pushed)
    answer = await github.wait_answer(pull, "Preview ready", seconds=100, after=command_id)

    assert answer.url == first.url
    assert await served_commit(answer.url) == pushed.head_sha
    history = stack.history(await stack.namespace(github, pull), f"preview-pr-{pull.number}")
    assert [(one["revision"], one["status"]) for one in history] == [(1, "superseded"), (2, "deployed")]


async def test_a_forced_push_back_to_an_older_commit_deploys_it(stack: Any, github: LocalGitHub, deploy: Any) -> None:
    """A, B, then A again: A counts as deployed once, and is not what runs."""
    pull, first = await deploy()
    answers = [first]
    for sha in (None, pull.head_sha):
        commit = await github.push(pull, **({"sha": sha} if sha else {}))
        command_id = await github.comment(commit)
        answers.append(await github.wait_answer(pull, "Preview ready", seconds=100, after=command_id))
        assert await served_commit(first.url) == commit.head_sha
    history = stack.history(await stack.namespace(github, pull), f"preview-pr-{pull.number}")
    assert [(one["revision"], one["status"]) for one in history] == [(1, "superseded"), (2, "superseded"), (3, "deployed")]
    assert [one.id for one in await github.answers(pull)] == [one.id for one in answers]


async def test_changed_values_deploy_the_live_commit_again(stack: Any, github: LocalGitHub, deploy: Any) -> None:
    """The operator changes a value and restarts the deployer; the next command on the same commit is no "already exists"."""
    pull, first = await deploy()
    settings = stack.home / ".prevue" / "prevue.yaml"
    before = settings.read_text()
    changed = yaml.safe_load(before)
    changed["defaults"]["values"]["replicas"] = 2
    try:
        with stack.without("deployer"):
            settings.write_text(yaml.safe_dump(changed))
        command_id = await github.comment(pull)
        second = await github.wait_answer(pull, "Preview ready", "already exists", seconds=100, after=command_id)
    finally:
        with stack.without("deployer"):
            settings.write_text(before)
    assert "Preview ready" in second.text
    assert await served_commit(second.url) == pull.head_sha
    assert second.url == first.url
    history = stack.history(await stack.namespace(github, pull), f"preview-pr-{pull.number}")
    assert [(one["revision"], one["status"]) for one in history] == [(1, "superseded"), (2, "deployed")]


async def test_the_newest_of_two_commits_stays(github: LocalGitHub) -> None:
    """Two commands shortly after each other: whatever is overtaken says so, and the newest commit is served."""
    pull = await github.open_pull()
    await github.comment(pull)
    pushed = await github.push(pull)
    second_id = await github.comment(pushed)

    answer = await github.wait_answer(pull, "Preview ready", seconds=90, after=second_id)

    assert await served_commit(answer.url) == pushed.head_sha
    first = (await github.answers(pull))[0]
    assert first.id < answer.id
    await github.wait_answer(pull, "Preview ready", "Superseded", seconds=30)


async def test_close_leaves_nothing_and_says_so(stack: Any, github: LocalGitHub, deploy: Any) -> None:
    pull, first = await deploy()
    namespace = await stack.namespace(github, pull)
    assert stack.has_namespace(namespace)

    await github.close(pull)
    removed = await github.wait_answer(pull, "Preview removed", seconds=100)

    assert not stack.has_namespace(namespace)
    assert await served_commit(first.url) == ""
    assert removed.id != first.id
    assert stack.preview(pull)["state"] == "destroyed"


async def test_a_closed_pull_request_can_come_back(stack: Any, github: LocalGitHub, deploy: Any) -> None:
    pull, _first = await deploy()
    await github.close(pull)
    removed = await github.wait_answer(pull, "Preview removed", seconds=100)

    await github.reopen(pull)
    command_id = await github.comment(pull)
    answer = await github.wait_answer(pull, "Preview ready", seconds=100, after=command_id)

    assert answer.id > removed.id
    assert await served_commit(answer.url) == pull.head_sha


async def test_a_close_in_the_middle_wins(stack: Any, github: LocalGitHub, sha: Any) -> None:
    """The pull request is closed while Helm is at work: nothing stays."""
    pull = await github.open_pull("acme/other", head_sha=sha("510e"))
    namespace = await stack.namespace(github, pull)
    await github.comment(pull)

    async def hook_runs() -> bool | None:
        return bool(stack.kubectl("get", "jobs", "--namespace", namespace, "-o", "name")) or None

    await wait_for(hook_runs, seconds=30, what="the hook's job")
    await github.close(pull)

    async def gone() -> bool | None:
        return not stack.has_namespace(namespace) or None

    await wait_for(gone, seconds=90, what="the end of the namespace")
    await github.wait_answer(pull, "closed", "Superseded", "removed", seconds=30)
    await asyncio.sleep(2)
    assert not stack.has_namespace(namespace)
