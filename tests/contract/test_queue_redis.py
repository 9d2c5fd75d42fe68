"""The queue's contract, kept by Redis on a real server; and what is Redis' own: restarts, dead deployers, rights, durability."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from redis import Connection, ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.retry import Retry

from prevue.config import QueueSettings
from prevue.errors import ConfigError, QueueUnavailable
from prevue.local.cluster.programs import redis_program
from prevue.local.ports import free_ports
from prevue.local.redis import APP_RIGHTS, LocalRedis, environment
from prevue.model import Message
from prevue.queue.port import Done, Enqueued, Release, RetryAfter
from prevue.queue.redis import RedisConsumer, RedisEnqueuer, RedisGauge
from prevue.queue.redis_durability import doubts, sync_to_disk
from prevue.queue.redis_jobs import REJECTED_KEY, UNSETTLED_KEY, RedisJobs
from prevue.testing.contracts.queue import Blocker, OpenedQueue, Queue, QueueContract, QueueHarness, Recorder, command, eventually, running
from prevue.testing.proxy import Proxy
from prevue.wiring.queues import depth, open_consumer, open_enqueuer, queue_doubts

TIMED_KEYS = ("rq:wip:prevue", "rq:scheduled:prevue", UNSETTLED_KEY)
FIRST_SEEN = "rq:queue:prevue:intermediate:first_seen:*"


def crash(consumer: RedisConsumer) -> None:
    pool = consumer._jobs.client.connection_pool
    pool.connection_kwargs["port"] = 1  # nobody listens there
    pool.disconnect()


def contents(client: Any) -> dict[str, Any]:
    """Where the messages are."""
    lists = {key: client.lrange(key, 0, -1) for key in ("rq:queue:prevue", "rq:queue:prevue:intermediate", REJECTED_KEY)}
    return lists | {key: client.zrange(key, 0, -1, withscores=True) for key in TIMED_KEYS}


class RedisHarness:
    """Time passes by moving the scores back; the network between is a proxy that can be cut."""

    def __init__(self, url: str, proxy: Proxy, client: Any) -> None:
        address = urlsplit(url)
        self.url = address._replace(netloc=f":{address.password}@127.0.0.1:{proxy.port}").geturl()
        self.proxy = proxy
        self.client = client

    @asynccontextmanager
    async def open(self, *, lease_seconds: float = 10) -> AsyncIterator[Queue]:
        async with (
            RedisEnqueuer.open(self.url) as enqueuer,
            RedisConsumer.open(self.url, lease_seconds=lease_seconds, poll_seconds=0.1) as consumer,
            RedisGauge.open(self.url) as gauge,
        ):
            yield OpenedQueue(enqueuer, consumer, gauge, crash=lambda: crash(consumer))

    async def let_time_pass(self, seconds: float) -> None:
        for key in TIMED_KEYS:
            for member in self.client.zrange(key, 0, -1):
                self.client.zadd(key, {member: -seconds}, incr=True, xx=True)
        for key in self.client.keys(FIRST_SEEN):
            self.client.incrbyfloat(key, -seconds)

    async def put_raw(self, body: str) -> None:
        RedisJobs(self.client).put(body, description="raw")

    async def rejected(self) -> list[str]:
        entries = [json.loads(entry) for entry in self.client.lrange(REJECTED_KEY, 0, -1)]
        return [entry["body"] for entry in entries if entry["reason"] and entry["at"]]

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        await self.proxy.cut()
        try:
            yield
        finally:
            await self.proxy.mend()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRedis]:
    """A real server; the first run on a machine fetches it."""
    program, libraries = redis_program(print)
    one = LocalRedis(tmp_path_factory.mktemp("redis"), program, environment(libraries))
    one.start(dies_with_parent=True)
    try:
        yield one
    finally:
        one.stop()
        one.remove()


@pytest.fixture
def client(server: LocalRedis) -> Iterator[Any]:
    """The server, empty."""
    with Redis.from_url(server.url()) as one:
        one.flushall()
        yield one


class TestRedisQueue(QueueContract):
    @pytest.fixture
    async def harness(self, server: LocalRedis, client: Any) -> AsyncIterator[QueueHarness]:
        async with Proxy.to(server.url()) as proxy:
            yield RedisHarness(server.url(), proxy, client)


@pytest.fixture
async def harness(server: LocalRedis, client: Any) -> AsyncIterator[RedisHarness]:
    async with Proxy.to(server.url()) as proxy:
        yield RedisHarness(server.url(), proxy, client)


async def test_messages_survive_the_server(server: LocalRedis, harness: RedisHarness) -> None:
    """Killed, not stopped: what was enqueued is on disk, and what is being worked on is settled after the restart."""
    blocker, recorder = Blocker(), Recorder()
    async with harness.open() as queue, running(queue, blocker, slots=1):
        await queue.enqueue(command(1))
        await eventually(lambda: blocker.inside == 1)
        await queue.enqueue(command(2))
        server.kill()
        server.start(dies_with_parent=True)
        async with harness.open() as other:
            await other.enqueue(command(3))
        blocker.may_end.set()
        try:
            await eventually(lambda: set(blocker.numbers()) == {1, 2, 3})
            await eventually(lambda: harness.client.zcard(UNSETTLED_KEY) == 0)
        except TimeoutError:
            pytest.fail(f"seen: {blocker.numbers()}; in Redis: {contents(harness.client)}; its log:\n{server.log()}")
    assert blocker.numbers() == [1, 2, 3]
    await harness.let_time_pass(60)
    async with harness.open() as queue, running(queue, recorder):
        await asyncio.sleep(0.5)
    assert recorder.seen == []


async def test_message_of_a_killed_deployer_comes_back_within_its_lease(server: LocalRedis, harness: RedisHarness) -> None:
    """A real process, a real SIGKILL, real time."""
    script = """
