"""Sharing the machine's one cluster: come, use, leave.

A user is whoever holds the shared lock; the kernel gives it back when a user dies. The first user starts the daemon, the
daemon stops the cluster after the last one.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from prevue.local.cluster import cleanup
from prevue.local.cluster.cache import Progress
from prevue.local.cluster.errors import LocalClusterError
from prevue.local.cluster.locks import FileLock
from prevue.local.cluster.programs import ClusterPrograms, cluster_programs
from prevue.local.cluster.state import ClusterRecord, StateFolder, read_record

JOIN_SECONDS = 300.0
"""How long a start may take once the programs are there."""
STOP_SECONDS = 60.0
IMPORT_SECONDS = 120
INSTEAD = "use a cluster of your own: --kubeconfig FILE with --image-loader 'kind load image-archive' (https://kind.sigs.k8s.io)"


class Cluster(Protocol):
    """What the local stack needs of a cluster, its own or the user's."""

    @property
    def kubeconfig(self) -> Path:
        """The administrator's access; always named, never somebody's current context."""

    @property
    def helm(self) -> Path: ...

    @property
    def kubectl(self) -> Path: ...

    @property
    def busybox(self) -> Path:
        """A static busybox of the nodes' architecture, for images written by hand."""

    def pids(self) -> dict[str, int]:
        """The cluster's processes on this machine, by name, as they are now."""

    def load_image(self, archive: Path) -> None:
        """Make the image of a docker-archive known to the node; at return a pod can use it."""

    def leave(self, *, wait: bool = True) -> None:
        """Use it no longer; twice is harmless. The last user's leaving stops a local cluster, and is waited for."""


