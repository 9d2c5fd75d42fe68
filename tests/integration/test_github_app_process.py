"""The App as a process: its own wiring, a real socket, real PostgreSQL, signals."""

from __future__ import annotations

import asyncio
import hmac
import json
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import asyncpg
import httpx2
import msgspec
import pytest
import uvicorn

from prevue.clock import SystemClock
from prevue.config import AppSettings, GitHubSettings, QueueSettings, Settings
from prevue.errors import ConfigError
from prevue.local.github.door import create_app
from prevue.local.ports import free_ports
from prevue.local.postgres import EmbeddedPostgres
from prevue.serving import Server
from prevue.testing.github import FakeGitHub, Fault
from prevue.testing.github.app_key import AppKey
from prevue.wiring.github_app import build

SECRET = "a secret of the tests"
REPO = "acme/hello"
PROGRAM = textwrap.dedent(
    """
    import sys
    import msgspec
    from prevue.config import Settings
    from prevue.wiring.github_app import run
    run(msgspec.json.decode(sys.argv[1], type=Settings))
    """
)


class Process:
    """`prevue github-app` without the command line."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.port = settings.app.listen_port
        self.log = log
        with log.open("wb") as out:
            self._child = subprocess.Popen([sys.executable, "-c", PROGRAM, msgspec.json.encode(settings).decode()], stderr=out)

    def wait_listening(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            assert self._child.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise AssertionError(f"does not listen: {self.log.read_text()}")

    def terminate(self) -> None:
        self._child.send_signal(signal.SIGTERM)

    async def exit_code(self) -> int:
        return await asyncio.to_thread(self._child.wait, 30)

    def kill(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()

    def lines(self, action: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in found if line["action"] == action]


class GitHubDoor:
    """The local GitHub's door in this process, on a real socket."""

    def __init__(self, github: FakeGitHub) -> None:
        [self.port] = free_ports(1)
        config = uvicorn.Config(create_app(github), port=self.port, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
        self._server = Server(config)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._server.serve())
        while not self._server.started:  # noqa: ASYNC110 -- uvicorn has no event for it
            await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._server.should_exit = True
        await self._task


@pytest.fixture
def key() -> AppKey:
    return AppKey.generate()


@pytest.fixture
def github(key: AppKey) -> FakeGitHub:
    github = FakeGitHub(now=SystemClock().now, public_key=key.public_pem, webhook_secret=SECRET)
    github.add_repository(REPO)
    github.set_permission(REPO, "writer", "write")
    return github


def app_url(postgres: EmbeddedPostgres, owner_url: str) -> str:
    """The same database by the role of the App, which may only insert."""
    return f"postgresql://prevue_app:app-password@127.0.0.1:{postgres.port}/{owner_url.rpartition('/')[2]}"


@pytest.fixture
def settings(key: AppKey, tmp_path: Path, postgres: EmbeddedPostgres, postgres_url: str) -> Settings:
    key_file = tmp_path / "app.pem"
    key_file.write_bytes(key.private_pem)
    return Settings(
        github=GitHubSettings(app_id=1, private_key_file=str(key_file), webhook_secrets=[SECRET], api_url="http://127.0.0.1:1"),
        queue=QueueSettings(url=app_url(postgres, postgres_url)),
        app=AppSettings(listen_port=free_ports(1)[0]),
    )


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        process.kill()


def start(settings: Settings, log: Path, processes: list[Process]) -> Process:
    process = Process(settings, log)
    processes.append(process)
    process.wait_listening()
    return process


def with_github(settings: Settings, port: int) -> Settings:
    github = msgspec.structs.replace(settings.github, api_url=f"http://127.0.0.1:{port}")
    return msgspec.structs.replace(settings, github=github)


async def test_a_command_on_its_way_at_sigterm_is_carried_out_and_acknowledged(
    settings: Settings, github: FakeGitHub, postgres_url: str, tmp_path: Path, processes: list[Process]
) -> None:
    """Goal: stopping loses nothing that was begun. Method: GitHub answers slowly, and SIGTERM comes in between."""
    async with GitHubDoor(github) as door, httpx2.AsyncClient(timeout=30) as http:
        app = await asyncio.to_thread(start, with_github(settings, door.port), tmp_path / "log", processes)
        assert (await http.get(f"http://127.0.0.1:{app.port}/readyz")).json() == {"result": "ready"}
        number = github.open_pull_request(REPO, "writer").number
        github.comment(REPO, number, "writer", "/preview")
        *_, delivery = github.webhooks.take()
        github.faults.append(Fault(path=f"/repos/{REPO}/pulls", status=200, times=1, delay_seconds=1.0))
        github.faults.append(Fault(method="POST", path=f"/repos/{REPO}/issues", status=200, times=1, delay_seconds=0.5))
        posted = asyncio.create_task(
            http.post(f"http://127.0.0.1:{app.port}/webhook", content=delivery.payload, headers=dict(delivery.headers))
        )
        await asyncio.sleep(0.5)
        app.terminate()
        assert (await posted).status_code == 202
        assert await app.exit_code() == 0
    connection = await asyncpg.connect(postgres_url)
    try:
        assert await connection.fetchval("SELECT count(*) FROM queue_message") == 1
    finally:
        await connection.close()
    bodies = [comment.body for comment in github.issue(REPO, number).comments.values()]
    assert len(bodies) == 2
    assert "Deployment requested!" in bodies[1]
    for action in ("listening", "delivery", "acknowledged", "stopping", "stopped"):
        assert len(app.lines(action)) == 1
    assert SECRET not in app.log.read_text()
    assert "ghs_" not in app.log.read_text()