import asyncio, sys
from prevue.queue.redis import RedisConsumer
async def handler(message):
    print("inside", flush=True)
    await asyncio.sleep(3600)
async def main():
    async with RedisConsumer.open(sys.argv[1], lease_seconds=2) as consumer:
        await consumer.run(handler, slots=1, stop=asyncio.Event())
asyncio.run(main())
"""
    recorder = Recorder()
    async with harness.open(lease_seconds=2) as queue:
        await queue.enqueue(command(1))
        deployer = await asyncio.create_subprocess_exec(sys.executable, "-c", script, server.url(), stdout=subprocess.PIPE)
        assert deployer.stdout is not None
        assert await deployer.stdout.readline() == b"inside\n"
        deployer.kill()
        await deployer.wait()
        killed_at = asyncio.get_running_loop().time()
        async with running(queue, recorder):
            await eventually(lambda: recorder.seen)
        assert asyncio.get_running_loop().time() - killed_at < 10


async def test_message_taken_but_not_started_comes_back(harness: RedisHarness) -> None:
    """Whoever dies between two commands leaves the job in RQ's intermediate queue."""
    recorder = Recorder()
    async with harness.open() as queue:
        await queue.enqueue(command(1))
        assert harness.client.lmove("rq:queue:prevue", "rq:queue:prevue:intermediate") is not None
        async with running(queue, recorder):
            await eventually(lambda: harness.client.keys(FIRST_SEEN))
            assert recorder.seen == []
            await harness.let_time_pass(11)
            await eventually(lambda: recorder.seen)
        assert (await queue.depth()).messages == 0
    assert harness.client.keys("rq:*intermediate*") == []