class ClusterHandle:
    """A share of the local cluster, held until `leave` or the end of the process."""

    def __init__(self, folder: StateFolder, users: FileLock, record: ClusterRecord) -> None:
        self._folder = folder
        self._users = users
        self.kubeconfig = Path(record.kubeconfig)
        self.helm = Path(record.helm)
        self.kubectl = Path(record.kubectl)
        self.busybox = folder.programs / "busybox"
        self.node_ip = record.node_ip
        self.version = record.version

    def pids(self) -> dict[str, int]:
        """The cluster's processes by name, as they are now; one that was started again has a new number."""
        record = read_record(self._folder)
        return dict(record.pids) if record else {}

    def load_image(self, archive: Path) -> None:
        """Import a docker-archive into the node's containerd."""
        self._ctr("images", "import", str(archive))

    def image_names(self) -> set[str]:
        """The names of the images on the node."""
        return {name for name in self._images() if not name.startswith("sha256:")}

    def remove_image(self, reference: str) -> None:
        """Forget an image; harmless when it is not there. Containers that run from it go on."""
        images = self._images()
        digest = images.get(reference)
        names = [name for name, value in images.items() if value == digest]
        # containerd's Kubernetes part names each image a second time, by its identifier.
        doomed = names if all(name == reference or name.startswith("sha256:") for name in names) else [reference]
        if digest is not None:
            self._ctr("images", "rm", *doomed)

    def ensure_running(self, progress: Progress) -> None:
        """Start the daemon again when it was killed: it goes on with the same cluster and its processes."""
        if not _daemon_lives(self._folder):
            _await_ready(self._folder, progress)

    def leave(self, *, wait: bool = True) -> None:
        """Give the share back; when it was the last one and `wait`, return when the cluster is gone."""
        self._users.release()
        if wait:
            wait_until_stopped()

    def _images(self) -> dict[str, str]:
        """Name → digest."""
        lines = self._ctr("images", "ls").splitlines()[1:]
        return {fields[0]: fields[2] for fields in map(str.split, lines) if len(fields) > 2}

    def _ctr(self, *arguments: str) -> str:
        command = [str(self._folder.programs / "ctr"), "-a", str(self._folder.containerd_socket), "-n", "k8s.io", *arguments]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=IMPORT_SECONDS)
        except subprocess.CalledProcessError as error:
            raise LocalClusterError(f"`ctr {' '.join(arguments)}` failed: {error.stderr.strip()[-500:]}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LocalClusterError(f"`ctr {' '.join(arguments)}` failed: {error}: is the local cluster still running?") from error
        return result.stdout


def join(progress: Progress) -> ClusterHandle:
    """Share the machine's local cluster, made and started when there is none; returns when pods can be run.

    Raises:
        LocalClusterError: it cannot run here or does not start; the message says what to do.
    """
    _require_support()
    folder = StateFolder.of(os.environ)
    users = FileLock(folder.users_lock)
    try:
        _take_share(folder, users, progress)
        return ClusterHandle(folder, users, _await_ready(folder, progress))
    except BaseException:
        users.release()
        raise


def wait_until_stopped(timeout_seconds: float = STOP_SECONDS) -> None:
    """Return when the cluster is stopped, or at once when somebody else uses it.

    Raises:
        LocalClusterError: nobody uses it and it is still there after the time-out.
    """
    folder = StateFolder.of(os.environ)
    give_up_at = time.monotonic() + timeout_seconds
    while _daemon_lives(folder):
        probe = FileLock(folder.users_lock)
        if probe.try_exclusive():
            probe.release()  # nobody: the daemon will see that within a second
        elif probe.try_shared():
            probe.release()
            return
        if time.monotonic() >= give_up_at:
            raise LocalClusterError(f"the local cluster does not stop; its daemon's log is {_daemon_log(folder)}")
        time.sleep(0.2)


def _require_support() -> None:
    if platform.system() != "Linux":
        raise LocalClusterError(f"the local cluster needs Linux, this is {platform.system()}: {INSTEAD}")
    if os.geteuid() != 0:
        raise LocalClusterError(f"the local cluster runs containers and needs root: run as root, or {INSTEAD}")


def _take_share(folder: StateFolder, users: FileLock, progress: Progress) -> None:
    """Take the shared lock. Whoever finds nobody there first removes what a killed daemon may have left."""
    try:
        folder.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise LocalClusterError(f"the folder {folder.root} cannot be made ({error.strerror}): {INSTEAD}") from error
    said = False
    give_up_at = time.monotonic() + STOP_SECONDS
    while not users.try_shared():
        if not said:
            progress("the local cluster is just being stopped, waiting")
            said = True
        if time.monotonic() >= give_up_at:
            raise LocalClusterError(f"the local cluster does not stop; its daemon's log is {_daemon_log(folder)}")
        time.sleep(0.1)
    # Nobody else here and no daemon, but a cluster's remains: its daemon was killed.
    if cleanup.has_leftovers(folder) and users.try_exclusive() and not _daemon_lives(folder):
        progress("removing what an earlier local cluster left")
        cleanup.remove_cluster(folder)
    while not users.try_shared():
        time.sleep(0.05)


def _await_ready(folder: StateFolder, progress: Progress) -> ClusterRecord:
    """Start a daemon where none lives, and follow it until the cluster is ready."""
    stage = ""
    spawned = 0
    give_up_at = time.monotonic() + JOIN_SECONDS
    while time.monotonic() < give_up_at:
        lives = _daemon_lives(folder)
        record = read_record(folder)
        if lives and record is not None and record.ready:
            return record
        if not lives:
            if spawned and record is not None and record.error:
                raise LocalClusterError(f"the local cluster does not start: {record.error}\nThe logs are in {folder.logs}. Or {INSTEAD}")
            if spawned == 3:
                raise LocalClusterError(f"the local cluster's daemon does not stay up; its log is {_daemon_log(folder)}")
            programs = cluster_programs(progress)
            progress("starting the local cluster")
            _spawn_daemon(folder, programs)
            spawned += 1
            give_up_at = time.monotonic() + JOIN_SECONDS
        elif record is not None and record.stage not in ("", stage):
            stage = record.stage
            progress(f"local cluster: {stage}")
        time.sleep(0.1)
    raise LocalClusterError(f"the local cluster is not ready after {JOIN_SECONDS:.0f} s; the logs are in {folder.logs}. Or {INSTEAD}")


def _daemon_lives(folder: StateFolder) -> bool:
    """Ask by a shared lock: it disturbs nobody else who asks, and a daemon that starts tries for longer than this."""
    probe = FileLock(folder.daemon_lock)
    is_free = probe.try_shared()
    probe.release()
    return not is_free


def _daemon_log(folder: StateFolder) -> Path:
    return folder.logs / "daemon.log"


def _spawn_daemon(folder: StateFolder, programs: ClusterPrograms) -> None:
    sources = {path.name: str(path) for path in (*programs.cni_plugins, *programs.container_programs)}
    sources |= {"kubernetes": str(programs.kubernetes), "etcd": str(programs.etcd), "busybox": str(programs.busybox)}
    sources |= {"helm": str(programs.clients.helm), "kubectl": str(programs.clients.kubectl)}
    folder.logs.mkdir(parents=True, exist_ok=True)
    folder.record.unlink(missing_ok=True)
    environ = {**os.environ, "PREVUE_CLUSTER_STATE": str(folder.root)}
    with _daemon_log(folder).open("ab") as output:
        # Its first process ends at once, the daemon itself is nobody's child.
        subprocess.run(
            [sys.executable, "-m", "prevue.local.cluster.daemon", json.dumps(sources)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environ, start_new_session=True, check=True,
        )  # fmt: skip
    give_up_at = time.monotonic() + 10
    while not _daemon_lives(folder) and read_record(folder) is None and time.monotonic() < give_up_at:
        time.sleep(0.05)
