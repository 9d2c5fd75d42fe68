"""A run's result, for people and for programs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.chaos.check import Judgement, interrupted
from tests.chaos.records import Evidence
from tests.chaos.steps import Step

SENTENCES_MAX = 20

Load = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Result:
    """All that a run has to say."""

    queue: str
    seed: int
    kills_wanted: int
    evidence: Evidence
    judgement: Judgement
    verified: list[str]
    """What `prevue verify` found."""
    seconds: float
    load: tuple[Load, Load]
    """The machine's load averages before and after."""


def as_json(result: Result, failures: list[str]) -> dict[str, Any]:
    """Numbers and sentences."""
    judgement, evidence, slow = result.judgement, result.evidence, result.judgement.recovery
    return {
        "ok": not failures,
        "failures": failures,
        "queue": result.queue,
        "seed": result.seed,
        "seconds": round(result.seconds, 1),
        "load_before": result.load[0],
        "load_after": result.load[1],
        "pull_requests": len({act.pull for act in evidence.acts}),
        "deeds": dict(Counter(str(act.deed) for act in evidence.acts)),
        "accepted": judgement.accepted,
        "outcomes": _outcomes(judgement, evidence),
        **{name: len(items) for name, items in judgement.findings.items()},
        "findings": judgement.findings,
        "verify": result.verified,
        "interrupted_revisions": interrupted(evidence),
        "asked_again": evidence.asked_again,
        "kills": judgement.hits,
        "kills_of_a_claims_holder": judgement.hits_on_claims,
        "kills_by_kind": dict(Counter(hit.kind for hit in evidence.hits)),
        "claims_hit_by_step": {str(step): _steps(evidence)[step] for step in Step},
        "github_faults": evidence.faults,
        "recovery_seconds": {
            "samples": len(slow.samples),
            "not_counted": slow.not_counted,
            "median": round(slow.median, 1),
            "p99": round(slow.quantile(0.99), 1),
            "max": round(slow.quantile(1), 1),
        },
        "lease_seconds": evidence.lease_seconds,
    }


def as_text(result: Result, failures: list[str]) -> str:
    """A page."""
    shown = as_json(result, failures)
    recovery = shown["recovery_seconds"]
    lines = [
        f"queue {shown['queue']}, seed {shown['seed']}",
        f"{shown['seconds']:.0f} s, load {_load(result.load[0])} before, {_load(result.load[1])} after",
        f"{shown['pull_requests']} pull requests; {_counts(shown['deeds'])}",
        f"commands accepted {shown['accepted']}: {_counts(shown['outcomes'])}",
        f"revisions that Helm did not finish {shown['interrupted_revisions']}; commands given up and written again {shown['asked_again']}",
        "",
        *_table("kills", shown["kills_by_kind"]),
        f"  {shown['kills_of_a_claims_holder']} of {shown['kills']} ({result.judgement.held_share:.0%}) hit the holder of a claim",
        "",
        *_table("claims hit, by step", shown["claims_hit_by_step"]),
        "",
        *_table("GitHub's faults", shown["github_faults"]),
        "",
        *_table("found", {**{name: shown[name] for name in result.judgement.findings}, "by prevue verify": len(result.verified)}),
        "",
        f"recovery: median {recovery['median']} s, p99 {recovery['p99']} s, max {recovery['max']} s, lease {shown['lease_seconds']:g} s",
        f"  of {recovery['samples']} claims; {recovery['not_counted']} more needed no next grant",
    ]
    for name, sentences in [*result.judgement.findings.items(), ("verify", result.verified)]:
        lines += [f"{name}: {sentence}" for sentence in sentences[:SENTENCES_MAX]]
    lines += ["", "FAILED: " + "; ".join(failures) if failures else "ok"]
    return "\n".join(lines)


def _outcomes(judgement: Judgement, evidence: Evidence) -> dict[str, int]:
    """Of the commands; who has no request was refused at receipt, or is lost, which the judge says."""
    states = Counter(one.state for one in evidence.requests if one.source == "comment")
    return {**states, "refused at receipt": judgement.accepted - states.total()}


def _steps(evidence: Evidence) -> Counter[str]:
    return Counter(str(held.step) for hit in evidence.hits for held in hit.held)


def _table(title: str, counts: dict[str, int]) -> list[str]:
    return [title, *(f"  {name:<30} {count:>4}" for name, count in counts.items())]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _load(load: Load) -> str:
    return " ".join(f"{one:.1f}" for one in load)