async def test_whoever_was_overtaken_settles_nothing(client: Any, harness: RedisHarness) -> None:
    jobs = RedisJobs(client, lease_seconds=5)
    jobs.put("body", description="one")
    first = jobs.take(1)
    assert first is not None
    await harness.let_time_pass(6)
    jobs.recover()
    second = jobs.take(1)
    assert second is not None
    jobs.extend([first])
    jobs.release(first)
    jobs.done(first)
    assert jobs.take(0.1) is None
    assert jobs.depth()[0] == 1
    jobs.done(second)
    assert jobs.depth() == (0, 0.0)
    assert client.keys("rq:job:*") == []


class _Mortal(Connection):
    """A connection of a process that dies at its n-th command: before it is sent, or before its answer is read."""

    commands_left = 0
    answer_is_lost = False

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if _Mortal.commands_left <= 0 and not _Mortal.answer_is_lost:
            raise RedisConnectionError("dead")
        _Mortal.commands_left -= 1
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        answer = super().read_response(*arguments, **options)
        if _Mortal.commands_left < 0:
            raise RedisConnectionError("dead")
        return answer


def _make_due(client: Any, *keys: str) -> None:
    for key in keys:
        for member in client.zrange(key, 0, -1):
            client.zadd(key, {member: 0})


def _carry_out(jobs: RedisJobs, client: Any) -> None:
    """Every step that there is; `client` lets time pass."""
    jobs.put("body", description="one")
    for settle in (jobs.release, lambda delivery: jobs.delay(delivery, 0, failed=True), jobs.done):
        delivery = jobs.take(0.1)
        assert delivery is not None
        jobs.extend([delivery])
        settle(delivery)
        _make_due(client, "rq:scheduled:prevue")
        jobs.recover()


@pytest.mark.parametrize("answer_is_lost", [False, True], ids=["not sent", "answer lost"])
def test_death_at_any_command_loses_nothing_and_leaves_nothing(server: LocalRedis, client: Any, answer_is_lost: bool) -> None:
    """Kill the process at each of its commands in turn; whoever lives must then find the message, unless its last step was carried out."""
    address: dict[str, Any] = {"host": "127.0.0.1", "port": server.port, "password": server.password, "retry": Retry(NoBackoff(), 0)}
    died_at = 0
    for died_at in itertools.count(1):
        client.flushall()
        _Mortal.commands_left, _Mortal.answer_is_lost = 1_000_000, answer_is_lost
        with Redis.from_pool(ConnectionPool(connection_class=_Mortal, **address)) as mortal:
            mortal.ping()
            jobs = RedisJobs(mortal, lease_seconds=1)
            jobs.depth()
            _Mortal.commands_left = died_at
            try:
                _carry_out(jobs, client)
                break
            except RedisConnectionError:
                pass
        was_enqueued = bool(client.exists(UNSETTLED_KEY))
        survivor = RedisJobs(client, lease_seconds=1)
        _make_due(client, "rq:wip:prevue", "rq:scheduled:prevue")
        survivor.recover()
        for key in client.keys(FIRST_SEEN):
            client.set(key, 0)
        survivor.recover()
        found = survivor.take(0.1)
        assert (found is not None) == was_enqueued
        if found is not None:
            assert found.body == "body"
            survivor.done(found)
        assert survivor.depth() == (0, 0.0)
        assert client.keys("rq:job:*") == []
        assert client.zcard("rq:wip:prevue") == client.llen("rq:queue:prevue") == client.llen("rq:queue:prevue:intermediate") == 0
    assert died_at > 30


async def test_broken_entries_stop_nobody(client: Any, harness: RedisHarness) -> None:
    """An id without a job, a job that is no job, and one whose data cannot be read."""
    client.rpush("rq:queue:prevue", "nothing-there", "no-job", "no-data")
    client.hset("rq:job:no-job", "data", b"x")
    client.hset("rq:job:no-data", mapping={"data": b"x", "created_at": "yesterday"})
    recorder = Recorder()
    async with harness.open() as queue, running(queue, recorder):
        await queue.enqueue(command(1))
        await eventually(lambda: recorder.seen)
    assert sorted(await harness.rejected()) == ["job no-data", "job no-job"]
    assert client.keys("rq:job:*") == []


