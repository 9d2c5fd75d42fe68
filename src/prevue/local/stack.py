"""One machine's stack: embedded PostgreSQL, local GitHub, App, deployers, and a share of the local cluster, kept running.

`python -m prevue.local.stack` is the supervisor as a process of its own (`prevue dev up --detach`); in the foreground `prevue.local.dev`
calls `run` itself. It holds the stack's lock and its share of the cluster for as long as it lives.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import msgspec
import yaml

from prevue.config import DeployerSettings
from prevue.errors import PrevueError
from prevue.local import ci, processes, stack_services
from prevue.local.cluster import Cluster, ClusterHandle, ExternalCluster, LocalClusterError, join
from prevue.local.cluster.locks import FileLock
from prevue.local.folder import DevFile, StackFolder, SupervisorFile, laid_over, replace
from prevue.local.postgres import EmbeddedPostgres, prepare
from prevue.local.queues import KINDS, Fleet, LocalQueue
from prevue.local.stack_services import Access, Ports
from prevue.local.supervisor import Service, ServiceFailed, Supervisor

CLUSTER_CHECK_SECONDS = 2.0
REPOSITORY_IDS = range(1_000_000_000, 9_000_000_000)
"""Where the first repository's id is drawn from: two stacks on one cluster never have a namespace in common."""
DATABASE = "prevue"
QUEUES = ("postgresql", *KINDS)
"""Queues that the stack can start."""
APP_ROLE = "prevue_app"


class StackFailed(Exception):
    """The stack does not start; the message says why and what to do."""


class _Stopped(BaseException):
    """SIGTERM or SIGINT: a request, not an error, and nobody's `except Exception` may swallow it."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What `prevue dev up` was asked for."""

    folder: Path
    deployers: int = 1
    queue: str = QUEUES[0]
    kubeconfig: Path | None = None
    image_loader: str | None = None


@dataclass(frozen=True)
class Report:
    """What the supervisor tells whoever started it."""

    progress: Callable[[str], None]
    ready: Callable[[DevFile], None]


def run(options: Options, report: Report) -> None:
    """Start everything, keep it running until SIGTERM or SIGINT, then stop everything.

    Raises:
        StackFailed: it does not come up; all that was started has been stopped.
    """
    lock = FileLock(StackFolder(options.folder).lock)
    if not _take(lock):
        raise StackFailed(f"a stack runs in {options.folder} already: `prevue dev status` shows it, `prevue dev down` stops it")
    stack = Stack(options, report)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _raise_stopped)
    try:
        stack.start()
        report.ready(stack.dev_file())
        stack.watch()
    except _Stopped:
        report.progress("stopping")
    except (ServiceFailed, LocalClusterError, PrevueError, ValueError, OSError) as exc:
        raise StackFailed(str(exc)) from exc
    except Exception as exc:
        # The supervisor's last word goes to whoever ran the command; the traceback stays in its log.
        _log(traceback.format_exc())
        raise StackFailed(f"unexpected {type(exc).__name__}: {exc}; more is in {StackFolder(options.folder).logs}/supervisor.log") from exc
    finally:
        # Stopping is bounded by itself; a second Ctrl-C must not leave half of it running.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        stack.stop()
        lock.release()


def _take(lock: FileLock) -> bool:
    """Take the lock; somebody may just be asking for a moment whether it is free."""
    for _ in range(10):
        if lock.try_exclusive():
            return True
        time.sleep(0.1)
    return False


def _raise_stopped(_number: int, _frame: FrameType | None) -> None:
    raise _Stopped


