"""`prevue dev` itself: it says why it does not start, restarts what dies, and leaves nothing, also when it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from prevue.local import processes
from prevue.local.client import Failed, connect, served_commit, wait_for
from prevue.local.cluster import join
from prevue.local.cluster.state import StateFolder
from prevue.local.folder import StackFolder

pytestmark = [pytest.mark.cluster, pytest.mark.postgres, pytest.mark.timeout(240)]

RunningStack = Callable[..., Any]


def dev_pids(stack: Any) -> dict[str, list[int]]:
    """What belongs to the stack alone; the cluster may be shared."""
    own = ("supervisor", "postgres", "local-github", "github-app", "deployer")
    return {name: pids for name, pids in stack.dev.pids.items() if name in own}


async def test_a_second_up_says_that_one_runs(stack: Any) -> None:
    done = stack.prevue("dev", "up", "--detach")
    assert done.returncode != 0
    assert "runs in" in done.stderr
    assert "prevue dev down" in done.stderr


async def test_status_shows_what_runs(stack: Any) -> None:
    done = stack.prevue("dev", "status")
    assert done.returncode == 0
    for name, pids in dev_pids(stack).items():
        assert name in done.stdout
        assert all(str(pid) in done.stdout for pid in pids)


async def test_up_says_why_it_does_not_start(tmp_path: Path, prevue: Callable[..., Any]) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"deployer": {"lease_seconds": 0.5}}))

    done = prevue(tmp_path, "dev", "up", "--detach", seconds=1800, environ={"PREVUE_DEV_CONFIG": str(overlay)})

    assert done.returncode != 0
    assert "deployer does not stay up" in done.stderr
    assert "deployer.lease_seconds" in done.stderr, "the end of its log is shown"
    assert processes.marked(tmp_path / ".prevue") == []
    assert {path.name for path in (tmp_path / ".prevue").iterdir()} == {"logs", "lock"}
    assert prevue(tmp_path, "dev", "status").returncode != 0


async def test_an_overlay_that_is_no_yaml(tmp_path: Path, prevue: Callable[..., Any]) -> None:
    done = prevue(tmp_path, "dev", "up", "--detach", environ={"PREVUE_DEV_CONFIG": str(tmp_path / "missing.yaml")})
    assert done.returncode != 0
    assert "missing.yaml" in done.stderr


async def test_down_after_the_supervisor_was_killed(tmp_path: Path, running_stack: RunningStack) -> None:
    """First every process is restarted when it dies; then the supervisor itself is killed, and `down` still finds all of them."""
    with running_stack(tmp_path) as stack:
        before = dev_pids(stack)
        for name in ("local-github", "github-app", "deployer", "postgres"):
            (pid,) = before[name]
            os.kill(pid, signal.SIGKILL)

        async def all_again() -> bool | None:
            now = dev_pids(stack)
            return all(now[name] and now[name] != pids for name, pids in before.items() if name != "supervisor") or None

        await wait_for(all_again, seconds=30, what="all processes once more")
        async with connect(stack.dev.github_url) as github:

            async def answers() -> bool | None:
                try:
                    return bool(await github.repository_id("acme/hello"))
                except Failed:
                    return None

            await wait_for(answers, seconds=20, what="the restarted GitHub")
            pull = await github.open_pull()

            async def taken() -> bool | None:
                delivery = await github.delivery_of(await github.comment(pull))
                return delivery["response"]["status_code"] == 202 or None

            await wait_for(taken, seconds=30, what="a 202 of the restarted App", every=1)
            ready = await github.wait_answer(pull, "Preview ready", seconds=60)
            assert await served_commit(ready.url) == pull.head_sha

        pids = [pid for pids in dev_pids(stack).values() for pid in pids]
        (supervisor,) = stack.dev.pids["supervisor"]
        os.kill(supervisor, signal.SIGKILL)
        assert stack.prevue("dev", "status").returncode != 0
    # `running_stack` has gone down by now, and found that no process is left.
    assert not {str(pid) for pid in pids} & set(os.listdir("/proc"))  # noqa: PTH208 -- no path is needed


async def test_the_demo(tmp_path: Path) -> None:
    """`make demo`, not on a terminal: shows a URL that serves the commit, and leaves nothing."""
    done = subprocess.run(  # noqa: ASYNC221 -- nothing else happens meanwhile
        [sys.executable, "-m", "prevue.local.demo"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "serves commit" in done.stdout
    assert "Preview ready" in done.stdout
    assert processes.marked(tmp_path / ".prevue") == []


async def test_a_cluster_of_ones_own(tmp_path: Path, prevue: Callable[..., Any]) -> None:
    """`--kubeconfig` and `--image-loader`, with the local cluster in the role of somebody's own: nothing of it is stopped."""
    cluster = join(print)
    try:
        programs = StateFolder.of(os.environ)
        loader = f"{programs.programs / 'ctr'} -a {programs.containerd_socket} -n k8s.io images import {{archive}}"
        overlay = tmp_path / "overlay.yaml"
        # Its node ports answer on this machine's loopback alone.
        overlay.write_text(yaml.safe_dump({"defaults": {"url": {"host": "127.0.0.1"}}}))
        done = prevue(
            tmp_path, "dev", "up", "--detach", "--kubeconfig", str(cluster.kubeconfig), "--image-loader", loader,
            seconds=120, environ={"PREVUE_DEV_CONFIG": str(overlay)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        dev = StackFolder(tmp_path / ".prevue").read_dev()
        assert dev is not None
        assert "kube-apiserver" not in dev.pids, "its processes are not ours"
        async with connect(dev.github_url) as github:
            pull = await github.open_pull()
            await github.comment(pull)
            ready = await github.wait_answer(pull, "Preview ready", seconds=60)
            assert await served_commit(ready.url) == pull.head_sha
            repository_id = await github.repository_id(pull.repo)

        assert prevue(tmp_path, "dev", "down", seconds=120).returncode == 0

        async def deleted() -> bool | None:
            command = [str(cluster.kubectl), "--kubeconfig", str(cluster.kubeconfig), "get", "namespaces", "-o", "name"]
            command += ["-l", f"prevue.dev/repository-id={repository_id}"]
            return not subprocess.run(command, capture_output=True, check=True).stdout or None  # noqa: ASYNC221 -- a moment

        await wait_for(deleted, seconds=60, what="the end of the previews' namespaces")
    finally:
        cluster.leave()


async def test_a_loader_without_a_cluster(tmp_path: Path, prevue: Callable[..., Any]) -> None:
    done = prevue(tmp_path, "dev", "up", "--detach", "--image-loader", "kind load image-archive")
    assert done.returncode != 0
    assert "--kubeconfig" in done.stderr
