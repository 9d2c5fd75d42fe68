"""Where the machine's one local cluster keeps its things, and what it tells its users.

The folder belongs to the machine, not to a home: two users with different homes share one cluster, since two kube-proxies
in one network namespace would fight over the same iptables chains.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from prevue.local.cluster.errors import LocalClusterError

DEFAULT_STATE = Path("/var/lib/prevue/cluster")
SOCKET_PATH_MAX = 100
"""Linux allows 107 bytes for a socket's path (unix(7))."""


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The paths below one root."""

    root: Path

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> StateFolder:
        """PREVUE_CLUSTER_STATE, else the machine's own."""
        folder = cls(Path(environ.get("PREVUE_CLUSTER_STATE") or DEFAULT_STATE).absolute())
        if len(str(folder.containerd_socket)) > SOCKET_PATH_MAX:
            raise LocalClusterError(f"PREVUE_CLUSTER_STATE={folder.root} is too long a path for sockets: use a shorter one")
        return folder

    @property
    def users_lock(self) -> Path:
        return self.root / "users.lock"

    @property
    def daemon_lock(self) -> Path:
        return self.root / "daemon.lock"

    @property
    def record(self) -> Path:
        return self.root / "cluster.json"

    @property
    def layout(self) -> Path:
        return self.root / "layout.json"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def programs(self) -> Path:
        return self.root / "bin"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def secrets(self) -> Path:
        return self.root / "pki"

    @property
    def containerd_state(self) -> Path:
        return self.root / "run"

    @property
    def containerd_socket(self) -> Path:
        return self.containerd_state / "containerd.sock"


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """The ports and addresses that a cluster was made with; kept, so that a new daemon continues the same cluster."""

    network: int
    """The cluster lives in 10.<network>.0.0/16."""
    api_port: int
    etcd_port: int
    etcd_peer_port: int
    forwarding: dict[str, str]
    """The kernel's settings as they were before, to be put back at the end."""
    boot_id: str
    """A layout of an earlier boot is history."""
    node_name: str = "prevue-local"

    @property
    def pod_range(self) -> str:
        return f"10.{self.network}.0.0/22"

    @property
    def service_range(self) -> str:
        return f"10.{self.network}.64.0/18"

    @property
    def first_service_ip(self) -> str:
        return f"10.{self.network}.64.1"

    @property
    def node_ip(self) -> str:
        return f"10.{self.network}.255.1"

    @property
    def api_url(self) -> str:
        return f"https://127.0.0.1:{self.api_port}"


class ClusterRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon publishes in cluster.json: written whole, replaced at once."""

    version: str
    daemon_pid: int
    kubeconfig: str
    kubectl: str
    helm: str
    node_ip: str
    containerd_socket: str
    pids: dict[str, int]
    ready: bool = False
    stage: str = ""
    """What the daemon is waiting for, until it is ready."""
    error: str = ""
    """Why the daemon gave up."""


def read_record(folder: StateFolder) -> ClusterRecord | None:
    """The published record, or None when there is none that can be read."""
    try:
        return msgspec.json.decode(folder.record.read_bytes(), type=ClusterRecord)
    except (OSError, msgspec.MsgspecError):
        return None


def read_layout(folder: StateFolder) -> Layout | None:
    """The layout of a cluster of this boot, or None."""
    try:
        layout = msgspec.json.decode(folder.layout.read_bytes(), type=Layout)
    except (OSError, msgspec.MsgspecError):
        return None
    return layout if layout.boot_id == boot_id() else None


def write_whole(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace a file at once: a reader sees the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
