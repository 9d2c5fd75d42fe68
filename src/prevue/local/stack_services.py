"""What the stack consists of: each process's command, readiness and settings, and what is put into database and cluster."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prevue.local import ci
from prevue.local.folder import APP_ID, StackFolder, laid_over
from prevue.local.ports import LOOPBACK, free_ports, listens
from prevue.local.postgres import EmbeddedPostgres
from prevue.local.processes import MARK
from prevue.local.redis import LocalRedis
from prevue.local.supervisor import Service

REPOSITORIES = ("acme/hello", "acme/other")
FIRST = -5
"""Niceness of what answers webhooks: elsewhere it has machines of its own; here fifty new previews take every core that there is."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where the processes listen, chosen free; kept for the stack's life, so that a restarted process is found again."""

    github: int
    app: int
    deployers: tuple[int, ...]

    @classmethod
    def choose(cls, *, deployers: int) -> Ports:
        """Ports that nobody listens on just now."""
        free = free_ports(2 + deployers)
        return cls(github=free[0], app=free[1], deployers=tuple(free[2:]))

    @property
    def github_url(self) -> str:
        return f"http://{LOOPBACK}:{self.github}"

    @property
    def webhook_url(self) -> str:
        return f"http://{LOOPBACK}:{self.app}/webhook"


@dataclass(frozen=True, kw_only=True)
class Access:
    """What the services' descriptions need to know of the stack."""

    folder: StackFolder
    ports: Ports
    kubectl: str


def postgres(database: EmbeddedPostgres, folder: StackFolder) -> Service:
    """The embedded PostgreSQL, as its unprivileged user."""
    account = database.account
    return Service(
        name="postgres",
        role="postgres",
        command=database.command,
        environ={**database.environment(), MARK: str(folder.root)},
        # Its port answers as soon as it takes connections; while it recovers it refuses them, and clients wait.
        is_ready=lambda: listens(database.port),
        user=(account.uid, account.gid) if account else None,
        folder=database.data,
        niceness=FIRST,
        stop_signal=signal.SIGINT,  # fast shutdown; SIGTERM would wait for every client
        stop_seconds=15,
    )


def redis(server: LocalRedis, folder: StackFolder) -> Service:
    """The local Redis, where it is the queue."""
    return Service(
        name="redis",
        role="redis",
        command=server.command,
        environ={**server.environ, MARK: str(folder.root)},
        is_ready=server.answers,
        folder=server.folder,
        niceness=FIRST,
        stop_seconds=10,
    )


def listener(name: str, command: Sequence[str], port: int, folder: StackFolder) -> Service:
    """A program that is ready as soon as it listens on its port."""
    return Service(
        name=name,
        role=name,
        command=lambda: command,
        environ=environment(folder),
        is_ready=lambda: listens(port),
        niceness=FIRST,
        stop_seconds=5,
    )


def balancer(name: str, port: int, doors: Sequence[int], folder: StackFolder) -> Service:
    """A load balancer on `port` before `doors`."""
    ports = ",".join(str(door) for door in doors)
    return listener(name, [sys.executable, "-m", "prevue.local.balancer", "--port", str(port), "--to", ports], port, folder)


def local_github(access: Access, next_repository_id: Callable[[], int]) -> Service:
    """The local GitHub, with the CI inside it."""
    folder, ports = access.folder, access.ports

    def command() -> list[str]:
        arguments = {
            "--port": str(ports.github),
            "--webhook-url": ports.webhook_url,
            "--webhook-secret-file": str(folder.webhook_secret),
            "--public-key-file": str(folder.public_key),
            "--app-id": str(APP_ID),
            "--repository-id-start": str(next_repository_id()),
            "--ci-hook": f"{ci.__name__}:{ci.on_push.__name__}",
        }
        return [sys.executable, "-m", "prevue.local.github", *(word for pair in arguments.items() for word in pair)]

    environ = {**environment(folder), ci.VARIABLE: str(folder.images)}
    ready = functools.partial(answers, f"{ports.github_url}/_local/healthz")
    return Service(
        name="local-github", role="local-github", command=command, environ=environ, is_ready=ready, niceness=FIRST, stop_seconds=10
    )


def github_app(access: Access) -> Service:
    """`prevue github-app`."""
    return Service(
        name="github-app",
        role="github-app",
        command=lambda: _prevue("github-app", access.folder.app_settings),
        environ=environment(access.folder),
        is_ready=functools.partial(answers, f"http://{LOOPBACK}:{access.ports.app}/readyz"),
        niceness=FIRST,
        stop_seconds=15,
    )


