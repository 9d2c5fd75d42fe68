"""Waiting for a release's workloads (protocol step 8): woken by the shared watches, decided by fresh reads.

Two clocks run: the readiness time-out, which stands still while the commit's own image is missing, and the wait for that image.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import get_args

import msgspec
import structlog

from prevue.cluster.actors import Actors
from prevue.cluster.api import METADATA_ONLY, Api, ApiError
from prevue.cluster.diagnosis import PodTrouble, Trouble, pod_troubles, refusal_stands, waiting_for
from prevue.cluster.objects import EventList, K8s, Metadata, Pod, Workload
from prevue.cluster.port import Fence, ReadyLimits
from prevue.cluster.rendered import rendered_objects
from prevue.cluster.rollout import creation_refused, failed, unfinished, workload_path
from prevue.cluster.watches import Kind, Waiter, Watches
from prevue.errors import NotReady
from prevue.masking import cut, without_secrets

log = structlog.get_logger(__name__)

WORKLOADS: tuple[Kind, ...] = ("Deployment", "StatefulSet", "DaemonSet", "Job")
LOOK_SECONDS = 3.0
"""Not ready for so long: read the pods and events of the namespace once, since events before the wait began were not seen."""
POLL_SECONDS = 10.0
"""The watches wake us; this is for a watch that has silently died, and for what has no event (a time that passes)."""
CONFIG_SECONDS = 20.0
"""How long a missing Secret or ConfigMap may still come."""
REFUSED_SECONDS = 3.0
"""How long a refused creation of pods must stand."""
HURRY_SECONDS = 20.0
"""A missing image is tried again by the kubelet after up to five minutes; a new pod tries at once. So a pod that waits for the commit's
image is made anew this often."""
IMAGE_LOOK_SECONDS = 5.0
OLD_PODS_SECONDS = 5.0
"""How long the last revision's pods are waited for at the end of an update. A rollout counts as complete while they still end, and until
kube-proxy has heard of it the URL leads to them: it would show the old commit. kube-proxy needs about a second; a longer grace is the
app's own affair."""
LOG_LINES = 20
LOG_BYTES = 16 * 1024
LOG_CHARACTERS_MAX = 2_000

REVISION = "deployment.kubernetes.io/revision"
GENERATION = "deprecated.daemonset.template.generation"


class _Pods(K8s, frozen=True):
    """A list of pods."""

    items: list[Pod] = msgspec.field(default_factory=list)


class Readiness:
    """Waits for releases; one object a process."""

    def __init__(self, api: Api, watches: Watches, actors: Actors) -> None:
        self._api = api
        self._watches = watches
        self._actors = actors

    async def wait(self, fence: Fence, manifest: str, limits: ReadyLimits) -> None:
        """Until all workloads have rolled out completely.

        Raises:
            NotReady: they will not, or not in time.
        """
        workloads = [(kind, item.name) for item in rendered_objects(manifest) for kind in WORKLOADS if item.kind == kind]
        if not workloads:
            return
        kinds: list[Kind] = sorted({kind for kind, _ in workloads}, key=get_args(Kind).index)
        with self._watches.waiter(fence.namespace, [*kinds, "Pod"]) as waiter:
            await _Wait(self._api, self._actors.api(fence), self._watches, fence, workloads, limits).run(waiter)


