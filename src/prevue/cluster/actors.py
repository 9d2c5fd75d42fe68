"""In whose name Prevue reads and writes inside a preview, and its Helm: one place for what differs between the kinds of fence."""

from __future__ import annotations

from hashlib import sha256

import msgspec

from prevue.cluster.api import Access, Api, as_claim, claim_kubeconfig, impersonating
from prevue.cluster.claims import Claims
from prevue.cluster.port import Fence, FenceKind
from prevue.cluster.rights import CLAIM_ACCOUNT, DEPLOYER, ISSUER_ROLE, ROLE, Binding, service_account
from prevue.errors import StaleClaim


class Actors:
    """Decides by what `FenceChoice` has found, which it says here, and says again when it changes."""

    def __init__(self, access: Access, api: Api, claims: Claims) -> None:
        self._access = access
        self._api = api
        self._claims = claims
        self.kind = FenceKind.IDENTITY
        self.impersonates = True
        self.own_subject: dict[str, str] = {}
        """Prevue's own account as the subject of a binding; known where it acts by itself."""

    @property
    def acts_by_itself(self) -> bool:
        """Prevue's own account reads what no claim of this process stands for, and is bound in the namespace for that."""
        return self.kind is FenceKind.TOKEN or not self.impersonates

    def api(self, fence: Fence) -> Api:
        """Calls in the name of a claim; before a raise, for reading alone, of who will be able to."""
        if bearer := self._claims.bearer(fence.namespace, fence.token):
            return self._claims.acting(bearer)
        return self._api if self.acts_by_itself else self._api.acting(as_claim(fence.namespace, fence.token))

    def kubeconfig(self, fence: Fence) -> str:
        """The claim's kubeconfig.

        Raises:
            StaleClaim: the claim has no token any more.
        """
        if fence.kind is FenceKind.TOKEN:
            bearer = self._claims.bearer(fence.namespace, fence.token)
            if not bearer:
                raise StaleClaim(f"the claim {fence.token} has no token in {fence.namespace}")
            return claim_kubeconfig(self._access, fence.namespace, {"token": bearer})
        own = not self.impersonates
        user = self._access.user if own else impersonating(self._access, fence.namespace, fence.token)
        return claim_kubeconfig(self._access, fence.namespace, user)

    def bindings(self, namespace: str, kind: FenceKind) -> list[Binding]:
        """What must be bound in a namespace before anybody acts there."""
        if kind is FenceKind.TOKEN:
            return [
                Binding("prevue-claim", ROLE, service_account(namespace, CLAIM_ACCOUNT)),
                self._own_binding("prevue-token-issuer", ISSUER_ROLE),
            ]
        if self.impersonates:
            return [Binding("prevue-deployer", ROLE, service_account(namespace, DEPLOYER))]
        return [self._own_binding("prevue-worker", ROLE)]

    def _own_binding(self, name: str, role: str) -> Binding:
        """Named by its subject: one that is there is left as it is, and may be another account's (a second Prevue's in this cluster)."""
        tag = sha256(msgspec.json.encode(sorted(self.own_subject.items()))).hexdigest()[:10]
        return Binding(f"{name}-{tag}", role, self.own_subject)
