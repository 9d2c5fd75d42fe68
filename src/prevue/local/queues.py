"""The queues that a stack may have beside PostgreSQL: what each needs started, and the settings by which its two sides reach it.

One function a kind, in `KINDS`. Google's are emulators, with everything in memory: a stack that is stopped has forgotten its queue.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from prevue.config import CloudTasksSettings, DeployerSettings, PubSubSettings
from prevue.local import stack_services
from prevue.local.cluster.cache import Progress
from prevue.local.cluster.programs import redis_program
from prevue.local.emulators import CloudTasksEmulator, PubSubEmulator, cloud_tasks_program, pubsub_program
from prevue.local.folder import StackFolder
from prevue.local.ports import LOOPBACK, free_ports
from prevue.local.redis import LocalRedis
from prevue.local.redis import environment as redis_environment
from prevue.local.supervisor import Service

ATTEMPTS = 1_000_000
"""Cloud Tasks' emulator takes -1, without limit, for none left."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Whom the queue is for."""

    deployers: int
    slots: int = DeployerSettings().slots
    """Of each."""


@dataclass(frozen=True, kw_only=True)
class LocalQueue:
    """One queue of a stack."""

    deployer: Mapping[str, Any]
    """The settings' section `queue`, as deployers have it."""
    app: Mapping[str, Any]
    """The same as the App has it, who may only enqueue."""
    services: Sequence[Service] = ()
    """Started first."""
    prepare: Callable[[], None] = lambda: None
    """What is done once the services run."""
    door_ports: Sequence[int] = ()
    """With Cloud Tasks: where each deployer listens."""

    def door_port(self, number: int) -> int | None:
        """Where deployer `number` listens; None: it needs no door."""
        return self.door_ports[number] if self.door_ports else None


def redis(folder: StackFolder, _fleet: Fleet, progress: Progress) -> LocalQueue:
    """Redis, its data in the stack's folder."""
    program, libraries = redis_program(progress)
    progress("starting Redis")
    server = LocalRedis(folder.redis, program, redis_environment(libraries))
    return LocalQueue(deployer={"url": server.url()}, app={"url": server.app_url()}, services=[stack_services.redis(server, folder)])


def pubsub(folder: StackFolder, _fleet: Fleet, progress: Progress) -> LocalQueue:
    """Google's own Pub/Sub server for tests."""
    program = pubsub_program(progress)
    progress("starting the Pub/Sub emulator")
    emulator = PubSubEmulator(program=program, port=free_ports(1)[0])
    url = "pubsub://local/prevue?subscription=prevue&dead_letter=prevue-dead"
    section = {"url": url, "pubsub": {"endpoint": emulator.endpoint}}
    service = stack_services.listener("pubsub-emulator", emulator.command, emulator.port, folder)
    return LocalQueue(deployer=section, app=section, services=[service], prepare=lambda: asyncio.run(_make_pubsub(url, emulator)))


def cloudtasks(folder: StackFolder, fleet: Fleet, progress: Progress) -> LocalQueue:
    """The Cloud Tasks emulator, and a balancer in front of the deployers' doors."""
    program = cloud_tasks_program(progress)
    progress("starting the Cloud Tasks emulator")
    port, issuer_port, front, *doors = free_ports(3 + fleet.deployers)
    emulator = CloudTasksEmulator(program=program, port=port, issuer_port=issuer_port)
    url = "cloudtasks://local/here/prevue"
    section = {
        "url": url,
        "cloud_tasks": {
            "target_url": f"http://{LOOPBACK}:{front}/tasks",
            "service_account": "tasks@local.iam.gserviceaccount.com",
            "endpoint": emulator.endpoint,
            "issuer": emulator.issuer,
            "certificates_url": emulator.certificates_url,
        },
    }
    services = [
        stack_services.listener("cloud-tasks-emulator", emulator.command, port, folder),
        stack_services.balancer("tasks-balancer", front, doors, folder),
    ]
    prepare = functools.partial(_make_cloud_tasks, url, emulator, fleet)
    return LocalQueue(deployer=section, app=section, services=services, prepare=lambda: asyncio.run(prepare()), door_ports=doors)


KINDS: dict[str, Callable[[StackFolder, Fleet, Progress], LocalQueue]] = {"redis": redis, "cloudtasks": cloudtasks, "pubsub": pubsub}


async def _make_pubsub(url: str, emulator: PubSubEmulator) -> None:
    from prevue.queue.pubsub_admin import PubSubCreator

    async with PubSubCreator.open(url, PubSubSettings(endpoint=emulator.endpoint)) as creator:
        await creator.create(slots=1, check=False)


async def _make_cloud_tasks(url: str, emulator: CloudTasksEmulator, fleet: Fleet) -> None:
    """As `prevue queue create`, but for what the emulator takes differently."""
    from google.cloud.tasks_v2 import Queue, RateLimits, RetryConfig

    from prevue.queue.addresses import CloudTasksAddress
    from prevue.queue.cloud_tasks import open_client

    address = CloudTasksAddress.parse(url)
    retry = RetryConfig(max_attempts=ATTEMPTS, min_backoff=timedelta(seconds=1), max_backoff=timedelta(seconds=10))
    limits = RateLimits(max_concurrent_dispatches=fleet.slots * fleet.deployers)
    async with open_client(CloudTasksSettings(endpoint=emulator.endpoint)) as client:
        queue = Queue(name=address.name, retry_config=retry, rate_limits=limits)
        await client.create_queue(parent=address.parent, queue=queue, retry=None, timeout=10)
