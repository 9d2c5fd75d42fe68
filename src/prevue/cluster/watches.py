"""Watches that all previews share: one per kind, whatever the number of previews.

They start when somebody waits for the first time and go on until the end. What they hold is a hint: a waiter is woken by it and then
reads what it decides on from the API server itself (`readiness.py`). So a late, repeated or lost event costs time, never truth.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Generic, Literal, TypeVar

import msgspec
import structlog

from prevue.cluster.api import Api, ApiError
from prevue.cluster.objects import K8s, Meta, Metadata, Pod, Workload
from prevue.errors import ClusterUnavailable

log = structlog.get_logger(__name__)

Kind = Literal["Deployment", "StatefulSet", "DaemonSet", "Job", "Pod", "Namespace"]

BY_HELM = "app.kubernetes.io/managed-by=Helm"
RECONNECT_SECONDS = 0.2
RECONNECT_SECONDS_MAX = 5.0
WATCH_SECONDS = 600
"""The server ends a watch after this; the next one goes on from the last bookmark."""
GONE = 410

Seen = Workload | Pod | Metadata
SeenT = TypeVar("SeenT", bound=Seen)


class _Source(msgspec.Struct, frozen=True):
    """Where a kind is read, and as what."""

    path: str
    selector: str
    type: type[Seen]


SOURCES: dict[Kind, _Source] = {
    "Deployment": _Source("/apis/apps/v1/deployments", BY_HELM, Workload),
    "StatefulSet": _Source("/apis/apps/v1/statefulsets", BY_HELM, Workload),
    "DaemonSet": _Source("/apis/apps/v1/daemonsets", BY_HELM, Workload),
    "Job": _Source("/apis/batch/v1/jobs", BY_HELM, Workload),
    "Pod": _Source("/api/v1/pods", "", Pod),
    "Namespace": _Source("/api/v1/namespaces", "prevue.dev/managed=true", Metadata),
}


class _Line(K8s, frozen=True):
    """One event of a watch; the object is decoded when its type is known."""

    type: str
    object: msgspec.Raw


class _Error(K8s, frozen=True):
    """The Status inside an ERROR event."""

    code: int = 0
    message: str = ""


class _Listing(K8s, Generic[SeenT], frozen=True):
    """A list, with the version from which a watch goes on."""

    metadata: Meta = Meta()
    items: list[SeenT] = msgspec.field(default_factory=list)


class Waiter:
    """One waiting preview: woken by any event of its namespace."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def wake(self) -> None:
        """Something in the namespace changed."""
        self._event.set()

    async def changed(self, timeout: float) -> bool:
        """Wait for the next change, at most so long; whether there was one."""
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class Watches:
    """The watches of one process."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._waiters: dict[str, set[Waiter]] = defaultdict(set)
        self._watches: dict[Kind, _KindWatch] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @contextlib.contextmanager
    def waiter(self, namespace: str, kinds: Sequence[Kind]) -> Iterator[Waiter]:
        """Wait in `namespace` for events of `kinds`; their objects are kept while anybody waits there."""
        for kind in kinds:
            if kind not in self._watches:
                watch: _KindWatch = _KindWatch(self._api, kind, self._waiters)
                self._watches[kind] = watch
                self._tasks.append(asyncio.create_task(watch.run(), name=f"watch-{kind}"))
        waiter = Waiter()
        self._waiters[namespace].add(waiter)
        try:
            yield waiter
        finally:
            self._waiters[namespace].discard(waiter)
            if not self._waiters[namespace]:
                del self._waiters[namespace]
                for started in self._watches.values():
                    started.forget(namespace)

    def workload(self, kind: Kind, namespace: str, name: str) -> Workload | None:
        """The last state that was seen; None: none yet."""
        watch = self._watches.get(kind)
        found = watch.get(namespace, name) if watch else None
        return found if isinstance(found, Workload) else None

    def pods(self, namespace: str) -> list[Pod]:
        """The pods whose events have been seen since somebody waits in the namespace."""
        watch = self._watches.get("Pod")
        return [item for item in watch.all(namespace) if isinstance(item, Pod)] if watch else []

    def adopt(self, namespace: str, pods: Sequence[Pod]) -> None:
        """Pods that a waiter has listed: those whose last event came before its wait began."""
        watch = self._watches.get("Pod")
        if watch is not None:
            for pod in pods:
                watch.adopt(namespace, pod)

    async def close(self) -> None:
        """End all watches."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _KindWatch:
    """List, then watch from there; again after an end, from the list after a 410."""

    def __init__(self, api: Api, kind: Kind, waiters: dict[str, set[Waiter]]) -> None:
        self._api = api
        self._kind = kind
        self._source = SOURCES[kind]
        self._objects: dict[str, dict[str, Seen]] = {}
        self._waiters = waiters
        self._version = ""
        self._lines = msgspec.json.Decoder(_Line)
        self._decoder: msgspec.json.Decoder[Seen] = msgspec.json.Decoder(self._source.type)

    def get(self, namespace: str, name: str) -> Seen | None:
        return self._objects.get(namespace, {}).get(name)

    def all(self, namespace: str) -> list[Seen]:
        return list(self._objects.get(namespace, {}).values())

    def adopt(self, namespace: str, item: Seen) -> None:
        """What was read elsewhere; an event that was seen is never older."""
        if namespace in self._waiters:
            self._objects.setdefault(namespace, {}).setdefault(item.metadata.name, item)

    def forget(self, namespace: str) -> None:
        """Nobody waits there any more. A workload's last state stays: the next waiter may need it before its next event."""
        if self._kind in ("Pod", "Namespace"):
            self._objects.pop(namespace, None)

    async def run(self) -> None:
        pause = RECONNECT_SECONDS
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
                pause = RECONNECT_SECONDS
            except ClusterUnavailable as exc:
                log.warning("watch broke off", action="watch", kind=self._kind, error=str(exc))
                await asyncio.sleep(pause)
                pause = min(pause * 2, RECONNECT_SECONDS_MAX)
            except (ApiError, msgspec.MsgspecError) as exc:
                self._version = ""
                if not isinstance(exc, ApiError) or exc.status != GONE:
                    log.warning("watch refused", action="watch", kind=self._kind, error=str(exc))
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, RECONNECT_SECONDS_MAX)

    def _parameters(self) -> dict[str, str]:
        return {"labelSelector": self._source.selector} if self._source.selector else {}

    async def _list(self) -> None:
        """What is there now, from the API server's cache: `resourceVersion=0` costs etcd nothing, and it is a hint only."""
        answer = await self._api.call("GET", self._source.path, parameters={**self._parameters(), "resourceVersion": "0"})
        listed: _Listing[Seen] = msgspec.json.decode(answer, type=_Listing[self._source.type])  # type: ignore[name-defined]
        self._objects.clear()
        for item in listed.items:
            self._keep(item)
        self._version = listed.metadata.resource_version
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.wake()

    async def _watch(self) -> None:
        parameters = {**self._parameters(), "resourceVersion": self._version, "timeoutSeconds": str(WATCH_SECONDS)}
        async with self._api.watch(self._source.path, {**parameters, "allowWatchBookmarks": "true"}) as lines:
            async for line in lines:
                self._take(self._lines.decode(line))

    def _take(self, line: _Line) -> None:
        if line.type == "ERROR":
            error = msgspec.json.decode(line.object, type=_Error)
            raise ApiError(error.code, "Expired" if error.code == GONE else "Error", error.message)
        if line.type == "BOOKMARK":
            # A version and nothing else: the API server writes a pod's with `"containers": null`, which no pod has.
            self._version = msgspec.json.decode(line.object, type=Metadata).metadata.resource_version
            return
        item = self._decoder.decode(line.object)
        self._version = item.metadata.resource_version
        if line.type == "DELETED":
            self._drop(item.metadata)
        else:
            self._keep(item)
        for waiter in self._waiters.get(self._where(item.metadata), ()):
            waiter.wake()

    def _where(self, meta: Meta) -> str:
        return meta.name if self._kind == "Namespace" else meta.namespace

    def _keep(self, item: Seen) -> None:
        where = self._where(item.metadata)
        if self._kind == "Namespace" or (self._kind == "Pod" and where not in self._waiters):
            return  # a namespace's event only wakes; pods are many, and only those of waiting previews are looked at
        self._objects.setdefault(where, {})[item.metadata.name] = item

    def _drop(self, meta: Meta) -> None:
        where = self._where(meta)
        objects = self._objects.get(where)
        if objects is not None:
            objects.pop(meta.name, None)
            if not objects:
                del self._objects[where]
