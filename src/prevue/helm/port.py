"""The Helm port: run one Helm at a time for a claim, in a process group of its own, never past an absolute deadline.

Exit code and text are for people; what became of a release is read back from the cluster (`cluster.port.Cluster.release`).
When a method returns or raises, also `asyncio.CancelledError`, the Helm child and its wrapper are reaped: no process of it runs any more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import msgspec


class ReleaseSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What Helm is to apply."""

    namespace: str
    name: str
    chart: Path
    values: dict[str, Any]
    """Handed over by standard input, never by a command line or a file."""
    labels: dict[str, str]
    """On the release's Secret: request, commit, digest, token."""
    hooks_timeout_seconds: float
    """Helm's `--timeout`: it is per operation, and bounds hooks."""


class HelmRun(msgspec.Struct, frozen=True, kw_only=True):
    """How a Helm ended."""

    exit_code: int
    """Negative: ended by that signal."""
    output: str
    """Standard output: JSON of the release, or rendered manifests."""
    error: str
    """Standard error, cut, without secrets."""
    deadline_passed: bool
    """The wrapper ended it at the absolute deadline, or refused to start it."""

    @property
    def manifest(self) -> str:
        """The rendered manifest, hooks left out, of an `upgrade_install` that ended well; else empty."""
        if self.exit_code != 0:
            return ""
        try:
            return msgspec.json.decode(self.output, type=_Released).manifest
        except msgspec.MsgspecError:
            return ""


class _Released(msgspec.Struct, frozen=True):
    """The one field of Helm's JSON that is used."""

    manifest: str = ""


class Helm(Protocol):
    """The Helm command; `kubeconfig` is the text of a claim's kubeconfig, `deadline` absolute CLOCK_BOOTTIME seconds."""

    async def upgrade_install(self, spec: ReleaseSpec, *, kubeconfig: str, deadline: float) -> HelmRun:
        """`helm upgrade --install` without `--wait` (hooks are still waited for); `output` is the release as JSON, manifest included."""
        ...

    async def rollback(self, namespace: str, name: str, *, kubeconfig: str, deadline: float) -> HelmRun:
        """`helm rollback` to the last deployed revision: how a pending upgrade is recovered."""
        ...

    async def uninstall(self, namespace: str, name: str, *, kubeconfig: str, deadline: float) -> HelmRun:
        """`helm uninstall`; an absent release is a success."""
        ...

    async def render(self, spec: ReleaseSpec, *, timeout_seconds: float) -> HelmRun:
        """`helm template`: reads no cluster, writes nothing."""
        ...

    async def version(self) -> str:
        """Such as `v4.3.1`.

        Raises:
            ConfigError: the program is missing, or older than 3.18.
        """
        ...
