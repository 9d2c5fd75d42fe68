"""The real world of the contracts: the local Kubernetes, real Helm, the deployer's own account. Fixtures for whoever imports them.

The cluster is the one that demos use too; every preview here has a random repository id, so that nobody meets.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import yaml

from prevue.clock import SystemClock
from prevue.cluster.claims import LABEL_CLAIM
from prevue.cluster.install import TOKENS_MANIFEST, apply_manifests, deployer_kubeconfig
from prevue.cluster.kubernetes import KubernetesCluster
from prevue.cluster.port import FenceKind, UrlProbe
from prevue.cluster.probe import HttpProbe
from prevue.config import ClusterSettings
from prevue.helm.command import HelmCommand
from prevue.helm.port import Helm, ReleaseSpec
from prevue.local import cluster as local_cluster
from prevue.model import PreviewKey
from prevue.testing.contracts.worlds import RELEASE, STALE_ERRORS, FullCluster, World, labels, namespace_of, new_key
from prevue.testing.process_tree import naming

IMAGE = "prevue.test/web:1"
KINDS = "configmaps,secrets,services,deployments,jobs"


class LiveCluster:
    """What a session shares: the cluster, its administrator, and the deployer's kubeconfig."""

    def __init__(self, handle: local_cluster.Cluster, folder: Path) -> None:
        self.handle = handle
        self.helm = os.environ.get("PREVUE_TEST_HELM") or str(handle.helm)
        """Another Helm for the same tests: 3.18, say."""
        self.folder = folder
        self.kubeconfig = folder / "deployer.yaml"
        self.chart = folder / "chart"
        self.namespaces: set[str] = set()

    def prepare(self) -> None:
        """Rights, fence, the test image, and a chart that renders whatever its values say."""
        apply_manifests(self.handle.kubeconfig, optional=(TOKENS_MANIFEST,))
        deployer_kubeconfig(self.handle.kubeconfig, self.kubeconfig)
        self.load_image(IMAGE)
        (self.chart / "templates").mkdir(parents=True)
        (self.chart / "Chart.yaml").write_text("apiVersion: v2\nname: anything\nversion: 0.1.0\n")
        (self.chart / "templates" / "all.yaml").write_text("{{ range .Values.objects }}\n---\n{{ toYaml . }}\n{{ end }}\n")

    def load_image(self, reference: str) -> None:
        """Make an image of busybox known to the node."""
        archive = self.folder / "image.tar"
        local_cluster.write_image(
            archive, reference=reference, busybox=self.handle.busybox, files={"/www/index.html": b"ok\n"}, command=["busybox"]
        )
        self.handle.load_image(archive)

    def kubectl(self, *arguments: str, text: str = "") -> str:
        """As the administrator."""
        command = [str(self.handle.kubectl), "--kubeconfig", str(self.handle.kubeconfig), *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise AssertionError(f"kubectl {arguments}: {done.stderr}")
        return done.stdout

    def objects(self, namespace: str) -> list[dict[str, Any]]:
        """What charts may have made there."""
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", KINDS, "-n", namespace, "-o", "json"))["items"]
        return [
            item
            for item in found
            if item["metadata"]["name"] != "kube-root-ca.crt" and LABEL_CLAIM not in item["metadata"].get("labels", {})
        ]

    def forget(self) -> None:
        """Delete the namespaces of the tests; nobody waits for it."""
        if self.namespaces:
            self.kubectl("delete", "namespace", "--ignore-not-found", "--wait=false", *sorted(self.namespaces))
        self.namespaces.clear()


def web_objects(commit: str, *, image: str = IMAGE, command: list[str] | None = None, probe_path: str = "/") -> list[dict[str, Any]]:
    """A ConfigMap, a Deployment that serves a page, and its Service."""
    container = {
        "name": "web",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": command or ["busybox", "httpd", "-f", "-p", "8080", "-h", "/www"],
        "env": [{"name": "COMMIT", "value": commit}],
        "readinessProbe": {"httpGet": {"path": probe_path, "port": 8080}, "periodSeconds": 1},
    }
    pod = {"terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False, "containers": [container]}
    template = {"metadata": {"labels": {"app": RELEASE}}, "spec": pod}
    deployment = {"replicas": 1, "selector": {"matchLabels": {"app": RELEASE}}, "template": template}
    service = {"type": "NodePort", "selector": {"app": RELEASE}, "ports": [{"port": 80, "targetPort": 8080}]}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": RELEASE}, "data": {"commit": commit}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": RELEASE}, "spec": service},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": RELEASE}, "spec": deployment},
    ]


