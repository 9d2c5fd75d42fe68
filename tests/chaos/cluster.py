"""What the driver sees of the cluster: namespaces and Helm's Secrets of this stack, followed by watches of its own."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import httpx2
from lightkube import ApiError, AsyncClient, KubeConfig
from lightkube.resources.core_v1 import Namespace, Secret
from tests.chaos.records import PullKey, Revision

AGAIN_SECONDS = 0.2
REPOSITORY, NUMBER, FENCE = "prevue.dev/repository-id", "prevue.dev/pull-request", "prevue.dev/fence"
REQUEST, TOKEN, COMMIT = "prevue.dev/request", "prevue.dev/token", "prevue.dev/commit"


class Seen(NamedTuple):
    """A namespace."""

    name: str
    fence: int
    is_deleting: bool


class ClusterView:
    """Follows the cluster; `namespaces` and `standing` are as it was told last."""

    def __init__(self, client: AsyncClient, repository_ids: Sequence[int]) -> None:
        self._client = client
        self._repository_ids = {str(one) for one in repository_ids}
        self.namespaces: dict[PullKey, Seen] = {}
        self.names: set[str] = set()
        """Of every namespace that was ever seen."""
        self.standing: dict[str, Revision] = {}
        """By the Secrets' uids."""
        self.revisions: dict[str, Revision] = {}
        """The same, gone ones included."""
        self.changed = asyncio.Event()

    async def read(self) -> None:
        """Both, anew: what a watch has missed is made good."""
        namespaces: dict[PullKey, Seen] = {}
        async for found in self._client.list(Namespace, labels={"prevue.dev/managed": "true"}):
            if (seen := self._namespace(found)) is not None:
                namespaces[seen[0]] = seen[1]
        self.namespaces = namespaces
        standing: dict[str, Revision] = {}
        async for secret in self._client.list(Secret, namespace="*", labels={"owner": "helm"}):
            if (revision := self._revision(secret)) is not None:
                standing[revision.uid] = revision
        self.standing = standing
        self.revisions |= standing

    async def follow(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat(self._follow_namespaces), name="namespaces")
            tasks.create_task(self._repeat(self._follow_secrets), name="secrets")

    async def _repeat(self, watch: Callable[[], Any]) -> None:
        while True:
            try:
                await watch()
            except (ApiError, httpx2.HTTPError, ValueError):
                await asyncio.sleep(AGAIN_SECONDS)

    async def _follow_namespaces(self) -> None:
        async for event, found in self._client.watch(Namespace, labels={"prevue.dev/managed": "true"}):
            seen = self._namespace(found)
            if seen is None:
                continue
            if event == "DELETED":
                self.namespaces.pop(seen[0], None)
            else:
                self.namespaces[seen[0]] = seen[1]
            self.changed.set()

    async def _follow_secrets(self) -> None:
        async for event, found in self._client.watch(Secret, namespace="*", labels={"owner": "helm"}):
            revision = self._revision(found)
            if revision is None:
                continue
            self.revisions[revision.uid] = revision
            if event == "DELETED":
                self.standing.pop(revision.uid, None)
            else:
                self.standing[revision.uid] = revision
            self.changed.set()

    def _namespace(self, found: Namespace) -> tuple[PullKey, Seen] | None:
        meta = found.metadata
        labels = (meta and meta.labels) or {}
        if meta is None or labels.get(REPOSITORY) not in self._repository_ids:
            return None
        self.names.add(meta.name or "")
        fence = int((meta.annotations or {}).get(FENCE, "0"))
        return PullKey(int(labels[REPOSITORY]), int(labels[NUMBER])), Seen(meta.name or "", fence, meta.deletionTimestamp is not None)

    def _revision(self, found: Secret) -> Revision | None:
        meta = found.metadata
        if meta is None or found.type != "helm.sh/release.v1" or REQUEST not in (meta.labels or {}):
            return None
        labels, uid, namespace = meta.labels or {}, meta.uid or "", meta.namespace or ""
        known = self.revisions.get(uid)
        if known is None and not any(seen.name == namespace for seen in self.namespaces.values()):
            return None
        if known is not None:
            return replace(known, status=labels["status"])
        return Revision(
            uid=uid,
            namespace=namespace,
            number=int(labels["version"]),
            status=labels["status"],
            request_id=int(labels[REQUEST]),
            token=int(labels[TOKEN]),
            sha=labels[COMMIT],
            is_rollback=_is_rollback((found.data or {}).get("release", "")),
        )


def _is_rollback(release: str) -> bool:
    """Helm writes into each revision how it came to be."""
    record = json.loads(gzip.decompress(base64.b64decode(base64.b64decode(release))))
    return "rollback" in str(record["info"].get("description", "")).lower()


@asynccontextmanager
async def look(kubeconfig: str, repository_ids: Sequence[int]) -> AsyncIterator[ClusterView]:
    """A view that follows inside the block."""
    view = ClusterView(AsyncClient(config=KubeConfig.from_file(kubeconfig), trust_env=False), repository_ids)
    await view.read()
    following = asyncio.create_task(view.follow(), name="cluster")
    try:
        yield view
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