class Stack:
    """The parts, from nothing to ready and back to nothing."""

    def __init__(self, options: Options, report: Report) -> None:
        self.options = options
        self.folder = StackFolder(options.folder)
        self.progress = report.progress
        self.supervisor = Supervisor(self.folder.logs, _log, self._publish)
        self.ports = Ports.choose(deployers=options.deployers)
        self._repository_ids: list[int] = []
        self._cluster: Cluster | None = None
        self._postgres: EmbeddedPostgres | None = None
        self._is_ready = False
        self._cluster_pids: dict[str, int] = {}
        self._looked_at = 0.0

    def start(self) -> None:
        """Bring everything up; returns when all of it is ready."""
        began = time.monotonic()
        overlay = self.folder.overlay(os.environ)
        self.folder.make()
        self._publish()
        with ThreadPoolExecutor(1) as aside:
            # The database and the cluster need nothing of each other, and a cluster's start is mostly waiting.
            database = aside.submit(self._start_database)
            self._cluster = self._join()
            queue = database.result()
        if self.options.queue != QUEUES[0]:
            queue = self._start_queue(overlay)
        self.progress("installing Prevue's rights and fence in the cluster")
        stack_services.install_in_cluster(self.cluster.kubeconfig, self.folder.deployer_kubeconfig)
        self._write_settings(queue, overlay)
        self.progress("starting GitHub, App and deployer")
        access = Access(folder=self.folder, ports=self.ports, kubectl=str(self.cluster.kubectl))
        self.supervisor.start(*self.services(access, queue))
        self._is_ready = True
        self._publish()
        self.progress(f"ready after {time.monotonic() - began:.0f} s")

    def services(self, access: Access, queue: LocalQueue) -> list[Service]:
        """What runs beside PostgreSQL and the queue."""
        return [
            stack_services.local_github(access, self._next_repository_id),
            stack_services.github_app(access),
            *(stack_services.deployer(access, number, queue.door_port(number)) for number in range(self.options.deployers)),
        ]

    def watch(self) -> None:
        """Restart what dies, until a signal ends it."""
        while True:
            time.sleep(0.1)
            self.tick()

    def tick(self) -> None:
        """Restart what has died; to be called a few times a second."""
        self.supervisor.tick()
        if time.monotonic() - self._looked_at >= CLUSTER_CHECK_SECONDS:
            self._looked_at = time.monotonic()
            self._look_at_cluster()

    def stop(self) -> None:
        """Stop all in reverse order and remove what was made; logs stay."""
        self.folder.dev.unlink(missing_ok=True)
        self.supervisor.stop()
        left = processes.end(lambda: processes.marked(self.folder.root), grace_seconds=0)
        if left:
            _log(f"still running after SIGKILL: {left}")
        if self._cluster is not None:
            self.progress("deleting this stack's previews" if self._repository_ids else "leaving the cluster")
            delete_previews(str(self.cluster.kubectl), str(self.cluster.kubeconfig), self._selectors())
            try:
                self._cluster.leave()
            except LocalClusterError as exc:
                _log(f"the local cluster: {exc}")
        remove_database(self.folder)
        self.folder.remove()
        self.progress("stopped")

    @property
    def cluster(self) -> Cluster:
        """The cluster; there from `start` on."""
        if self._cluster is None:
            raise StackFailed("the cluster is not there yet")
        return self._cluster

    def dev_file(self) -> DevFile:
        """`dev.json` as it is now."""
        if self._postgres is None:
            raise StackFailed("the database is not there yet")
        pids = {"supervisor": [os.getpid()], **self.supervisor.pids()}
        return DevFile(
            github_url=self.ports.github_url,
            webhook_url=self.ports.webhook_url,
            webhook_secret=self.folder.webhook_secret.read_text(),
            database_url=self._postgres.url(DATABASE),
            kubeconfig=str(self.cluster.kubeconfig),
            helm=str(self.cluster.helm),
            kubectl=str(self.cluster.kubectl),
            pids=pids | {name: [pid] for name, pid in self._cluster_pids.items()},
        )

    def _start_queue(self, overlay: Mapping[str, object]) -> LocalQueue:
        """Another queue than PostgreSQL's."""
        slots = laid_over({"deployer": {"slots": DeployerSettings().slots}}, overlay)["deployer"]["slots"]
        queue = KINDS[self.options.queue](self.folder, Fleet(deployers=self.options.deployers, slots=slots), self.progress)
        self.supervisor.start(*queue.services)
        queue.prepare()
        return queue

    def _start_database(self) -> LocalQueue:
        """PostgreSQL with its schema, which is a queue as well."""
        self.progress("starting PostgreSQL")
        postgres = self._postgres = prepare(self.folder.postgres, is_durable=True)
        postgres.init()
        self.supervisor.start(stack_services.postgres(postgres, self.folder))
        password = secrets.token_urlsafe(24)
        asyncio.run(stack_services.make_schema(postgres, DATABASE, app_role=APP_ROLE, app_password=password))
        app_url = f"postgresql://{APP_ROLE}:{password}@127.0.0.1:{postgres.port}/{DATABASE}"
        return LocalQueue(deployer={"url": postgres.url(DATABASE)}, app={"url": app_url})

    def _join(self) -> Cluster:
        if self.options.kubeconfig is not None:
            return ExternalCluster(self.options.kubeconfig, self.options.image_loader, self.progress)
        return join(self.progress)

    def _write_settings(self, queue: LocalQueue, overlay: Mapping[str, object]) -> None:
        if self._postgres is None:
            raise StackFailed("the database is not there yet")
        external = self.options.kubeconfig is not None
        node = stack_services.node_address(self.cluster.kubectl, self.cluster.kubeconfig) if external else "127.0.0.1"
        statestore = self._postgres.url(DATABASE)
        files = {self.folder.settings: (queue.deployer, statestore), self.folder.app_settings: (queue.app, "")}
        for path, (section, statestore_url) in files.items():
            content = stack_services.settings(
                self.folder,
                self.ports,
                queue=section,
                statestore_url=statestore_url,
                helm=str(self.cluster.helm),
                node=node,
                overlay=overlay,
            )
            replace(path, yaml.safe_dump(content, sort_keys=False).encode())
        images = ci.ImageSettings(
            page=str(stack_services.example() / "app" / "index.html"),
            kubeconfig=str(self.cluster.kubeconfig) if external else "",
            image_loader=self.options.image_loader,
        )
        replace(self.folder.images, msgspec.json.encode(images))

    def _next_repository_id(self) -> int:
        """A restarted local GitHub has forgotten its pull requests: it is another GitHub, with repositories of its own."""
        self._repository_ids.append(REPOSITORY_IDS.start + secrets.randbelow(len(REPOSITORY_IDS)))
        return self._repository_ids[-1]

    def _selectors(self) -> list[str]:
        return [stack_services.namespace_selector(start) for start in self._repository_ids]

    def _look_at_cluster(self) -> None:
        if isinstance(self._cluster, ClusterHandle):
            self._cluster.ensure_running(self.progress)
        if self.cluster.pids() != self._cluster_pids:
            self._publish()

    def _publish(self) -> None:
        """Write down what runs: for `down` from the first process on, for everybody once it is ready."""
        children = [processes.record(pid) for pids in self.supervisor.pids().values() for pid in pids]
        record = SupervisorFile(
            supervisor=processes.record(os.getpid()),
            children=children,
            namespaces=self._selectors(),
            kubeconfig=str(self._cluster.kubeconfig) if self._cluster else "",
            kubectl=str(self._cluster.kubectl) if self._cluster else "",
        )
        replace(self.folder.supervisor, msgspec.json.encode(record))
        if self._is_ready:
            self._cluster_pids = self.cluster.pids()
            replace(self.folder.dev, msgspec.json.format(msgspec.json.encode(self.dev_file()), indent=2) + b"\n")


