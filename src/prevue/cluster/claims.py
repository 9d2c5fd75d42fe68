"""Tokens of their own for claims, where impersonation or the admission policy is not to be had (ADR 0006).

Each claim has a Secret in the preview's namespace, and a token of the account `prevue-claim` that lives as long as that Secret. The next
holder deletes the Secrets of all lower claims: from then on the API server refuses their tokens, as soon as its cache has forgotten them.

One invariant: a token that was ever usable stands in some Secret of the namespace until a holder has *seen* it refused. So a claim's token
is used only after it was written down, and whoever deletes an older Secret has copied its tokens first: a crash at any step loses none.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence

import msgspec

from prevue.cluster.api import MERGE_PATCH, Api, ApiError, Unauthorized
from prevue.cluster.objects import K8s, Meta, Secret
from prevue.cluster.port import Fence
from prevue.cluster.rights import CLAIM_ACCOUNT, HTTP_CONFLICT, HTTP_NOT_FOUND, create, once_known
from prevue.errors import ClusterUnavailable, StaleClaim

LABEL_CLAIM = "prevue.dev/claim"
SECRET_TYPE = "prevue.dev/claim"  # noqa: S105  the name of a type
TOKEN_SECONDS = 3600
"""Longer than any claim: readiness, image and URL together take a quarter of it by default."""

REFUSED_SECONDS_MAX = 60.0
"""An API server keeps an accepted token in its cache for 10 s."""
LEARN_SECONDS = 0.1
"""The API server learns of a deletion within milliseconds. To try sooner would put the token into its cache once more."""
PAUSE_SECONDS_MAX = 0.5


HELD_MAX = 1000
"""Many times a deployer's slots: the credential of a claim that runs is never forgotten."""


class _Status(K8s, frozen=True):
    token: str = ""


class _TokenRequest(K8s, frozen=True):
    status: _Status = _Status()


class _Secrets(K8s, frozen=True):
    items: list[Secret] = msgspec.field(default_factory=list)


class _Held(msgspec.Struct):
    """What this process knows of the claim that it has raised a namespace for."""

    secret: str
    bearer: str
    stale: list[str]
    """The tokens of earlier claims that nobody has seen refused."""


