"""The local cluster for real: pods from images of our own, shared among users, mended when it is hurt, gone after the last one.

What stops or hurts a whole cluster is tried on a second one, in a network namespace and a state folder of its own, since
everybody on this machine shares the first.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prevue.local.cluster import ClusterHandle, cleanup, join, write_example_image
from prevue.local.cluster.state import StateFolder
from prevue.local.cluster.supervisor import owned_pids

EXAMPLE = Path(__file__).parents[2] / "examples" / "hello"
START_SECONDS = 3600
"""The first run on a machine builds the cluster's programs."""

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(START_SECONDS)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterHandle]:
    handle = join(print)
    yield handle
    handle.leave(wait=False)


@pytest.fixture
def namespace(cluster: ClusterHandle) -> Iterator[str]:
    """One that Pod Security holds to its strictest profile, as previews may be."""
    name = f"local-cluster-{secrets.token_hex(4)}"
    kubectl(cluster, "create", "namespace", name)
    kubectl(cluster, "label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    kubectl(cluster, "delete", "namespace", name, "--wait=false")


def kubectl(cluster: ClusterHandle, *arguments: str) -> str:
    command = [str(cluster.kubectl), "--kubeconfig", str(cluster.kubeconfig), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def helm_install(cluster: ClusterHandle, namespace: str, *values: str) -> None:
    command = [str(cluster.helm), "--kubeconfig", str(cluster.kubeconfig), "install", "try", str(EXAMPLE / "chart"), "-n", namespace]
    for value in values:
        command += ["--set", value]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def load_example(cluster: ClusterHandle, folder: Path) -> str:
    """An image for a made-up commit; its SHA."""
    sha = secrets.token_hex(20)
    archive = folder / f"{sha}.tar"
    page = (EXAMPLE / "app" / "index.html").read_text()
    reference = f"prevue.local/acme/hello:{sha}"
    write_example_image(archive, reference=reference, busybox=cluster.busybox, commit_sha=sha, page=page)
    cluster.load_image(archive)
    assert reference in cluster.image_names()
    return sha


def until(condition: Callable[[], Any], *, seconds: float = 90) -> Any:
    """What the condition returns as soon as it is true; an answer that is missing is not true."""
    give_up_at = time.monotonic() + seconds
    while True:
        try:
            if value := condition():
                return value
        except (urllib.error.URLError, OSError):
            pass
        assert time.monotonic() < give_up_at, f"not within {seconds} s"
        time.sleep(0.1)


def container_states(cluster: ClusterHandle, namespace: str) -> list[dict[str, Any]]:
    pods = json.loads(kubectl(cluster, "get", "pods", "-n", namespace, "-o", "json"))["items"]
    return [status["state"] for pod in pods for status in pod["status"].get("containerStatuses", ())]


def test_the_page_serves_the_commit_from_inside_the_image(cluster: ClusterHandle, namespace: str, tmp_path: Path) -> None:
    sha = load_example(cluster, tmp_path)
    helm_install(cluster, namespace, f"image.tag={sha}")
    port = kubectl(cluster, "get", "service", "-n", namespace, "try-hello", "-o", "jsonpath={.spec.ports[0].nodePort}")

    def fetch(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    assert until(lambda: fetch("/commit")).strip() == sha
    assert f'<code id="commit">{sha}</code>' in fetch("/")
    assert f"hello: serving {sha} on port 8080" in kubectl(cluster, "logs", "-n", namespace, "deployment/try-hello")
    cluster.remove_image(f"prevue.local/acme/hello:{sha}")
    assert f"prevue.local/acme/hello:{sha}" not in cluster.image_names()
    assert fetch("/commit").strip() == sha, "a container goes on without its image's name"


def test_a_missing_image_is_said_at_once_and_mended_when_it_comes(cluster: ClusterHandle, namespace: str, tmp_path: Path) -> None:
    sha = load_example(cluster, tmp_path)
    reference = f"prevue.local/acme/hello:{sha}"
    cluster.remove_image(reference)
    helm_install(cluster, namespace, f"image.tag={sha}")

    def reasons() -> set[str]:
        return {state["waiting"]["reason"] for state in container_states(cluster, namespace) if "waiting" in state}

    until(lambda: reasons() & {"ErrImagePull", "ImagePullBackOff"}, seconds=30)
    cluster.load_image(tmp_path / f"{sha}.tar")
    until(lambda: any("running" in state for state in container_states(cluster, namespace)))


def test_a_crash_leaves_its_last_words(cluster: ClusterHandle, namespace: str, tmp_path: Path) -> None:
    helm_install(cluster, namespace, f"image.tag={load_example(cluster, tmp_path)}", "crash=true")
    until(lambda: any("CrashLoopBackOff" in json.dumps(state) for state in container_states(cluster, namespace)))
    assert "hello: asked to crash" in kubectl(cluster, "logs", "-n", namespace, "deployment/try-hello")


def test_a_second_user_shares_the_cluster_and_its_leaving_does_not_stop_it(cluster: ClusterHandle) -> None:
    script = "from prevue.local.cluster import join; c = join(print); print(c.kubeconfig); c.leave()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == [str(cluster.kubeconfig)], "nothing was started"
    time.sleep(2)  # the daemon looks for users each second
    assert kubectl(cluster, "get", "--raw", "/readyz") == "ok"


def test_a_killed_scheduler_is_started_again(cluster: ClusterHandle) -> None:
    before = cluster.pids()["kube-scheduler"]
    os.kill(before, signal.SIGKILL)
    after = until(lambda: (pid := cluster.pids()["kube-scheduler"]) != before and pid, seconds=20)
    assert Path(f"/proc/{after}/comm").read_text().strip() == "kube-scheduler"


# --- a cluster of its own ---------------------------------------------------------------------------------------------


class PrivateCluster:
    """A user of a second cluster: a process in a network namespace of its own, which does what it is told."""

    SCRIPT = """
import json, os, sys
from prevue.local.cluster import join
from prevue.local.cluster.state import StateFolder, read_record
cluster = join(lambda text: print(text, file=sys.stderr))
folder = StateFolder.of(os.environ)
def say(): print(json.dumps({"pids": cluster.pids(), "daemon": read_record(folder).daemon_pid}), flush=True)
say()
for line in sys.stdin:
    if line == "ensure\\n": cluster.ensure_running(lambda text: None)
    if line == "leave\\n": cluster.leave(); print("left", flush=True); break
    else: say()
"""

    def __init__(self, folder: StateFolder, *, inside_of: int | None = None) -> None:
        enter = ["nsenter", "--net", "--target", str(inside_of)] if inside_of else ["unshare", "--net"]
        self.user = subprocess.Popen(
            [*enter, sys.executable, "-c", self.SCRIPT],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PREVUE_CLUSTER_STATE": str(folder.root)},
        )  # fmt: skip
        self.seen: dict[str, Any] = self.read()

    def read(self) -> Any:
        assert self.user.stdout is not None
        return json.loads(self.user.stdout.readline())

    def tell(self, order: str) -> str:
        assert self.user.stdin is not None
        assert self.user.stdout is not None
        self.user.stdin.write(f"{order}\n")
        self.user.stdin.flush()
        return self.user.stdout.readline()

    def close(self) -> None:
        self.user.kill()
        self.user.communicate()


@pytest.fixture
def private_state() -> Iterator[StateFolder]:
    """A short path, since sockets lie below it. A failed test leaves nothing behind either."""
    folder = StateFolder(Path(tempfile.mkdtemp(prefix="prevue-cluster-")))
    yield folder
    until(lambda: is_gone(folder), seconds=60)
    shutil.rmtree(folder.root)


def is_gone(folder: StateFolder) -> bool:
    """No process, no mount, no file but the locks."""
    files = {path.name for path in folder.root.iterdir()} - {folder.users_lock.name, folder.daemon_lock.name}
    return not owned_pids(folder.root) and not cleanup.mounts_below(folder.root) and not files


def test_the_last_users_leaving_stops_everything(cluster: ClusterHandle, private_state: StateFolder) -> None:
    user = PrivateCluster(private_state)
    try:
        assert set(user.seen["pids"].values()) <= set(owned_pids(private_state.root))
        assert not set(user.seen["pids"].values()) & set(cluster.pids().values())
        assert user.tell("leave") == "left\n"
        assert is_gone(private_state), "leaving returns when it is gone"
    finally:
        user.close()


def test_a_killed_user_counts_as_gone(private_state: StateFolder) -> None:
    user = PrivateCluster(private_state)
    assert not is_gone(private_state)
    user.close()
    until(lambda: is_gone(private_state), seconds=30)


def test_a_killed_daemon_is_replaced_and_the_cluster_goes_on(private_state: StateFolder) -> None:
    user = PrivateCluster(private_state)
    try:
        os.kill(user.seen["daemon"], signal.SIGKILL)
        until(lambda: not Path(f"/proc/{user.seen['daemon']}").exists())
        again = json.loads(user.tell("ensure"))
        assert again["daemon"] != user.seen["daemon"]
        assert again["pids"] == user.seen["pids"], "its processes were not started anew"
    finally:
        user.close()


def test_what_a_killed_daemon_left_is_removed_by_the_next_user(private_state: StateFolder) -> None:
    user = PrivateCluster(private_state)
    keeper = subprocess.Popen(["nsenter", "--net", "--target", str(user.user.pid), "sleep", "600"])
    try:
        until(lambda: Path(f"/proc/{keeper.pid}/comm").read_text() == "sleep\n")
        os.kill(user.seen["daemon"], signal.SIGKILL)
        user.close()
        assert set(user.seen["pids"].values()) <= set(owned_pids(private_state.root)), "nobody is there to end them"
        following = PrivateCluster(private_state, inside_of=keeper.pid)
        assert not set(following.seen["pids"].values()) & set(user.seen["pids"].values())
        assert not set(user.seen["pids"].values()) & set(owned_pids(private_state.root))
        following.close()
        until(lambda: is_gone(private_state), seconds=30)
    finally:
        keeper.kill()
        keeper.wait()


def test_beside_another_kubernetes_it_refuses_and_touches_nothing(private_state: StateFolder) -> None:
    script = """
import subprocess
from prevue.local.cluster import LocalClusterError, join
subprocess.run(["iptables", "-N", "KUBE-FORWARD"], check=True)
try:
    join(lambda text: None)
except LocalClusterError as error:
    print(error)
subprocess.run(["iptables", "-S", "KUBE-FORWARD"], check=True)
"""
    environ = {**os.environ, "PREVUE_CLUSTER_STATE": str(private_state.root)}
    command = ["unshare", "--net", sys.executable, "-u", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120, check=True)
    assert "another Kubernetes node runs on this machine" in done.stdout
    assert "--kubeconfig FILE" in done.stdout
    assert done.stdout.splitlines()[-1] == "-N KUBE-FORWARD", "its chain is still there"
    assert private_state.logs.is_dir(), "the logs of a failed start are kept"
    shutil.rmtree(private_state.logs)
    private_state.record.unlink()
