"""Which states of a pod are failures, and in which words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from prevue.cluster.diagnosis import Trouble, pod_troubles, refusal_stands, waiting_for
from prevue.cluster.objects import Pod

SHA = "c" * 40
OWN = f"registry.test/app:{SHA}"
NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def pod(image: str = "other:1", conditions: list[dict[str, Any]] | None = None, **status: Any) -> Pod:
    """One container, `app`."""
    return msgspec.convert(
        {
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "app", "image": image}]},
            "status": {"conditions": conditions or [], "containerStatuses": [{"name": "app"} | status]},
        },
        Pod,
    )


def waiting(reason: str, **more: Any) -> dict[str, Any]:
    return {"state": {"waiting": {"reason": reason, "message": "said so"}}} | more


CRASHED: dict[str, Any] = {"lastState": {"terminated": {"exitCode": 3, "reason": "Error"}}}
OOM: dict[str, Any] = {"lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
ENDED: dict[str, Any] = {"state": {"terminated": {"exitCode": 1, "reason": "Error"}}}


@pytest.mark.parametrize(
    ("found", "trouble", "text"),
    [
        (pod(**waiting("ContainerCreating")), None, ""),
        (pod(**waiting("PodInitializing")), None, ""),
        (pod(**waiting("ErrImagePull")), None, ""),
        (pod(**waiting("ImagePullBackOff")), Trouble.FAILED, "image other:1 of container app cannot be pulled (ImagePullBackOff): said so"),
        (pod(**waiting("ErrImageNeverPull")), Trouble.FAILED, "cannot be pulled"),
        (pod(**waiting("InvalidImageName")), Trouble.FAILED, "InvalidImageName"),
        (pod(OWN, **waiting("ErrImagePull")), Trouble.OWN_IMAGE, f"commit's image {OWN}"),
        (pod(OWN, **waiting("ImagePullBackOff")), Trouble.OWN_IMAGE, "said so"),
        (pod(OWN, **waiting("ErrImageNeverPull")), Trouble.OWN_IMAGE, "said so"),
        (pod(OWN, **waiting("InvalidImageName")), Trouble.FAILED, "InvalidImageName"),
        (pod(**waiting("CreateContainerConfigError")), Trouble.CONFIG, "cannot start"),
        (pod(**waiting("CrashLoopBackOff", restartCount=1, **CRASHED)), None, ""),
        (pod(**waiting("CrashLoopBackOff", restartCount=2, **CRASHED)), Trouble.FAILED, "exits with code 3, 2 restarts so far"),
        (pod(**waiting("CrashLoopBackOff", restartCount=2, **OOM)), Trouble.FAILED, "ran out of memory (OOMKilled)"),
        (pod(restartCount=2, **ENDED), Trouble.FAILED, "exits with code 1"),
        (pod(restartCount=0, **ENDED), None, ""),
        (pod(restartCount=5, ready=True, **CRASHED), None, ""),
    ],
)
def test_containers(found: Pod, trouble: Trouble | None, text: str) -> None:
    troubles = list(pod_troubles([found], SHA, NOW))
    assert [item.trouble for item in troubles] == ([trouble] if trouble else [])
    assert all(text in item.reason for item in troubles)


@pytest.mark.parametrize(("since", "count"), [("2026-01-01T11:59:50Z", 0), ("2026-01-01T11:59:00Z", 1), ("nonsense", 0)])
def test_unschedulable_after_a_while(since: str, count: int) -> None:
    """An autoscaler gets its chance."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes", "lastTransitionTime": since}
    assert len(list(pod_troubles([pod(conditions=[condition])], SHA, NOW))) == count


def test_without_a_commit_no_image_is_its_own() -> None:
    assert next(pod_troubles([pod(OWN, **waiting("ImagePullBackOff"))], "", NOW)).trouble is Trouble.FAILED


def test_pods_that_are_going_do_not_count() -> None:
    going = msgspec.structs.replace(pod(**waiting("ImagePullBackOff")))
    going = msgspec.structs.replace(going, metadata=msgspec.structs.replace(going.metadata, deletion_timestamp="2026-01-01T11:59:00Z"))
    assert list(pod_troubles([going], SHA, NOW)) == []


def test_refusals_that_pass_are_none() -> None:
    assert refusal_stands('pods "x" is forbidden: exceeded quota: q, requested: pods=1')
    assert refusal_stands('pods "x" is forbidden: violates PodSecurity "baseline:latest": privileged')
    assert not refusal_stands('pods "x" is forbidden: error looking up service account ns/default: serviceaccount "default" not found')
    assert not refusal_stands("")


def test_what_is_waited_for() -> None:
    text, found, container = waiting_for([pod(ready=True), pod(**waiting("ContainerCreating"))])
    assert text == "container app of pod p is waiting (ContainerCreating)"
    assert found is not None
    assert container == "app"
    assert "readiness probe" in waiting_for([pod()])[0]
    assert waiting_for([]) == ("", None, "")
