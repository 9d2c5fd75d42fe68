"""A deployer's /metrics, in Prometheus' text format: what waits, what is busy, what came of it. The base for autoscaling.

Counted at the edges, so that worker and pipeline know nothing of it. The queue is asked when somebody scrapes, and not more often than
every few seconds; a queue that does not answer, or cannot say, has no sample: a gap, never a stale number or a zero.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from prevue.errors import QueueUnavailable
from prevue.lifecycle import Finish
from prevue.model import Message, RequestState
from prevue.queue import port as queue
from prevue.statestore import port as statestore

CONTENT_TYPE = CONTENT_TYPE_LATEST
DEPTH_FRESH_SECONDS = 5.0
"""Scrapes within this time share one question to the queue."""
DEPTH_SECONDS_MAX = 3.0
"""A queue that takes longer has no sample; Prometheus gives a scrape 10 s by default."""

_SNAKE = re.compile(r"(?<=[a-z])(?=[A-Z])")
_log = structlog.get_logger(__name__)


class Metrics:
    """One process's numbers, in a registry of their own."""

    def __init__(self, *, slots: int) -> None:
        self.registry = CollectorRegistry()
        Gauge("prevue_slots", "Requests that this deployer carries out at once", registry=self.registry).set(slots)
        self._busy = Gauge("prevue_slots_busy", "Messages that this deployer handles now", registry=self.registry)
        self._claims = Counter("prevue_claims", "Verdicts over received messages", ["verdict"], registry=self.registry)
        self._finished = Counter("prevue_requests_finished", "Requests that this deployer ended", ["outcome"], registry=self.registry)

    def busy(self, handler: queue.Handler) -> queue.Handler:
        """`handler`, counted while it runs."""

        async def counted(message: Message) -> queue.Settlement:
            with self._busy.track_inprogress():
                return await handler(message)

        return counted

    def verdict(self, verdict: statestore.Verdict) -> None:
        """Count a verdict; two of them end the request themselves."""
        self._claims.labels(_SNAKE.sub("_", type(verdict).__name__).lower()).inc()
        match verdict:
            case statestore.Superseded():
                self._finished.labels(RequestState.SUPERSEDED.value).inc()
            case statestore.Dead():
                self._finished.labels(RequestState.DEAD.value).inc()

    def finished(self, finish: Finish) -> None:
        """Count an outcome that was written."""
        self._finished.labels(finish.outcome.value).inc()


class MetricsPage:
    """What is answered to a scrape."""

    def __init__(self, metrics: Metrics, gauge: queue.Gauge) -> None:
        self._registry = metrics.registry
        self._gauge = gauge
        self._asking = asyncio.Lock()
        self._asked_at = -DEPTH_FRESH_SECONDS
        self._depth = _QueueDepth()
        self._registry.register(self._depth)

    async def render(self) -> bytes:
        """All metrics now; the queue's may be some seconds old."""
        async with self._asking:
            if time.monotonic() - self._asked_at >= DEPTH_FRESH_SECONDS:
                self._depth.now = await self._ask()
                self._asked_at = time.monotonic()
        return generate_latest(self._registry)

    async def _ask(self) -> queue.Depth:
        try:
            async with asyncio.timeout(DEPTH_SECONDS_MAX):
                return await self._gauge.depth()
        except (QueueUnavailable, TimeoutError) as exc:
            _log.warning("queue_depth_unknown", error=str(exc) or "no answer in time")
            return queue.Depth(None, None)


class _QueueDepth(Collector):
    """The queue's two gauges; what is unknown is left out."""

    def __init__(self) -> None:
        self.now = queue.Depth(None, None)

    def collect(self) -> Iterator[Metric]:
        if self.now.messages is not None:
            yield GaugeMetricFamily("prevue_queue_messages", "Messages in the queue that are not settled", self.now.messages)
        if self.now.oldest_seconds is not None:
            yield GaugeMetricFamily("prevue_queue_oldest_seconds", "Age of the oldest message that is not settled", self.now.oldest_seconds)
