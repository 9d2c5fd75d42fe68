"""Workers that a test stops in the middle, as processes: none of them, of their wrappers and of their Helms outlives the test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from tests.integration import helm_worker
from tests.integration.helm_worker import Order

from prevue.helm.port import HelmRun
from prevue.testing.process_tree import naming

LOOK_SECONDS = 0.02
RUN_SECONDS = 150
"""Longer than any Helm of a test is allowed to take."""


def state(pid: int) -> str:
    """The kernel's letter for a process: `T` stopped, `Z` ended and not waited for; empty: there is none."""
    fields = _stat(pid)
    return fields[0] if fields else ""


async def ended(pid: int) -> None:
    """Return when a process has ended; nobody tells of another's child."""
    while state(pid) not in ("", "Z"):  # noqa: ASYNC110
        await asyncio.sleep(LOOK_SECONDS)


def is_asleep(pid: int) -> bool:
    """Whether no thread of a process runs or wants to: it waits for somebody's answer."""
    try:
        threads = [_stat(int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return True
    return all(fields[0] in "SZ" for fields in threads if fields)


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class Worker:
    """A deployer's part in one Helm run."""

    def __init__(self, process: asyncio.subprocess.Process, order: Order) -> None:
        self.order = order
        self._process = process
        self._done = asyncio.create_task(process.communicate(msgspec.json.encode(order, enc_hook=str)))

    @property
    def has_ended(self) -> bool:
        """Whether `run` returns at once."""
        return self._done.done()

    @property
    def pids(self) -> list[int]:
        """Worker, wrapper, Helm; fewer before they have started."""
        if self._process.returncode is not None:
            return []
        return [self._process.pid, *naming(self.order.helm, below=self._process.pid)]

    async def run(self) -> HelmRun:
        """How it ended."""
        output, _ = await asyncio.wait_for(self._done, RUN_SECONDS)
        return msgspec.json.decode(output, type=HelmRun)

    async def end(self) -> None:
        """Kill what is left of it, Helm first, and wait for the end; a stopped process dies of SIGKILL too."""
        pids = self.pids
        send(signal.SIGKILL, *reversed(pids))
        await asyncio.wait({self._done})
        for pid in pids:
            await ended(pid)


def send(number: signal.Signals, *pids: int) -> None:
    """Signal those that are still there, in this order."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Workers:
    """Those of one test."""

    def __init__(self) -> None:
        self._all: list[Worker] = []

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Workers]:
        """At the end none of them runs, however the test has ended."""
        workers = cls()
        try:
            yield workers
        finally:
            for worker in workers._all:
                await worker.end()

    async def start(self, order: Order) -> Worker:
        """One more."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, helm_worker.__file__, stdin=pipe, stdout=pipe)
        worker = Worker(process, order)
        self._all.append(worker)
        return worker
