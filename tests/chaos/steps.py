"""Where in the pipeline each held claim is, from what can be seen outside: its row, its namespace, its Helm, its release."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from enum import StrEnum

from tests.chaos.cluster import ClusterView
from tests.chaos.records import LeaseSeen, PullKey
from tests.chaos.store import ClaimRow, StoreView

from prevue.testing import process_tree


class Step(StrEnum):
    """In the order of the protocol."""

    GRANTED = "claim granted"
    GITHUB = "GitHub read"
    FENCE = "fence raised"
    BEGUN = "begun, no Helm yet"
    RECOVERY = "recovery of a pending release"
    HELM = "Helm runs"
    READ_BACK = "read back"
    READY = "readiness wait"
    UNINSTALL = "uninstall"
    NAMESPACE = "namespace deleted"
    FINISH = "finish"


JUST = timedelta(milliseconds=25)
"""So long after its grant a claim counts as just granted; GitHub is read from then on."""
READ_BACK_SECONDS = 0.03


class Helms:
    """The Helm programs of the deployers, by what their command lines say."""

    def __init__(self) -> None:
        self.running: dict[tuple[int, str], str] = {}
        """(deployer, namespace) → Helm's verb."""
        self.ended_at: dict[tuple[int, str], float] = {}

    def look(self, deployers: list[int], now: float) -> None:
        """Read /proc once."""
        children = process_tree.children()
        running: dict[tuple[int, str], str] = {}
        for deployer in deployers:
            for wrapper in children[deployer]:
                for helm in children[wrapper]:
                    words = process_tree.command_line(helm)
                    if words and words[0].endswith("/helm") and "--namespace" in words:
                        running[deployer, words[words.index("--namespace") + 1]] = words[1]
        for place in self.running.keys() - running.keys():
            self.ended_at[place] = now
        self.running = running


class Observer:
    """Answers who holds what, and where."""

    def __init__(self, store: StoreView, cluster: ClusterView) -> None:
        self.store = store
        self.cluster = cluster
        self.leases: dict[tuple[PullKey, int], LeaseSeen] = {}
        self._helms = Helms()

    async def claims(self, deployers: list[int]) -> list[tuple[ClaimRow, Step]]:
        """Those whose holders are among the deployers that run."""
        rows = await self.store.claims()
        for row in rows:
            self.leases[row.pull, row.token] = row.lease_seen
        now = asyncio.get_running_loop().time()
        if any(row.began_at is not None for row in rows):
            self._helms.look(deployers, now)
        return [(row, self._step(row, now)) for row in rows if row.holder_pid in deployers and row.is_held]

    def _step(self, row: ClaimRow, now: float) -> Step:
        namespace = self.cluster.namespaces.get(row.pull)
        place = (row.holder_pid, namespace.name if namespace else "")
        verb = self._helms.running.get(place, "")
        if row.began_at is None:
            if namespace is not None and namespace.fence == row.token:
                return Step.FENCE
            return Step.GRANTED if row.now - row.granted_at < JUST else Step.GITHUB
        if verb == "upgrade":
            return Step.HELM
        if row.action == "destroy":
            return Step.NAMESPACE if namespace is None or namespace.is_deleting else Step.UNINSTALL
        if verb:
            return Step.UNINSTALL if self._is_closed(row) else Step.RECOVERY
        if namespace is None or namespace.is_deleting:
            return Step.NAMESPACE
        mine = [one for one in self.cluster.standing.values() if one.token == row.token and one.namespace == namespace.name]
        if any(one.status == "deployed" for one in mine):
            return Step.READ_BACK if now - self._helms.ended_at.get(place, 0.0) < READ_BACK_SECONDS else Step.READY
        return Step.BEGUN

    def _is_closed(self, row: ClaimRow) -> bool:
        """A command that found its pull request closed tears down; else an uninstall recovers a first revision that is pending."""
        namespace = self.cluster.namespaces[row.pull].name
        return not any(one.namespace == namespace and one.status.startswith("pending-") for one in self.cluster.standing.values())
