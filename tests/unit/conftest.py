"""The whole protocol model beside the other tests: minutes of processor time, taken where nobody else wants it.

A process of the lowest priority starts with the run, if its test was selected; that test is put last and reads what it printed. It dies
with the run: the kernel ends it (Linux), and a run that ends in order ends it too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

MODEL = Path(__file__).parents[2] / "docs" / "protocol" / "protocol_model.py"
NICE = 19
_running = pytest.StashKey[tuple["subprocess.Popen[str]", Path]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Last, whatever the random order says."""
    items.sort(key=_uses_model)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start it as soon as it is known that somebody will ask."""
    if session.config.option.collectonly or not any(_uses_model(item) for item in session.items):
        return
    output = Path(tempfile.mkstemp(prefix="prevue-model-", suffix=".txt")[1])
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, MODEL], stdout=file, stderr=subprocess.STDOUT, text=True, preexec_fn=_in_the_background, start_new_session=True
        )
    session.config.stash[_running] = (process, output)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run that was stopped before its last test."""
    if _running in session.config.stash:
        process, output = session.config.stash[_running]
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.unlink()


@pytest.fixture(scope="session")
def full_model(pytestconfig: pytest.Config) -> Callable[[], tuple[int, str]]:
    """Wait for the model's end: its exit code, and what it printed."""

    def wait() -> tuple[int, str]:
        process, output = pytestconfig.stash[_running]
        return process.wait(), output.read_text()

    return wait


def _uses_model(item: pytest.Item) -> bool:
    return "full_model" in getattr(item, "fixturenames", ())


def _in_the_background() -> None:
    os.nice(NICE)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
