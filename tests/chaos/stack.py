"""The stack under chaos: `prevue dev`'s own with any of its queues, two Apps behind a balancer, three deployers, and nothing else changed.

The numbers of the claim protocol are production's. Only the slots are fewer, so that one kill does not end everything at once, and a
killed process starts again at once, however often it was killed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import yaml

from prevue.local import dev, stack_services
from prevue.local.folder import DevFile, StackFolder
from prevue.local.ports import LOOPBACK
from prevue.local.queues import LocalQueue
from prevue.local.stack import Options, Report, Stack
from prevue.local.stack_services import Access, Ports
from prevue.local.supervisor import Service, Supervisor

APPS, DEPLOYERS = 2, 3
SLOTS = 4
RESTART_SECONDS = (0.1,)
TICK_SECONDS = 0.05
ANSWER_SECONDS_MAX = 0.5
CHART = Path(__file__).parents[1] / "acceptance" / "chart"
SLOW = "510e"
"""A commit that begins with it has a hook of four seconds in `acme/other`."""


class ChaosStack(Stack):
    """The parts of `prevue dev up`."""

    def __init__(self, folder: Path, queue: str, report: Report) -> None:
        super().__init__(Options(folder=folder, deployers=DEPLOYERS, queue=queue), report)
        self.supervisor = Supervisor(self.folder.logs, self._note, self._publish, backoff_seconds=RESTART_SECONDS)
        every = Ports.choose(deployers=DEPLOYERS + APPS)
        self.app_ports = every.deployers[DEPLOYERS:]
        self.ports = dataclasses.replace(every, deployers=every.deployers[:DEPLOYERS])

    def services(self, access: Access, queue: LocalQueue) -> list[Service]:
        """As usual, with an App for each of their ports; webhooks go to the balancer's."""
        usual = super().services(access, queue)
        (app,) = [service for service in usual if service.role == "github-app"]
        # Elsewhere deployers have machines of their own; here previews, their control plane and the driver take every core that there is.
        others = [dataclasses.replace(service, niceness=stack_services.FIRST) for service in usual if service is not app]
        apps = [self._app(app, number) for number in range(APPS)]
        return [*others, *apps, stack_services.balancer("app-balancer", self.ports.app, self.app_ports, self.folder)]

    def _app(self, app: Service, number: int) -> Service:
        port = self.app_ports[number]
        return dataclasses.replace(
            app,
            name=f"{app.name}-{number + 1}",
            environ={**app.environ, "PREVUE_APP__LISTEN_PORT": str(port)},
            is_ready=functools.partial(stack_services.answers, f"http://{LOOPBACK}:{port}/readyz"),
        )

    def pids(self, role: str) -> list[int]:
        """The processes of a role that run just now."""
        return self.supervisor.pids().get(role, [])

    async def ready_deployers(self) -> int:
        """How many take messages, whatever the queue; one that is stopped does not answer."""
        return sum(await asyncio.gather(*(_is_ready(port) for port in self.ports.deployers)))

    @property
    def repository_ids(self) -> list[int]:
        """Of this stack's repositories."""
        return [start + index for start in self._repository_ids for index in range(len(stack_services.REPOSITORIES))]

    def _note(self, text: str) -> None:
        with (self.folder.logs / "supervisor.log").open("a") as log:
            log.write(f"{time.strftime('%H:%M:%S')} {text}\n")


@asynccontextmanager
async def running(*, queue: str, keep_logs: Path | None) -> AsyncIterator[tuple[ChaosStack, DevFile]]:
    """The stack in a folder of its own, from nothing to ready and back to nothing; `keep_logs`: where its logs are moved."""
    home = Path(tempfile.mkdtemp(prefix="prevue-chaos-"))
    folder = StackFolder(home / ".prevue")
    folder.logs.mkdir(parents=True)
    overlay = {
        "app": {"replicas": APPS},
        "deployer": {"slots": SLOTS},
        "repositories": [{"match": "acme/hello"}, {"match": "acme/other", "chart": str(CHART)}],
    }
    (folder.root / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    report = Report(lambda text: print(f"  {text}", file=sys.stderr, flush=True), lambda _dev: None)
    stack = ChaosStack(folder.root, queue, report)
    ended = threading.Event()
    try:
        await _uncancelled(stack.start)
        ticking = asyncio.create_task(asyncio.to_thread(_tick, stack, ended))
        try:
            yield stack, stack.dev_file()
        finally:
            ended.set()
            await ticking
    finally:
        await _uncancelled(stack.stop)
        dev.clean_up(folder, lambda _text: None)
        if keep_logs is not None:
            shutil.copytree(folder.logs, keep_logs, dirs_exist_ok=True)
        shutil.rmtree(home, ignore_errors=True)


async def _is_ready(port: int) -> bool:
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    return False


def _tick(stack: ChaosStack, ended: threading.Event) -> None:
    while not ended.wait(TICK_SECONDS):
        stack.tick()


async def _uncancelled(step: object) -> None:
    """Run a blocking step to its end in a thread; a cancellation waits for it, since half a stack cannot be stopped."""
    assert callable(step)
    task = asyncio.ensure_future(asyncio.to_thread(step))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
