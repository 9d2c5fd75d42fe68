"""Processes by their numbers, and whether a number still means the process that was recorded.

A process number is used again some time after its process ended, so nothing here is ended by its number alone: a recorded process
counts as ours only while its start time is the recorded one, and a child of ours is known by a word in its environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

MARK = "PREVUE_STACK"
"""In the environment of every process of a stack, and so of their children; its value is the stack's folder."""

_POLL_SECONDS = 0.05
_COLLECT_SECONDS = 3.0


class Recorded(msgspec.Struct, frozen=True):
    """A process as it was when it was written down."""

    pid: int
    started: str


def record(pid: int) -> Recorded:
    """What is needed to know the process again."""
    return Recorded(pid, _started(pid))


def is_alive(process: Recorded) -> bool:
    """Whether the recorded process, and no other of the same number, still runs."""
    started = _started(process.pid)
    return bool(started) and started == process.started


def marked(folder: Path) -> list[int]:
    """The processes of the stack in `folder`, their children included; empty where the system does not show environments."""
    word = f"{MARK}={folder}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is not ours to look at
            if word in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def end(find: Callable[[], Iterable[int]], *, grace_seconds: float, kill_seconds: float = 10) -> list[int]:
    """End the processes that `find` names, SIGTERM first; returns those that are still there after all."""
    pids = set(find())
    for pid in pids:
        send(pid, signal.SIGTERM)
    if not wait_gone(find, grace_seconds):
        give_up_at = time.monotonic() + kill_seconds
        while (left := list(find())) and time.monotonic() < give_up_at:
            pids.update(left)
            for pid in left:
                send(pid, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)
        if left:
            return left
    # Dead is not gone: whoever adopted them has to collect them, which takes it a moment.
    wait_gone(lambda: filter(_exists, pids), _COLLECT_SECONDS)
    return []


def wait_gone(find: Callable[[], Iterable[int]], seconds: float) -> bool:
    """Wait until `find` names nobody any more; False when the time is over."""
    give_up_at = time.monotonic() + seconds
    while list(find()):
        if time.monotonic() >= give_up_at:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def send(pid: int, number: int) -> None:
    """Signal a process that may have ended just now; a stopped one is continued, so that it can act on it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)


def _exists(pid: int) -> bool:
    """Whether the system knows the number, be it of a dead process that nobody has collected."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _started(pid: int) -> str:
    """When the process started, in the system's own words; empty: it does not run (a zombie does not either)."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in "ZX" else fields[19]  # proc(5): state is the 3rd field, starttime the 22nd
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()
    return "" if not shown or shown.startswith("Z") else shown.partition(" ")[2].strip()
