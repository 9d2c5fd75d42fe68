"""`prevue queue create` and the depth of a Pub/Sub subscription."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from google.cloud.monitoring_v3 import ListTimeSeriesRequest, MetricServiceAsyncClient, Point, TimeSeries, TypedValue
from google.pubsub_v1 import SubscriberAsyncClient

from prevue.cli import main
from prevue.config import PubSubSettings
from prevue.errors import QueueUnavailable
from prevue.local.emulators import PubSubEmulator
from prevue.queue.addresses import PubSubAddress
from prevue.queue.port import Change, Depth
from prevue.queue.pubsub import open_subscriber
from prevue.queue.pubsub_admin import PubSubCreator, PubSubGauge

NAME = "projects/test/subscriptions"


async def test_all_is_made_once_and_what_differs_is_mended(pubsub_emulator: PubSubEmulator) -> None:
    settings = PubSubSettings(endpoint=pubsub_emulator.endpoint)
    plain, full = "pubsub://test/made?subscription=made-by", "pubsub://test/made?subscription=made-by&dead_letter=made-dead"
    async with PubSubCreator.open(plain, settings) as creator:
        made = [
            Change("projects/test/topics/made", "", "", "a topic"),
            Change(f"{NAME}/made-by", "", "", "a subscription of projects/test/topics/made"),
        ]
        assert await creator.create(slots=1, check=True) == made
        assert await creator.create(slots=1, check=False) == made
        assert await creator.create(slots=1, check=False) == []
    async with PubSubCreator.open(full, settings) as creator, open_subscriber(settings) as subscriber:
        changes = await creator.create(slots=1, check=False)
        assert [(change.resource, change.setting) for change in changes] == [
            ("projects/test/topics/made-dead", ""),
            (f"{NAME}/made-dead", ""),
            (f"{NAME}/made-by", "dead_letter_policy.dead_letter_topic"),
            (f"{NAME}/made-by", "dead_letter_policy.max_delivery_attempts"),
        ]
        assert await creator.create(slots=1, check=True) == []
        found = await subscriber.get_subscription(subscription=f"{NAME}/made-by")
        assert found.dead_letter_policy.max_delivery_attempts == 100
        assert found.expiration_policy.ttl is None or not found.expiration_policy.ttl


async def test_an_emulator_counts_nothing_but_says_whether_the_subscription_is_there(pubsub_emulator: PubSubEmulator) -> None:
    settings = PubSubSettings(endpoint=pubsub_emulator.endpoint)
    url = "pubsub://test/counted?subscription=counted"
    async with PubSubCreator.open(url, settings) as creator, PubSubGauge.open(url, settings) as gauge:
        with pytest.raises(QueueUnavailable):
            await gauge.depth()
        await creator.create(slots=1, check=False)
        assert await gauge.depth() == Depth(None, None)


def test_the_command_tells_what_differs_and_makes_it(
    pubsub_emulator: PubSubEmulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREVUE_QUEUE__URL", "pubsub://test/told?subscription=told")
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pubsub_emulator.endpoint)
    assert main(["queue", "create", "--check"]) == 1
    assert "projects/test/topics/told" in capsys.readouterr().out
    assert main(["queue", "create"]) == 0
    capsys.readouterr()
    assert main(["queue", "create", "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["queue", "depth"]) == 0
    assert "unknown" in capsys.readouterr().out


def test_a_queue_that_no_vendor_makes_is_said_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PREVUE_QUEUE__URL", "postgresql://host/database")
    assert main(["queue", "create"]) == 2
    assert "prevue migrate" in capsys.readouterr().err


class Monitoring:
    """Answers as Cloud Monitoring does: the newest point first, and nothing for what it does not know."""

    def __init__(self, **values: int) -> None:
        self.values = values
        self.asked: list[ListTimeSeriesRequest] = []

    async def list_time_series(self, request: ListTimeSeriesRequest, **_options: Any) -> Any:
        self.asked.append(request)

        async def series() -> Any:
            for name, value in self.values.items():
                if f'/{name}"' in request.filter:
                    yield TimeSeries(points=[Point(value=TypedValue(int64_value=each)) for each in (value, value + 100)])

        return series()


@pytest.mark.parametrize(
    ("values", "depth"),
    [
        ({"num_undelivered_messages": 7, "oldest_unacked_message_age": 41}, Depth(7, 41.0)),
        ({"num_undelivered_messages": 0}, Depth(0, 0.0)),
        ({"num_undelivered_messages": 7}, Depth(7, None)),
        ({}, Depth(None, None)),
    ],
)
async def test_depth_is_the_newest_of_cloud_monitoring(values: dict[str, int], depth: Depth) -> None:
    monitoring = Monitoring(**values)
    address = PubSubAddress.parse("pubsub://project/topic?subscription=name")
    gauge = PubSubGauge(address, cast("SubscriberAsyncClient", None), cast("MetricServiceAsyncClient", monitoring))
    assert await gauge.depth() == depth
    assert {request.name for request in monitoring.asked} == {"projects/project"}
    assert all('resource.labels.subscription_id="name"' in request.filter for request in monitoring.asked)
