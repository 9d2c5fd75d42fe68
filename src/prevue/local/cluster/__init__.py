"""The local cluster: a real Kubernetes on this machine without Docker, shared by all who need it at the same time.

    cluster = join(print)          # builds it, starts it, or shares the one that runs
    cluster.load_image(archive)
    subprocess.run([cluster.kubectl, "--kubeconfig", cluster.kubeconfig, "get", "pods"])
    cluster.leave()                # the last one's leaving stops it

`ExternalCluster` has the same interface for a cluster of the user's own. Nobody's current context is ever used unasked.
"""

from __future__ import annotations

from prevue.local.cluster.cache import Progress
from prevue.local.cluster.errors import LocalClusterError
from prevue.local.cluster.external import ExternalCluster
from prevue.local.cluster.handle import Cluster, ClusterHandle, join
from prevue.local.cluster.images import write_example_image, write_image
from prevue.local.cluster.programs import client_programs, find_busybox, find_helm

__all__ = [
    "Cluster", "ClusterHandle", "ExternalCluster", "LocalClusterError", "Progress",
    "client_programs", "find_busybox", "find_helm", "join", "write_example_image", "write_image",
]  # fmt: skip
