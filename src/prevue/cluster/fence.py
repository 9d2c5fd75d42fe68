"""The fence: a preview's namespace, its ownership, its annotation, and the proof that a stale token is refused (protocol steps 3, 4, 9).

One invariant: the annotation is only ever changed by compare-and-swap to a larger token, and the namespace is only ever deleted with
the uid and resourceVersion that were read with our own token in it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from hashlib import sha256

import msgspec
import structlog

from prevue.cluster.api import MERGE_PATCH, METADATA_LIST_ONLY, METADATA_ONLY, Api, ApiError, as_claim
from prevue.cluster.objects import Meta, Metadata, MetadataList
from prevue.cluster.port import FENCE_ANNOTATION, FENCED_BY_ANNOTATION, Fence, FenceKind, OwnedNamespace
from prevue.cluster.rights import HTTP_CONFLICT, HTTP_FORBIDDEN, HTTP_NOT_FOUND, Binding, bind
from prevue.cluster.watches import Watches
from prevue.errors import ClusterUnavailable, NamespaceForeign, NamespaceTerminating, StaleClaim
from prevue.model import PreviewKey

log = structlog.get_logger(__name__)

LABEL_MANAGED = "prevue.dev/managed"
LABEL_HOST = "prevue.dev/github-host"
LABEL_REPOSITORY = "prevue.dev/repository-id"
LABEL_PULL_REQUEST = "prevue.dev/pull-request"
LABEL_POD_SECURITY = "pod-security.kubernetes.io/enforce"
POD_SECURITY = "baseline"

POLICY = "prevue-fence"
CHECK_NAMESPACE = "prevue-fence-check"
CHECK_TOKEN = 2
"""The annotation of the namespace in which the fence is tried (manifests/fence-policy.yaml)."""

BITE_SECONDS_MAX = 10.0
"""20 ms were the most that was ever seen; a policy that does not bite for so long is not in force."""
BITE_PAUSE_SECONDS = 0.004
BITE_PAUSE_SECONDS_MAX = 0.1
SWAP_ATTEMPTS_MAX = 20
"""Only other claims of the same preview and the namespace controller write to a namespace: a few conflicts, never many."""
DELETE_POLL_SECONDS = 5.0
"""The shared watch wakes us; this is for a watch that has silently died."""

ENFORCED_SECONDS_MAX = 30.0
"""A new policy is compiled and comes into force within a second or two."""


def namespace_path(namespace: str) -> str:
    """The namespace object."""
    return f"/api/v1/namespaces/{namespace}"


def ownership_labels(key: PreviewKey) -> dict[str, str]:
    """What says whose the namespace is; checked before any change."""
    return {
        LABEL_MANAGED: "true",
        LABEL_HOST: _label_value(key.github_host),
        LABEL_REPOSITORY: str(key.repository_id),
        LABEL_PULL_REQUEST: str(key.pr_number),
    }


def _label_value(host: str) -> str:
    """A host as it is where it may be a label's value, else a hash: injective either way."""
    if re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", host):
        return host
    return "sha256-" + sha256(host.encode()).hexdigest()[:40]


