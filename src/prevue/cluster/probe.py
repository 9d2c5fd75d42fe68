"""Ask a preview's URL whether it answers, before it is posted: the last of the three facts behind "ready"."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import httpx2

from prevue.cluster.port import UrlProbe
from prevue.errors import NotReady

PAUSE_SECONDS = 0.05
PAUSE_SECONDS_MAX = 0.15
"""kube-proxy or a load balancer takes the new pod up within about a second: whoever doubles its pauses waits twice as long."""
ATTEMPT_SECONDS = 5.0
"""One request; a load balancer that is still being set up swallows packets, so a second try beats a long wait."""


class HttpProbe:
    """Probes by HTTP GET. No redirect is followed, no body is read, and the connection is closed: each answer is a new one."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, *, verify: bool = True, trust_env: bool = True) -> AsyncIterator[HttpProbe]:
        """`verify` false: certificates of previews are not checked. `trust_env` false: the environment's proxies are not used."""
        limits = httpx2.Limits(max_keepalive_connections=0)
        async with httpx2.AsyncClient(verify=verify, follow_redirects=False, limits=limits, trust_env=trust_env) as client:
            yield cls(client)

    async def probe(self, url: str, *, statuses: frozenset[int], timeout_seconds: float) -> int:
        give_up = time.monotonic() + timeout_seconds
        pause = PAUSE_SECONDS
        while True:
            rest = give_up - time.monotonic()
            try:
                async with asyncio.timeout(min(max(rest, 0.1), ATTEMPT_SECONDS)):
                    status = await self._ask(url)
                if status in statuses:
                    return status
                last = f"HTTP {status}"
            except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError) as exc:
                last = type(exc).__name__
            if time.monotonic() + pause >= give_up:
                raise NotReady(f"{url} did not answer well in {timeout_seconds:g} s; the last answer: {last}")
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSE_SECONDS_MAX)

    async def _ask(self, url: str) -> int:
        async with self._client.stream("GET", url, headers={"User-Agent": "prevue-probe", "Accept": "*/*"}) as response:
            return response.status_code


if TYPE_CHECKING:
    _: type[UrlProbe] = HttpProbe
