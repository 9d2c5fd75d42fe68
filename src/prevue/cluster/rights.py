"""RBAC, as Prevue uses it: what its own account may do, who it is, and the roles that it binds in a preview's namespace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from prevue.cluster.api import Api, ApiError
from prevue.cluster.objects import K8s

T = TypeVar("T")

HTTP_FORBIDDEN = 403
HTTP_NOT_FOUND = 404
HTTP_CONFLICT = 409

ROLE = "prevue-preview"
"""What a chart may contain (manifests/preview-role.yaml)."""
ISSUER_ROLE = "prevue-token-issuer"
"""What Prevue's own account needs in a namespace to give claims tokens of their own (manifests/tokens.yaml)."""
DEPLOYER = "deployer"
"""The account that is impersonated; it need not exist."""
CLAIM_ACCOUNT = "prevue-claim"
"""The account whose tokens claims get. Another one than `deployer`: the policy, where it is in force, knows it as a kind of its own."""

GROUP = "rbac.authorization.k8s.io"
KNOWN_SECONDS_MAX = 5.0
"""A new binding is known to the authorizer within some 20 ms."""
KNOWN_PAUSE_SECONDS = 0.02


class Right(msgspec.Struct, frozen=True):
    """One verb on one resource."""

    verb: str
    group: str
    resource: str
    subresource: str = ""
    name: str = ""

    def __str__(self) -> str:
        what = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        return " ".join(item for item in (self.verb, what, self.name) if item)


class Binding(msgspec.Struct, frozen=True):
    """A ClusterRole that is bound in one namespace."""

    name: str
    role: str
    subject: dict[str, str]


class _ReviewStatus(K8s, frozen=True):
    allowed: bool = False


class _Review(K8s, frozen=True):
    status: _ReviewStatus = _ReviewStatus()


class _User(K8s, frozen=True):
    username: str = ""


class _SelfStatus(K8s, frozen=True):
    user_info: _User = _User()


class _SelfReview(K8s, frozen=True):
    status: _SelfStatus = _SelfStatus()


async def may(api: Api, right: Right) -> bool:
    """Whether the caller has a right everywhere.

    Raises:
        ApiError, ClusterUnavailable: it cannot be told.
    """
    attributes = msgspec.structs.asdict(right)
    spec = {"resourceAttributes": {name: value for name, value in attributes.items() if value}}
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec}
    answer = await api.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=body)
    return msgspec.json.decode(answer, type=_Review).status.allowed


async def own_subject(api: Api) -> dict[str, str]:
    """The caller as the subject of a binding.

    Raises:
        ApiError, ClusterUnavailable: it cannot be told.
    """
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = await api.call("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body=body)
    name = msgspec.json.decode(answer, type=_SelfReview).status.user_info.username
    if name.startswith("system:serviceaccount:"):
        namespace, account = name.removeprefix("system:serviceaccount:").split(":")
        return service_account(namespace, account)
    return {"kind": "User", "apiGroup": GROUP, "name": name}


def service_account(namespace: str, name: str) -> dict[str, str]:
    """An account as the subject of a binding."""
    return {"kind": "ServiceAccount", "name": name, "namespace": namespace}


async def bind(api: Api, namespace: str, binding: Binding) -> None:
    """Make a RoleBinding; one that is there is left as it is.

    Raises:
        ApiError, ClusterUnavailable: refused.
    """
    role = {"apiGroup": GROUP, "kind": "ClusterRole", "name": binding.role}
    body: dict[str, Any] = {"metadata": {"name": binding.name}, "roleRef": role, "subjects": [binding.subject]}
    await create(api, f"/apis/{GROUP}/v1/namespaces/{namespace}/rolebindings", body)


async def create(api: Api, path: str, body: object) -> bool:
    """POST; False: it was there already.

    Raises:
        ApiError, ClusterUnavailable: refused.
    """
    try:
        await api.call("POST", path, body=body)
    except ApiError as exc:
        if exc.status != HTTP_CONFLICT:
            raise
        return False
    return True


async def once_known(call: Callable[[], Awaitable[T]]) -> T:
    """The answer of `call`, which a binding made a moment ago allows: the authorizer takes it from a cache.

    Raises:
        ApiError: still forbidden after a few seconds, or refused otherwise.
    """
    give_up = time.monotonic() + KNOWN_SECONDS_MAX
    while True:
        try:
            return await call()
        except ApiError as exc:
            if exc.status != HTTP_FORBIDDEN or "being terminated" in exc.message or time.monotonic() >= give_up:
                raise
        await asyncio.sleep(KNOWN_PAUSE_SECONDS)
