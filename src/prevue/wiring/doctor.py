"""`prevue doctor`: is all there that Prevue needs? Each line is one fact that was tried just now, with the next step where it fails.

Nothing is listed that is not checked, and one failure does not hide the next. Each check is bounded: a server that hangs is a failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import msgspec

from prevue.cluster.port import ClusterInspector, Finding, NamespaceList
from prevue.config import Settings
from prevue.errors import ConfigError, OutageError, PrevueError
from prevue.queue.port import Enqueuer
from prevue.settings import masked_url
from prevue.settings_check import Process, check
from prevue.statestore.port import AlarmStore, JanitorStore, TokenStore
from prevue.wiring import queues

CHECK_SECONDS = 30.0
"""Longer than any client's own time-out, so that the client's better error comes first."""


class Level(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One fact."""

    level: Level
    name: str
    text: str
    next_step: str = ""


class AppProbe(Protocol):
    """What is asked of GitHub's client."""

    async def app_slug(self) -> str:
        """The slug of the App that the JWT stands for."""
        ...


class HelmProbe(Protocol):
    """What is asked of Helm."""

    async def version(self) -> str:
        """Such as `v4.3.1`."""
        ...


def _open_github(settings: Settings) -> AbstractAsyncContextManager[AppProbe]:
    from prevue.github.client import GitHubClient

    return GitHubClient.open(settings.github)


def _open_queue(settings: Settings) -> AbstractAsyncContextManager[Enqueuer]:
    return queues.open_enqueuer(settings.queue)


async def _queue_doubts(settings: Settings) -> list[str]:
    return await queues.queue_doubts(settings.queue)


async def _check_schema(settings: Settings) -> None:
    from prevue.postgres import check_schema

    await check_schema(settings.statestore.url)


@asynccontextmanager
async def _open_helm(settings: Settings) -> AsyncIterator[HelmProbe]:
    from prevue.helm.command import HelmCommand

    async with HelmCommand.open(settings.cluster.helm) as helm:
        yield helm


def _open_cluster(settings: Settings) -> AbstractAsyncContextManager[ClusterProbe]:
    from prevue.cluster.kubernetes import KubernetesCluster

    return KubernetesCluster.open(settings.cluster)


class AlarmProbe(AlarmStore, TokenStore, JanitorStore, Protocol):
    """What is asked of the statestore."""


@asynccontextmanager
async def _open_store(settings: Settings) -> AsyncIterator[AlarmProbe]:
    from prevue.statestore.port import ClaimLimits
    from prevue.statestore.postgres import PostgresStateStore

    async with PostgresStateStore.open(settings.statestore.url, ClaimLimits(), cluster_name=settings.cluster.name) as store:
        yield store


class ClusterProbe(ClusterInspector, NamespaceList, Protocol):
    """What is asked of the cluster."""


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """How each neighbour is reached; tests give others."""

    github: Callable[[Settings], AbstractAsyncContextManager[AppProbe]] = field(default=_open_github)
    queue: Callable[[Settings], AbstractAsyncContextManager[Enqueuer]] = field(default=_open_queue)
    queue_doubts: Callable[[Settings], Awaitable[list[str]]] = field(default=_queue_doubts)
    schema: Callable[[Settings], Awaitable[None]] = field(default=_check_schema)
    helm: Callable[[Settings], AbstractAsyncContextManager[HelmProbe]] = field(default=_open_helm)
    cluster: Callable[[Settings], AbstractAsyncContextManager[ClusterProbe]] = field(default=_open_cluster)
    store: Callable[[Settings], AbstractAsyncContextManager[AlarmProbe]] = field(default=_open_store)


async def examine(
    settings: Settings, *, processes: tuple[Process, ...], places: Mapping[str, str], neighbours: Neighbours | None = None
) -> AsyncIterator[Line]:
    """The lines, as each check ends: what `processes` need, and nothing else."""
    near = neighbours or Neighbours()
    for process in processes:
        for line in _settings(settings, process, places):
            yield line
    checks: list[tuple[str, str, Callable[[], Awaitable[list[Line]]]]] = [
        (
            "App identity",
            "compare github.app_id, the private key and this machine's clock with the App's page",
            lambda: _app(settings, near),
        ),
        ("queue", queues.next_step(settings.queue), lambda: _queue(settings, near)),
    ]
    if "deployer" in processes:
        checks += [
            (
                "statestore",
                "is statestore.url right and the database up? `prevue migrate` brings the schema",
                lambda: _store(settings, near),
            ),
            ("Helm", "install Helm 3.18 or newer, or set cluster.helm to its path", lambda: _helm(settings, near)),
            ("cluster", "is cluster.kubeconfig right, and the API server up?", lambda: _cluster(settings, near)),
            ("requests", "are statestore and cluster up?", lambda: _alarms(settings, near)),
        ]
    for name, next_step, run in checks:
        for line in await _bounded(name, next_step, run):
            yield line


