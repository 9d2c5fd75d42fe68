"""Looks from outside when previews begin to serve the commit that they should.

For the burst and the benchmark, where the status comments wait for GitHub's pace and so cannot tell when a preview was up. Node ports are
learnt from one `kubectl get --watch`, which costs the API server one watch and this process almost nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

_COLUMNS = "NAMESPACE:.metadata.namespace,PORT:.spec.ports[0].nodePort"
_ROUND_SECONDS = 0.1
_PROBES_AT_ONCE = 10
_ANSWER_SECONDS = 2.0
_COMMIT = re.compile(rb'id="commit">([0-9a-f]{40})<')


@dataclass
class Prober:
    """When each namespace served its commit for the first time; times are `time.monotonic()`."""

    host: str = "127.0.0.1"
    served_at: dict[str, float] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    async def wait(self, expected: Mapping[str, str], *, seconds: float) -> float:
        """Return when every namespace of `expected` serves its commit; the time of the last.

        Raises:
            TimeoutError: some do not in time; `missing` names them.
        """
        async with asyncio.timeout(seconds):
            slots = asyncio.Semaphore(_PROBES_AT_ONCE)
            while missing := self.missing(expected):
                await asyncio.gather(
                    *(self._probe(slots, namespace, expected[namespace]) for namespace in missing if namespace in self.ports)
                )
                await asyncio.sleep(_ROUND_SECONDS)
        return max(self.served_at[namespace] for namespace in expected)

    def missing(self, expected: Mapping[str, str]) -> list[str]:
        """The namespaces that have not served their commit yet."""
        return [namespace for namespace in expected if namespace not in self.served_at]

    async def _probe(self, slots: asyncio.Semaphore, namespace: str, commit: str) -> None:
        async with slots:
            if await _served(self.host, self.ports[namespace]) == commit:
                self.served_at[namespace] = time.monotonic()


async def _served(host: str, port: int) -> str:
    """The commit on the page; empty where nothing answers. By hand: an HTTP client's overhead, hundreds of times a second, would count."""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
                page = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return ""
    found = _COMMIT.search(page)
    return found.group(1).decode() if found else ""


@asynccontextmanager
async def watching(kubectl: str, kubeconfig: str, *, host: str = "127.0.0.1") -> AsyncIterator[Prober]:
    """A prober that learns of every service with a node port."""
    prober = Prober(host)
    process = await asyncio.create_subprocess_exec(
        kubectl, "--kubeconfig", kubeconfig, "get", "services", "--all-namespaces", "--watch", "--no-headers", "-o",
        f"custom-columns={_COLUMNS}", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    reading = asyncio.create_task(_read(process, prober), name="service watch")
    try:
        yield prober
    finally:
        reading.cancel()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _read(process: asyncio.subprocess.Process, prober: Prober) -> None:
    if process.stdout is None:
        return
    async for line in process.stdout:
        namespace, _, port = line.decode().strip().partition(" ")
        if port.strip().isdecimal():
            prober.ports[namespace] = int(port)
