"""What a side of `bench-burst` costs: processor time by process, memory, and requests to the API server, by its own metrics."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prevue.testing.process_tree import descendants

TICK = os.sysconf("SC_CLK_TCK")
MEMORY_SECONDS = 1.0
_REQUESTS = re.compile(r'^apiserver_request_total\{.*?verb="([A-Z]+)".*\} ([0-9.e+]+)$', re.MULTILINE)
_WATCHES = re.compile(r'^apiserver_longrunning_requests\{.*?resource="([^"]*)".*?verb="WATCH".*\} ([0-9.e+]+)$', re.MULTILINE)


@dataclass
class Costs:
    """What happened between two looks."""

    cpu_seconds: dict[str, float] = field(default_factory=dict)
    """By process; `machine` is everything, colleagues and cron included."""
    requests: dict[str, int] = field(default_factory=dict)
    """To the API server, by verb."""
    watches: dict[str, int] = field(default_factory=dict)
    """By resource: the most that were open at once, beyond those that were open before."""
    memory_mib: float = 0
    """The most at once (proportional set size: shared pages are counted once)."""


class Meter:
    """Looks at the processes of a stack and at its API server."""

    def __init__(self, kubectl: str, kubeconfig: str) -> None:
        """To be made before the stack starts: the watches that are open then are not the stack's."""
        self._kubectl = [kubectl, "--kubeconfig", kubeconfig]
        self._idle_watches = _counted(_WATCHES, self._metrics())
        self.pids: Mapping[str, Sequence[int]] = {}
        """Name → process numbers whose processor time is measured."""

    @asynccontextmanager
    async def measuring(self, roots: Sequence[int]) -> AsyncIterator[Costs]:
        """Measure the block; memory is that of `roots` and of all below them."""
        costs = Costs()
        before = self._metrics()
        cpu = self._cpu()
        sampling = asyncio.create_task(self._sample(roots, costs), name="memory")
        try:
            yield costs
        finally:
            sampling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sampling
        costs.cpu_seconds = {name: round(value - cpu.get(name, 0), 2) for name, value in self._cpu().items()}
        # Looking once itself is a request: the second look does not count the first.
        costs.requests = dict(_counted(_REQUESTS, self._metrics()) - _counted(_REQUESTS, before))

    async def _sample(self, roots: Sequence[int], costs: Costs) -> None:
        looked_at = 0.0
        while True:
            costs.memory_mib = max(costs.memory_mib, round(sum(map(_pss_mib, [*roots, *descendants(*roots)])), 1))
            if time.monotonic() - looked_at > 3:
                looked_at = time.monotonic()
                now = _counted(_WATCHES, await asyncio.to_thread(self._metrics)) - self._idle_watches
                costs.watches = {name: max(now[name], costs.watches.get(name, 0)) for name in now.keys() | costs.watches.keys()}
            await asyncio.sleep(MEMORY_SECONDS)

    def _metrics(self) -> str:
        return subprocess.run([*self._kubectl, "get", "--raw", "/metrics"], capture_output=True, text=True, check=True, timeout=60).stdout

    def _cpu(self) -> dict[str, float]:
        """Seconds until now: a process alone, and apart from it its children that have ended (a deployer's are Helm and its wrapper)."""
        found: defaultdict[str, float] = defaultdict(float)
        for name, pids in self.pids.items():
            for pid in pids:
                own, children = _times(pid)
                found[name] += own
                if children > 0:
                    found[f"{name}: children"] += children
        own, children = _times(os.getpid())
        found["bench"] += own
        found["bench: children"] += children
        user, nice, system, _idle, _wait, irq, soft = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8])
        found["machine"] = (user + nice + system + irq + soft) / TICK
        return dict(found)


def _counted(pattern: re.Pattern[str], metrics: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, value in pattern.findall(metrics):
        found[name] += int(float(value))
    return found


def _pss_mib(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _times(pid: int) -> tuple[float, float]:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK, (int(fields[13]) + int(fields[14])) / TICK
    return 0.0, 0.0
