"""Planted bugs in what the sweeper and the operator ask for: its rules 1 to 3 and 5, replays; see `bugs.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import msgspec
from tests.simulation.planting import bug, world_of
from tests.simulation.world import Numbers

from prevue.deployer.pipeline import Pipeline
from prevue.model import EPOCH, Order, PreviewState, Source, replay_of
from prevue.statestore.port import NewerDesired
from prevue.sweeper.commands import CommandScan
from prevue.sweeper.deliveries import Redeliverer
from prevue.sweeper.janitor import Janitor
from prevue.testing.cluster import Write
from prevue.testing.statestore import FakeStateStore
from prevue.wiring import dead_letters

_begin = FakeStateStore.begin
_register = FakeStateStore.register_and_claim

# -- the sweeper's rules ----------------------------------------------------------------------------------------------------

LOST = world_of("webhook_never_sent", "webhook_lost", "pause_deployer", "github_stale_read_worker", "cluster_slow", "crash_deployer")
"""What only the sweeper repairs."""
EXPIRING = world_of("queue_delay", "webhook_delay", boost=4.0, numbers=Numbers(ttl_seconds=15.0))
REPLAYED = world_of("helm_killed", "queue_delay", boost=8.0, pushes_before_commands=True, numbers=Numbers(attempts_max=1, ttl_seconds=20.0))
"""Commands die, are replayed, and previews expire meanwhile."""
REPEATED = world_of(
    "helm_killed",
    "queue_duplicate",
    "queue_repeats_while_running",
    "cluster_slow",
    boost=8.0,
    pushes_before_commands=True,
    numbers=Numbers(attempts_max=1),
)
"""The same, and what is over comes once more while its replay is on its way to the begin."""


@bug("failed deliveries are not sent again (rule 2)", settings=LOST, breaks=("accepted_reaches_terminal_state", "quiet_after_faults_stop"))
def no_redelivery() -> list[Any]:
    return [patch.object(Redeliverer, "sweep", _nothing)]


@bug("comments are not searched for commands that no delivery brought (rule 2)", settings=LOST, breaks=("accepted_reaches_terminal_state",))
def no_comment_scan() -> list[Any]:
    return [patch.object(CommandScan, "sweep", _nothing)]


@bug("closed pull requests are not looked for (rules 2 and 3)", settings=LOST, breaks=("closed_pull_request_leaves_nothing",))
def no_look_for_closed() -> list[Any]:
    return [patch.object(Janitor, "sweep_closed", _nothing), patch.object(Janitor, "sweep_orphans", _nothing)]


@bug("nobody removes a stale worker's empty namespace (rule 3)", settings=LOST, breaks=("closed_pull_request_leaves_nothing",))
def no_orphans() -> list[Any]:
    return [patch.object(Janitor, "sweep_orphans", _nothing)]


@bug("nothing expires (rule 5)", breaks=("expired_preview_leaves_nothing",))
def no_expiry() -> list[Any]:
    return [patch.object(Janitor, "sweep_expired", _nothing)]


@bug("the sweeper deletes an orphan by itself, without a claim", settings=LOST, breaks=("one_mutating_worker_per_release",))
def janitor_without_claim() -> list[Any]:
    original = Janitor.sweep_orphans

    async def sweep_orphans(self: Any) -> int:
        for namespace in await self._namespaces.owned(self._github_host):
            row = await self._store.find(namespace.key)
            if row is not None and row.state is PreviewState.DESTROYED:
                await asyncio.sleep(1)
                state = self._namespaces._cluster._state
                if state.namespaces.pop(namespace.name, None) is not None:
                    at = state.clock.boottime()
                    state.journal.append(
                        Write(at=at, namespace=namespace.name, token=0, verb="delete", kind="Namespace", name=namespace.name, commit="")
                    )
        return await original(self)

    return [patch.object(Janitor, "sweep_orphans", sweep_orphans)]


@bug("a sweep and an expiry do not look again under the claim", breaks=("newest_wins",), settings=REPLAYED)
def no_second_look() -> list[Any]:
    async def reason_is_gone(self: Any, claim: Any) -> None:
        await asyncio.sleep(0)

    return [patch.object(Pipeline, "_reason_is_gone", reason_is_gone)]


@bug(
    "the begin asks whether the request is the desired one, not whether its order is: a sweep never begins",
    settings=LOST,
    breaks=("accepted_reaches_terminal_state", "expired_preview_leaves_nothing"),
)
def begin_by_id() -> list[Any]:
    return [patch.object(FakeStateStore, "begin", _begin_by_id)]


async def _begin_by_id(self: Any, claim: Any, **options: Any) -> Any:
    if self.disk.previews[claim.key].desired_request != claim.request_id:
        await asyncio.sleep(0)
        return NewerDesired()
    return await _begin(self, claim, **options)


@bug(
    "an expiry has the time at which it is due: it beats a command given before and not yet seen",
    breaks=("newest_wins",),
    settings=EXPIRING,
)
def expiry_by_time() -> list[Any]:
    original = Janitor._ask

    async def ask(self: Any, key: Any, repo: str, installation_id: int, source: Any, source_id: str, order: Any) -> int:
        if source is Source.EXPIRY:
            order = Order(self._repositories._clock.now().replace(microsecond=0), 0, 2**40)
        return await original(self, key, repo, installation_id, source, source_id, order)

    return [patch.object(Janitor, "_ask", ask)]


async def _nothing(_self: Any) -> int:
    await asyncio.sleep(0)
    return 0


@bug(
    "a sweep has an order below the row's", breaks=("closed_pull_request_leaves_nothing", "accepted_reaches_terminal_state"), settings=LOST
)
def sweep_order() -> list[Any]:
    return [patch.object(Janitor, "_ask", _asking(Source.SWEEP, lambda source_id, order: (source_id, Order(EPOCH, 0, 0))))]


@bug(
    "an expiry is known by what is live alone: the same commit expires once",
    breaks=("expired_preview_leaves_nothing",),
    settings=EXPIRING,
)
def expiry_by_live() -> list[Any]:
    return [patch.object(Janitor, "_ask", _asking(Source.EXPIRY, lambda source_id, order: (source_id.partition("@")[0], order)))]


def _asking(wanted: Source, change: Callable[[str, Order], tuple[str, Order]]) -> Any:
    original = Janitor._ask

    async def ask(self: Any, key: Any, repo: str, installation_id: int, source: Source, source_id: str, order: Order) -> int:
        if source is wanted:
            source_id, order = change(source_id, order)
        return await original(self, key, repo, installation_id, source, source_id, order)

    return ask


@bug("a replay has an order below that of what it repeats", breaks=("newest_wins",), settings=REPLAYED)
def replay_order() -> list[Any]:
    def older(request_id: int, message: Any) -> Any:
        return msgspec.structs.replace(replay_of(request_id, message), requested_at=EPOCH)

    return [patch.object(dead_letters, "replay_of", older)]


@bug(
    "the begin asks by id, and whoever is registered takes the right: the redelivery of a finished one takes it back",
    breaks=("newest_wins",),
    settings=REPEATED,
)
def begin_by_id_raised() -> list[Any]:
    async def register(self: Any, message: Any, *, holder: str) -> Any:
        found = await _register(self, message, holder=holder)
        preview = self.disk.previews[message.key]
        if preview.desired == message.order:
            same = (message.effective_source, message.effective_source_id)
            requests = self._requests_of(message.key)
            preview.desired_request = next(
                row.id for row in requests if (row.message.effective_source, row.message.effective_source_id) == same
            )
        return found

    return [patch.object(FakeStateStore, "register_and_claim", register), patch.object(FakeStateStore, "begin", _begin_by_id)]
