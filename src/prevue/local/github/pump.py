"""The webhook pump: sends what the state wants delivered, and writes down what came back.

As GitHub does, it waits ten seconds for an answer, sends many at once in no promised order, and never tries again by
itself (https://docs.github.com/webhooks/using-webhooks/handling-failed-webhook-deliveries). Invariant: every delivery
that was taken ends with a response in the log, be it only the reason why there is none.
"""

from __future__ import annotations

import asyncio
import time

import httpx2

from prevue.testing.github import Delivery, DeliveryResponse, FakeGitHub

ANSWER_SECONDS_MAX = 10.0
"""GitHub ends the connection after ten seconds (https://docs.github.com/webhooks/using-webhooks/best-practices-for-using-webhooks)."""

CONCURRENT_MAX = 100
"""Deliveries on the wire at once; fifty pull requests commented on together must not queue here."""

_ANSWER_CHARACTERS_MAX = 10_000


class WebhookPump:
    """Posts deliveries to `url`; `transport` replaces the network in tests."""

    def __init__(self, github: FakeGitHub, url: str, *, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self._github = github
        self._url = url
        self._transport = transport
        self._wake = asyncio.Event()
        self._in_flight = 0
        github.webhooks.on_delivery(self._wake.set)

    async def run(self) -> None:
        """Send deliveries until cancelled."""
        limits = httpx2.Limits(max_connections=CONCURRENT_MAX, max_keepalive_connections=CONCURRENT_MAX)
        timeout = httpx2.Timeout(ANSWER_SECONDS_MAX, pool=None)
        self._wake.set()  # what was delivered before the pump ran
        async with (
            httpx2.AsyncClient(transport=self._transport, limits=limits, timeout=timeout, trust_env=False) as client,
            asyncio.TaskGroup() as sends,
        ):
            while True:
                await self._wake.wait()
                self._wake.clear()
                for delivery in self._github.webhooks.take():
                    self._in_flight += 1
                    sends.create_task(self._send(client, delivery), name=f"delivery {delivery.guid}")

    async def _send(self, client: httpx2.AsyncClient, delivery: Delivery) -> None:
        started = time.monotonic()
        try:
            # One limit for the whole exchange: httpx2's own are per read, and a dribbling server would never end.
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                answer = await client.post(self._url, content=delivery.payload, headers=dict(delivery.headers))
            response = DeliveryResponse(
                status_code=answer.status_code,
                headers=dict(answer.headers),
                payload=answer.text[:_ANSWER_CHARACTERS_MAX],
                duration_seconds=time.monotonic() - started,
                error="" if answer.is_success else f"Invalid HTTP Response: {answer.status_code}",
            )
        except (httpx2.HTTPError, TimeoutError) as exc:
            timed_out = isinstance(exc, httpx2.TimeoutException | TimeoutError)
            response = DeliveryResponse(
                status_code=0,
                headers={},
                payload="",
                duration_seconds=time.monotonic() - started,
                error="timed out" if timed_out else "failed to connect to host",
            )
        finally:
            self._in_flight -= 1
        self._github.webhooks.record_response(delivery, response)

    @property
    def in_flight(self) -> int:
        """How many deliveries are on the wire now."""
        return self._in_flight
