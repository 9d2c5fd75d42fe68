"""The folder of one local stack: `.prevue/` in the working directory. Its files, secrets and settings.

    dev.json          what a person, a test or the demo needs to use the stack; there while the stack is ready
    supervisor.json   the processes that were started, to be ended by `down` when the supervisor itself was killed
    lock              held by the supervisor for as long as it lives
    prevue.yaml       settings of deployer and operators' commands; github-app.yaml: the App's, whose database role may only insert
    secrets/ postgres/ tmp/ logs/

Everything but the logs is removed by `down`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from prevue.local.processes import Recorded

OVERLAY_VARIABLE = "PREVUE_DEV_CONFIG"
"""Names a YAML file that is laid over the settings which the stack writes; without it, `.prevue/overlay.yaml` is taken if it is there."""

APP_ID = 1


class DevFile(msgspec.Struct, frozen=True, kw_only=True):
    """`dev.json`: how to reach the running stack."""

    github_url: str
    webhook_url: str
    webhook_secret: str
    database_url: str
    kubeconfig: str
    helm: str
    kubectl: str
    pids: dict[str, list[int]]
    """Name → process numbers, kept current at every restart."""


class SupervisorFile(msgspec.Struct, frozen=True, kw_only=True):
    """`supervisor.json`: who runs the stack, and what it has started."""

    supervisor: Recorded
    children: list[Recorded] = []
    namespaces: list[str] = []
    """Selectors of the previews' namespaces, to be deleted at the end."""
    kubeconfig: str = ""
    kubectl: str = ""


class StackFolder:
    """The paths below one root."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @property
    def dev(self) -> Path:
        return self.root / "dev.json"

    @property
    def supervisor(self) -> Path:
        return self.root / "supervisor.json"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def settings(self) -> Path:
        return self.root / "prevue.yaml"

    @property
    def app_settings(self) -> Path:
        return self.root / "github-app.yaml"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def private_key(self) -> Path:
        return self.secrets / "app.pem"

    @property
    def public_key(self) -> Path:
        return self.secrets / "app.pub.pem"

    @property
    def webhook_secret(self) -> Path:
        return self.secrets / "webhook-secret"

    @property
    def deployer_kubeconfig(self) -> Path:
        return self.secrets / "deployer.kubeconfig"

    @property
    def images(self) -> Path:
        return self.root / "images.json"

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def redis(self) -> Path:
        return self.root / "redis"

    @property
    def temporary(self) -> Path:
        """TMPDIR of the stack's processes: what one that was killed leaves there goes with the folder."""
        return self.root / "tmp"

    def make(self) -> None:
        """Make the folders and the secrets of a new stack."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self.secrets.mkdir(mode=0o700, exist_ok=True)
        self.temporary.mkdir(mode=0o700, exist_ok=True)
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        replace(self.private_key, private)
        replace(self.public_key, public)
        replace(self.webhook_secret, secrets.token_hex(20).encode())

    def remove(self) -> None:
        """Remove what the stack made; logs stay, and what a person put there (`overlay.yaml`)."""
        for path in (self.dev, self.supervisor, self.settings, self.app_settings, self.images):
            path.unlink(missing_ok=True)
        for folder in (self.secrets, self.postgres, self.redis, self.temporary):
            shutil.rmtree(folder, ignore_errors=True)

    def read_dev(self) -> DevFile | None:
        """The running stack's file, or None."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode(self.dev.read_bytes(), type=DevFile)
        return None

    def read_supervisor(self) -> SupervisorFile | None:
        """Who runs or ran the stack, or None."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode(self.supervisor.read_bytes(), type=SupervisorFile)
        return None

    def overlay(self, environ: Mapping[str, str]) -> dict[str, Any]:
        """The settings that the user lays over ours.

        Raises:
            ValueError: the file cannot be read, or is no mapping.
        """
        named = environ.get(OVERLAY_VARIABLE)
        path = Path(named) if named else self.root / "overlay.yaml"
        if not named and not path.exists():
            return {}
        try:
            content = yaml.safe_load(path.read_text()) or {}
        except (OSError, yaml.YAMLError) as exc:
            raise ValueError(f"{OVERLAY_VARIABLE}: {path} cannot be read: {exc}") from exc
        if not isinstance(content, dict):
            raise ValueError(f"{OVERLAY_VARIABLE}: {path} is no mapping of settings")  # noqa: TRY004 -- the file's value is wrong
        return content


def laid_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, mapping by mapping; lists are replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = laid_over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def replace(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace a file at once: a reader sees the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)