def delete_previews(kubectl: str, kubeconfig: str, selectors: list[str]) -> None:
    """Ask for the deletion of the previews' namespaces, and do not wait: on a cluster that goes on it happens by itself."""
    for selector in selectors:
        command = [kubectl, "--kubeconfig", kubeconfig, "delete", "namespaces", "-l", selector, "--wait=false", "--ignore-not-found"]
        try:
            subprocess.run(command, capture_output=True, check=True, timeout=30)
        except (OSError, subprocess.SubprocessError) as exc:
            _log(f"previews are left in the cluster ({selector}): {exc}")


def remove_database(folder: StackFolder) -> None:
    """Remove the database's files, wherever the unprivileged user needed them."""
    if folder.postgres.exists():
        stack_services.remove_tree(prepare(folder.postgres).data)


def _log(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def main() -> int:
    """The detached supervisor: what it has to tell goes as JSON lines to the pipe that it was given."""
    parser = argparse.ArgumentParser(prog="python -m prevue.local.stack")
    parser.add_argument("--options", required=True)
    parser.add_argument("--report-fd", type=int, required=True)
    arguments = parser.parse_args()
    os.set_inheritable(arguments.report_fd, False)
    pipe = os.fdopen(arguments.report_fd, "w", buffering=1)

    def tell(**line: str) -> None:
        _log(" ".join(line.values()))
        if not pipe.closed:
            try:
                pipe.write(json.dumps(line) + "\n")
            except OSError:
                pipe.close()  # whoever started us is gone; the stack goes on

    def ready(_dev: DevFile) -> None:
        tell(ready="ready")
        pipe.close()

    options = msgspec.json.decode(arguments.options, type=Options, dec_hook=lambda kind, value: kind(value))
    try:
        run(options, Report(lambda text: tell(progress=text), ready))
    except StackFailed as exc:
        tell(error=str(exc))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
