"""Connections to GitHub: clients of one connection each, the last used first.

One client with a pool of many connections looks at every idle connection, with a system call each, whenever a request begins or ends;
at 50 connections that costs several times what the requests cost. A stack of single connections has nothing to search: an idle moment
costs nothing, and a quiet process keeps to one or two. Invariant: a client serves one request at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import httpx2

TIMEOUT: Final = httpx2.Timeout(10.0, connect=3.0)
"""Seconds for each of reading, writing and waiting for a connection; GitHub itself gives up after 10."""
KEPT_SECONDS: Final = 30.0
"""How long an idle connection is trusted; GitHub closes later than that."""
CONCURRENT_MAX: Final = 48
"""Requests at the same time; the others wait for their turn, first come first served. GitHub allows 100 for all of an App's processes
together: https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#about-secondary-rate-limits"""


class Connections:
    """HTTP clients on demand, at most `CONCURRENT_MAX`."""

    def __init__(self, make: Callable[[], httpx2.AsyncClient]) -> None:
        self._make = make
        self._all: list[httpx2.AsyncClient] = []
        self._idle: list[httpx2.AsyncClient] = []
        self._turns = asyncio.Semaphore(CONCURRENT_MAX)

    @classmethod
    @asynccontextmanager
    async def open(cls, *, headers: dict[str, str], transport: httpx2.AsyncBaseTransport | None = None) -> AsyncIterator[Connections]:
        """Connections whose requests carry `headers`; redirects are not followed. `transport` instead of the network, for tests."""
        # Made once: reading the certificates takes longer than a request.
        context = httpx2.create_ssl_context()
        limits = httpx2.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEPT_SECONDS)

        def make() -> httpx2.AsyncClient:
            return httpx2.AsyncClient(
                headers=headers, timeout=TIMEOUT, limits=limits, verify=context, follow_redirects=False, transport=transport
            )

        connections = cls(make)
        try:
            yield connections
        finally:
            for client in connections._all:
                await client.aclose()

    async def request(self, method: str, url: str, *, headers: dict[str, str], content: bytes | None = None) -> httpx2.Response:
        """One request, its answer read to the end.

        Raises:
            httpx2.HTTPError: no answer.
        """
        async with self._turns:
            if self._idle:
                client = self._idle.pop()
            else:
                client = self._make()
                self._all.append(client)
            try:
                return await client.request(method, url, headers=headers, content=content)
            finally:
                self._idle.append(client)
