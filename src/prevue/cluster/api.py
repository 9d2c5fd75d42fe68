"""Requests to one API server: lightkube for kubeconfig and credentials, httpx2 for the calls, msgspec for what comes back.

lightkube's typed client decodes whole models; here each caller names the few fields it needs. A call may be made in the name of a
claim (`as_claim`): then it impersonates the namespace's `deployer` with the claim's token, exactly as the claim's Helm does.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import msgspec
import yaml
from lightkube.config.client_adapter import ConnectionParams
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.config.models import User
from lightkube.core.exceptions import ConfigError as LightkubeConfigError

from prevue.cluster.port import FENCE_ANNOTATION
from prevue.config import ClusterSettings
from prevue.errors import ClusterUnavailable, ConfigError
from prevue.masking import cut, without_secrets

T = TypeVar("T")

REQUEST_TIMEOUT_SECONDS = 10.0
CONNECTIONS_MAX = 100
WATCH_SILENCE_SECONDS = 150.0
"""The API server sends a bookmark about every minute; a longer silence is a dead connection."""
MESSAGE_CHARACTERS_MAX = 1_000

JSON = "application/json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
"""Server-side apply; JSON is YAML."""

FENCE_HEADER = "Impersonate-Extra-" + FENCE_ANNOTATION.replace("/", "%2F")


class ApiError(Exception):
    """The API server refused a call: `status` and `reason` as it says them."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class Unauthorized(ClusterUnavailable):
    """The API server does not know the caller's credential, or does not know it any more."""


class _Status(msgspec.Struct, frozen=True):
    """The API server's `Status` object."""

    reason: str = ""
    message: str = ""


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach a cluster: lightkube's reading of the kubeconfig, and the raw parts of it, of which a claim's kubeconfig is made."""

    config: SingleConfig
    cluster: dict[str, Any]
    user: dict[str, Any]


def load_access(settings: ClusterSettings) -> Access:
    """The cluster that the settings name.

    Raises:
        ConfigError: the kubeconfig, or the context in it, is missing or wrong.
    """
    try:
        if not settings.kubeconfig:
            config = KubeConfig.from_service_account().get()
            assert config is not None and config.user is not None  # noqa: S101, PT018  from_service_account sets both
            cluster = {"server": config.cluster.server, "certificate-authority": config.cluster.certificate_auth}
            return Access(config=config, cluster=cluster, user={"tokenFile": config.user.token_file})
        path = Path(settings.kubeconfig).expanduser().resolve()
        raw = yaml.safe_load(path.read_text())
        config = KubeConfig.from_dict(raw, fname=path).get(settings.context or None)
        if config is None or config.user is None or config.context.user is None:
            raise ConfigError(f"cluster.kubeconfig: {path} has no user for the context {settings.context or 'current-context'}")
        found = {
            "cluster": next(item["cluster"] for item in raw["clusters"] if item["name"] == config.context.cluster),
            "user": next(item["user"] for item in raw["users"] if item["name"] == config.context.user),
        }
    except (LightkubeConfigError, OSError, KeyError, TypeError, StopIteration, yaml.YAMLError, msgspec.MsgspecError) as exc:
        where = settings.kubeconfig or "the pod's service account"
        raise ConfigError(f"cluster.kubeconfig: {where} cannot be used: {cut(without_secrets(str(exc)), 300)}") from exc
    return Access(config=config, cluster=_absolute(found["cluster"], path.parent), user=_absolute(found["user"], path.parent))


def _absolute(part: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    files = ("certificate-authority", "client-certificate", "client-key", "tokenFile")
    return {name: str(folder / value) if name in files and value else value for name, value in part.items()}


def claim_kubeconfig(access: Access, namespace: str, user: Mapping[str, Any]) -> str:
    """A kubeconfig (JSON is YAML) of this cluster with one user and no other context."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "claim",
        "clusters": [{"name": "claim", "cluster": access.cluster}],
        "users": [{"name": "claim", "user": user}],
        "contexts": [{"name": "claim", "context": {"cluster": "claim", "user": "claim", "namespace": namespace}}],
    }
    return msgspec.json.encode(document).decode()


def impersonating(access: Access, namespace: str, token: int) -> dict[str, Any]:
    """A kubeconfig's user that acts as the namespace's `deployer` with the claim's token; `as_claim` is the same for a call."""
    return {**access.user, "as": deployer_user(namespace), "as-user-extra": {FENCE_ANNOTATION: [str(token)]}}


