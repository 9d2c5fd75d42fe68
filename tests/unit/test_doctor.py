"""`doctor`: one line for what was tried, a next step where it failed, and an exit code."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from prevue.cluster.port import FenceKind, Finding, OwnedNamespace
from prevue.config import ClusterSettings, GitHubSettings, QueueSettings, Settings, StatestoreSettings
from prevue.errors import ConfigError, GitHubUnavailable, OutageError, QueueUnavailable
from prevue.model import PreviewKey
from prevue.settings_check import Process
from prevue.testing.contracts.statestore_harness import command
from prevue.testing.statestore import FakeStateStore
from prevue.wiring.doctor import Level, Line, Neighbours, examine

SETTINGS = Settings(
    github=GitHubSettings(app_id=7),
    queue=QueueSettings(url="postgresql://app:hunter2@db/prevue"),
    statestore=StatestoreSettings(url="postgresql://owner:hunter2@db/prevue"),
)


class Good:
    """All neighbours at once, in order."""

    findings: tuple[Finding, ...] = (
        Finding(name="cluster", ok=True, text="Kubernetes v1.34.4"),
        Finding(name="right: get pods", ok=True, text="allowed"),
        Finding(name="right: list pods", ok=True, text="allowed"),
        Finding(name="fence", ok=True, text="the admission policy refuses stale tokens"),
    )

    async def app_slug(self) -> str:
        return "prevue-dev"

    async def enqueue(self, message: Any) -> Any:
        raise AssertionError(message)

    async def check(self) -> None:
        return None

    async def version(self) -> str:
        return "v4.3.1"

    async def inspect(self) -> list[Finding]:
        return list(self.findings)

    async def fence_kind(self) -> FenceKind:
        raise AssertionError

    async def owned(self, github_host: str) -> list[OwnedNamespace]:
        return [OwnedNamespace(name="pv-1", uid="u", key=PreviewKey(github_host, 42, 1), fence=self.fence, is_terminating=False)]

    fence = 0


def opener(thing: Any) -> Callable[[Settings], AbstractAsyncContextManager[Any]]:
    @asynccontextmanager
    async def open_it(_settings: Settings) -> AsyncIterator[Any]:
        if isinstance(thing, Exception):
            raise thing
        yield thing

    return open_it


async def good_schema(_settings: Settings) -> None:
    return None


async def no_doubts(_settings: Settings) -> list[str]:
    return []


GOOD = Neighbours(
    github=opener(Good()),
    queue=opener(Good()),
    queue_doubts=no_doubts,
    schema=good_schema,
    helm=opener(Good()),
    cluster=opener(Good()),
    store=opener(FakeStateStore()),
)


async def lines_of(
    neighbours: Neighbours = GOOD, *, processes: tuple[Process, ...] = ("deployer",), settings: Settings = SETTINGS
) -> dict[str, Line]:
    return {line.name: line async for line in examine(settings, processes=processes, places={}, neighbours=neighbours)}


async def test_all_is_well() -> None:
    lines = await lines_of()
    del lines["settings of deployer"]  # these settings have no key file
    assert list(lines) == ["App identity", "queue", "statestore", "Helm", "cluster", "cluster: rights", "fence", "requests", "tokens"]
    assert {line.level for line in lines.values()} == {Level.OK}
    assert "prevue-dev" in lines["App identity"].text
    assert "hunter2" not in str(lines)


async def test_the_app_alone_asks_for_no_cluster() -> None:
    assert list(await lines_of(processes=("github-app",))) == ["settings of github-app", "App identity", "queue"]


async def test_wrong_settings_are_a_failure_and_the_rest_is_still_tried() -> None:
    lines = await lines_of()
    assert lines["settings of deployer"].level is Level.FAIL
    assert "github.private_key_file" in lines["settings of deployer"].text
    assert lines["Helm"].level is Level.OK


async def broken_schema(_settings: Settings) -> None:
    raise ConfigError("the database's schema is missing: run `prevue migrate`")


async def lost_database(_settings: Settings) -> None:
    raise OutageError("PostgreSQL: connection refused")


@pytest.mark.parametrize(
    ("name", "neighbours", "text"),
    [
        ("App identity", replace(GOOD, github=opener(GitHubUnavailable("HTTP 401"))), "HTTP 401"),
        ("queue", replace(GOOD, queue=opener(QueueUnavailable("refused"))), "refused"),
        ("statestore", replace(GOOD, schema=broken_schema), "schema is missing"),
        ("statestore", replace(GOOD, schema=lost_database), "postgresql://owner:********@db/prevue cannot be reached: PostgreSQL"),
        ("Helm", replace(GOOD, helm=opener(ConfigError("no helm on PATH"))), "no helm on PATH"),
        ("cluster", replace(GOOD, cluster=opener(RuntimeError("surprise"))), "RuntimeError: surprise"),
    ],
)
async def test_one_failure_does_not_hide_the_next(name: str, neighbours: Neighbours, text: str) -> None:
    lines = await lines_of(neighbours)
    failed = {line.name for line in lines.values() if line.level is Level.FAIL} - {"settings of deployer"}
    assert failed - {"requests"} == {name}  # what is open cannot be told where the cluster cannot be asked
    assert text in lines[name].text
    assert lines[name].next_step


async def test_each_right_that_is_missing_is_a_failure() -> None:
    class NoRights(Good):
        findings = (*Good.findings, Finding(name="right: create namespaces", ok=False, text="missing"))

    lines = await lines_of(replace(GOOD, cluster=opener(NoRights())))
    assert lines["cluster: right: create namespaces"].level is Level.FAIL
    assert "cluster: rights" not in lines


@pytest.mark.parametrize(("required", "level"), [(False, Level.WARN), (True, Level.FAIL)])
async def test_no_fence_is_a_warning_unless_it_is_required(required: bool, level: Level) -> None:
    class NoFence(Good):
        findings = (Finding(name="fence", ok=False, text="no admission policy"),)

    settings = Settings(queue=SETTINGS.queue, statestore=SETTINGS.statestore, cluster=ClusterSettings(require_fence=required))
    lines = await lines_of(replace(GOOD, cluster=opener(NoFence())), settings=settings)
    assert lines["fence"].level is level


async def test_a_neighbour_that_hangs_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hangs(Good):
        async def version(self) -> str:
            import asyncio

            await asyncio.Event().wait()
            return ""

    monkeypatch.setattr("prevue.wiring.doctor.CHECK_SECONDS", 0.05)
    lines = await lines_of(replace(GOOD, helm=opener(Hangs())))
    assert lines["Helm"].level is Level.FAIL
    assert "no answer within" in lines["Helm"].text


async def test_request_that_is_open_for_too_long_is_told() -> None:
    store = FakeStateStore()
    await store.register_and_claim(command(1), holder="gone")
    store.advance(4000)
    lines = await lines_of(replace(GOOD, store=opener(store)))
    assert lines["requests"].level is Level.WARN
    assert "acme/hello#1" in lines["requests"].text
    assert "--ledger" in lines["requests"].next_step


async def test_fence_above_the_sequence_is_told() -> None:
    class Restored(Good):
        fence = 77

    store = FakeStateStore()
    await store.register_and_claim(command(1), holder="one")
    lines = await lines_of(replace(GOOD, store=opener(store), cluster=opener(Restored())))
    assert lines["tokens"].level is Level.FAIL
    assert "bears 77" in lines["tokens"].text


async def test_what_the_queue_may_lose_is_a_warning_each() -> None:
    async def doubts(_settings: Settings) -> list[str]:
        return ["Redis: appendonly is not yes", "Redis: maxmemory-policy is allkeys-lru"]

    lines = [line async for line in examine(SETTINGS, processes=("github-app",), places={}, neighbours=replace(GOOD, queue_doubts=doubts))]
    queue = [(line.level, line.text) for line in lines if line.name == "queue"]
    assert [level for level, _ in queue] == [Level.OK, Level.WARN, Level.WARN]
    assert all("docs/queues.md" in line.next_step for line in lines if line.level is Level.WARN)
    assert [text for _, text in queue[1:]] == ["Redis: appendonly is not yes", "Redis: maxmemory-policy is allkeys-lru"]
