"""The stack's supervisor with real, tiny processes: restarts, readiness, logs, and that nothing stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prevue.local import processes
from prevue.local.supervisor import Service, ServiceFailed, Supervisor

SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path / "logs", lambda _text: None)
    yield made
    made.stop()


def service(name: str, command: list[str], *, folder: Path, ready: Callable[[], bool] = lambda: True, seconds: float = 10) -> Service:
    return Service(
        name=name,
        role=name.partition("-")[0],
        command=lambda: command,
        environ={**os.environ, processes.MARK: str(folder)},
        is_ready=ready,
        ready_seconds=seconds,
        stop_seconds=0.5,
    )


def tick_until(supervisor: Supervisor, condition: Callable[[], bool], *, seconds: float = 10) -> None:
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at
        supervisor.tick()
        time.sleep(0.02)


def test_a_process_that_dies_is_started_again(supervisor: Supervisor, tmp_path: Path) -> None:
    changes: list[dict[str, list[int]]] = []
    supervisor.on_change = lambda: changes.append(supervisor.pids())
    supervisor.start(service("worker", SLEEPS, folder=tmp_path))
    (before,) = supervisor.pids()["worker"]

    os.kill(before, signal.SIGKILL)
    tick_until(supervisor, lambda: supervisor.pids()["worker"] not in ([], [before]))

    assert changes[-1] == supervisor.pids()


def test_the_wait_before_a_restart_need_not_grow(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(tmp_path / "logs", said.append, backoff_seconds=(0.01,))
    try:
        supervisor.start(service("worker", SLEEPS, folder=tmp_path))
        for _ in range(3):
            (before,) = supervisor.pids()["worker"]
            os.kill(before, signal.SIGKILL)
            tick_until(supervisor, lambda before=before: supervisor.pids()["worker"] not in ([], [before]))  # type: ignore[misc]
    finally:
        supervisor.stop()
    assert [text.partition("starting again in ")[2] for text in said if "starting again" in text] == ["0.01 s"] * 3


def test_two_of_one_role_share_its_name(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(service("worker", SLEEPS, folder=tmp_path), service("worker-2", SLEEPS, folder=tmp_path))
    assert len(set(supervisor.pids()["worker"])) == 2


def test_a_process_that_does_not_stay_up_is_told_with_its_log(supervisor: Supervisor, tmp_path: Path) -> None:
    fails = [sys.executable, "-c", "import sys; print('no such database'); sys.exit(3)"]
    with pytest.raises(ServiceFailed, match=r"worker does not stay up \(exit status 3\)[\s\S]*no such database"):
        supervisor.start(service("worker", fails, folder=tmp_path, ready=lambda: False))


def test_a_process_that_is_not_ready_in_time_is_told(supervisor: Supervisor, tmp_path: Path) -> None:
    with pytest.raises(ServiceFailed, match="worker is not ready after 0 s"):
        supervisor.start(service("worker", SLEEPS, folder=tmp_path, ready=lambda: False, seconds=0.2))


def test_stop_ends_a_stubborn_process_and_its_children(supervisor: Supervisor, tmp_path: Path) -> None:
    stubborn = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"subprocess.Popen({SLEEPS!r}); print('up', flush=True); time.sleep(60)"
    )
    log = supervisor.log_file("worker")
    supervisor.start(
        service("worker", [sys.executable, "-c", stubborn], folder=tmp_path, ready=lambda: log.exists() and "up" in log.read_text())
    )
    assert len(processes.marked(tmp_path)) == 2

    supervisor.stop()

    assert processes.wait_gone(lambda: processes.marked(tmp_path), 5)


def test_a_number_that_is_used_again_is_not_ours() -> None:
    child = subprocess.Popen(SLEEPS)
    known = processes.record(child.pid)
    assert processes.is_alive(known)
    assert not processes.is_alive(processes.Recorded(known.pid, "another time"))
    child.kill()
    child.wait()
    assert not processes.is_alive(known)


def test_a_stopped_process_can_be_ended(tmp_path: Path) -> None:
    child = subprocess.Popen(SLEEPS, env={**os.environ, processes.MARK: str(tmp_path)})
    os.kill(child.pid, signal.SIGSTOP)
    try:
        # It stays a zombie until its parent, this test, collects it: then it has no environment any more.
        assert processes.end(lambda: processes.marked(tmp_path), grace_seconds=5) == []
    finally:
        child.wait()
