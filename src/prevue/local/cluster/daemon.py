"""The one process per machine that keeps the local cluster running: `python -m prevue.local.cluster.daemon`.

It belongs to nobody: whoever uses the cluster holds a shared lock, and when the daemon gets that lock alone, it stops the
cluster and itself. A daemon that finds a cluster of a killed predecessor goes on with it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import msgspec

from prevue.local.cluster import cleanup, control_plane, network, node
from prevue.local.cluster.certificates import write_certificates
from prevue.local.cluster.errors import LocalClusterError
from prevue.local.cluster.locks import FileLock
from prevue.local.cluster.programs import KUBERNETES_COMPONENTS, KUBERNETES_VERSION
from prevue.local.cluster.state import ClusterRecord, Layout, StateFolder, read_layout, write_whole
from prevue.local.cluster.supervisor import Supervisor

START_SECONDS = 120.0
"""How long one step of the start may take; a machine that builds something at the same time needs some."""
LOCK_SECONDS = 2.0
"""How long to try for the daemon's lock: somebody may be asking just now whether a daemon lives."""
USERS_CHECK_SECONDS = 1.0
TICK_SECONDS = 0.1
FAILURES_MAX = 5
"""A process that dies so often during the start will not come up."""


class _Stopped(Exception):
    """SIGTERM or SIGINT, or the last user has left."""


class Daemon:
    """Brings a cluster up, watches over it, takes it down."""

    def __init__(self, folder: StateFolder) -> None:
        self.folder = folder
        self.users = FileLock(folder.users_lock)
        self.supervisor = Supervisor(folder, node.environment(folder), _log)
        self.layout: Layout | None = None
        self.record: ClusterRecord | None = None
        self.is_stopping = False
        self._users_checked_at = time.monotonic()

    def run(self) -> None:
        """Until the last user has left."""
        signal.signal(signal.SIGTERM, self._request_stop)
        signal.signal(signal.SIGINT, self._request_stop)
        try:
            self._bring_up()
            while True:
                self._tick()
        except _Stopped:
            _log("stopping")
            cleanup.remove_cluster(self.folder)

    def fail(self, message: str) -> None:
        """Take everything down but the logs, and say why."""
        try:
            cleanup.remove_cluster(self.folder, keep_logs=True)
        except (LocalClusterError, OSError) as error:
            _log(f"cannot clean up: {error}")
        self._publish(error=message, ready=False)

    def _request_stop(self, _number: int, _frame: FrameType | None) -> None:
        self.is_stopping = True

    def _bring_up(self) -> None:
        self.layout = read_layout(self.folder)
        if self.layout is None:
            self._publish(stage="choosing addresses")
            self.layout = self._make()
        layout = self.layout
        network.prepare(layout)
        node.prepare(self.folder, layout)
        self._publish(stage="starting etcd and the API server")
        self.supervisor.start(control_plane.etcd(self.folder, layout))
        self.supervisor.start(control_plane.kube_apiserver(self.folder, layout))
        self.supervisor.start(node.containerd(self.folder))
        self._wait("containerd", lambda: _listens(self.folder.containerd_socket))
        node.load_pause_image(self.folder)
        self._wait("the API server", lambda: self._get("/readyz") is not None)
        self._publish(stage="starting the controllers and the node")
        self.supervisor.start(control_plane.kube_controller_manager(self.folder))
        self.supervisor.start(control_plane.kube_scheduler(self.folder))
        self.supervisor.start(node.kubelet(self.folder, layout))
        self.supervisor.start(node.kube_proxy(self.folder))
        self._publish(stage="waiting for the node")
        self._wait("the node to be ready", self._is_ready)
        self._publish(stage="ready", ready=True)
        _log("ready")

    def _make(self) -> Layout:
        """Lay out a new cluster; the layout is written last, since it says that the rest is complete."""
        layout = network.choose_layout()
        control_plane.link_components(self.folder.programs, KUBERNETES_COMPONENTS)
        write_certificates(self.folder.secrets, node_ip=layout.node_ip, service_ip=layout.first_service_ip, node_name=layout.node_name)
        control_plane.write_credentials(self.folder, layout)
        write_whole(self.folder.layout, msgspec.json.encode(layout))
        return layout

    def _tick(self) -> None:
        """One short wait: restart what died, and see whether anybody is still here."""
        time.sleep(TICK_SECONDS)
        if self.is_stopping:
            raise _Stopped
        now = time.monotonic()
        if now - self._users_checked_at >= USERS_CHECK_SECONDS:
            self._users_checked_at = now
            if self.users.try_exclusive():
                _log("no user is left")
                raise _Stopped  # the lock stays ours until the process ends: a new user waits for that
        if self.supervisor.check():
            self._publish()

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        give_up_at = time.monotonic() + START_SECONDS
        while not condition():
            self._tick()
            if name := self.supervisor.failing(failures_min=FAILURES_MAX):
                raise LocalClusterError(f"{name} does not stay up; its log ends with: {self._log_end(name)}")
            if time.monotonic() >= give_up_at:
                raise LocalClusterError(f"{what}: not there after {START_SECONDS:.0f} s; the logs are in {self.folder.logs}")

    def _log_end(self, name: str) -> str:
        lines = (self.folder.logs / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return "\n".join(lines[-5:])

    def _is_ready(self) -> bool:
        assert self.layout is not None  # noqa: S101 — set before the first wait
        node_object = self._get(f"/api/v1/nodes/{self.layout.node_name}")
        if node_object is None or self._get("/api/v1/namespaces/default/serviceaccounts/default") is None:
            return False
        conditions = msgspec.json.decode(node_object)["status"].get("conditions", ())
        is_tainted = bool(msgspec.json.decode(node_object)["spec"].get("taints"))
        return not is_tainted and any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)

    def _get(self, path: str) -> bytes | None:
        """What the API server answers, or None when it does not (yet)."""
        assert self.layout is not None  # noqa: S101 — set before the first request
        context = ssl.create_default_context(cafile=str(self.folder.secrets / "ca.crt"))
        headers = {"Authorization": f"Bearer {control_plane.admin_token(self.folder)}"}
        request = urllib.request.Request(self.layout.api_url + path, headers=headers)  # noqa: S310 — https on loopback
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        try:
            with opener.open(request, timeout=5) as response:
                body: bytes = response.read()
                return body
        except (urllib.error.URLError, OSError):
            return None

    def _publish(self, *, stage: str | None = None, ready: bool | None = None, error: str = "") -> None:
        before = self.record
        self.record = ClusterRecord(
            version=KUBERNETES_VERSION,
            daemon_pid=os.getpid(),
            kubeconfig=str(self.folder.kubeconfig),
            kubectl=str(self.folder.programs / "kubectl"),
            helm=str(self.folder.programs / "helm"),
            node_ip=self.layout.node_ip if self.layout else "",
            containerd_socket=str(self.folder.containerd_socket),
            pids=self.supervisor.pids(),
            ready=ready if ready is not None else bool(before and before.ready),
            stage=stage if stage is not None else (before.stage if before else ""),
            error=error,
        )
        write_whole(self.folder.record, msgspec.json.encode(self.record))