class Fences:
    """Raises, tries and deletes; `watches` wakes the wait for a namespace's end."""

    def __init__(self, api: Api, watches: Watches, *, settle_seconds: float) -> None:
        self._api = api
        self._watches = watches
        self._settle_seconds = settle_seconds

    async def raise_(
        self, key: PreviewKey, namespace: str, token: int, *, create: bool, kind: FenceKind, bindings: Iterable[Binding]
    ) -> Fence | None:
        """Protocol step 3. A new preview is the common case: create first, look only where that is refused.

        The bindings are made at each raise, since a worker may have died before its first one.
        """
        annotations = {FENCE_ANNOTATION: str(token), FENCED_BY_ANNOTATION: kind.value}
        for _ in range(SWAP_ATTEMPTS_MAX):
            meta = await self._create(key, namespace, annotations) if create else None
            created = meta is not None
            if meta is None:
                found = await self._api.find(namespace_path(namespace), Metadata, accept=METADATA_ONLY)
                if found is None:
                    if not create:
                        return None
                    continue  # deleted between the two calls
                self._check(key, found.metadata, token)
                meta = await self._swap(found.metadata, annotations)
            if meta is not None:
                for binding in bindings:
                    await bind(self._api, namespace, binding)
                version = meta.resource_version
                return Fence(namespace=namespace, token=token, uid=meta.uid, resource_version=version, kind=kind, created=created)
        raise ClusterUnavailable(f"the namespace {namespace} changes faster than it can be fenced")

    async def _create(self, key: PreviewKey, namespace: str, annotations: dict[str, str]) -> Meta | None:
        """Label, owner and annotation in one create: there is no moment in which the namespace is ours and has no fence."""
        labels = {**ownership_labels(key), LABEL_POD_SECURITY: POD_SECURITY}
        body = {"metadata": {"name": namespace, "labels": labels, "annotations": annotations}}
        try:
            answer = await self._api.call("POST", "/api/v1/namespaces", body=body)
        except ApiError as exc:
            if exc.status == HTTP_CONFLICT:
                return None
            raise
        return msgspec.json.decode(answer, type=Metadata).metadata

    async def _swap(self, meta: Meta, annotations: dict[str, str]) -> Meta | None:
        """The compare-and-swap; None: somebody else wrote in between, read again."""
        if annotations.items() <= meta.annotations.items():
            return meta
        body = {"metadata": {"resourceVersion": meta.resource_version, "uid": meta.uid, "annotations": annotations}}
        try:
            path = namespace_path(meta.name)
            answer = await self._api.call("PATCH", path, body=body, content_type=MERGE_PATCH)
        except ApiError as exc:
            if exc.status in (HTTP_CONFLICT, HTTP_NOT_FOUND):
                return None
            raise
        return msgspec.json.decode(answer, type=Metadata).metadata

    def _check(self, key: PreviewKey, meta: Meta, token: int) -> None:
        wanted = ownership_labels(key)
        if any(meta.labels.get(name) != value for name, value in wanted.items()):
            raise NamespaceForeign(f"the namespace {meta.name} exists and is not this preview's: its labels differ; nothing was changed")
        if fence_of(meta) > token:
            raise StaleClaim(f"the fence of {meta.name} is at {fence_of(meta)}, above {token}")
        if meta.deletion_timestamp:
            raise NamespaceTerminating(f"the namespace {meta.name} is still being deleted")

    async def bites(self, fence: Fence) -> None:
        """Protocol step 4. The API server takes annotation and rights from caches, each up to some 20 ms late.

        Authorization comes before admission: a refusal by the policy proves that the identity's rights are known, and that the
        annotation is seen. So the one answer also says that the rightful token will pass.
        """
        give_up = time.monotonic() + BITE_SECONDS_MAX
        pause = BITE_PAUSE_SECONDS
        while True:
            refusal = await self.try_write(fence.namespace, fence.token - 1)
            if refusal is not None and is_policy_refusal(refusal):
                break
            if refusal is not None and (refusal.status != HTTP_FORBIDDEN or "being terminated" in refusal.message):
                await self._still_ours(fence)
            if time.monotonic() >= give_up:
                await self._still_ours(fence)
                raise ClusterUnavailable(f"the fence of {fence.namespace} did not bite in {BITE_SECONDS_MAX:g} s; last: {refusal}")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, BITE_PAUSE_SECONDS_MAX)
        await self.settle()

    async def settle(self) -> None:
        """After a stale worker was seen refused."""
        if self._settle_seconds:
            # Several API servers have a cache each, and only one of them answered.
            await asyncio.sleep(self._settle_seconds)

    async def _still_ours(self, fence: Fence) -> None:
        found = await self._api.find(namespace_path(fence.namespace), Metadata, accept=METADATA_ONLY)
        if found is None or found.metadata.deletion_timestamp:
            raise NamespaceTerminating(f"the namespace {fence.namespace} is gone or being deleted")
        if fence_of(found.metadata) > fence.token:
            raise StaleClaim(f"the fence of {fence.namespace} is at {fence_of(found.metadata)}, above {fence.token}")

    async def try_write(self, namespace: str, token: int) -> ApiError | None:
        """A server dry-run write in the name of a claim; what refused it."""
        path = f"{namespace_path(namespace)}/configmaps"
        body = {"metadata": {"name": "prevue-fence-try"}}
        try:
            await self._api.call("POST", path, body=body, parameters={"dryRun": "All"}, headers=as_claim(namespace, token))
        except ApiError as exc:
            return exc
        return None

    async def policy_bites(self) -> bool:
        """Tried in a namespace that is there for it: one below its annotation is refused by the policy, the annotation itself passes."""
        stale = await self.try_write(CHECK_NAMESPACE, CHECK_TOKEN - 1)
        return stale is not None and is_policy_refusal(stale) and await self.try_write(CHECK_NAMESPACE, CHECK_TOKEN) is None

    async def policy_comes_into_force(self) -> bool:
        """Wait for a policy that was installed a moment ago; False: it does not bite."""
        give_up = time.monotonic() + ENFORCED_SECONDS_MAX
        while not await self.policy_bites():
            if time.monotonic() >= give_up:
                return False
            await asyncio.sleep(BITE_PAUSE_SECONDS_MAX)
        return True

    async def delete(self, fence: Fence, *, timeout_seconds: float) -> None:
        """Protocol step 9: DELETE with the preconditions of our own raise; 409 means that it was written to, by us or by a newer claim."""
        give_up = time.monotonic() + timeout_seconds
        version: str | None = fence.resource_version
        for _ in range(SWAP_ATTEMPTS_MAX):
            if version is None:
                break
            version = await self._delete_once(fence, version)
        else:
            raise ClusterUnavailable(f"the namespace {fence.namespace} changes faster than it can be deleted")
        with self._watches.waiter(fence.namespace, ("Namespace",)) as waiter:
            while True:
                found = await self._api.find(namespace_path(fence.namespace), Metadata, accept=METADATA_ONLY)
                if found is None or found.metadata.uid != fence.uid:
                    return
                rest = give_up - time.monotonic()
                if rest <= 0:
                    raise NamespaceTerminating(f"the namespace {fence.namespace} is still being deleted after {timeout_seconds:g} s")
                await waiter.changed(min(rest, DELETE_POLL_SECONDS))

    async def _delete_once(self, fence: Fence, version: str) -> str | None:
        """None: it is being deleted or gone; else the resourceVersion to try next."""
        path = namespace_path(fence.namespace)
        body = {"preconditions": {"uid": fence.uid, "resourceVersion": version}}
        try:
            await self._api.call("DELETE", path, body=body)
        except ApiError as exc:
            if exc.status == HTTP_NOT_FOUND:
                return None
            if exc.status != HTTP_CONFLICT:
                raise
        else:
            return None
        found = await self._api.find(path, Metadata, accept=METADATA_ONLY)
        if found is None:
            return None
        meta = found.metadata
        if meta.uid != fence.uid or meta.annotations.get(FENCE_ANNOTATION) != str(fence.token):
            raise StaleClaim(f"the namespace {fence.namespace} is another claim's by now")
        return None if meta.deletion_timestamp else meta.resource_version


