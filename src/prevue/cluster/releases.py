"""What Helm's own Secrets say about a release (protocol step 7), read in the name of the claim.

In the claim's name, so that Prevue's own account needs no right on any Secret of the cluster. The reads name no
resourceVersion: the API server answers from its store, not from a cache.
"""

from __future__ import annotations

import base64
import binascii
import zlib

import msgspec

from prevue.cluster.actors import Actors
from prevue.cluster.api import METADATA_LIST_ONLY, ApiError
from prevue.cluster.objects import Meta, MetadataList, Secret
from prevue.cluster.port import Fence, ReleaseRecord
from prevue.errors import ClusterUnavailable

HELM_LABELS = frozenset({"name", "owner", "status", "version", "createdAt", "modifiedAt"})
MANIFEST_BYTES_MAX = 32 * 1024 * 1024
"""A Secret holds 1 MiB; what it unpacks to is bounded too, since a chart's author wrote it."""


class _Release(msgspec.Struct, frozen=True):
    """The one field of a stored release that is used."""

    manifest: str = ""


class Releases:
    """Reads release Secrets."""

    def __init__(self, actors: Actors) -> None:
        self._actors = actors

    async def newest(self, fence: Fence, name: str) -> ReleaseRecord | None:
        """The newest revision, from the labels alone: the Secret's content is large."""
        meta = await self._newest(fence, name)
        if meta is None:
            return None
        labels = {label: value for label, value in meta.labels.items() if label not in HELM_LABELS}
        return ReleaseRecord(name=name, revision=_revision(meta), status=meta.labels.get("status", ""), labels=labels)

    async def manifest(self, fence: Fence, name: str) -> str:
        """The manifest in the newest revision's Secret; empty where there is no release."""
        meta = await self._newest(fence, name)
        if meta is None:
            return ""
        path = f"/api/v1/namespaces/{fence.namespace}/secrets/{meta.name}"
        secret = await self._actors.api(fence).find(path, Secret)
        return manifest_of(secret) if secret else ""

    async def _newest(self, fence: Fence, name: str) -> Meta | None:
        path = f"/api/v1/namespaces/{fence.namespace}/secrets"
        try:
            parameters = {"labelSelector": f"owner=helm,name={name}"}
            answer = await self._actors.api(fence).call("GET", path, parameters=parameters, accept=METADATA_LIST_ONLY)
        except ApiError as exc:
            raise ClusterUnavailable(f"the release {name} cannot be read: {exc.message}") from exc
        found = msgspec.json.decode(answer, type=MetadataList)
        return max((item.metadata for item in found.items or ()), key=_revision, default=None)


def _revision(meta: Meta) -> int:
    text = meta.labels.get("version", "")
    return int(text) if text.isdecimal() else 0


def manifest_of(secret: Secret) -> str:
    """Base64 by Kubernetes, base64 and gzip by Helm, then JSON.

    Raises:
        ClusterUnavailable: it cannot be read: cut off, or larger than allowed.
    """
    try:
        packed = base64.b64decode(base64.b64decode(secret.data.get("release", "")))
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        raw = unpacker.decompress(packed, MANIFEST_BYTES_MAX)
        if unpacker.unconsumed_tail:
            raise ClusterUnavailable(f"the release {secret.metadata.name} is larger than {MANIFEST_BYTES_MAX} bytes")
        return msgspec.json.decode(raw, type=_Release).manifest
    except (binascii.Error, zlib.error, msgspec.MsgspecError) as exc:
        raise ClusterUnavailable(f"the release {secret.metadata.name} cannot be read") from exc