async def _bounded(name: str, next_step: str, run: Callable[[], Awaitable[list[Line]]]) -> list[Line]:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await run()
    except TimeoutError:
        text = f"no answer within {CHECK_SECONDS:.0f} s"
    except PrevueError as exc:
        text = str(exc)
    except Exception as exc:  # noqa: BLE001  one broken neighbour must not hide the others; the text names what came
        text = f"{type(exc).__name__}: {exc}"
    return [Line(level=Level.FAIL, name=name, text=text, next_step=next_step)]


def _settings(settings: Settings, process: Process, places: Mapping[str, str]) -> list[Line]:
    name = f"settings of {process}"
    try:
        warnings = check(settings, process=process, places=places)
    except ConfigError as exc:
        return [Line(level=Level.FAIL, name=name, text=str(exc), next_step="docs/configuration.md describes each setting")]
    doubtful = [Line(level=Level.WARN, name=name, text=warning) for warning in warnings]
    return doubtful or [Line(level=Level.OK, name=name, text="complete, and they fit together")]


async def _app(settings: Settings, near: Neighbours) -> list[Line]:
    async with near.github(settings) as github:
        slug = await github.app_slug()
    # GitHub answers a JWT that the key of App app_id signed, and no other: number and key belong together.
    return [Line(level=Level.OK, name="App identity", text=f"{settings.github.api_url} knows App {settings.github.app_id} as {slug}")]


async def _queue(settings: Settings, near: Neighbours) -> list[Line]:
    async with near.queue(settings) as queue:
        await queue.check()
    lines = [Line(level=Level.OK, name="queue", text=f"{masked_url(settings.queue.url)} takes messages")]
    doubts = await near.queue_doubts(settings)
    return lines + [Line(level=Level.WARN, name="queue", text=text, next_step="docs/queues.md says what is durable") for text in doubts]


async def _store(settings: Settings, near: Neighbours) -> list[Line]:
    try:
        await near.schema(settings)
    except OutageError as exc:
        raise OutageError(f"{masked_url(settings.statestore.url)} cannot be reached: {exc}") from exc
    return [Line(level=Level.OK, name="statestore", text=f"{masked_url(settings.statestore.url)} has this version's schema")]


async def _helm(settings: Settings, near: Neighbours) -> list[Line]:
    async with near.helm(settings) as helm:
        version = await helm.version()
    return [Line(level=Level.OK, name="Helm", text=f"{version} ({settings.cluster.helm})")]


async def _cluster(settings: Settings, near: Neighbours) -> list[Line]:
    async with near.cluster(settings) as cluster:
        findings = await cluster.inspect()
    rights = [finding for finding in findings if finding.name.startswith("right: ")]
    others = [finding for finding in findings if finding not in rights and finding.name != "fence"]
    lines = [_line(finding) for finding in others]
    # Thirty rights that are all granted are one fact; each that is missing is one of its own.
    lines += [_line(finding) for finding in rights if not finding.ok]
    if rights and all(finding.ok for finding in rights):
        lines.append(Line(level=Level.OK, name="cluster: rights", text=f"all {len(rights)} that a deployer needs are granted"))
    required = settings.cluster.require_fence or settings.cluster.fence in ("identity", "token")
    return lines + [_line(finding, broken=Level.FAIL if required else Level.WARN) for finding in findings if finding.name == "fence"]


async def _alarms(settings: Settings, near: Neighbours) -> list[Line]:
    """Protocol rule 6, asked now."""
    async with near.store(settings) as store, near.cluster(settings) as cluster:
        seconds = settings.sweeper.overdue_seconds
        overdue = await store.overdue(older_than_seconds=seconds, limit=1)
        last = await store.last_token()
        known = [one for one in await cluster.owned(settings.github.host) if one.fence > last and await store.find(one.key) is not None]
    lines = [Line(level=Level.OK, name="requests", text=f"none is open for more than {seconds:g} s")]
    if overdue:
        one = overdue[0]
        text = f"request {one.id} of {one.repo}#{one.pr_number} is {one.state} since {one.registered_at:%Y-%m-%d %H:%M}Z; last error: "
        step = f"`prevue previews show {one.repo} {one.pr_number} --ledger` shows what happened"
        lines = [Line(level=Level.WARN, name="requests", text=text + (one.error.partition("\n")[0] or "none"), next_step=step)]
    if known:
        highest = max(known, key=lambda one: one.fence)
        text = f"the last token is {last}, and {highest.name} bears {highest.fence}: the database was restored"
        return [
            *lines,
            Line(level=Level.FAIL, name="tokens", text=text, next_step="start a deployer: it raises the sequence before it claims"),
        ]
    return [*lines, Line(level=Level.OK, name="tokens", text=f"the last one, {last}, is not below any preview's fence")]


def _line(finding: Finding, *, broken: Level = Level.FAIL) -> Line:
    name = finding.name if finding.name in ("cluster", "fence") else f"cluster: {finding.name}"
    return Line(level=Level.OK if finding.ok else broken, name=name, text=finding.text)
