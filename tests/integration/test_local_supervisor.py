"""The supervisor of the cluster's processes, with processes that do nothing."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prevue.local.cluster import cleanup, supervisor
from prevue.local.cluster.state import StateFolder
from prevue.local.cluster.supervisor import Service, Supervisor, is_running, owned_pids


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StateFolder]:
    state = StateFolder(tmp_path / "state")
    state.logs.mkdir(parents=True)
    shutil.copy2("/bin/sleep", state.root / "sleeper")
    yield state
    assert owned_pids(state.root) == []


@contextmanager
def supervise(folder: StateFolder) -> Iterator[tuple[Supervisor, list[str]]]:
    said: list[str] = []
    watch = Supervisor(folder, {"PATH": "/usr/bin:/bin"}, said.append)
    yield watch, said
    watch.stop("sleeper")


def until(condition: Callable[[], bool], *, seconds: float = 10) -> None:
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def sleeper(folder: StateFolder, seconds: str = "60") -> Service:
    return Service("sleeper", [str(folder.root / "sleeper"), seconds])


def test_a_killed_process_is_started_again(folder: StateFolder) -> None:
    with supervise(folder) as (watch, said):
        watch.start(sleeper(folder))
        first = watch.pids()["sleeper"]
        assert not watch.check()
        os.kill(first, signal.SIGKILL)
        until(watch.check)
        second = watch.pids()["sleeper"]
        assert second != first
        until(lambda: is_running(second, str(folder.root / "sleeper")))
        assert "sleeper: ended (exit status -9), starting again in 0.1 s" in said


def test_a_process_that_does_not_stay_up_waits_longer_each_time(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_SECONDS", (0.01, 0.02, 0.03))
    with supervise(folder) as (watch, said):
        watch.start(sleeper(folder, "no number"))
        until(lambda: (watch.check(), watch.failing(failures_min=4) == "sleeper")[1])
        waits = [line.rpartition(" in ")[2] for line in said if "starting again" in line]
        assert waits[:4] == ["0.01 s", "0.02 s", "0.03 s", "0.03 s"]
        assert "invalid time interval" in (folder.logs / "sleeper.log").read_text()


def test_a_new_supervisor_goes_on_with_what_still_runs(folder: StateFolder) -> None:
    with supervise(folder) as (killed, _), supervise(folder) as (watch, said):
        killed.start(sleeper(folder))
        pid = killed.pids()["sleeper"]
        until(lambda: is_running(pid, str(folder.root / "sleeper")))
        watch.start(sleeper(folder))
        assert watch.pids() == {"sleeper": pid}
        assert said == [f"sleeper: goes on as process {pid}"]
        killed.stop("sleeper")
        until(watch.check)
        assert watch.pids()["sleeper"] != pid


def test_cleanup_ends_our_processes_and_nobody_elses(folder: StateFolder, tmp_path: Path) -> None:
    other_folder = StateFolder(tmp_path / "other")
    other_folder.logs.mkdir(parents=True)
    shutil.copy2("/bin/sleep", other_folder.root / "sleeper")
    with supervise(folder) as (watch, _), supervise(other_folder) as (other, _):
        watch.start(sleeper(folder))
        other.start(sleeper(other_folder))
        cleanup._end_processes(folder)
        assert owned_pids(folder.root) == []
        assert owned_pids(other_folder.root) == [other.pids()["sleeper"]]
    assert owned_pids(other_folder.root) == []


def test_mounts_are_found_innermost_first(tmp_path: Path) -> None:
    assert cleanup.mounts_below(tmp_path) == []
    everything = cleanup.mounts_below(Path("/"))
    assert Path("/proc") in everything
    assert everything[-1] == Path("/")
