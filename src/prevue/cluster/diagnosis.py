"""Why a preview does not become ready, in words for a developer: pure questions to pods and workloads.

A verdict here ends the request, so each one waits for what cannot be a passing state: the second failed pull, the second restart, a
refusal that stands. What does pass by itself in a new namespace (its default service account is made some 10 ms after it) is no failure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from prevue.cluster.objects import ContainerStatus, Pod
from prevue.masking import cut, without_secrets

RESTARTS_MIN = 2
"""A container that crashed so often and is held back again is in a crash loop; one restart is how many apps wait for their database."""
UNSCHEDULABLE_SECONDS = 30.0
"""A cluster autoscaler or a volume may still help a pod that has no node; after this it is a failure."""
MESSAGE_CHARACTERS_MAX = 500

PULL_FAILED = frozenset({"ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError", "RegistryUnavailable"})
PULL_FAILING = PULL_FAILED | {"ErrImagePull"}
"""ErrImagePull alone may be a hiccup of the registry; the kubelet tries again and then says ImagePullBackOff."""
NEVER_STARTS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
PASSING = ("serviceaccount", "object has been modified", "timed out waiting for the condition")


class Trouble(StrEnum):
    """What is wrong with a pod."""

    OWN_IMAGE = "own_image"
    """The commit's own image is not there yet: CI may still be building it."""
    FAILED = "failed"
    """It will not get better by itself."""
    CONFIG = "config"
    """The container cannot be created: a Secret or ConfigMap that it names is missing. It may still come, but not for long."""


class PodTrouble(msgspec.Struct, frozen=True, kw_only=True):
    """A pod's trouble, and where its log is."""

    trouble: Trouble
    reason: str
    pod: Pod
    container: str = ""
    previous: bool = False
    """Whether the log is that of the container before the last restart."""


def pod_troubles(pods: Iterable[Pod], commit_sha: str, now: datetime) -> Iterator[PodTrouble]:
    """The troubles of pods that are not being deleted."""
    for pod in pods:
        if pod.metadata.deletion_timestamp is None:
            yield from _troubles(pod, commit_sha, now)


def _troubles(pod: Pod, commit_sha: str, now: datetime) -> Iterator[PodTrouble]:
    reason = _unschedulable(pod, now)
    if reason:
        yield PodTrouble(trouble=Trouble.FAILED, reason=reason, pod=pod)
    images = {container.name: container.image for container in (*pod.spec.init_containers, *pod.spec.containers)}
    for status in (*pod.status.init_container_statuses, *pod.status.container_statuses):
        found = _container_trouble(pod, status, images.get(status.name, ""), commit_sha)
        if found is not None:
            yield found
    if pod.status.phase == "Failed" and pod.status.reason:
        yield PodTrouble(
            trouble=Trouble.FAILED, reason=f"Pod {pod.metadata.name} failed: {pod.status.reason}: {_short(pod.status.message)}", pod=pod
        )


def _unschedulable(pod: Pod, now: datetime) -> str:
    for item in pod.status.conditions:
        if item.type == "PodScheduled" and item.status == "False" and item.reason == "Unschedulable":
            since = _time(item.last_transition_time)
            if since is not None and (now - since).total_seconds() >= UNSCHEDULABLE_SECONDS:
                return f"No node can run pod {pod.metadata.name}: {_short(item.message)}"
    return ""


def _container_trouble(pod: Pod, status: ContainerStatus, image: str, commit_sha: str) -> PodTrouble | None:
    waiting = status.state.waiting
    is_own = bool(commit_sha) and commit_sha in image
    if waiting is not None and is_own and waiting.reason in PULL_FAILING and waiting.reason != "InvalidImageName":
        reason = f"The commit's image {image} cannot be pulled: {_short(waiting.message or waiting.reason)}"
        return PodTrouble(trouble=Trouble.OWN_IMAGE, reason=reason, pod=pod, container=status.name)
    if waiting is not None and waiting.reason in PULL_FAILED:
        reason = f"The image {image} of container {status.name} cannot be pulled ({waiting.reason}): {_short(waiting.message)}"
        return PodTrouble(trouble=Trouble.FAILED, reason=reason, pod=pod, container=status.name)
    if waiting is not None and waiting.reason in NEVER_STARTS:
        reason = f"Container {status.name} of pod {pod.metadata.name} cannot start ({waiting.reason}): {_short(waiting.message)}"
        return PodTrouble(trouble=Trouble.CONFIG, reason=reason, pod=pod, container=status.name)
    ended = status.state.terminated or status.last_state.terminated
    is_held_back = (waiting is not None and waiting.reason == "CrashLoopBackOff") or status.state.terminated is not None
    if ended is not None and is_held_back and status.restart_count >= RESTARTS_MIN:
        how = "ran out of memory (OOMKilled)" if ended.reason == "OOMKilled" else f"exits with code {ended.exit_code}"
        reason = f"Container {status.name} of pod {pod.metadata.name} keeps crashing: it {how}, {status.restart_count} restarts so far"
        is_previous = status.state.terminated is None
        return PodTrouble(trouble=Trouble.FAILED, reason=reason, pod=pod, container=status.name, previous=is_previous)
    return None


def refusal_stands(message: str) -> bool:
    """Whether a pod's refused creation (quota, pod security) is more than a passing state of a new namespace."""
    return bool(message) and not any(text in message for text in PASSING)


def waiting_for(pods: Iterable[Pod]) -> tuple[str, Pod | None, str]:
    """What the first pod that is not ready waits for, after a time-out: text, pod, container."""
    containers = (
        (pod, status)
        for pod in pods
        if pod.metadata.deletion_timestamp is None and pod.status.phase != "Succeeded"
        for status in (*pod.status.init_container_statuses, *pod.status.container_statuses)
        if not status.ready and not (status.state.terminated and status.state.terminated.exit_code == 0)
    )
    for pod, status in containers:
        waiting = status.state.waiting
        what = f"is waiting ({waiting.reason})" if waiting is not None else "runs, but is not ready: look at its readiness probe"
        return f"container {status.name} of pod {pod.metadata.name} {what}", pod, status.name
    return "", None, ""


def _time(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return None


def _short(message: str) -> str:
    return cut(without_secrets(" ".join(message.split())), MESSAGE_CHARACTERS_MAX)
