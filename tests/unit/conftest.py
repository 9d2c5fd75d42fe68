"""The whole protocol model beside the other tests: minutes of processor time, taken where nobody else wants it.

Its process starts with the run, at the lowest priority, if its test was selected; that test is put last and reads what was printed.
The process dies with the run: the kernel sees to it where the run is killed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

MODEL = Path(__file__).parents[2] / "docs" / "protocol" / "protocol_model.py"
_running = pytest.StashKey[tuple["subprocess.Popen[bytes]", IO[bytes]]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Last, whatever the random order says."""
    items.sort(key=_uses_model)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Started as soon as it is known that somebody will ask."""
    if session.config.option.collectonly or not any(_uses_model(item) for item in session.items):
        return
    output = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the session ends)
    process = subprocess.Popen([sys.executable, MODEL, "--background"], stdout=output, stderr=subprocess.STDOUT)
    session.config.stash[_running] = process, output


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Also where the run was stopped before its last test."""
    if _running in session.config.stash:
        process, output = session.config.stash[_running]
        process.kill()  # its own children die with it
        process.wait()
        output.close()


@pytest.fixture
def full_model(pytestconfig: pytest.Config) -> Callable[[], tuple[int, str]]:
    """Waits for the model's end: its exit code, and what it printed."""

    def wait() -> tuple[int, str]:
        process, output = pytestconfig.stash[_running]
        code = process.wait()
        output.seek(0)
        return code, output.read().decode()

    return wait


def _uses_model(item: pytest.Item) -> bool:
    return "full_model" in getattr(item, "fixturenames", ())
