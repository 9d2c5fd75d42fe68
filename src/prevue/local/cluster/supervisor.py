"""Starts the cluster's processes and starts them again when they die.

Every process carries two words in its environment that say whose it is. So a new daemon finds what a killed one left, goes on
with what still runs, and nobody ever ends a process by its name.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prevue.local.cluster.state import StateFolder

OWNER = "PREVUE_LOCAL_CLUSTER"
"""Names the state folder of the cluster that a process belongs to; its children inherit it."""

BACKOFF_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Waits before one start after another of a process that does not stay up."""
STEADY_SECONDS = 30.0
"""A process that lived so long begins with the shortest wait again."""
LOG_BYTES_MAX = 20_000_000
"""A log is begun anew at the next start when it is longer."""


@dataclass(frozen=True, slots=True)
class Service:
    """One process of the cluster: its name and how it is started."""

    name: str
    command: Sequence[str]


@dataclass(slots=True)
class _Running:
    service: Service
    pid: int
    child: subprocess.Popen[bytes] | None
    """None for a process that another daemon started."""
    started_at: float
    failures: int = 0
    restart_at: float | None = None

    @property
    def is_alive(self) -> bool:
        if self.child is not None:
            return self.child.poll() is None
        return is_running(self.pid, self.service.command[0])


@dataclass(slots=True)
class Supervisor:
    """The cluster's processes; `check` is to be called a few times a second."""

    folder: StateFolder
    environ: Mapping[str, str]
    log: Callable[[str], None]
    _running: dict[str, _Running] = field(default_factory=dict)

    def start(self, service: Service) -> None:
        """Start a process, or go on with the one that an earlier daemon left."""
        for pid in owned_pids(self.folder.root):
            if is_running(pid, service.command[0]):
                self.log(f"{service.name}: goes on as process {pid}")
                self._running[service.name] = _Running(service, pid, None, time.monotonic())
                return
        child = self._spawn(service)
        self._running[service.name] = _Running(service, child.pid, child, time.monotonic())

    def check(self) -> bool:
        """Start what has died and whose wait is over; True when a process was started."""
        changed = False
        now = time.monotonic()
        for running in self._running.values():
            if running.restart_at is None:
                if running.is_alive:
                    continue
                self._plan_restart(running, now)
            if running.restart_at is not None and now >= running.restart_at:
                running.child = self._spawn(running.service)
                running.pid, running.started_at, running.restart_at = running.child.pid, now, None
                changed = True
        return changed

    def pids(self) -> dict[str, int]:
        return {name: running.pid for name, running in self._running.items()}

    def failing(self, *, failures_min: int) -> str | None:
        """A process that has died at least so often without a steady while between."""
        return next((name for name, running in self._running.items() if running.failures >= failures_min), None)

    def stop(self, name: str) -> None:
        """End one process and do not start it again."""
        running = self._running.pop(name, None)
        if running is not None and running.is_alive:
            os.kill(running.pid, signal.SIGKILL)
            if running.child is not None:
                running.child.wait()

    def _plan_restart(self, running: _Running, now: float) -> None:
        code = running.child.returncode if running.child is not None else None
        running.failures = 1 if now - running.started_at >= STEADY_SECONDS else running.failures + 1
        wait = BACKOFF_SECONDS[min(running.failures, len(BACKOFF_SECONDS)) - 1]
        running.restart_at = now + wait
        self.log(f"{running.service.name}: ended (exit status {code}), starting again in {wait} s")

    def _spawn(self, service: Service) -> subprocess.Popen[bytes]:
        path = self.folder.logs / f"{service.name}.log"
        mode = "ab" if path.exists() and path.stat().st_size < LOG_BYTES_MAX else "wb"
        with path.open(mode) as output:
            child = subprocess.Popen(
                service.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**self.environ, OWNER: str(self.folder.root)},
                cwd="/",
                start_new_session=True,
            )
        self.log(f"{service.name}: started as process {child.pid}")
        return child


def owned_pids(root: Path) -> list[int]:
    """The processes that belong to the cluster of this state folder, their children included."""
    mark = f"{OWNER}={root}".encode()
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208 — thousands of entries: names are enough
        if name.isdecimal():
            try:
                environ = Path("/proc", name, "environ").read_bytes()
            except OSError:
                continue  # it has just ended
            if mark in environ.split(b"\0"):
                found.append(int(name))
    return found


def is_running(pid: int, program: str) -> bool:
    """Whether the process lives and was started as `program` (its full path)."""
    try:
        command = Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return False
    return command.split(b"\0", 1)[0] == program.encode()  # a zombie has no command line
