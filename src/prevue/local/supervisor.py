"""A small process supervisor: starts the stack's processes, starts again what dies, stops all in reverse order.

What Kubernetes does for a pod, on one machine: a process that ends is started again after a short wait that grows while it does not
stay up. Plain and synchronous: whoever owns it calls `tick` a few times a second. Every process has a group of its own and a log file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prevue.local import processes

BACKOFF_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0)
"""Waits before one start after another of a process that does not stay up."""
STEADY_SECONDS = 20.0
"""A process that lived so long begins with the shortest wait again."""
START_FAILURES_MAX = 3
"""A process that ends so often before it was ready the first time will not come up."""
LOG_BYTES_MAX = 50_000_000
"""A log is begun anew at the next start when it is longer."""
TAIL_LINES = 15
TICK_SECONDS = 0.05


class ServiceFailed(Exception):
    """A process does not become ready; the message has the end of its log."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """One process: how it is started, known to be ready, and stopped."""

    name: str
    """Of its own; also its log file's."""
    role: str
    """Its name in `pids`: two deployers share one."""
    command: Callable[[], Sequence[str]]
    """Asked at each start: what may not be the same twice is chosen there."""
    environ: Mapping[str, str]
    is_ready: Callable[[], bool]
    user: tuple[int, int] | None = None
    """(user id, group id); None: whoever the supervisor is."""
    folder: Path | None = None
    """Its working directory; None: the supervisor's."""
    niceness: int = 0
    """Below 0: gets the processor first. Only root may give that; for others it is as it is."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 30
    ready_seconds: float = 60


@dataclass
class _Running:
    service: Service
    child: subprocess.Popen[bytes]
    started_at: float
    was_ready: bool = False
    failures: int = 0
    restart_at: float | None = None


@dataclass
class Supervisor:
    """The processes of one stack, in the order in which they were started."""

    logs: Path
    log: Callable[[str], None]
    on_change: Callable[[], None] = lambda: None
    """Called after a process was started (again)."""
    backoff_seconds: Sequence[float] = BACKOFF_SECONDS
    _running: dict[str, _Running] = field(default_factory=dict)

    def start(self, *services: Service) -> None:
        """Start processes at once and return when all of them are ready.

        Raises:
            ServiceFailed: one of them ends again and again, or is not ready in its time.
        """
        begun = time.monotonic()
        for service in services:
            self._running[service.name] = _Running(service, self._spawn(service), time.monotonic())
        self.on_change()
        waiting = [self._running[service.name] for service in services]
        while waiting:
            self.tick()
            waiting = [running for running in waiting if not self._became_ready(running)]
            for running in waiting:
                name = running.service.name
                if running.failures >= START_FAILURES_MAX:
                    raise ServiceFailed(f"{name} does not stay up (exit status {running.child.returncode})\n{self.tail(name)}")
                if time.monotonic() - begun > running.service.ready_seconds:
                    raise ServiceFailed(f"{name} is not ready after {running.service.ready_seconds:.0f} s\n{self.tail(name)}")
            if waiting:
                time.sleep(TICK_SECONDS)

    def tick(self) -> None:
        """Start again what has ended and whose wait is over."""
        changed = False
        now = time.monotonic()
        for running in self._running.values():
            if running.restart_at is None and running.child.poll() is not None:
                running.failures = 1 if now - running.started_at >= STEADY_SECONDS else running.failures + 1
                wait = self.backoff_seconds[min(running.failures, len(self.backoff_seconds)) - 1]
                running.restart_at = now + wait
                self.log(f"{running.service.name}: ended (exit status {running.child.returncode}), starting again in {wait:g} s")
            if running.restart_at is not None and now >= running.restart_at:
                running.child = self._spawn(running.service)
                running.started_at, running.restart_at = now, None
                changed = True
        if changed:
            self.on_change()

    def pids(self) -> dict[str, list[int]]:
        """Role → process numbers of those that run."""
        found: dict[str, list[int]] = {}
        for running in self._running.values():
            numbers = found.setdefault(running.service.role, [])
            if running.restart_at is None:
                numbers.append(running.child.pid)
        return found

    def tail(self, name: str) -> str:
        """The last lines of a process's log, with where they come from."""
        path = self.log_file(name)
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            lines = file.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
            return "\n".join([f"--- {path}", *(f"    {line[:500]}" for line in lines)])
        return f"--- {path}: no log"

    def log_file(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def stop(self) -> None:
        """Stop all in reverse order: asked first, then killed with the whole process group. Twice is harmless."""
        while self._running:
            name, running = self._running.popitem()
            self._stop_one(running)
            self.log(f"{name}: stopped")

    def _stop_one(self, running: _Running) -> None:
        child, service = running.child, running.service
        if child.poll() is None:
            processes.send(child.pid, service.stop_signal)
            try:
                child.wait(service.stop_seconds)
            except subprocess.TimeoutExpired:
                self.log(f"{service.name}: still there {service.stop_seconds:g} s after {service.stop_signal.name}, killing it")
        # Its group outlives it where it left children behind; all of it is ours, since we made the group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()

    def _became_ready(self, running: _Running) -> bool:
        if running.restart_at is None and running.child.poll() is None and running.service.is_ready():
            running.was_ready = True
            self.log(f"{running.service.name}: ready after {time.monotonic() - running.started_at:.1f} s")
        return running.was_ready

    def _spawn(self, service: Service) -> subprocess.Popen[bytes]:
        path = self.log_file(service.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = "ab" if path.exists() and path.stat().st_size < LOG_BYTES_MAX else "wb"
        user, group = service.user or (None, None)
        with path.open(mode) as output:
            child = subprocess.Popen(
                list(service.command()),
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env=dict(service.environ), user=user, group=group, extra_groups=None if user is None else [],
                start_new_session=True, cwd=service.folder,
            )  # fmt: skip
        if service.niceness:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, child.pid, service.niceness)
        self.log(f"{service.name}: started as process {child.pid}")
        return child
