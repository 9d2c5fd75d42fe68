"""Helm's stored releases and rendered manifests: read, and bounded."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import pytest

from prevue.cluster.api import ApiError, as_claim, claim_kubeconfig, impersonating, load_access
from prevue.cluster.fence import fence_of, is_policy_refusal, ownership_labels
from prevue.cluster.objects import Meta, Secret
from prevue.cluster.releases import manifest_of
from prevue.cluster.rendered import rendered_objects
from prevue.config import ClusterSettings
from prevue.errors import ChartInvalid, ClusterUnavailable, ConfigError
from prevue.helm.port import HelmRun
from prevue.model import PreviewKey


def stored(release: bytes) -> Secret:
    """As Helm stores it, as the API server gives it."""
    inner = base64.b64encode(gzip.compress(release))
    return Secret(data={"release": base64.b64encode(inner).decode()})


def test_manifest_is_unpacked() -> None:
    assert manifest_of(stored(json.dumps({"manifest": "---\nkind: Service\n", "chart": {"x": 1}}).encode())) == "---\nkind: Service\n"


@pytest.mark.parametrize("secret", [Secret(), Secret(data={"release": "%%%"}), stored(b"no json"), Secret(data={"release": "YWJj"})])
def test_broken_release_is_no_crash(secret: Secret) -> None:
    with pytest.raises(ClusterUnavailable):
        manifest_of(secret)


def test_bomb_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prevue.cluster.releases.MANIFEST_BYTES_MAX", 1000)
    with pytest.raises(ClusterUnavailable, match="larger"):
        manifest_of(stored(b'{"manifest": "' + b"a" * 100_000 + b'"}'))


def test_objects_of_a_manifest() -> None:
    text = (
        "---\n# Source: c/a.yaml\napiVersion: v1\nkind: Service\nmetadata: {name: a}\n---\n\n---\nkind: List\nitems:\n"
        "- {apiVersion: apps/v1, kind: Deployment, metadata: {name: b}}\n- nonsense\n---\n- a list\n---\nkind: Nameless\n"
    )
    assert [(item.kind, item.name) for item in rendered_objects(text)] == [("Service", "a"), ("Deployment", "b")]
    with pytest.raises(ChartInvalid):
        rendered_objects("a: [")


def test_manifest_of_a_helm_run() -> None:
    run = HelmRun(exit_code=0, output='{"name":"r","manifest":"kind: A","chart":{}}', error="", deadline_passed=False)
    assert run.manifest == "kind: A"
    assert HelmRun(exit_code=0, output="text", error="", deadline_passed=False).manifest == ""
    assert HelmRun(exit_code=1, output='{"manifest":"x"}', error="", deadline_passed=False).manifest == ""


def test_ownership_labels_are_label_values() -> None:
    assert ownership_labels(PreviewKey("github.com", 42, 7)) == {
        "prevue.dev/managed": "true",
        "prevue.dev/github-host": "github.com",
        "prevue.dev/repository-id": "42",
        "prevue.dev/pull-request": "7",
    }
    long = ownership_labels(PreviewKey("x" * 64 + ".example.com:8443", 42, 7))["prevue.dev/github-host"]
    assert len(long) <= 63
    assert long != ownership_labels(PreviewKey("y" * 64 + ".example.com:8443", 42, 7))["prevue.dev/github-host"]


@pytest.mark.parametrize(("text", "token"), [("17", 17), ("", 0), ("-1", 0), ("x", 0)])
def test_fence_annotation(text: str, token: int) -> None:
    assert fence_of(Meta(annotations={"prevue.dev/fence": text})) == token


def test_refusals_are_told_apart() -> None:
    policy = "configmaps \"x\" is forbidden: ValidatingAdmissionPolicy 'prevue-fence' with binding 'prevue-fence' denied request: "
    assert is_policy_refusal(ApiError(403, "Forbidden", policy + "stale fencing token"))
    assert not is_policy_refusal(ApiError(403, "Forbidden", policy + "expression '...' resulted in error: no such key"))
    assert not is_policy_refusal(ApiError(403, "Forbidden", 'User "system:serviceaccount:ns:deployer" cannot create resource "configmaps"'))


KUBECONFIG = """
current-context: a
clusters:
- {name: c, cluster: {server: 'https://127.0.0.1:1', certificate-authority: ca.crt}}
users:
- {name: u, user: {token: t0ken}}
- {name: certs, user: {client-certificate: c.pem, client-key: k.pem}}
contexts:
- {name: a, context: {cluster: c, user: u, namespace: somewhere}}
- {name: b, context: {cluster: c, user: certs}}
- {name: broken, context: {cluster: nowhere, user: u}}
"""


def test_claims_kubeconfig_has_one_context_and_absolute_paths(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(KUBECONFIG)
    access = load_access(ClusterSettings(kubeconfig=str(path)))
    made = json.loads(claim_kubeconfig(access, "pv-1", impersonating(access, "pv-1", 5)))
    assert made["users"] == [
        {
            "name": "claim",
            "user": {"token": "t0ken", "as": "system:serviceaccount:pv-1:deployer", "as-user-extra": {"prevue.dev/fence": ["5"]}},
        }
    ]
    assert made["clusters"][0]["cluster"]["certificate-authority"] == str(tmp_path / "ca.crt")
    assert [item["context"]["namespace"] for item in made["contexts"]] == ["pv-1"]
    access = load_access(ClusterSettings(kubeconfig=str(path), context="b"))
    made = json.loads(claim_kubeconfig(access, "pv-1", impersonating(access, "pv-1", 5)))
    assert made["users"][0]["user"]["client-key"] == str(tmp_path / "k.pem")


@pytest.mark.parametrize("context", ["broken", "absent"])
def test_wrong_kubeconfig_is_a_setting_to_correct(tmp_path: Path, context: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(KUBECONFIG)
    with pytest.raises(ConfigError, match=r"cluster\.kubeconfig"):
        load_access(ClusterSettings(kubeconfig=str(path), context=context))
    with pytest.raises(ConfigError, match=r"cluster\.kubeconfig"):
        load_access(ClusterSettings(kubeconfig=str(tmp_path / "nothing")))
    with pytest.raises(ConfigError, match=r"cluster\.kubeconfig"):
        load_access(ClusterSettings())


def test_header_of_the_extra_is_escaped() -> None:
    assert as_claim("ns", 7) == {
        "Impersonate-User": "system:serviceaccount:ns:deployer",
        "Impersonate-Extra-prevue.dev%2Ffence": "7",
    }
