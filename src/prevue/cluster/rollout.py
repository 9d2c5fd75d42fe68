"""When a workload has rolled out completely, and when it has failed: pure questions to one object, those of `kubectl rollout status`."""

from __future__ import annotations

from prevue.cluster.objects import Condition, Workload
from prevue.cluster.watches import Kind

NAMES = {"Deployment": "deployments", "StatefulSet": "statefulsets", "DaemonSet": "daemonsets", "Job": "jobs"}


def workload_path(kind: Kind, namespace: str, name: str) -> str:
    """One workload."""
    group = "batch/v1" if kind == "Job" else "apps/v1"
    return f"/apis/{group}/namespaces/{namespace}/{NAMES[kind]}/{name}"


def condition(workload: Workload, type_: str) -> Condition | None:
    """The condition of that type."""
    return next((item for item in workload.status.conditions if item.type == type_), None)


def is_true(workload: Workload, type_: str) -> bool:
    """Whether a condition is there and True."""
    found = condition(workload, type_)
    return found is not None and found.status == "True"


def unfinished(kind: Kind, workload: Workload) -> str:
    """What is still missing, for people; empty: it has rolled out completely.

    The generation is what makes this true: a status that the controller has not yet brought up to the new spec says nothing about it.
    """
    status = workload.status
    if kind == "Job":
        return "" if workload.spec.suspend or is_true(workload, "Complete") else "has not completed"
    if status.observed_generation < workload.metadata.generation:
        return "its change has not been noticed yet"
    if kind == "Deployment":
        wanted = workload.spec.replicas
        if status.updated_replicas < wanted:
            return f"{status.updated_replicas} of {wanted} replicas are updated"
        if status.replicas > status.updated_replicas:
            return f"{status.replicas - status.updated_replicas} old replicas are still there"
        if status.available_replicas < wanted:
            return f"{status.available_replicas} of {wanted} replicas are available"
        return ""
    if kind == "StatefulSet":
        return _stateful_set(workload)
    if status.updated_number_scheduled < status.desired_number_scheduled:
        return f"{status.updated_number_scheduled} of {status.desired_number_scheduled} pods are updated"
    if status.number_available < status.desired_number_scheduled:
        return f"{status.number_available} of {status.desired_number_scheduled} pods are available"
    return ""


def _stateful_set(workload: Workload) -> str:
    status, wanted = workload.status, workload.spec.replicas
    if status.ready_replicas < wanted:
        return f"{status.ready_replicas} of {wanted} replicas are ready"
    if workload.spec.update_strategy.type == "RollingUpdate" and status.current_revision != status.update_revision:
        return f"{status.updated_replicas} of {wanted} replicas are updated"
    return ""


def failed(kind: Kind, workload: Workload) -> str:
    """Why it will not become ready by itself, for people; empty: it may."""
    if kind == "Job":
        found = condition(workload, "Failed")
        return f"failed: {found.message or found.reason}" if found is not None and found.status == "True" else ""
    if workload.status.observed_generation < workload.metadata.generation:
        return ""
    progressing = condition(workload, "Progressing")
    if progressing is not None and progressing.status == "False" and progressing.reason == "ProgressDeadlineExceeded":
        return f"made no progress within its own progressDeadlineSeconds: {progressing.message}"
    return ""


def creation_refused(workload: Workload) -> str:
    """Why its pods were refused (quota, pod security, …), from the condition that a Deployment has for it."""
    found = condition(workload, "ReplicaFailure")
    return found.message if found is not None and found.status == "True" else ""