async def test_a_burst_of_fifty_commands_is_taken_whole(
    settings: Settings, github: FakeGitHub, postgres_url: str, tmp_path: Path, processes: list[Process]
) -> None:
    """Goal: nobody waits for the queue until the time is up, because turns are fair. Method: 50 at once on real PostgreSQL."""
    async with GitHubDoor(github) as door, httpx2.AsyncClient(timeout=30) as http:
        app = await asyncio.to_thread(start, with_github(settings, door.port), tmp_path / "log", processes)
        for _ in range(50):
            github.comment(REPO, github.open_pull_request(REPO, "writer").number, "writer", "/preview")
        deliveries = [delivery for delivery in github.webhooks.take() if delivery.event == "issue_comment"]
        url = f"http://127.0.0.1:{app.port}/webhook"
        responses = await asyncio.gather(*(http.post(url, content=each.payload, headers=dict(each.headers)) for each in deliveries))
        assert [response.status_code for response in responses] == [202] * 50
        app.terminate()
        assert await app.exit_code() == 0
    connection = await asyncpg.connect(postgres_url)
    try:
        assert await connection.fetchval("SELECT count(*) FROM queue_message") == 50
    finally:
        await connection.close()
    acknowledged = [c for repo in github.repositories.values() for _, c in repo.comments.values() if c.author is github.app.bot]
    assert 0 < len(acknowledged) <= settings.app.comments_per_minute


def read_answer(connection: socket.socket) -> bytes:
    answer = b""
    with suppress(ConnectionError):
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


async def test_a_body_without_end_is_cut_off_on_the_socket(settings: Settings, tmp_path: Path, processes: list[Process]) -> None:
    app = await asyncio.to_thread(start, settings, tmp_path / "log", processes)
    head = (
        "POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-GitHub-Event: push\r\nX-GitHub-Delivery: d-1\r\n"
        f"X-Hub-Signature-256: sha256={'0' * 64}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"

    def send() -> tuple[int, bytes]:
        with socket.create_connection(("127.0.0.1", app.port), timeout=20) as connection:
            connection.sendall(head.encode())
            sent = 0
            with suppress(ConnectionError):
                for _ in range(60):
                    connection.sendall(chunk)
                    sent += 1
            return sent, read_answer(connection)

    sent, answer = await asyncio.to_thread(send)
    assert 25 <= sent < 60, "the App went on reading"
    (line,) = app.lines("delivery")
    assert (line["result"], line["status"]) == ("too_large", 413)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413 ")  # a reset may overtake the answer


async def test_an_answer_is_one_packet_and_the_connection_stays(settings: Settings, tmp_path: Path, processes: list[Process]) -> None:
    app = await asyncio.to_thread(start, settings, tmp_path / "log", processes)
    body = b'{"zen":"Keep it logically awesome."}'
    signature = hmac.digest(SECRET.encode(), body, "sha256").hex()
    request = (
        "POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-GitHub-Event: ping\r\nX-GitHub-Delivery: d-1\r\n"
        f"X-Hub-Signature-256: sha256={signature}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
    for _ in range(3):
        writer.write(request)
        answer = await reader.read(65536)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b'{"result":"pong"}')
    writer.close()
    await writer.wait_closed()


async def test_it_starts_while_the_database_is_down_and_says_so(settings: Settings, tmp_path: Path, processes: list[Process]) -> None:
    down = msgspec.structs.replace(settings, queue=QueueSettings(url=f"postgresql://a:b@127.0.0.1:{free_ports(1)[0]}/x"))
    app = await asyncio.to_thread(start, down, tmp_path / "log", processes)
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{app.port}", timeout=20) as http:
        assert (await http.get("/healthz")).status_code == 200
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()["reason"]) == (503, "queue_unavailable")
        assert (await http.get("/nothing")).status_code == 404


@pytest.mark.parametrize(
    ("github", "queue", "app", "named"),
    [
        ({"webhook_secrets": []}, {}, {}, "github.webhook_secrets"),
        ({"webhook_secrets": ["a", " "]}, {}, {}, "github.webhook_secrets"),
        ({"webhook_secrets": ["a", "b", "c"]}, {}, {}, "github.webhook_secrets"),
        ({"app_id": 0}, {}, {}, "github.app_id"),
        ({}, {"url": "amqp://broker"}, {}, "queue.url"),
        ({}, {"url": ""}, {}, "queue.url"),
        ({}, {}, {"replicas": 0}, "app.replicas"),
    ],
)
async def test_wrong_settings_are_named_at_start(
    settings: Settings, github: dict[str, Any], queue: dict[str, Any], app: dict[str, Any], named: str
) -> None:
    replace = msgspec.structs.replace
    changed = replace(
        settings, github=replace(settings.github, **github), queue=replace(settings.queue, **queue), app=replace(settings.app, **app)
    )
    with pytest.raises(ConfigError, match=named):
        async with build(changed):
            pass


async def test_a_port_that_is_taken_is_named(settings: Settings, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        changed = msgspec.structs.replace(settings, app=AppSettings(listen_port=port))
        process = Process(changed, tmp_path / "log")
        try:
            assert await process.exit_code() != 0
        finally:
            process.kill()
    assert "app.listen_host, app.listen_port" in process.log.read_text()