def slow_hook() -> dict[str, Any]:
    """A hook that Helm waits for: while it runs, the release is pending."""
    hooks = {"helm.sh/hook": "pre-install,pre-upgrade", "helm.sh/hook-delete-policy": "before-hook-creation"}
    container = {"name": "wait", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["busybox", "sleep", "30"]}
    pod = {"terminationGracePeriodSeconds": 0, "restartPolicy": "Never", "containers": [container]}
    job = {"backoffLimit": 0, "template": {"spec": pod}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "wait", "annotations": hooks}, "spec": job}


class LiveWorld:
    """Real Helm, real API server."""

    midway_seconds = 3.0

    def __init__(self, live: LiveCluster, helm: Helm, cluster: KubernetesCluster, probe: UrlProbe, kind: FenceKind) -> None:
        self.stale_error = STALE_ERRORS[kind]
        self.live = live
        self.helm: Helm = helm
        self.kubernetes = cluster
        self.cluster: FullCluster = cluster
        self.probe: UrlProbe = probe
        self.clock = SystemClock()

    def new_key(self) -> PreviewKey:
        key = new_key()
        self.live.namespaces.add(namespace_of(key))
        return key

    def spec(self, namespace: str, commit: str, token: int, *, slow: bool = False) -> ReleaseSpec:
        return self.spec_of(namespace, commit, token, [*web_objects(commit), *([slow_hook()] if slow else [])])

    def spec_of(self, namespace: str, commit: str, token: int, objects: list[dict[str, Any]]) -> ReleaseSpec:
        """A release of any objects."""
        return ReleaseSpec(
            namespace=namespace,
            name=RELEASE,
            chart=self.live.chart,
            values={"objects": objects},
            labels=labels(commit, token),
            hooks_timeout_seconds=40,
        )

    def deadline(self, seconds: float) -> float:
        return self.clock.boottime() + seconds

    async def snapshot(self, namespace: str) -> dict[str, str]:
        """uid and generation or data: what a write would change, and no controller does."""
        found: dict[str, str] = {}
        for item in self.live.objects(namespace):
            meta = item["metadata"]
            content = json.dumps({"spec": item.get("spec"), "data": item.get("data"), "labels": meta.get("labels")}, sort_keys=True)
            found[f"{item['kind']}/{meta['name']}"] = f"{meta['uid']} {content}"
        return found

    def make_foreign_namespace(self, namespace: str) -> None:
        self.live.kubectl("create", "namespace", namespace)

    def break_pods(self, spec: ReleaseSpec) -> ReleaseSpec:
        objects = yaml.safe_load(yaml.safe_dump(spec.values["objects"]))
        for item in objects:
            if item["kind"] == "Deployment":
                item["spec"]["template"]["spec"]["containers"][0] |= {"image": "nobody.test/has-this:1", "imagePullPolicy": "Never"}
        return msgspec.structs.replace(spec, values={"objects": objects})

    def helms_running(self) -> int:
        return len(self.helm_pids())

    def helm_pids(self) -> list[int]:
        """Wrappers and Helms below this process, as /proc knows them; a wrapper before its Helm."""
        return naming(self.live.helm, below=os.getpid())


@pytest.fixture(scope="session")
def live_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    """The local cluster, shared by all tests of a run; its last user's leaving stops it."""
    handle = local_cluster.join(print)
    live = LiveCluster(handle, tmp_path_factory.mktemp("cluster"))
    try:
        live.prepare()
        yield live
    finally:
        handle.leave(wait=False)


@asynccontextmanager
async def open_world(live: LiveCluster, kind: FenceKind, *, kubeconfig: Path | None = None) -> AsyncIterator[LiveWorld]:
    """A worker's backends under a fence of one kind."""
    settings = ClusterSettings(kubeconfig=str(kubeconfig or live.kubeconfig), fence=kind.value)
    async with AsyncExitStack() as stack:
        helm = await stack.enter_async_context(HelmCommand.open(live.helm))
        cluster = await stack.enter_async_context(KubernetesCluster.open(settings))
        probe = await stack.enter_async_context(HttpProbe.open())
        yield LiveWorld(live, helm, cluster, probe, kind)
    live.forget()


@pytest.fixture
async def live_world(live_cluster: LiveCluster) -> AsyncIterator[LiveWorld]:
    """A worker's backends, for one test."""
    async with open_world(live_cluster, FenceKind.IDENTITY) as world:
        yield world


@pytest.fixture
async def live_token_world(live_cluster: LiveCluster) -> AsyncIterator[LiveWorld]:
    """The same where each claim has a token of its own."""
    async with open_world(live_cluster, FenceKind.TOKEN) as world:
        yield world


if TYPE_CHECKING:
    _: type[World] = LiveWorld