def deployer(access: Access, number: int, door_port: int | None = None) -> Service:
    """`prevue deployer`; each has a health port of its own, and a door where its queue needs one."""
    port = access.ports.deployers[number]
    ports = {"PREVUE_DEPLOYER__HEALTH_PORT": str(port)}
    if door_port is not None:
        ports["PREVUE_QUEUE__CLOUD_TASKS__LISTEN_PORT"] = str(door_port)
    return Service(
        name="deployer" if number == 0 else f"deployer-{number + 1}",
        role="deployer",
        command=lambda: _prevue("deployer", access.folder.settings),
        environ={**environment(access.folder), **ports},
        is_ready=functools.partial(answers, f"http://{LOOPBACK}:{port}/readyz"),
        stop_seconds=30,
    )


def environment(folder: StackFolder) -> dict[str, str]:
    """The caller's environment without settings that are meant for another Prevue, with the stack's mark."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREVUE_") or name == "PREVUE_CLUSTER_STATE"}
    local = ",".join(filter(None, [kept.get("NO_PROXY") or kept.get("no_proxy"), LOOPBACK, "localhost"]))
    ours = {"NO_PROXY": local, "no_proxy": local, "TMPDIR": str(folder.temporary), "PYTHONUNBUFFERED": "1", MARK: str(folder.root)}
    return {**kept, **ours}


def settings(
    folder: StackFolder,
    ports: Ports,
    *,
    queue: Mapping[str, Any],
    statestore_url: str,
    helm: str,
    node: str,
    overlay: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of a settings file of the stack. The App's has no statestore and another role's queue."""
    base: dict[str, Any] = {
        "github": {
            "app_id": APP_ID,
            "private_key_file": str(folder.private_key),
            "webhook_secrets_file": str(folder.webhook_secret),
            "api_url": ports.github_url,
        },
        "queue": dict(queue),
        "app": {"listen_host": LOOPBACK, "listen_port": ports.app},
        "deployer": {"health_host": LOOPBACK},
        "cluster": {"name": "local", "kubeconfig": str(folder.deployer_kubeconfig), "helm": helm},
        "defaults": {
            "chart": str(example() / "chart"),
            "values": {"image.repository": f"{ci.REGISTRY}/{{repo}}", "image.tag": "{commit_sha}"},
            "url": {"source": "node_port", "host": node, "timeout_seconds": 60},
            # The image is there when the push's control path answers, so what is not ready soon will not be.
            "readiness_timeout_seconds": 240,
            "image_wait_seconds": 60,
        },
        "repositories": [{"match": repository} for repository in REPOSITORIES],
    }
    if statestore_url:
        base["statestore"] = {"url": statestore_url}
    return laid_over(base, overlay)


def example() -> Path:
    """The folder of the example's chart and app: of the checkout, or packed beside the package.

    Raises:
        ValueError: neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "_examples" / "hello", package.parents[1] / "examples" / "hello"):
        if (candidate / "chart" / "Chart.yaml").is_file():
            return candidate
    raise ValueError(f"the example (examples/hello) is not beside {package}: run Prevue from its git checkout")


async def make_schema(database: EmbeddedPostgres, name: str, *, app_role: str, app_password: str) -> None:
    """The database, its tables, and the role of the App."""
    from prevue.migrations import migrate

    await database.wait_ready()
    url = await database.create_database(name)
    await migrate(url, app_role=app_role, app_password=app_password)


def install_in_cluster(kubeconfig: Path, deployer_kubeconfig: Path) -> None:
    """Rights, fence, and the deployer's own access, which may do no more than its manifest says."""
    from prevue.cluster import install

    install.apply_manifests(kubeconfig)
    install.deployer_kubeconfig(kubeconfig, deployer_kubeconfig)


def namespace_selector(repository_id_start: int) -> str:
    """The label selector of all namespaces whose previews belong to the repositories of one local GitHub."""
    ids = ",".join(str(repository_id_start + index) for index in range(len(REPOSITORIES)))
    return f"prevue.dev/repository-id in ({ids})"


def node_address(kubectl: Path, kubeconfig: Path) -> str:
    """The address of a node of the user's own cluster, where node ports answer.

    Raises:
        ValueError: the cluster does not say.
    """
    command = [str(kubectl), "--kubeconfig", str(kubeconfig), "get", "nodes", "-o", "json"]
    try:
        shown = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=30).stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as exc:
        raise ValueError(f"--kubeconfig {kubeconfig}: the cluster's nodes cannot be read: {exc}") from exc
    for node in shown.get("items", ()):
        for address in node["status"].get("addresses", ()):
            if address["type"] == "InternalIP":
                return str(address["address"])
    raise ValueError(f"--kubeconfig {kubeconfig}: no node of the cluster has an internal address")


def answers(url: str) -> bool:
    """Whether the URL answers 200 just now."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def remove_tree(path: Path) -> None:
    """Remove a folder; harmless where there is none."""
    shutil.rmtree(path, ignore_errors=True)


def _prevue(command: str, config: Path) -> list[str]:
    return [sys.executable, "-m", "prevue", command, "--config", str(config)]