async def test_connection_lost_while_a_message_is_read_sets_nothing_aside(
    client: Any, harness: RedisHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between taking and starting, and while it is brought back."""
    jobs = RedisJobs(client, lease_seconds=1)
    jobs.put("body", description="one")
    with monkeypatch.context() as broken:
        broken.setattr("rq.job.Job.refresh", lambda _job: _lost())
        with pytest.raises(RedisConnectionError):
            jobs.take(1)
        jobs.recover()
        await harness.let_time_pass(2)
        with pytest.raises(RedisConnectionError):
            jobs.recover()
    jobs.recover()
    found = jobs.take(1)
    assert found is not None
    assert found.body == "body"
    assert await harness.rejected() == []


def _lost() -> None:
    raise RedisConnectionError("reset")


async def test_user_of_the_app_may_enqueue_and_nothing_else(server: LocalRedis, client: Any, repository_root: Path) -> None:
    """The rights that docs/queues.md names."""
    assert APP_RIGHTS in (repository_root / "docs" / "queues.md").read_text()
    url = server.app_url()
    async with RedisEnqueuer.open(url) as enqueuer:
        await enqueuer.check()
        assert await enqueuer.enqueue(command(1)) == Enqueued()
        assert await enqueuer.doubts() == []
    assert RedisJobs(client).depth()[0] == 1
    async with RedisGauge.open(url) as gauge:
        with pytest.raises(QueueUnavailable, match="no permissions"):
            await gauge.depth()


async def test_user_of_a_deployer_needs_nothing_dangerous(server: LocalRedis, client: Any, repository_root: Path) -> None:
    rights = "~rq:* ~prevue:* +@all -@dangerous +info +config|get"
    assert f"`{rights}`" in (repository_root / "docs" / "queues.md").read_text()
    client.execute_command("ACL", "SETUSER", "deployer", "on", ">secret", *rights.split())
    url = f"redis://deployer:secret@127.0.0.1:{server.port}/0"
    recorder = Recorder(RetryAfter(0), Release(), RuntimeError("failed"))
    async with (
        RedisEnqueuer.open(url) as enqueuer,
        RedisConsumer.open(url, lease_seconds=1, poll_seconds=0.1) as consumer,
        RedisGauge.open(url) as gauge,
    ):
        await enqueuer.check()
        await enqueuer.enqueue(command(1))
        RedisJobs(client).put("no message", description="raw")
        stop = asyncio.Event()
        task = asyncio.create_task(consumer.run(recorder, slots=1, stop=stop))
        await eventually(lambda: client.zcard(UNSETTLED_KEY) == 0)
        assert (await gauge.depth()).messages == 0
        stop.set()
        await task
    assert len(recorder.seen) == 4
    assert client.llen(REJECTED_KEY) == 1


async def test_doubts_name_the_setting_and_the_value(client: Any) -> None:
    assert doubts(client) == []  # the local server's settings are those that are wanted
    before = {name: client.config_get(name)[name] for name in ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy")}
    try:
        for changes, words in (
            ({"appendonly": "no"}, "appendonly is not yes"),
            ({"appendfsync": "no"}, "appendfsync is no:"),
            ({"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}, "set it to noeviction"),
        ):
            for name, value in changes.items():
                client.config_set(name, value)
            (text,) = doubts(client)
            assert words in text
            for name in changes:
                client.config_set(name, before[name])
        client.config_set("appendfsync", "everysec")
        can_wait = tuple(map(int, client.info("server")["redis_version"].split(".")[:2])) >= (7, 2)
        assert ["set it to always" in text for text in doubts(client)] == ([] if can_wait else [True])
    finally:
        for name, value in before.items():
            client.config_set(name, value)
        # Switched on, the append-only file counts once its first rewrite has ended: a server killed before forgets what it took meanwhile.
        rewriting = ("aof_rewrite_in_progress", "aof_rewrite_scheduled")
        await eventually(lambda: not any(client.info("persistence")[name] for name in rewriting))


def test_settings_that_may_not_be_read_are_said(server: LocalRedis, client: Any) -> None:
    client.execute_command("ACL", "SETUSER", "blind", "on", ">secret", "~*", "+@all", "-config")
    with Redis.from_url(f"redis://blind:secret@127.0.0.1:{server.port}/0") as blind:
        (text,) = doubts(blind)
    assert "CONFIG GET" in text


class _Answering:
    """A server of 7.2, as far as `sync_to_disk` looks."""

    def __init__(self, answer: list[int] | ResponseError) -> None:
        self._answer = answer

    def waitaof(self, *_arguments: int) -> list[int]:
        if isinstance(self._answer, ResponseError):
            raise self._answer
        return self._answer


def test_counts_of_waitaof_are_looked_at() -> None:
    for answer in ([1, 0], ResponseError("unknown command 'WAITAOF'")):
        sync_to_disk(_Answering(answer))  # type: ignore[arg-type]
    with pytest.raises(QueueUnavailable, match="not on disk"):
        sync_to_disk(_Answering([0, 0]))  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["redis://", "redis:///0", "redis://h/one", "redis://h:x/0", "redis://h:0/0", "http://h"])
async def test_wrong_url_is_an_error_of_the_setting(url: str) -> None:
    with pytest.raises(ConfigError, match=r"queue\.url: expected such as redis://"):
        async with RedisEnqueuer.open(url):
            pass
    with pytest.raises(ConfigError):
        async with RedisConsumer.open(url):
            pass


async def test_handler_runs_in_the_deployers_loop(harness: RedisHarness) -> None:
    loops = []

    async def handler(_message: Message) -> Done:
        loops.append(asyncio.get_running_loop())
        return Done()

    async with harness.open() as queue, running(queue, handler):
        await queue.enqueue(command(1))
        await eventually(lambda: loops)
    assert loops == [asyncio.get_running_loop()]


async def test_tls(tmp_path: Path) -> None:
    """`rediss://`: the server's certificate is checked, against the authority that the URL names."""
    certificate, key = self_signed(tmp_path)
    [tls_port] = free_ports(1)
    program, libraries = redis_program(print)
    settings = {
        "tls-port": str(tls_port),
        "tls-cert-file": str(certificate),
        "tls-key-file": str(key),
        "tls-ca-cert-file": str(certificate),
        "tls-auth-clients": "no",
    }
    one = LocalRedis(tmp_path / "redis", program, environment(libraries), settings=settings)
    one.start(dies_with_parent=True)
    try:
        url = f"rediss://:{one.password}@localhost:{tls_port}/0"
        async with RedisEnqueuer.open(f"{url}?ssl_ca_certs={certificate}") as enqueuer:
            assert await enqueuer.enqueue(command(1)) == Enqueued()
        async with RedisEnqueuer.open(url) as enqueuer:
            with pytest.raises(QueueUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await enqueuer.enqueue(command(1))
    finally:
        one.stop()


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "cert.pem", folder / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate_file, key_file


async def test_url_alone_opens_all_sides(server: LocalRedis, client: Any) -> None:
    settings = QueueSettings(url=server.url())
    recorder = Recorder()
    async with open_enqueuer(settings) as enqueuer, open_consumer(settings) as consumer:
        await enqueuer.enqueue(command(1))
        assert (await depth(settings)).messages == 1
        stop = asyncio.Event()
        task = asyncio.create_task(consumer.run(recorder, slots=1, stop=stop))
        await eventually(lambda: client.zcard(UNSETTLED_KEY) == 0)
        stop.set()
        await task
    assert recorder.seen == [command(1)]
    assert (await depth(settings)).messages == 0
    assert await queue_doubts(settings) == []