async def list_owned(api: Api) -> list[Meta]:
    """Metadata of every namespace with our label, in one list from the API server, not from a watch."""
    path = f"/api/v1/namespaces?labelSelector={LABEL_MANAGED.replace('/', '%2F')}%3Dtrue"
    found = await api.get(path, MetadataList, accept=METADATA_LIST_ONLY)
    return [item.metadata for item in found.items or ()]


def owned_namespace(meta: Meta, github_host: str) -> OwnedNamespace | None:
    """None: it is about another host, or its labels are not of our making."""
    repository, number = meta.labels.get(LABEL_REPOSITORY, ""), meta.labels.get(LABEL_PULL_REQUEST, "")
    if meta.labels.get(LABEL_HOST) != _label_value(github_host) or not (repository.isdecimal() and number.isdecimal()):
        return None
    return OwnedNamespace(
        name=meta.name,
        uid=meta.uid,
        key=PreviewKey(github_host, int(repository), int(number)),
        fence=fence_of(meta),
        is_terminating=bool(meta.deletion_timestamp),
    )


def fence_of(meta: Meta) -> int:
    """The annotation's token; 0 where it is absent or no number."""
    text = meta.annotations.get(FENCE_ANNOTATION, "")
    return int(text) if text.isdecimal() else 0


def is_policy_refusal(exc: ApiError) -> bool:
    """Whether our policy refused a stale token: a refusal by RBAC is a 403 too, and one for an error in the expression names the policy."""
    return f"ValidatingAdmissionPolicy '{POLICY}'" in exc.message and "denied request: stale fencing token" in exc.message