def install_programs(folder: StateFolder, sources: dict[str, str]) -> None:
    """Put the programs into the state folder: the cache of one user may vanish while others still use the cluster."""
    folder.programs.mkdir(parents=True, exist_ok=True)
    for name, source in sources.items():
        target = folder.programs / name
        if target.exists():
            continue
        temporary = target.with_name(f".{name}.new")
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:  # another file system
            shutil.copy2(source, temporary)
        temporary.replace(target)


def _listens(path: Path) -> bool:
    """Whether somebody answers at a socket; the file alone may be a killed process's."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _log(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def _detach() -> None:
    """Become a process of its own: nobody's child, no terminal, no open file but the log."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    os.umask(0o022)


def main() -> None:
    folder = StateFolder.of(os.environ)
    programs: dict[str, str] = json.loads(sys.argv[1])
    _detach()
    lock = FileLock(folder.daemon_lock)
    give_up_at = time.monotonic() + LOCK_SECONDS
    while not lock.try_exclusive():
        if time.monotonic() >= give_up_at:
            return  # another daemon is there: it serves our user as well
        time.sleep(0.05)
    daemon = Daemon(folder)
    try:
        install_programs(folder, programs)
        daemon.run()
    except Exception as error:  # noqa: BLE001 — whatever it is, the users must be told
        _log(f"failed: {error!r}")
        daemon.fail(str(error) or repr(error))


if __name__ == "__main__":
    main()
