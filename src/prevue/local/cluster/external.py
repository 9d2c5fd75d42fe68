"""A cluster of the user's own, named by its kubeconfig file: kind on a laptop, or a test cluster somewhere."""

from __future__ import annotations

import shlex
import subprocess
from functools import cached_property
from pathlib import Path

from prevue.local.cluster.cache import Progress
from prevue.local.cluster.errors import LocalClusterError
from prevue.local.cluster.programs import client_programs, find_busybox

LOAD_SECONDS = 300


class ExternalCluster:
    """The same interface as a share of the local cluster; nothing of the cluster is ever stopped."""

    def __init__(self, kubeconfig: Path, image_loader: str | None, progress: Progress) -> None:
        """
        Args:
            kubeconfig: the file; its current context is used, since the user named this file.
            image_loader: a command that gets a docker-archive's path where it says `{archive}`, else as its last argument,
                such as `kind load image-archive`. None where no image has to be loaded.
        """
        if not kubeconfig.is_file():
            raise LocalClusterError(f"--kubeconfig {kubeconfig}: there is no such file (kind writes one by `kind get kubeconfig > FILE`)")
        self.kubeconfig = kubeconfig.absolute()
        self.image_loader = shlex.split(image_loader) if image_loader else None
        self._progress = progress
        clients = client_programs(progress)
        self.helm, self.kubectl = clients.helm, clients.kubectl

    @cached_property
    def busybox(self) -> Path:
        return find_busybox(self._progress)

    def pids(self) -> dict[str, int]:
        """None: its processes are not ours."""
        return {}

    def load_image(self, archive: Path) -> None:
        """Run the image loader on a docker-archive."""
        if self.image_loader is None:
            raise LocalClusterError(
                "this cluster has no image loader: name a command with --image-loader, such as 'kind load image-archive'"
            )
        command = [word.replace("{archive}", str(archive)) for word in self.image_loader]
        if command == self.image_loader:
            command.append(str(archive))
        try:
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=LOAD_SECONDS, stdin=subprocess.DEVNULL)
        except subprocess.CalledProcessError as error:
            raise LocalClusterError(f"--image-loader: `{shlex.join(command)}` failed: {error.stderr.strip()[-500:]}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LocalClusterError(f"--image-loader: `{shlex.join(command)}` failed: {error}") from error

    def leave(self, *, wait: bool = True) -> None:
        """Nothing to give back."""
