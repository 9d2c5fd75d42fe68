"""Google's queues on this machine: the emulators of Cloud Tasks and Pub/Sub, built once and started on loopback.

Both keep everything in memory: what they hold ends with their process. docs/queues/ says what they cannot show.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prevue.local.cluster.cache import ProgramCache, Progress, cache_root
from prevue.local.cluster.golang import Workbench, build
from prevue.local.ports import LOOPBACK

CLOUD_TASKS_VERSION = "1.2.0"
PUBSUB_VERSION = "2.8.1"


@dataclass(frozen=True, kw_only=True)
class CloudTasksEmulator:
    """How the Cloud Tasks emulator is started, and where it then is."""

    program: Path
    port: int
    issuer_port: int
    """Its keys' endpoint listens on all addresses, whatever it is told: it shows one public key and nothing else."""

    @property
    def command(self) -> list[str]:
        return [str(self.program), "-host", LOOPBACK, "-port", str(self.port), "-openid-issuer", self.issuer]

    @property
    def endpoint(self) -> str:
        """`queue.cloud_tasks.endpoint`."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def issuer(self) -> str:
        """`queue.cloud_tasks.issuer`: who signs the tasks' tokens."""
        return f"http://{LOOPBACK}:{self.issuer_port}"

    @property
    def certificates_url(self) -> str:
        """`queue.cloud_tasks.certificates_url`."""
        return f"{self.issuer}/jwks"


@dataclass(frozen=True, kw_only=True)
class PubSubEmulator:
    """How the Pub/Sub emulator is started, and where it then is."""

    program: Path
    port: int
    clock_port: int | None = None
    """Where its time can be moved ahead (`POST /advance?seconds=61`); None: it goes as time does."""

    @property
    def command(self) -> list[str]:
        clock = [] if self.clock_port is None else ["-clock", f"{LOOPBACK}:{self.clock_port}"]
        return [str(self.program), "-addr", self.endpoint, *clock]

    @property
    def endpoint(self) -> str:
        """`queue.pubsub.endpoint`."""
        return f"{LOOPBACK}:{self.port}"


def cloud_tasks_program(progress: Progress, environ: Mapping[str, str] = os.environ) -> Path:
    """The Cloud Tasks emulator, built on the first call."""
    package = "github.com/aertje/cloud-tasks-emulator"
    return _program("cloud-tasks-emulator", CLOUD_TASKS_VERSION, package, progress, environ, takes="half a minute")


def pubsub_program(progress: Progress, environ: Mapping[str, str] = os.environ) -> Path:
    """The Pub/Sub emulator, built on the first call."""
    return _program("pubsub-emulator", PUBSUB_VERSION, ".", progress, environ, takes="about a minute")


def _program(module: str, version: str, package: str, progress: Progress, environ: Mapping[str, str], *, takes: str) -> Path:
    def compile_it(bench: Workbench) -> None:
        bench.build(package, module, what=f"{module} {version}")

    return build(ProgramCache(cache_root(environ), progress), environ, module, version, compile_it, takes=takes) / module
