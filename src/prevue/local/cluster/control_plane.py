"""The control plane: etcd, the API server, the controllers and the scheduler, tuned for one small machine.

All data is thrown away at the end, so etcd does not wait for the disk. The limits on requests are raised: a burst of fifty
previews goes through one controller manager.
"""

from __future__ import annotations

import json
import secrets
from base64 import b64encode
from pathlib import Path

from prevue.local.cluster.state import Layout, StateFolder, write_whole
from prevue.local.cluster.supervisor import Service

CONCURRENT_SYNCS = 10
"""Workers of each controller. More of them only wait for the two cores."""
CONCURRENT_KINDS = (
    "deployment",
    "replicaset",
    "statefulset",
    "daemonset",
    "job",
    "namespace",
    "endpoint",
    "service-endpoint",
    "gc",
    "serviceaccount-token",
)


def write_credentials(folder: StateFolder, layout: Layout) -> None:
    """The administrator's token, for the API server and as a kubeconfig."""
    token = secrets.token_urlsafe(32)
    write_whole(folder.secrets / "tokens.csv", f'{token},admin,admin,"system:masters"\n'.encode())
    authority = (folder.secrets / "ca.crt").read_bytes()
    write_whole(folder.kubeconfig, _kubeconfig(layout, token, authority))


def _kubeconfig(layout: Layout, token: str, authority: bytes) -> bytes:
    name = "prevue-local"
    cluster = {"server": layout.api_url, "certificate-authority-data": b64encode(authority).decode()}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
    return json.dumps(content, indent=2).encode()  # JSON is YAML


def admin_token(folder: StateFolder) -> str:
    return (folder.secrets / "tokens.csv").read_text().partition(",")[0]


def etcd(folder: StateFolder, layout: Layout) -> Service:
    client, peer = f"http://127.0.0.1:{layout.etcd_port}", f"http://127.0.0.1:{layout.etcd_peer_port}"
    return Service(
        "etcd",
        [
            str(folder.programs / "etcd"),
            f"--data-dir={folder.root / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ],
    )


def kube_apiserver(folder: StateFolder, layout: Layout) -> Service:
    pki = folder.secrets
    return Service(
        "kube-apiserver",
        [
            str(folder.programs / "kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{layout.etcd_port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={layout.api_port}",
            f"--cert-dir={pki}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--token-auth-file={pki / 'tokens.csv'}",
            f"--service-cluster-ip-range={layout.service_range}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki / 'service-accounts.pub'}",
            f"--service-account-signing-key-file={pki / 'service-accounts.key'}",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            # No endpoint for `kubernetes`: the server listens on loopback, which no pod reaches.
            "--endpoint-reconciler-type=none",
            f"--kubelet-certificate-authority={pki / 'ca.crt'}",
            f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
            f"--kubelet-client-key={pki / 'kubelet-client.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            "--max-requests-inflight=1600",
            "--max-mutating-requests-inflight=800",
            "--profiling=false",
            # Everybody is on this machine: packing large answers would only cost time.
            "--feature-gates=APIResponseCompression=false",
        ],
    )


def kube_controller_manager(folder: StateFolder) -> Service:
    return Service(
        "kube-controller-manager",
        [
            str(folder.programs / "kube-controller-manager"),
            f"--kubeconfig={folder.kubeconfig}",
            f"--service-account-private-key-file={folder.secrets / 'service-accounts.key'}",
            f"--root-ca-file={folder.secrets / 'ca.crt'}",
            "--leader-elect=false",
            "--secure-port=0",
            "--kube-api-qps=400",
            "--kube-api-burst=800",
            *(f"--concurrent-{kind}-syncs={CONCURRENT_SYNCS}" for kind in CONCURRENT_KINDS),
            # A machine that is busy for a minute must not lose its pods.
            "--node-monitor-grace-period=5m",
            "--controllers=*,-node-ipam-controller,-node-route-controller,-service-lb-controller",
            "--profiling=false",
        ],
    )


def kube_scheduler(folder: StateFolder) -> Service:
    config = folder.root / "scheduler.yaml"
    content = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"kubeconfig": str(folder.kubeconfig), "qps": 400, "burst": 800},
    }
    write_whole(config, json.dumps(content).encode())
    return Service("kube-scheduler", [str(folder.programs / "kube-scheduler"), f"--config={config}", "--secure-port=0"])


def link_components(programs: Path, names: tuple[str, ...]) -> None:
    """Give the one Kubernetes program its components' names."""
    for name in names:
        link = programs / name
        link.unlink(missing_ok=True)
        link.symlink_to("kubernetes")
