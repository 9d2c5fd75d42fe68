"""What an administrator installs in a cluster once: roles, the deployer's account and the fence's policy.

`kubectl apply -f` of the files in `manifests/` does the same; this is for the local stack and for tests, which have an administrator's
kubeconfig and want to know when the fence is in force. Plain and synchronous: it runs before any process of Prevue.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import yaml
from lightkube.config.client_adapter import ConnectionParams

from prevue.cluster.api import APPLY_PATCH, Access, as_claim, load_access
from prevue.cluster.choice import POLICY_MANIFEST, manifest, path_of
from prevue.cluster.fence import CHECK_NAMESPACE, CHECK_TOKEN, ENFORCED_SECONDS_MAX, POLICY
from prevue.config import ClusterSettings
from prevue.errors import ClusterUnavailable

ACCOUNT_NAMESPACE = "prevue-system"
ACCOUNT = "prevue-deployer"
MANIFESTS = ("preview-role.yaml", "deployer.yaml", "deployer-policy.yaml", POLICY_MANIFEST)
TOKENS_MANIFEST = "tokens.yaml"
"""Optional: what `cluster.fence: token` needs."""
TOKEN_SECONDS = 30 * 24 * 3600
REQUEST_SECONDS = 10.0


def apply_manifests(kubeconfig: Path, *, context: str = "", optional: tuple[str, ...] = ()) -> None:
    """Install or update everything and what is `optional`, as an administrator; return when the API server refuses stale tokens.

    Repeating it is harmless.

    Raises:
        ConfigError: the kubeconfig cannot be used. ClusterUnavailable: the API server refuses, or the fence is not in force in time.
    """
    access = load_access(ClusterSettings(kubeconfig=str(kubeconfig), context=context))
    with _client(access) as client:
        for document in (part for name in (*MANIFESTS, *optional) for part in yaml.safe_load_all(manifest(name))):
            answer = client.patch(
                path_of(document),
                params={"fieldManager": "prevue", "force": "true"},
                content=msgspec.json.encode(document),
                headers={"Content-Type": APPLY_PATCH},
            )
            _succeeded(answer, f"{document['kind']} {document['metadata']['name']} cannot be applied")
        _wait_enforced(client)


def deployer_kubeconfig(kubeconfig: Path, target: Path, *, context: str = "", token_seconds: int = TOKEN_SECONDS) -> None:
    """Write a kubeconfig (mode 0600) of the deployer's account, with a token of its own that an administrator's kubeconfig asks for.

    Raises:
        ConfigError, ClusterUnavailable: as for `apply_manifests`, which comes first.
    """
    access = load_access(ClusterSettings(kubeconfig=str(kubeconfig), context=context))
    path = f"/api/v1/namespaces/{ACCOUNT_NAMESPACE}/serviceaccounts/{ACCOUNT}/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": token_seconds}}
    with _client(access) as client:
        answer = _succeeded(client.post(path, json=body), f"no token for the account {ACCOUNT}")
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "prevue",
        "clusters": [{"name": "prevue", "cluster": access.cluster}],
        "users": [{"name": "prevue", "user": {"token": answer["status"]["token"]}}],
        "contexts": [{"name": "prevue", "context": {"cluster": "prevue", "user": "prevue"}}],
    }
    target.touch(mode=0o600)
    target.chmod(0o600)
    target.write_text(yaml.safe_dump(document))


def _client(access: Access) -> httpx2.Client:
    parameters: dict[str, Any] = ConnectionParams(timeout=httpx2.Timeout(REQUEST_SECONDS)).httpx_params(access.config)
    return httpx2.Client(**parameters)


def _wait_enforced(client: httpx2.Client) -> None:
    """A new policy is compiled and comes into force within a second or two; roles are known within milliseconds."""
    give_up = time.monotonic() + ENFORCED_SECONDS_MAX
    path = f"/api/v1/namespaces/{CHECK_NAMESPACE}/configmaps"
    body = {"metadata": {"name": "prevue-fence-try"}}
    while True:
        stale = client.post(path, json=body, params={"dryRun": "All"}, headers=as_claim(CHECK_NAMESPACE, CHECK_TOKEN - 1))
        rightful = client.post(path, json=body, params={"dryRun": "All"}, headers=as_claim(CHECK_NAMESPACE, CHECK_TOKEN))
        if POLICY in stale.text and not stale.is_success and rightful.is_success:
            return
        if time.monotonic() >= give_up:
            raise ClusterUnavailable(
                f"the policy {POLICY} is not in force after {ENFORCED_SECONDS_MAX:g} s: {stale.status_code}, {rightful.text}"
            )
        time.sleep(0.05)


def _succeeded(answer: httpx2.Response, what: str) -> dict[str, Any]:
    if not answer.is_success:
        raise ClusterUnavailable(f"{what}: {answer.status_code} {answer.text[:500]}")
    found: dict[str, Any] = answer.json()
    return found
