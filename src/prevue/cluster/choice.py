"""Which fence is in force: the strongest that works, found by trying it (ADR 0006)."""

from __future__ import annotations

import secrets
import time
from importlib.resources import files
from typing import Any

import structlog
import yaml

from prevue.cluster.actors import Actors
from prevue.cluster.api import APPLY_PATCH, Api, ApiError, Unauthorized
from prevue.cluster.claims import Claims
from prevue.cluster.fence import CHECK_NAMESPACE, CHECK_TOKEN, LABEL_MANAGED, Fences, namespace_path
from prevue.cluster.port import FENCE_ANNOTATION, FENCED_BY_ANNOTATION, FenceKind
from prevue.cluster.rights import DEPLOYER, Right, bind, create, may, own_subject

log = structlog.get_logger(__name__)

AUTO = "auto"
RECHECK_SECONDS = 60.0
"""How often it is asked again: somebody may install the policy, or remove it."""
POLICY_MANIFEST = "fence-policy.yaml"
IMPERSONATION = (
    Right("impersonate", "", "serviceaccounts", "", DEPLOYER),
    Right("impersonate", "authentication.k8s.io", "userextras", FENCE_ANNOTATION),
)

PATHS = {
    "Namespace": "/api/v1/namespaces/{name}",
    "ServiceAccount": "/api/v1/namespaces/{namespace}/serviceaccounts/{name}",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles/{name}",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{name}",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings/{name}",
    "ValidatingAdmissionPolicy": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/{name}",
    "ValidatingAdmissionPolicyBinding": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/{name}",
}


def manifest(name: str) -> str:
    """One of the manifests that come with Prevue."""
    return (files("prevue.cluster") / "manifests" / name).read_text()


def path_of(document: dict[str, Any]) -> str:
    """Where an object of a manifest stands."""
    metadata = document["metadata"]
    return PATHS[document["kind"]].format(name=metadata["name"], namespace=metadata.get("namespace", ""))


class FenceChoice:
    """Finds the kind, remembers it for a minute, and tells `actors`; `wish` is the setting `cluster.fence`."""

    def __init__(self, wish: str, api: Api, fences: Fences, claims: Claims, actors: Actors) -> None:
        self._wish = wish
        self._api = api
        self._fences = fences
        self._claims = claims
        self._actors = actors
        self._known: FenceKind | None = None
        self._until = 0.0
        self._may_install = True

    async def known(self) -> FenceKind:
        """As it was found within the last minute."""
        if self._known is None or time.monotonic() >= self._until:
            return await self.find()
        return self._known

    def doubt(self) -> None:
        """What is known may be wrong: ask before the next claim."""
        self._until = 0.0

    async def find(self) -> FenceKind:
        """Try, the strongest first.

        Raises:
            ApiError, ClusterUnavailable: the API server cannot be asked.
        """
        kind = await self._find()
        self._known, self._until = kind, time.monotonic() + RECHECK_SECONDS
        return kind

    @property
    def missed(self) -> tuple[Right, ...]:
        """The rights without which only the lease is left; none where that is what was asked for."""
        return () if self._wish == FenceKind.LEASE else IMPERSONATION

    async def measure_revocation(self) -> float:
        """How long the API server accepts a token in use after its revocation, in seconds.

        Raises:
            ApiError, ClusterUnavailable: tokens are not to be had, or this one was accepted for a minute.
        """
        return await self._claims.refusal(CHECK_NAMESPACE, await self._try_token())

    async def _find(self) -> FenceKind:
        actors = self._actors
        impersonates = all([await may(self._api, right) for right in IMPERSONATION])
        if impersonates and self._wish in (AUTO, FenceKind.IDENTITY) and (await self._fences.policy_bites() or await self._install()):
            actors.kind, actors.impersonates = FenceKind.IDENTITY, True
            return FenceKind.IDENTITY
        actors.own_subject = actors.own_subject or await own_subject(self._api)
        if self._wish in (AUTO, FenceKind.TOKEN) and await self._tokens_work():
            actors.kind, actors.impersonates = FenceKind.TOKEN, impersonates
            return FenceKind.TOKEN
        actors.kind, actors.impersonates = FenceKind.LEASE, impersonates
        return FenceKind.LEASE

    async def _install(self) -> bool:
        """Install the policy where our account may, once a process; an account of manifests/deployer.yaml may not."""
        if not self._may_install:
            return False
        self._may_install = False
        try:
            for document in yaml.safe_load_all(manifest(POLICY_MANIFEST)):
                parameters = {"fieldManager": "prevue", "force": "true"}
                await self._api.call("PATCH", path_of(document), body=document, parameters=parameters, content_type=APPLY_PATCH)
        except ApiError as exc:
            log.info("the fence's policy is not there, and our account may not install it", action="fence_install", error=str(exc))
            return False
        log.info("installed the fence's admission policy", action="fence_install")
        return await self._fences.policy_comes_into_force()

    async def _tokens_work(self) -> bool:
        """Everything that a claim needs, tried in the namespace that is there for it."""
        try:
            await self._try_token()
        except (ApiError, Unauthorized) as exc:
            log.info("claims cannot have tokens of their own", action="fence_tokens", error=str(exc))
            return False
        return True

    async def _try_token(self) -> str:
        """A claim's token that was accepted, and is revoked by now."""
        await self.prepare_check_namespace()
        meta, bearer = await self._claims.try_out(CHECK_NAMESPACE, f"prevue-try-{secrets.token_hex(4)}")
        await self._claims.end_trial(CHECK_NAMESPACE, meta)
        return bearer

    async def prepare_check_namespace(self) -> None:
        """The namespace of manifests/fence-policy.yaml, where that was not applied, and our bindings in it."""
        annotations = {FENCE_ANNOTATION: str(CHECK_TOKEN), FENCED_BY_ANNOTATION: FenceKind.TOKEN.value}
        metadata = {"name": CHECK_NAMESPACE, "labels": {LABEL_MANAGED: "true"}, "annotations": annotations}
        if await self._api.find(namespace_path(CHECK_NAMESPACE), dict) is None:
            await create(self._api, "/api/v1/namespaces", {"metadata": metadata})
        for binding in self._actors.bindings(CHECK_NAMESPACE, FenceKind.TOKEN):
            await bind(self._api, CHECK_NAMESPACE, binding)
