"""Processes killed, stopped or asked to go in the middle: nothing is lost or done twice, and nobody writes with an old claim."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from prevue.local.client import OTHER, LocalGitHub, Pull, connect, served_commit, wait_for
from prevue.testing.process_tree import command_line, descendants

pytestmark = [pytest.mark.cluster, pytest.mark.postgres, pytest.mark.timeout(240)]

RunningStack = Callable[..., Any]


def helms_of(deployer: int) -> list[int]:
    """The Helm programs below a deployer, without their wrappers."""
    return [pid for pid in descendants(deployer) if "".join(command_line(pid)[:1]).endswith("/helm")]


async def start_slow(stack: Any, github: LocalGitHub, sha: Any) -> tuple[Pull, str]:
    """A `/preview` whose Helm now waits for its hook, which takes four seconds."""
    pull = await github.open_pull(OTHER, head_sha=sha("510e"))
    namespace = await stack.namespace(github, pull)
    await github.comment(pull)

    async def hook_runs() -> bool | None:
        return bool(stack.kubectl("get", "jobs", "--namespace", namespace, "-o", "name")) or None

    await wait_for(hook_runs, seconds=30, what="the hook's job")
    return pull, namespace


async def done_once(stack: Any, github: LocalGitHub, pull: Pull, namespace: str, *, attempts: int) -> None:
    """The request was carried out once, whatever happened on the way."""
    ready = await github.wait_answer(pull, "Preview ready", "Preview failed", "Preview given up", seconds=120)
    assert "Preview ready" in ready.text
    assert await served_commit(ready.url) == pull.head_sha
    assert [comment.id for comment in await github.answers(pull)] == [ready.id]
    (request,) = await stack.requests_of(pull)
    assert (request["state"], request["attempts"]) == ("deployed", attempts)
    deployed = [one for one in stack.history(namespace, f"preview-pr-{pull.number}") if one["status"] == "deployed"]
    assert len(deployed) == 1


async def test_a_killed_deployer(stack: Any, github: LocalGitHub, sha: Any) -> None:
    pull, namespace = await start_slow(stack, github, sha)
    before = stack.pid("deployer")
    helms = helms_of(before)
    assert len(helms) == 1

    os.kill(before, signal.SIGKILL)

    async def helm_gone() -> bool | None:
        return not any(command_line(pid) for pid in helms) or None

    await wait_for(helm_gone, seconds=3, what="the end of the killed deployer's Helm")

    async def started_again() -> bool | None:
        return (stack.dev.pids["deployer"] not in ([], [before])) or None

    await wait_for(started_again, seconds=10, what="another deployer in dev.json")
    await done_once(stack, github, pull, namespace, attempts=2)


async def test_a_deployer_that_is_asked_to_stop(stack: Any, github: LocalGitHub, sha: Any) -> None:
    """It finishes, or gives the claim back, without counting an attempt."""
    pull, namespace = await start_slow(stack, github, sha)
    os.kill(stack.pid("deployer"), signal.SIGTERM)
    await done_once(stack, github, pull, namespace, attempts=1)


async def test_a_killed_app(stack: Any, github: LocalGitHub) -> None:
    before = stack.pid("github-app")
    os.kill(before, signal.SIGKILL)

    async def started_again() -> bool | None:
        return (stack.dev.pids["github-app"] not in ([], [before])) or None

    await wait_for(started_again, seconds=10, what="another App in dev.json")
    pull = await github.open_pull()
    delivery = await github.delivery_of(await github.comment(pull))
    while delivery["response"]["status_code"] == 0:  # nobody listened yet: GitHub lists it as failed, a person sends it again
        await github.redeliver(delivery["guid"])
        await asyncio.sleep(0.5)
        delivery = next(one for one in await github.deliveries(event="issue_comment") if one["response"] is not None)
    await github.wait_answer(pull, "Preview ready", seconds=100)


async def test_a_queue_that_does_not_answer(stack: Any, github: LocalGitHub) -> None:
    """PostgreSQL hangs: 503 in time, nothing half-done, and the delivery that is sent again by hand is carried out once."""
    pull = await github.open_pull()
    postmaster = stack.pid("postgres")
    frozen = [postmaster, *descendants(postmaster)]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        delivery = await github.delivery_of(await github.comment(pull))
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    assert delivery["response"]["status_code"] == 503
    assert delivery["duration"] < 10
    await github.redeliver(delivery["guid"])
    ready = await github.wait_answer(pull, "Preview ready", seconds=100)
    assert [request["state"] for request in await stack.requests_of(pull)] == ["deployed"]
    assert [comment.id for comment in await github.answers(pull)] == [ready.id]


async def test_a_killed_queue(stack: Any, github: LocalGitHub, http: httpx2.AsyncClient, sha: Any) -> None:
    """PostgreSQL is killed in the middle of a deployment and comes back: the work goes on, and new commands are taken."""
    pull, namespace = await start_slow(stack, github, sha)
    before = stack.pid("postgres")

    os.kill(before, signal.SIGKILL)

    async def started_again() -> bool | None:
        return (stack.dev.pids["postgres"] not in ([], [before])) or None

    await wait_for(started_again, seconds=20, what="another PostgreSQL in dev.json")
    other = await github.open_pull()
    delivery = await github.delivery_of(await github.comment(other))
    while delivery["response"]["status_code"] == 503:
        await asyncio.sleep(0.5)
        if (await stack.post(http, delivery)).status_code == 202:
            break
    await github.wait_answer(other, "Preview ready", seconds=100)
    await github.wait_answer(pull, "Preview ready", seconds=120)
    (request,) = await stack.requests_of(pull)
    assert request["state"] == "deployed"
    assert len([one for one in stack.history(namespace, f"preview-pr-{pull.number}") if one["status"] == "deployed"]) == 1


def objects(stack: Any, namespace: str) -> dict[str, str]:
    """Every object of a namespace and the namespace itself → its version; events only report, and come later by nature."""
    kinds = stack.kubectl("api-resources", "--namespaced", "--verbs=list", "-o", "name").split()
    wanted = ",".join(kind for kind in kinds if not kind.startswith("events"))
    shown = json.loads(stack.kubectl("get", wanted, "--namespace", namespace, "-o", "json"))["items"]
    shown.append(json.loads(stack.kubectl("get", "namespace", namespace, "-o", "json")))
    return {
        f"{item['kind']}/{item['metadata']['name']}": f"{item['metadata']['uid']} {item['metadata']['resourceVersion']}" for item in shown
    }


@pytest.fixture(scope="module")
def two_deployers(tmp_path_factory: pytest.TempPathFactory, running_stack: RunningStack) -> Iterator[Any]:
    """A stack of its own with two deployers."""
    with running_stack(tmp_path_factory.mktemp("two"), deployers=2) as stack:
        yield stack


@contextmanager
def stopped_with_its_helm(stack: Any) -> Iterator[int]:
    """Stop the deployer that runs a Helm, with all below it, and give the Helm; what is still there at the end goes on."""
    ((deployer, helm),) = [(pid, helm) for pid in stack.dev.pids["deployer"] for helm in helms_of(pid)]
    stopped = [deployer, *descendants(deployer)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield helm
    finally:
        for pid in stopped:
            if command_line(pid):
                os.kill(pid, signal.SIGCONT)


async def is_gone(pid: int) -> None:
    async def look() -> bool | None:
        return not command_line(pid) or None

    await wait_for(look, seconds=20, what="the end of the stale Helm")


async def test_a_stopped_deployer_and_its_helm_change_nothing_when_they_go_on(two_deployers: Any, sha: Any) -> None:
    """Stopped in mid-apply, taken over by the other deployer, then continued: the API server refuses whatever they still want to write."""
    stack = two_deployers
    async with connect(stack.dev.github_url) as github:
        pull, namespace = await start_slow(stack, github, sha)
        with stopped_with_its_helm(stack) as helm:
            await done_once(stack, github, pull, namespace, attempts=2)
            before = objects(stack, namespace)

            async def settled() -> bool | None:
                nonlocal before
                await asyncio.sleep(2)
                last, before = before, objects(stack, namespace)
                return last == before or None

            await wait_for(settled, seconds=30, what="a namespace in which nothing changes")
            # Helm alone first: its wrapper would end it at once, since its deadline is over.
            os.kill(helm, signal.SIGCONT)
            await asyncio.sleep(5)
            assert objects(stack, namespace) == before
        await is_gone(helm)
        await asyncio.sleep(3)
        assert objects(stack, namespace) == before
        await done_once(stack, github, pull, namespace, attempts=2)


async def test_a_deployer_and_its_helm_that_were_stopped_in_a_teardown_bring_nothing_back(two_deployers: Any, sha: Any) -> None:
    """Stopped while Helm waits for a hook of its uninstall; the other deployer ends the teardown; then they go on, with nothing left."""
    stack = two_deployers
    async with connect(stack.dev.github_url) as github:
        pull = await github.open_pull(OTHER, head_sha=sha("510d"))
        namespace = await stack.namespace(github, pull)
        await github.comment(pull)
        ready = await github.wait_answer(pull, "Preview ready", seconds=100)
        await github.close(pull)

        async def hook_runs() -> bool | None:
            return bool(stack.kubectl("get", "jobs", "--namespace", namespace, "-o", "name")) or None

        async def removed_once() -> None:
            removed = await github.wait_answer(pull, "Preview removed", seconds=100)
            assert not stack.has_namespace(namespace)
            assert [comment.id for comment in await github.answers(pull)] == [ready.id, removed.id]
            _, close = await stack.requests_of(pull)
            assert (close["state"], close["attempts"]) == ("destroyed", 2)

        await wait_for(hook_runs, seconds=30, what="the job of the uninstall's hook")
        with stopped_with_its_helm(stack) as helm:
            await removed_once()
            os.kill(helm, signal.SIGCONT)
            await asyncio.sleep(3)
            assert not stack.has_namespace(namespace)
        await is_gone(helm)
        await asyncio.sleep(3)
        await removed_once()
