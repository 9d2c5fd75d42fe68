"""When a workload has rolled out: the table."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from prevue.cluster.objects import Workload
from prevue.cluster.rollout import creation_refused, failed, unfinished
from prevue.cluster.watches import Kind


def workload(spec: dict[str, Any] | None = None, generation: int = 1, **status: Any) -> Workload:
    """As the API server sends it."""
    raw = {"metadata": {"generation": generation}, "spec": spec or {}, "status": {"observedGeneration": 1} | status}
    return msgspec.convert(raw, Workload)


GOOD = {"replicas": 2, "updatedReplicas": 2, "readyReplicas": 2, "availableReplicas": 2}
TWO = {"replicas": 2}
COMPLETE = {"type": "Complete", "status": "True"}


@pytest.mark.parametrize(
    ("kind", "found", "missing"),
    [
        ("Deployment", workload(TWO, **GOOD), ""),
        ("Deployment", workload({"replicas": 0}), ""),
        ("Deployment", workload(TWO, generation=2, **GOOD), "not been noticed"),
        ("Deployment", workload(TWO, **GOOD | {"updatedReplicas": 1}), "1 of 2 replicas are updated"),
        ("Deployment", workload(TWO, **GOOD | {"replicas": 3}), "1 old replicas"),
        ("Deployment", workload(TWO, **GOOD | {"availableReplicas": 1}), "1 of 2 replicas are available"),
        ("Deployment", workload(), "0 of 1 replicas are updated"),
        ("StatefulSet", workload(TWO, **GOOD, currentRevision="b", updateRevision="b"), ""),
        ("StatefulSet", workload(TWO, **GOOD, currentRevision="a", updateRevision="b"), "2 of 2 replicas are updated"),
        ("StatefulSet", workload(TWO | {"updateStrategy": {"type": "OnDelete"}}, **GOOD, currentRevision="a", updateRevision="b"), ""),
        ("StatefulSet", workload(TWO, readyReplicas=1), "1 of 2 replicas are ready"),
        ("DaemonSet", workload(desiredNumberScheduled=3, updatedNumberScheduled=3, numberAvailable=3), ""),
        ("DaemonSet", workload(desiredNumberScheduled=3, updatedNumberScheduled=2, numberAvailable=3), "2 of 3 pods are updated"),
        ("DaemonSet", workload(desiredNumberScheduled=3, updatedNumberScheduled=3, numberAvailable=2), "2 of 3 pods are available"),
        ("Job", workload(conditions=[COMPLETE]), ""),
        ("Job", workload({"suspend": True}), ""),
        ("Job", workload(), "has not completed"),
    ],
)
def test_unfinished(kind: Kind, found: Workload, missing: str) -> None:
    assert (missing in unfinished(kind, found)) if missing else unfinished(kind, found) == ""


def test_failures_that_the_object_itself_tells() -> None:
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "has timed out progressing"}
    assert "timed out progressing" in failed("Deployment", workload(conditions=[late]))
    assert failed("Deployment", workload(conditions=[late], generation=2)) == "", "that was the old generation's"
    assert failed("Deployment", workload(conditions=[late | {"status": "True", "reason": "NewReplicaSetAvailable"}])) == ""
    assert "BackoffLimit" in failed("Job", workload(conditions=[{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]))
    refused = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}
    assert creation_refused(workload(conditions=[refused])) == "exceeded quota"
    assert creation_refused(workload()) == ""
