"""The queue by its URL: one table, each backend imported only when it is chosen."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from prevue.config import QueueSettings
from prevue.errors import ConfigError, QueueUnavailable
from prevue.wiring.queues import BACKENDS, next_step, open_consumer, open_enqueuer, open_gauge, warn_of_doubts

LIBRARIES = {
    "postgresql://user:password@host/database": {"asyncpg"},
    "redis://host:6379/0": {"redis", "rq"},
    "cloudtasks://project/location/queue": {"grpc", "google.cloud.tasks_v2"},
    "pubsub://project/topic?subscription=name": {"grpc", "google.pubsub_v1"},
}
"""A URL of each backend, with what it alone may import."""

_IMPORTED = """
import json, sys
import prevue.wiring.github_app
from prevue.config import QueueSettings
from prevue.wiring.queues import open_enqueuer
open_enqueuer(QueueSettings(url=sys.argv[1]))
print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize("url", LIBRARIES)
def test_app_imports_its_own_queue_and_no_other(url: str) -> None:
    result = subprocess.run([sys.executable, "-c", _IMPORTED, url], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(json.loads(result.stdout))
    libraries = set().union(*LIBRARIES.values())
    assert loaded & libraries == LIBRARIES[url]


def test_every_kind_of_queue_is_in_that_test() -> None:
    tested = {id(BACKENDS[url.partition("://")[0]]) for url in LIBRARIES}
    assert tested == {id(backend) for backend in BACKENDS.values()}


@pytest.mark.parametrize("opened", [open_enqueuer, open_consumer, open_gauge])
def test_wrong_scheme_lists_those_there_are(opened: object) -> None:
    assert callable(opened)
    with pytest.raises(ConfigError) as raised:
        opened(QueueSettings(url="amqp://host"))
    assert all(f"{scheme}://" in str(raised.value) for scheme in BACKENDS)


_WITHOUT_EXTRAS = """
import asyncio, sys
sys.modules.update(dict.fromkeys(["google", "grpc", "redis", "rq"]))  # as if they were not installed
from prevue.config import QueueSettings
from prevue.errors import ConfigError
from prevue.wiring import queues
settings = QueueSettings(url=sys.argv[1])
calls = {
    "enqueuer": lambda: queues.open_enqueuer(settings),
    "consumer": lambda: queues.open_consumer(settings),
    "gauge": lambda: queues.open_gauge(settings),
    "doubts": lambda: asyncio.run(queues.queue_doubts(settings)),
    "create": lambda: asyncio.run(queues.create(settings, slots=1, check=True)),
}
for name in sys.argv[2:]:
    try:
        calls[name]()
    except ConfigError as exc:
        print(exc)
"""


@pytest.mark.parametrize(
    ("url", "extra", "last"),
    [
        ("redis://host:6379/0", "redis", "doubts"),
        ("cloudtasks://project/location/queue", "gcp", "create"),
        ("pubsub://project/topic?subscription=name", "gcp", "create"),
    ],
)
def test_missing_extra_is_named(url: str, extra: str, last: str) -> None:
    command = [sys.executable, "-c", _WITHOUT_EXTRAS, url, "enqueuer", "consumer", "gauge", last]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert len(said) == 4
    assert all(line.endswith(f"which is not installed: pip install 'prevue[{extra}]'") for line in said), said


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("postgresql://host/database", "prevue migrate"),
        ("rediss://host", "docs/queues.md"),
        ("cloudtasks://project/location/queue", "prevue queue create"),
        ("pubsub://project/topic?subscription=name", "prevue queue create"),
        ("amqp://host", "lists the queues"),
    ],
)
def test_next_step_is_the_chosen_queue_s(url: str, word: str) -> None:
    assert word in next_step(QueueSettings(url=url))


async def test_doubts_are_logged_at_start_and_a_server_that_is_down_hinders_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def doubtful(_settings: QueueSettings) -> list[str]:
        return ["appendonly is no"]

    async def down(_settings: QueueSettings) -> list[str]:
        raise QueueUnavailable

    settings = QueueSettings(url="redis://h")
    with capture_logs() as lines:
        monkeypatch.setitem(BACKENDS, "redis", replace(BACKENDS["redis"], doubts=doubtful))
        await warn_of_doubts(settings)
        monkeypatch.setitem(BACKENDS, "redis", replace(BACKENDS["redis"], doubts=down))
        await warn_of_doubts(settings)
        await warn_of_doubts(QueueSettings(url="postgresql://h/d"))
    assert [(line["event"], line["text"]) for line in lines] == [("queue_durability_doubtful", "appendonly is no")]
