"""The node: containerd, kubelet and kube-proxy, all below the cluster's own folder.

Pods are connected by `ptp`, each with a pair of links and a route: every packet is routed, so a pod reaches a Service whose
pod is on the same node without any bridge setting of the kernel.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path

from prevue.local.cluster.images import write_image
from prevue.local.cluster.state import Layout, StateFolder, write_whole
from prevue.local.cluster.supervisor import Service

PODS_MAX = 250
GARBAGE_PERCENT = "200"
"""Go's GOGC: fewer collections during a burst, for some 100 MB more in the API server."""
PAUSE_IMAGE = "prevue.local/pause:1"


def network_name(folder: StateFolder) -> str:
    """The pods' network by a name of our own: the plugins keep records by it outside of our folder."""
    return f"prevue-{sha256(str(folder.root).encode()).hexdigest()[:8]}"


def cgroup_folders(folder: StateFolder) -> list[Path]:
    """The control groups of the containers that this node knows: one in each hierarchy of cgroup v1, one in all with v2."""
    base = Path("/sys/fs/cgroup")
    hierarchies = [base] if (base / "cgroup.controllers").exists() else [path for path in base.iterdir() if path.is_dir()]
    containers = [path.name for path in folder.containerd_state.glob("io.containerd.runtime.v2.task/k8s.io/*")]
    return [path for name in containers for hierarchy in hierarchies if (path := hierarchy / "k8s.io" / name).is_dir()]


def prepare(folder: StateFolder, layout: Layout) -> None:
    """Write the node's configuration."""
    for path in (folder.containerd_state, folder.logs, folder.root / "cni" / "conf", folder.root / "kubelet"):
        path.mkdir(parents=True, exist_ok=True)
    registry = folder.root / "registries" / "prevue.local"
    registry.mkdir(parents=True, exist_ok=True)
    # No such registry exists: a missing image is refused at once instead of after a search for its name.
    write_whole(registry / "hosts.toml", b'server = "http://127.0.0.1:1"\n')
    write_whole(folder.root / "containerd.toml", _containerd_config(folder).encode())
    write_whole(folder.root / "cni" / "conf" / "10-prevue.conflist", json.dumps(_network_config(folder, layout)).encode())
    write_whole(folder.root / "kubelet.yaml", json.dumps(_kubelet_config(folder, layout)).encode())
    write_whole(folder.root / "kube-proxy.yaml", json.dumps(_proxy_config(folder, layout)).encode())


def containerd(folder: StateFolder) -> Service:
    return Service("containerd", [str(folder.programs / "containerd"), "--config", str(folder.root / "containerd.toml")])


def kubelet(folder: StateFolder, layout: Layout) -> Service:
    return Service(
        "kubelet",
        [
            str(folder.programs / "kubelet"),
            f"--config={folder.root / 'kubelet.yaml'}",
            f"--kubeconfig={folder.kubeconfig}",
            f"--hostname-override={layout.node_name}",
            f"--node-ip={layout.node_ip}",
            f"--root-dir={folder.root / 'kubelet'}",
            f"--cert-dir={folder.secrets}",
        ],
    )


def kube_proxy(folder: StateFolder) -> Service:
    return Service("kube-proxy", [str(folder.programs / "kube-proxy"), f"--config={folder.root / 'kube-proxy.yaml'}"])


def load_pause_image(folder: StateFolder) -> None:
    """Give containerd the image that holds each pod's namespaces open."""
    with tempfile.TemporaryDirectory(prefix="prevue-pause-") as work:
        archive = Path(work) / "pause.tar"
        write_image(
            archive,
            reference=PAUSE_IMAGE,
            busybox=folder.programs / "busybox",
            files={},
            command=["/bin/busybox", "sleep", "2147483647"],
        )
        command = ["-n", "k8s.io", "images", "import", str(archive)]
        subprocess.run([folder.programs / "ctr", "-a", folder.containerd_socket, *command], check=True, capture_output=True)


