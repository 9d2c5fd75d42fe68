"""What goes wrong, how often: each seed draws its own subset of the kinds and a rate for each (a swarm).

A kind that is on is drawn at every opportunity; `fired` counts what really happened. After `stop` nothing new goes wrong: what the
invariants promise "once the faults stop" is looked at then. Commits that are broken by themselves (poison, never ready) stay broken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

RATES: dict[str, float] = {
    # processes: a draw at every call of a port; the strike comes some awaits later
    "crash_app": 0.01,
    "crash_deployer": 0.006,
    "pause_app": 0.01,
    "pause_deployer": 0.004,
    "pause_deployer_and_helm": 0.004,
    "graceful_stop": 0.002,
    "clock_jump": 0.004,
    # webhooks: a draw a delivery
    "webhook_duplicate": 0.1,
    "webhook_delay": 0.1,
    "webhook_reorder": 0.15,
    "webhook_lost": 0.08,
    "webhook_lost_answer": 0.08,
    "webhook_never_sent": 0.05,
    # queue: a draw a call or a message
    "queue_error": 0.05,
    "queue_lost_answer": 0.05,
    "queue_slow": 0.03,
    "queue_duplicate": 0.08,
    "queue_delay": 0.08,
    "queue_reorder": 0.1,
    "queue_drop": 0.1,
    "queue_repeats_while_running": 0.08,
    "queue_outage": 0.004,
    # statestore: a draw a call
    "store_error": 0.01,
    "store_lost_answer": 0.01,
    "store_slow": 0.004,
    "store_hangs": 0.002,
    "store_outage": 0.0006,
    # GitHub: a draw a request
    "github_401": 0.01,
    "github_403": 0.008,
    "github_422": 0.008,
    "github_429": 0.012,
    "github_5xx": 0.02,
    "github_no_answer": 0.015,
    "github_lost_answer": 0.015,
    "github_slow": 0.01,
    "github_outage": 0.002,
    "github_stale_read_app": 0.15,
    "github_stale_read_worker": 0.1,
    # the API server: a draw a call
    "cluster_error": 0.02,
    "cluster_lost_answer": 0.02,
    "cluster_429": 0.01,
    "cluster_slow": 0.01,
    "cluster_outage": 0.002,
    "namespace_slow_to_go": 0.1,
    # Helm and what it deploys: a draw a run, a rollout or a commit
    "helm_killed": 0.1,
    "helm_lies": 0.06,
    "helm_fails": 0.05,
    "helm_slow": 0.08,
    "helm_late_write": 0.5,
    "ready_slowly": 0.1,
    "probe_fails": 0.05,
    "never_ready": 0.1,
    "poison": 0.08,
}
"""Every kind with its rate per opportunity, before the seed's own factor."""

NEEDS_SWEEPER = frozenset({"webhook_never_sent", "github_stale_read_worker"})
"""What only the sweeper's rules 2 and 3 repair."""

NEEDS_POLICY = frozenset({"pause_deployer_and_helm", "helm_late_write"})
"""A paused machine and writes under way: without the admission policy the protocol does not cover them (section 8)."""

OUTAGES = ("github", "store", "queue", "cluster")
EVERY_KIND_SEEDS = 1000
"""So many seeds see every kind: from there on one that never fired fails the run."""
FIRED_MAX = 40
"""A seed in which everything fails all the time explores little."""


@dataclass(kw_only=True)
class Swarm:
    """One seed's choice."""

    rates: dict[str, float]
    has_policy: bool = True

    @classmethod
    def draw(
        cls, random: Random, *, has_sweeper_rules: bool, only: frozenset[str] | None = None, policy: bool | None = None, boost: float = 1.0
    ) -> Swarm:
        """Each kind is on with a chance of its seed's own, at a third, one or three times its rate; `boost`: and so many times more."""
        share = random.choice((0.1, 0.25, 0.5, 0.8))
        has_policy = random.random() < 0.75 if policy is None else policy
        rates: dict[str, float] = {}
        for kind, rate in RATES.items():
            chosen, factor = random.random() < share, random.choice((0.33, 1.0, 3.0))
            if only is not None:
                chosen = kind in only
            if (kind in NEEDS_SWEEPER and not has_sweeper_rules) or (kind in NEEDS_POLICY and not has_policy):
                continue
            if chosen:
                rates[kind] = min(0.6, rate * factor * boost)
        return cls(rates=rates, has_policy=has_policy)


@dataclass(kw_only=True)
class Faults:
    """Draws and counts; `now` is the virtual time."""

    swarm: Swarm
    random: Random
    now: Callable[[], float]
    trace: Callable[[str], None]
    is_active: bool = True
    fired: Counter[str] = field(default_factory=Counter)
    outages: dict[str, float] = field(default_factory=dict)
    total: int = 0

    def draw(self, kind: str) -> bool:
        """Whether `kind` happens now."""
        if not self.is_active or (rate := self.swarm.rates.get(kind)) is None or self.total >= FIRED_MAX or self.random.random() >= rate:
            return False
        self.count(kind)
        return True

    def count(self, kind: str) -> None:
        """`kind` has happened."""
        self.fired[kind] += 1
        self.total += 1
        self.trace(f"fault {kind}")

    def is_out(self, system: str) -> bool:
        """Whether `system` does not answer now; an outage may begin with this very call."""
        if self.outages.get(system, 0.0) > self.now():
            return True
        if self.draw(f"{system}_outage"):
            self.outages[system] = self.now() + self.random.uniform(3, 45)
            return True
        return False

    def stop(self) -> None:
        """From now on everything works."""
        self.is_active = False
        self.outages.clear()
