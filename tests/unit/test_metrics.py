"""/metrics: what is counted, and a queue that cannot be asked."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from prevue.errors import QueueUnavailable
from prevue.lifecycle import Reason, failed
from prevue.model import Message
from prevue.queue.port import Depth, Done, Settlement
from prevue.statestore import port as statestore
from prevue.testing.contracts.queue import command
from prevue.wiring import metrics as wiring
from prevue.wiring.health import serve_health
from prevue.wiring.metrics import Metrics, MetricsPage


class Queue:
    """A gauge that answers what it is told, and counts how often it was asked."""

    def __init__(self, answer: Depth | Exception) -> None:
        self.answer = answer
        self.asked = 0

    async def depth(self) -> Depth:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def samples(page: MetricsPage) -> dict[str, float]:
    """What Prometheus reads, by name and label."""
    text = (await page.render()).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                found[" ".join([sample.name, *sample.labels.values()])] = sample.value
    return found


async def test_everything_is_counted() -> None:
    metrics = Metrics(slots=4)
    page = MetricsPage(metrics, Queue(Depth(3, 12.5)))
    for verdict in (statestore.InProgress(), statestore.InProgress(), statestore.Superseded(), statestore.Dead(), statestore.Later(1)):
        metrics.verdict(verdict)
    metrics.finished(failed(Reason.OTHER, "no", began=True))
    inside = asyncio.Event()
    end = asyncio.Event()

    async def handler(_message: Message) -> Settlement:
        inside.set()
        await end.wait()
        return Done()

    running = asyncio.ensure_future(metrics.busy(handler)(command(1)))
    await inside.wait()
    during = await samples(page)
    end.set()
    assert await running == Done()
    assert during == {
        "prevue_queue_messages": 3,
        "prevue_queue_oldest_seconds": 12.5,
        "prevue_slots": 4,
        "prevue_slots_busy": 1,
        "prevue_claims_total in_progress": 2,
        "prevue_claims_total superseded": 1,
        "prevue_claims_total dead": 1,
        "prevue_claims_total later": 1,
        "prevue_requests_finished_total superseded": 1,
        "prevue_requests_finished_total dead": 1,
        "prevue_requests_finished_total failed": 1,
    }
    assert (await samples(page))["prevue_slots_busy"] == 0


async def test_every_metric_is_documented() -> None:
    page = MetricsPage(Metrics(slots=1), Queue(Depth(1, 1.0)))
    text = (Path(__file__).parents[2] / "docs" / "autoscaling.md").read_text()
    types = [line.split()[2:] for line in (await page.render()).decode().splitlines() if line.startswith("# TYPE ")]
    assert {name for name, _ in types} >= {"prevue_slots", "prevue_queue_messages", "prevue_claims_total"}
    for name, kind in types:
        assert re.search(rf"^\| `{name}[`{{].*\| {kind} \|", text, flags=re.MULTILINE), name


async def test_scrapes_share_a_question() -> None:
    queue = Queue(Depth(0, 0.0))
    page = MetricsPage(Metrics(slots=1), queue)
    await asyncio.gather(*(page.render() for _ in range(10)))
    assert queue.asked == 1


async def test_queue_that_is_down_or_cannot_say_has_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "DEPTH_FRESH_SECONDS", 0.0)
    queue = Queue(Depth(7, 1.0))
    page = MetricsPage(Metrics(slots=1), queue)
    assert (await samples(page))["prevue_queue_messages"] == 7
    for answer in (QueueUnavailable("down"), Depth(None, None)):
        queue.answer = answer
        assert {name for name in await samples(page) if "queue" in name} == set()
    queue.answer = Depth(8, None)
    assert {name for name in await samples(page) if "queue" in name} == {"prevue_queue_messages"}


async def test_deployers_port_serves_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    stopping, until = asyncio.Event(), asyncio.Event()
    page = MetricsPage(Metrics(slots=2), Queue(Depth(1, 0.5)))
    server = asyncio.create_task(serve_health("127.0.0.1", port, page=page, stopping=stopping, until=until))
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        async with asyncio.timeout(20):
            while True:
                try:
                    answer = await client.get("/metrics")
                    break
                except httpx2.ConnectError:
                    await asyncio.sleep(0.02)
        ready = await client.get("/readyz")
        stopping.set()
        draining = await client.get("/readyz")
    until.set()
    await server
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "prevue_queue_messages 1.0" in answer.text
    assert (ready.status_code, draining.status_code) == (200, 503)
