"""Takes away all that a cluster leaves on the machine: processes, containers, mounts, links, rules, control groups, files.

Used by the daemon at its end and by the next user when a daemon was killed before it could. Every step finds its things by
the state folder's path or by a name made of it, so nothing of anybody else is touched, and doing it twice is harmless.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from prevue.local.cluster import network, node
from prevue.local.cluster.errors import LocalClusterError
from prevue.local.cluster.state import StateFolder, read_layout
from prevue.local.cluster.supervisor import owned_pids

STOP_SECONDS = 20.0
"""How long killed processes may take to vanish; a machine under load reaps slowly."""
MOUNTS_AT_ONCE = 100


def remove_cluster(folder: StateFolder, *, keep_logs: bool = False) -> None:
    """Remove everything but the lock files.

    Raises:
        LocalClusterError: a process or a mount cannot be removed; files are then left as they are.
    """
    layout = read_layout(folder)
    _end_processes(folder)
    _remove_cgroups(folder)
    _unmount(folder.root)
    if layout is not None:  # without one we never touched the network, and the chains there are somebody else's
        network.remove(layout)
    _remove_traces_elsewhere(folder)
    kept = {folder.users_lock.name, folder.daemon_lock.name} | ({folder.logs.name, folder.record.name} if keep_logs else set())
    for path in folder.root.iterdir():
        if path.name in kept:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def has_leftovers(folder: StateFolder) -> bool:
    """Whether a cluster was here that nobody has removed, or not wholly; logs of a failed start do not count."""
    kept = {folder.users_lock.name, folder.daemon_lock.name, folder.logs.name, folder.record.name}
    return any(path.name not in kept for path in folder.root.iterdir())


def _end_processes(folder: StateFolder) -> None:
    """End our processes first, since they would start containers again, then whatever is in our containers."""
    own = os.getpid()
    give_up_at = time.monotonic() + STOP_SECONDS
    while pids := [pid for pid in (*owned_pids(folder.root), *_contained_pids(folder)) if pid != own]:
        if time.monotonic() >= give_up_at:
            raise LocalClusterError(f"processes of the local cluster do not end: {pids}: end them by hand, then try again")
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def _contained_pids(folder: StateFolder) -> set[int]:
    """The processes of our pods: those in a container's control group, whoever their parent is now."""
    pids: set[int] = set()
    for base in node.cgroup_folders(folder):
        for current, _, files in os.walk(base):
            if "cgroup.procs" in files:
                try:
                    pids.update(int(line) for line in Path(current, "cgroup.procs").read_text().split())
                except OSError:
                    continue  # the group has just gone
    return pids


def mounts_below(root: Path) -> list[Path]:
    """Mount points below a folder, the innermost and latest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # The kernel writes blanks in paths as \040 (proc_pid_mountinfo(5)).
        path = Path(line.split()[4].encode().decode("unicode_escape"))
        if path.is_relative_to(root):
            found.append(path)
    return sorted(found, key=lambda path: -len(path.parts))


def _unmount(root: Path) -> None:
    for _ in range(5):
        paths = mounts_below(root)
        if not paths:
            return
        for start in range(0, len(paths), MOUNTS_AT_ONCE):
            subprocess.run(["umount", "-l", *paths[start : start + MOUNTS_AT_ONCE]], capture_output=True, check=False)
    if paths := mounts_below(root):
        raise LocalClusterError(f"cannot unmount {paths[0]}: unmount it by hand, then try again")


def _remove_cgroups(folder: StateFolder) -> None:
    for base in node.cgroup_folders(folder):
        for current, _, _ in os.walk(base, topdown=False):
            try:
                os.rmdir(current)  # noqa: PTH106 — a control group is removed by rmdir although it holds files
            except OSError:
                continue  # busy for a moment; an empty group does no harm


def _remove_traces_elsewhere(folder: StateFolder) -> None:
    """kubelet and the network plugins write a few files outside of every folder that they can be given."""
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and Path(os.readlink(link)).is_relative_to(folder.root):  # noqa: PTH115 — not resolved
            link.unlink(missing_ok=True)
    for address in folder.containerd_state.glob("*.v2.task/*/*/address"):
        Path(address.read_text().removeprefix("unix://")).unlink(missing_ok=True)  # a killed shim leaves its socket
    for result in Path("/var/lib/cni/results").glob(f"{node.network_name(folder)}-*"):
        result.unlink(missing_ok=True)
    for result in Path("/var/lib/cni/results").glob("cni-loopback-*"):
        if str(folder.root) in result.read_text(errors="replace"):
            result.unlink(missing_ok=True)
