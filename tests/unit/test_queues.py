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
from prevue.wiring.queues import BACKENDS, open_consumer, open_enqueuer, open_gauge, queue_doubts, warn_of_doubts

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


async def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rq", None)
    for name in [name for name in sys.modules if name.startswith(("prevue.queue.redis", "rq."))]:
        monkeypatch.delitem(sys.modules, name)
    settings = QueueSettings(url="redis://host:6379/0")
    for opened in (open_enqueuer, open_consumer, open_gauge):
        with pytest.raises(ConfigError, match=r"pip install 'prevue\[redis\]'"):
            opened(settings)
    with pytest.raises(ConfigError, match=r"prevue\[redis\]"):
        await queue_doubts(settings)


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