class _Wait:
    """One preview's wait."""

    def __init__(
        self, api: Api, claim: Api, watches: Watches, fence: Fence, workloads: Sequence[tuple[Kind, str]], limits: ReadyLimits
    ) -> None:
        self._api = api
        self._claim = claim
        self._watches = watches
        self._fence = fence
        self._workloads = workloads
        self._limits = limits
        self._began = time.monotonic()
        self._ready_by = self._began + limits.readiness_timeout_seconds
        self._image_missing_since: float | None = None
        self._first_seen: dict[str, float] = {}
        self._looked_at = 0.0
        self._current: set[str] = set()
        self._image_reason = ""
        self._is_update = False

    async def run(self, waiter: Waiter) -> None:
        confirm = False
        while True:
            if (confirm or self._seems_ready()) and await self._is_ready():
                return await self._until_old_pods_end(waiter)
            await self._fail_fast(confirm)
            now = time.monotonic()
            end = self._end()
            if now >= end:
                if await self._is_ready():
                    return await self._until_old_pods_end(waiter)
                await self._time_out()
            # Whoever is not woken looks for itself: a fresh read instead of the watch's last word.
            until_look = max(self._began + LOOK_SECONDS - now, 0.05) if not self._looked_at else POLL_SECONDS
            confirm = not await waiter.changed(min(end - now, until_look, self._next_time()))

    def _end(self) -> float:
        if self._image_missing_since is None:
            return self._ready_by
        return self._image_missing_since + self._limits.image_wait_seconds

    def _next_time(self) -> float:
        """When something that was seen first lately becomes a failure without an event."""
        if self._image_missing_since is not None:
            return IMAGE_LOOK_SECONDS
        return 1.0 if self._first_seen else POLL_SECONDS

    def _seems_ready(self) -> bool:
        """By the watches' last word."""
        for kind, name in self._workloads:
            seen = self._watches.workload(kind, self._fence.namespace, name)
            if seen is None or unfinished(kind, seen):
                return False
        return True

    async def _is_ready(self) -> bool:
        """By fresh reads: what "ready" means. A watch may be late by a revision."""
        for kind, name in self._workloads:
            found = await self._read(kind, name)
            if unfinished(kind, found):
                return False
            self._is_update = self._is_update or found.metadata.generation > 1
        return True

    async def _until_old_pods_end(self, waiter: Waiter) -> None:
        if not self._is_update:
            return
        give_up_at = time.monotonic() + OLD_PODS_SECONDS
        await self._list_pods()
        while (left := give_up_at - time.monotonic()) > 0 and any(
            pod.metadata.deletion_timestamp for pod in self._watches.pods(self._fence.namespace)
        ):
            await waiter.changed(left)

    async def _read(self, kind: Kind, name: str) -> Workload:
        found = await self._api.find(workload_path(kind, self._fence.namespace, name), Workload)
        if found is None:
            raise NotReady(f"{kind} {name} is not there any more: somebody deleted it")
        return found

    async def _fail_fast(self, look: bool) -> None:
        """Raise where waiting on is pointless."""
        now = time.monotonic()
        if (look or not self._looked_at) and now >= self._began + LOOK_SECONDS and now >= self._looked_at + LOOK_SECONDS:
            self._looked_at = now
            if not await self._list_pods():
                await self._events()
        await self._fail_by_pods(now)
        for kind, name in self._workloads:
            seen = self._watches.workload(kind, self._fence.namespace, name)
            if seen is None:
                continue
            reason = failed(kind, seen)
            if reason and self._image_missing_since is None and failed(kind, await self._read(kind, name)):
                await self._fail(f"{kind} {name} {reason}")
            message = creation_refused(seen)
            if refusal_stands(message) and self._stands(f"{kind}/{name}", now, REFUSED_SECONDS):
                await self._fail(f"{kind} {name} cannot create its pods: {message}")

    async def _fail_by_pods(self, now: float) -> None:
        missing = False
        for trouble in pod_troubles(self._watches.pods(self._fence.namespace), self._limits.commit_sha, datetime.now(UTC)):
            if trouble.trouble is Trouble.CONFIG and not self._stands(trouble.reason, now, CONFIG_SECONDS):
                continue
            if not await self._is_current(trouble.pod):
                continue
            if trouble.trouble is Trouble.OWN_IMAGE:
                missing = True
                self._image_reason = trouble.reason
                await self._hurry(trouble.pod, now)
                continue
            await self._fail(trouble.reason, trouble)
        self._count_image_wait(missing=missing, now=now)

    def _count_image_wait(self, *, missing: bool, now: float) -> None:
        if missing and self._image_missing_since is None:
            self._image_missing_since = now
            log.info("waiting for the commit's image", action="wait_image", namespace=self._fence.namespace, reason=self._image_reason)
        if not missing and self._image_missing_since is not None:
            # The image came: its start is given the whole time.
            self._image_missing_since = None
            self._ready_by = now + self._limits.readiness_timeout_seconds

    async def _hurry(self, pod: Pod, now: float) -> None:
        """Delete a pod that waits for the commit's image, now and then; not a Job's, which counts its pods."""
        if not self._stands(pod.metadata.uid, now, HURRY_SECONDS) or any(item.kind == "Job" for item in pod.metadata.owner_references):
            return
        path = f"/api/v1/namespaces/{self._fence.namespace}/pods/{pod.metadata.name}"
        body = {"preconditions": {"uid": pod.metadata.uid}, "gracePeriodSeconds": 0}
        with contextlib.suppress(ApiError):  # gone, or made anew already
            await self._claim.call("DELETE", path, body=body)

    def _stands(self, what: str, now: float, seconds: float) -> bool:
        return now - self._first_seen.setdefault(what, now) >= seconds

    async def _is_current(self, pod: Pod) -> bool:
        """Whether the pod is there, and of the revision that was just applied: an old one's crash loop is no failure of the new one."""
        path = f"/api/v1/namespaces/{self._fence.namespace}/pods/{pod.metadata.name}"
        if await self._api.find(path, Metadata, accept=METADATA_ONLY) is None:
            return False
        if pod.metadata.uid not in self._current and await self._is_of_current_revision(pod):
            self._current.add(pod.metadata.uid)
        return pod.metadata.uid in self._current

    async def _is_of_current_revision(self, pod: Pod) -> bool:
        owner = next((item for item in pod.metadata.owner_references if item.controller), None)
        if owner is None:
            return False
        labels = pod.metadata.labels
        if owner.kind == "ReplicaSet":
            return await self._is_current_replica_set(owner.name)
        for kind, name in self._workloads:
            if kind == owner.kind and name == owner.name:
                workload = await self._read(kind, name)
                if kind == "StatefulSet":
                    return labels.get("controller-revision-hash", "") == workload.status.update_revision
                if kind == "DaemonSet":
                    return labels.get("pod-template-generation", "") == workload.metadata.annotations.get(GENERATION, "")
                return True
        return False

    async def _is_current_replica_set(self, name: str) -> bool:
        path = f"/apis/apps/v1/namespaces/{self._fence.namespace}/replicasets/{name}"
        found = await self._claim.find(path, Metadata, accept=METADATA_ONLY)
        owner = next((item for item in found.metadata.owner_references if item.controller), None) if found else None
        if found is None or owner is None or ("Deployment", owner.name) not in self._workloads:
            return False
        deployment = await self._read("Deployment", owner.name)
        if deployment.status.observed_generation < deployment.metadata.generation:
            return False
        return found.metadata.annotations.get(REVISION, "") == deployment.metadata.annotations.get(REVISION, "")

    async def _list_pods(self) -> list[Pod]:
        answer = await self._api.call("GET", f"/api/v1/namespaces/{self._fence.namespace}/pods")
        pods = msgspec.json.decode(answer, type=_Pods).items
        self._watches.adopt(self._fence.namespace, pods)
        return pods

    async def _events(self) -> None:
        """Refused creations of the kinds that have no condition for them."""
        named = {(kind, name) for kind, name in self._workloads if kind != "Deployment"}
        if not named:
            return
        path = f"/api/v1/namespaces/{self._fence.namespace}/events"
        answer = await self._claim.call("GET", path, parameters={"fieldSelector": "reason=FailedCreate"})
        for event in msgspec.json.decode(answer, type=EventList).items:
            where = event.involved_object
            if (where.kind, where.name) in named and refusal_stands(event.message):
                await self._fail(f"{where.kind} {where.name} cannot create its pods: {event.message}")

    async def _time_out(self) -> None:
        if self._image_missing_since is not None:
            await self._fail(f"{self._image_reason} (waited {self._limits.image_wait_seconds:g} s for it)")
        pods = await self._list_pods()
        missing = []
        for kind, name in self._workloads:
            what = unfinished(kind, await self._read(kind, name))
            if what:
                missing.append(f"{kind} {name}: {what}")
        text, pod, container = waiting_for(pods)
        reason = f"Not ready after {self._limits.readiness_timeout_seconds:g} s: " + "; ".join(missing + ([text] if text else []))
        trouble = PodTrouble(trouble=Trouble.FAILED, reason=reason, pod=pod, container=container) if pod else None
        await self._fail(reason, trouble)

    async def _fail(self, reason: str, trouble: PodTrouble | None = None) -> None:
        details = await self._log(trouble) if trouble is not None and trouble.container else ""
        raise NotReady(cut(without_secrets(reason), LOG_CHARACTERS_MAX), details=details)

    async def _log(self, trouble: PodTrouble) -> str:
        """The last lines of the container's log; empty where there is none."""
        path = f"/api/v1/namespaces/{self._fence.namespace}/pods/{trouble.pod.metadata.name}/log"
        for previous in ("true", "false") if trouble.previous else ("false", "true"):
            parameters = {"container": trouble.container, "tailLines": str(LOG_LINES), "limitBytes": str(LOG_BYTES), "previous": previous}
            try:
                answer = await self._claim.call("GET", path, parameters=parameters, accept="*/*")
            except ApiError:
                continue
            text = without_secrets(answer.decode(errors="replace")).strip()
            if text:
                return cut(text, LOG_CHARACTERS_MAX)
        return ""