def _containerd_config(folder: StateFolder) -> str:
    runc = "io.containerd.runc.v2"
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""\
version = 2
root = "{folder.root / "containerd"}"
state = "{folder.containerd_state}"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "{folder.containerd_socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder.root / "opt"}"
[{cri}]
sandbox_image = "{PAUSE_IMAGE}"
# Without CAP_SYS_RESOURCE runc may not lower a score, and dies.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[{cri}.containerd]
snapshotter = "{_snapshotter(folder)}"
default_runtime_name = "runc"
[{cri}.containerd.runtimes.runc]
runtime_type = "{runc}"
[{cri}.containerd.runtimes.runc.options]
BinaryName = "{folder.programs / "runc"}"
SystemdCgroup = false
Root = "{folder.root / "runc"}"
[{cri}.cni]
bin_dir = "{folder.programs}"
conf_dir = "{folder.root / "cni" / "conf"}"
[{cri}.registry]
config_path = "{folder.root / "registries"}"
"""


def _snapshotter(folder: StateFolder) -> str:
    """overlayfs where the state folder's file system carries one (another overlay does not), else plain copies."""
    with tempfile.TemporaryDirectory(prefix="overlay-", dir=folder.root) as work:
        lower, upper, workdir, merged = (Path(work) / name for name in ("lower", "upper", "work", "merged"))
        for path in (lower, upper, workdir, merged):
            path.mkdir()
        options = f"lowerdir={lower},upperdir={upper},workdir={workdir}"
        mounted = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], capture_output=True, check=False)
        if mounted.returncode != 0:
            return "native"
        subprocess.run(["umount", merged], capture_output=True, check=True)
    return "overlayfs"


def _network_config(folder: StateFolder, layout: Layout) -> dict[str, object]:
    ranges = [[{"subnet": layout.pod_range}]]
    ipam = {"type": "host-local", "dataDir": str(folder.root / "cni" / "addresses"), "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
    plugins = [{"type": "ptp", "ipam": ipam}, {"type": "portmap", "capabilities": {"portMappings": True}}]
    return {"cniVersion": "1.0.0", "name": network_name(folder), "plugins": plugins}


def _kubelet_config(folder: StateFolder, layout: Layout) -> dict[str, object]:
    pki = folder.secrets
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": layout.node_ip,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "AlwaysAllow"},  # whoever holds a certificate of this authority is the API server
        "tlsCertFile": str(pki / "kubelet.crt"),
        "tlsPrivateKeyFile": str(pki / "kubelet.key"),
        "containerRuntimeEndpoint": f"unix://{folder.containerd_socket}",
        "cgroupDriver": "cgroupfs",
        # A group per pod around its containers' groups costs a third of a pod's start with cgroup v1. The containers' own
        # limits hold without it, and a second kubelet on this machine does not end our pods as unknown ones.
        "cgroupsPerQOS": False,
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "evictionHard": {},  # a full disk of the machine is not the cluster's affair
        "imageGCHighThresholdPercent": 100,  # never: no registry has our images
        "maxPods": PODS_MAX,
        "podLogsDir": str(folder.root / "pod-logs"),
        "volumePluginDir": str(folder.root / "volume-plugins"),
        "resolvConf": "",
        "clusterDomain": "cluster.local",
        "healthzPort": 0,
        "makeIPTablesUtilChains": False,
        "oomScoreAdj": 0,
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        "kubeAPIQPS": 400,
        "kubeAPIBurst": 800,
        "syncFrequency": "10s",
        "enableServer": True,
        "localStorageCapacityIsolation": True,
        "protectKernelDefaults": False,
    }


def _proxy_config(folder: StateFolder, layout: Layout) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(folder.kubeconfig), "qps": 100, "burst": 200},
        "mode": "iptables",
        "hostnameOverride": layout.node_name,
        "clusterCIDR": layout.pod_range,
        "nodePortAddresses": ["127.0.0.0/8"],  # NodePorts answer on this machine and nowhere else
        "healthzBindAddress": "",
        "metricsBindAddress": "",
        "iptables": {"localhostNodePorts": True, "minSyncPeriod": "200ms"},
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},  # the kernel's own stay
        "oomScoreAdj": 0,
    }


def environment(folder: StateFolder) -> dict[str, str]:
    """What the cluster's processes get: our programs first, and no proxy or Kubernetes setting of the caller."""
    system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": f"{folder.programs}:{system}", "HOME": str(folder.root), "LANG": "C.UTF-8", "GOGC": GARBAGE_PERCENT}