class Claims:
    """Gives, remembers and revokes; `bare` has no credentials of its own."""

    def __init__(self, api: Api, bare: Api) -> None:
        self._api = api
        self._bare = bare
        self._held: dict[tuple[str, int], _Held] = {}

    def bearer(self, namespace: str, token: int) -> str:
        """The credential of a claim of this process; empty: it has none."""
        held = self._held.get((namespace, token))
        return held.bearer if held is not None else ""

    def acting(self, bearer: str) -> Api:
        """Calls in the name of a claim."""
        return self._bare.acting({"Authorization": f"Bearer {bearer}"})

    async def issue(self, namespace: str, token: int) -> None:
        """Part of protocol step 3: a token for this claim, and the end of all lower ones. Repeating it is harmless.

        Raises:
            StaleClaim: a higher claim has a Secret here, or has deleted ours. ApiError, ClusterUnavailable: refused.
        """
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        await once_known(lambda: create(self._api, accounts, {"metadata": {"name": CLAIM_ACCOUNT}, "automountServiceAccountToken": False}))
        name = f"prevue-claim-{token}"
        # Made before the others are looked for: of two holders at once, one at least sees the other.
        await once_known(lambda: create(self._api, _secrets(namespace), _body(name, token)))
        found = [item for item in await self._list(namespace) if item.metadata.name == f"prevue-claim-{_token_of(item.metadata)}"]
        own = next((item for item in found if item.metadata.name == name), None)
        if own is None or any(_token_of(item.metadata) > token for item in found):
            raise StaleClaim(f"a newer claim than {token} has revoked the tokens in {namespace}")
        lower = [item for item in found if _token_of(item.metadata) < token]
        stale = sorted({bearer for item in lower for bearer in [*_texts(item, "token"), *_texts(item, "stale")]} | {*_texts(own, "stale")})
        written = _texts(own, "token")
        bearer = written[0] if written else await self._request(namespace, own.metadata)
        if not written or lower:
            await self._write(namespace, own.metadata, bearer, stale)
        for item in lower:
            await self._delete(namespace, item.metadata)
        self._held[namespace, token] = _Held(secret=name, bearer=bearer, stale=stale)
        while len(self._held) > HELD_MAX:
            del self._held[next(iter(self._held))]

    async def see_refused(self, fence: Fence) -> bool:
        """Protocol step 4: the tokens of lower claims are refused, ours is not. False: there was none to wait for.

        Raises:
            StaleClaim: our own is refused. ClusterUnavailable: a revoked one is still accepted after a minute.
        """
        held = self._held[fence.namespace, fence.token]
        try:
            await once_known(lambda: self.try_write(fence.namespace, held.bearer))
        except Unauthorized as exc:
            raise StaleClaim(f"the token of claim {fence.token} in {fence.namespace} was revoked") from exc
        if not held.stale:
            return False
        for bearer in held.stale:
            await self.refusal(fence.namespace, bearer)
        own = Meta(name=held.secret)
        await self._write(fence.namespace, own, held.bearer, [])
        held.stale = []
        return True

    async def refusal(self, namespace: str, bearer: str) -> float:
        """Wait until a revoked token is refused; how long it took, in seconds.

        Raises:
            ClusterUnavailable: it is still accepted after a minute.
        """
        began = time.monotonic()
        pause = LEARN_SECONDS
        while time.monotonic() - began < REFUSED_SECONDS_MAX:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, PAUSE_SECONDS_MAX)
            try:
                await self.try_write(namespace, bearer)
            except Unauthorized:
                return time.monotonic() - began
            except ApiError:
                pass  # authenticated, and refused for another reason: it is not revoked yet
        raise ClusterUnavailable(f"a revoked token is still accepted in {namespace} after {REFUSED_SECONDS_MAX:g} s")

    async def try_write(self, namespace: str, bearer: str) -> None:
        """A server dry-run write.

        Raises:
            Unauthorized: the token is revoked or unknown. ApiError: refused otherwise.
        """
        path = f"/api/v1/namespaces/{namespace}/configmaps"
        await self.acting(bearer).call("POST", path, body={"metadata": {"name": "prevue-fence-try"}}, parameters={"dryRun": "All"})

    async def try_out(self, namespace: str, name: str) -> tuple[Meta, str]:
        """A Secret and a token bound to it that belong to no claim; `end_trial` ends both.

        Raises:
            ApiError, ClusterUnavailable: tokens are not to be had here.
        """
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        await once_known(lambda: create(self._api, accounts, {"metadata": {"name": CLAIM_ACCOUNT}, "automountServiceAccountToken": False}))
        answer = await once_known(lambda: self._api.call("POST", _secrets(namespace), body=_body(name, 0)))
        meta = msgspec.json.decode(answer, type=Secret).metadata
        try:
            bearer = await self._request(namespace, meta)
            await once_known(lambda: self.try_write(namespace, bearer))
        except (ApiError, ClusterUnavailable):
            await self._delete(namespace, meta)
            raise
        return meta, bearer

    async def end_trial(self, namespace: str, meta: Meta) -> None:
        """Delete what `try_out` made."""
        await self._delete(namespace, meta)

    async def _list(self, namespace: str) -> Sequence[Secret]:
        answer = await self._api.call("GET", _secrets(namespace), parameters={"labelSelector": LABEL_CLAIM})
        return msgspec.json.decode(answer, type=_Secrets).items

    async def _request(self, namespace: str, meta: Meta) -> str:
        """A token that dies with the Secret; by uid, so that one made anew under the same name does not revive it."""
        bound = {"kind": "Secret", "apiVersion": "v1", "name": meta.name, "uid": meta.uid}
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": TOKEN_SECONDS, "boundObjectRef": bound},
        }
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{CLAIM_ACCOUNT}/token"
        return msgspec.json.decode(await self._api.call("POST", path, body=body), type=_TokenRequest).status.token

    async def _write(self, namespace: str, meta: Meta, bearer: str, stale: Sequence[str]) -> None:
        data = {"token": _encoded(bearer), "stale": _encoded("\n".join(stale))}
        body = {"metadata": {"uid": meta.uid} if meta.uid else {}, "data": data}
        try:
            await self._api.call("PATCH", f"{_secrets(namespace)}/{meta.name}", body=body, content_type=MERGE_PATCH)
        except ApiError as exc:
            if exc.status in (HTTP_NOT_FOUND, HTTP_CONFLICT):
                raise StaleClaim(f"a newer claim has deleted {meta.name} in {namespace}") from exc
            raise

    async def _delete(self, namespace: str, meta: Meta) -> None:
        try:
            await self._api.call("DELETE", f"{_secrets(namespace)}/{meta.name}", body={"preconditions": {"uid": meta.uid}})
        except ApiError as exc:
            if exc.status not in (HTTP_NOT_FOUND, HTTP_CONFLICT):
                raise


def _secrets(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/secrets"


def _body(name: str, token: int) -> dict[str, object]:
    return {"metadata": {"name": name, "labels": {LABEL_CLAIM: str(token)}}, "type": SECRET_TYPE}


def _token_of(meta: Meta) -> int:
    """0 where a chart has made such a label itself."""
    text = meta.labels.get(LABEL_CLAIM, "")
    return int(text) if text.isdecimal() else 0


def _texts(secret: Secret, name: str) -> list[str]:
    """The lines of one value; none where it is absent or no base64."""
    try:
        return base64.b64decode(secret.data.get(name, ""), validate=True).decode().split()
    except ValueError:
        return []


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