def deployer_user(namespace: str) -> str:
    """The identity that writes in a preview's namespace; the service account itself need not exist."""
    return f"system:serviceaccount:{namespace}:deployer"


def as_claim(namespace: str, token: int) -> dict[str, str]:
    """Headers of a call in the name of a claim."""
    return {"Impersonate-User": deployer_user(namespace), FENCE_HEADER: str(token)}


class Api:
    """One HTTP client, shared by all calls and watches of a process; `headers` go with each call."""

    def __init__(self, client: httpx2.AsyncClient, headers: Mapping[str, str] | None = None) -> None:
        self._client = client
        self._headers = dict(headers or {})

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, access: Access, *, as_nobody: bool = False) -> AsyncIterator[Api]:
        """Connections to the cluster of `access`, closed at the end; `as_nobody`: without its credentials, for callers with their own.

        A client certificate would win over a bearer token, so the latter needs connections without it.
        """
        config = access.config._replace(user=User()) if as_nobody else access.config
        parameters = ConnectionParams(timeout=httpx2.Timeout(REQUEST_TIMEOUT_SECONDS)).httpx_params(config)
        limits = httpx2.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX)
        async with httpx2.AsyncClient(**parameters, limits=limits) as client:
            yield cls(client)

    def acting(self, headers: Mapping[str, str]) -> Api:
        """The same connections in another name."""
        return Api(self._client, headers)

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        parameters: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        accept: str = JSON,
        content_type: str = JSON,
    ) -> bytes:
        """One request; the answer's body.

        Raises:
            ApiError: refused. ClusterUnavailable: no answer, a server error, or patience is asked for.
        """
        all_headers = {"Accept": accept, **self._headers, **(headers or {})}
        content = None
        if body is not None:
            content = msgspec.json.encode(body)
            all_headers["Content-Type"] = content_type
        attempts = 2 if method == "GET" else 1  # an idle connection that the server has just closed costs a read one more try
        while True:
            attempts -= 1
            try:
                response = await self._client.request(method, path, content=content, params=parameters, headers=all_headers)
            except httpx2.HTTPError as exc:
                if attempts and isinstance(exc, (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError)):
                    continue
                raise ClusterUnavailable(f"the API server does not answer: {_text(exc)}") from exc
            if response.is_success:
                return response.content
            raise _refusal(response.status_code, response.content, response.headers.get("retry-after", ""))

    async def get(self, path: str, kind: type[T], *, accept: str = JSON) -> T:
        """One object, decoded."""
        return msgspec.json.decode(await self.call("GET", path, accept=accept), type=kind)

    async def find(self, path: str, kind: type[T], *, accept: str = JSON) -> T | None:
        """One object, or None where there is none."""
        try:
            return await self.get(path, kind, accept=accept)
        except ApiError as exc:
            if exc.status == httpx2.codes.NOT_FOUND:
                return None
            raise

    @contextlib.asynccontextmanager
    async def watch(self, path: str, parameters: Mapping[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
        """The lines of a watch, until the server ends it or falls silent.

        Raises:
            ApiError, ClusterUnavailable: as for a call.
        """
        timeout = httpx2.Timeout(REQUEST_TIMEOUT_SECONDS, read=WATCH_SILENCE_SECONDS)
        try:
            async with self._client.stream("GET", path, params={**parameters, "watch": "true"}, timeout=timeout) as response:
                if not response.is_success:
                    raise _refusal(response.status_code, await response.aread(), "")
                yield _lines(response)
        except httpx2.HTTPError as exc:
            raise ClusterUnavailable(f"the watch of {path} broke off: {_text(exc)}") from exc


async def _lines(response: httpx2.Response) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line:
                yield line


def _refusal(status: int, content: bytes, retry_after: str) -> ApiError | ClusterUnavailable:
    try:
        said = msgspec.json.decode(content, type=_Status)
    except msgspec.MsgspecError:
        said = _Status(message=content.decode(errors="replace"))
    message = cut(without_secrets(said.message), MESSAGE_CHARACTERS_MAX)
    if status == httpx2.codes.UNAUTHORIZED:
        return Unauthorized(f"the API server answers {status}: {message}")
    if status == httpx2.codes.TOO_MANY_REQUESTS or status >= httpx2.codes.INTERNAL_SERVER_ERROR:
        wait = float(retry_after) if retry_after.isdecimal() else None
        return ClusterUnavailable(f"the API server answers {status}: {message}", retry_after=wait)
    return ApiError(status, said.reason, message)


def _text(exc: Exception) -> str:
    return cut(without_secrets(f"{type(exc).__name__} {exc}".strip()), 300)
