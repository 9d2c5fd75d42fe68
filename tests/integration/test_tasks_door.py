"""The deployer's door for Cloud Tasks: whom it admits, what it answers, and that nothing else runs.

The tokens are signed by an issuer of the test's own, whose keys are fetched over HTTP as Google's are; at the end the same door admits a
task that the emulator sends under its own issuer.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import jwt
import msgspec
import pytest
import structlog
import uvicorn
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prevue.config import CloudTasksSettings
from prevue.errors import ConfigError, QueueUnavailable
from prevue.local.emulators import CloudTasksEmulator
from prevue.local.ports import free_ports, listens
from prevue.model import Message, encode_message
from prevue.queue.cloud_tasks import CloudTasksConsumer, CloudTasksEnqueuer
from prevue.queue.cloud_tasks_admin import CloudTasksCreator
from prevue.queue.oidc import FETCH_PAUSE_SECONDS, KEYS_STALE_SECONDS_MAX, KeySet, Refused
from prevue.queue.port import Change, Done, Release, RetryAfter, Settlement
from prevue.queue.tasks_door import BODY_BYTES_MAX
from prevue.serving import Server, listen
from prevue.testing.contracts.queue import Blocker, Recorder, command, eventually

ACCOUNT = "tasks@project.iam.gserviceaccount.com"
TARGET = "https://tasks.example.com/tasks"


OURS, STRANGER, SECOND = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(3))


class Issuer:
    """Signs tokens and publishes its keys, as accounts.google.com does; it can be down."""

    def __init__(self) -> None:
        self.url = ""
        self.is_down = False
        self.fetched = 0
        self.keys = {"first": OURS}

    async def certificates(self, _request: Request) -> Response:
        self.fetched += 1
        if self.is_down:
            return Response(status_code=500)
        keys = [{**json.loads(RSAAlgorithm.to_jwk(key.public_key())), "kid": name, "use": "sig"} for name, key in self.keys.items()]
        return JSONResponse({"keys": keys}, headers={"Cache-Control": "public, max-age=3600"})

    def token(self, key_id: str = "first", *, key: Any = None, algorithm: str = "RS256", **changes: Any) -> str:
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.url,
            "aud": TARGET,
            "email": ACCOUNT,
            "email_verified": True,
            "sub": "1",
            "iat": now,
            "exp": now + 300,
        }
        claims |= changes
        given = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(given, key if key is not None else self.keys[key_id], algorithm=algorithm, headers={"kid": key_id})


@asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[str]:
    port = free_ports(1)[0]
    server = Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    listener = listen("127.0.0.1", port, setting="test")
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task
        listener.close()


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    async with serving(Starlette(routes=[Route("/certs", issuer.certificates)])) as issuer.url:
        yield issuer


class Door:
    """A deployer's door at work."""

    def __init__(self, client: httpx2.AsyncClient, stop: asyncio.Event, task: asyncio.Task[None]) -> None:
        self.client = client
        self.stop = stop
        self.task = task

    async def post(
        self, token: str | None, *, body: bytes | None = None, scheme: str = "Bearer", headers: Mapping[str, str] = {}
    ) -> httpx2.Response:
        authorization = {} if token is None else {"Authorization": f"{scheme} {token}"}
        content = encode_message(command(1)) if body is None else body
        return await self.client.post("/tasks", content=content, headers={**headers, **authorization}, timeout=20)


@asynccontextmanager
async def door(issuer: Issuer, handler: Callable[[Message], Awaitable[Settlement]], *, slots: int = 4) -> AsyncIterator[Door]:
    port = free_ports(1)[0]
    settings = CloudTasksSettings(
        target_url=TARGET, service_account=ACCOUNT, listen_port=port, issuer=issuer.url, certificates_url=f"{issuer.url}/certs"
    )
    stop = asyncio.Event()
    async with CloudTasksConsumer.open(settings) as consumer, httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        task = asyncio.create_task(consumer.run(handler, slots=slots, stop=stop))
        try:
            await eventually(lambda: task.done() or listens(port))
            yield Door(client, stop, task)
        finally:
            stop.set()
            async with asyncio.timeout(20):
                await task


async def test_a_task_of_our_account_runs_and_is_settled(issuer: Issuer) -> None:
    recorder = Recorder()
    async with door(issuer, recorder) as at:
        assert (await at.post(issuer.token())).status_code == 200
        assert (await at.post(issuer.token(), scheme="bearer")).status_code == 200
    assert recorder.seen == [command(1), command(1)]
    assert issuer.fetched == 1, "the keys are kept"


def unsigned(issuer: Issuer) -> str:
    """A token of the algorithm "none", which says that it needs no signature."""
    head = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": "first"}).encode()).decode().rstrip("=")
    return f"{head}.{issuer.token().split('.')[1]}."


FORGERIES: dict[str, tuple[int, Callable[[Issuer], str | None]]] = {
    "missing": (401, lambda _: None),
    "no jwt": (401, lambda _: "abc"),
    "forged: another's key under a known id": (401, lambda issuer: issuer.token(key=STRANGER)),
    "forged: not signed": (401, unsigned),
    "forged: changed after signing": (401, lambda issuer: issuer.token()[:-8] + "AAAAAAAA"),
    "forged: symmetric, with the public key as its secret": (401, lambda issuer: issuer.token(key=b"x" * 64, algorithm="HS256")),
    "unknown key": (401, lambda issuer: issuer.token("second", key=STRANGER)),
    "expired": (401, lambda issuer: issuer.token(iat=int(time.time()) - 7200, exp=int(time.time()) - 3600)),
    "not valid yet": (401, lambda issuer: issuer.token(iat=int(time.time()) + 3600, exp=int(time.time()) + 7200)),
    "never expires": (401, lambda issuer: issuer.token(exp=None)),
    "wrong issuer": (401, lambda issuer: issuer.token(iss="https://accounts.example.com")),
    "no issuer": (401, lambda issuer: issuer.token(iss=None)),
    "wrong audience": (401, lambda issuer: issuer.token(aud="https://other.example.com/tasks")),
    "no audience": (401, lambda issuer: issuer.token(aud=None)),
    "no e-mail": (401, lambda issuer: issuer.token(email=None)),
    "wrong account": (403, lambda issuer: issuer.token(email="other@project.iam.gserviceaccount.com")),
    "account whose e-mail is not verified": (403, lambda issuer: issuer.token(email_verified=False)),
    "account that says nothing of its e-mail": (403, lambda issuer: issuer.token(email_verified=None)),
    "account whose e-mail is verified in words only": (403, lambda issuer: issuer.token(email_verified="true")),
}


@pytest.mark.parametrize("name", FORGERIES)
async def test_who_is_not_our_account_is_refused_and_nothing_runs(issuer: Issuer, name: str) -> None:
    status, make = FORGERIES[name]
    recorder = Recorder()
    with structlog.testing.capture_logs() as logged:
        async with door(issuer, recorder) as at:
            answer = await at.post(make(issuer), headers={"X-CloudTasks-QueueName": "deploys", "X-CloudTasks-TaskName": "1"})
    assert (answer.status_code, answer.content) == (status, b"")
    assert recorder.seen == []
    assert [entry["status"] for entry in logged if entry["event"] == "task_refused" and entry["reason"]] == [status]
    assert not any(part in str(logged) for part in (make(issuer) or "").split(".") if len(part) > 40), "no token in the log"


async def test_a_refused_body_is_not_read(issuer: Issuer) -> None:
    """Content-Length announces a gigabyte that never comes: the answer does not wait for it."""
    async with door(issuer, Recorder()) as at:
        reader, writer = await asyncio.open_connection("127.0.0.1", at.client.base_url.port)
        writer.write(b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n{")
        async with asyncio.timeout(5):
            assert (await reader.readline()).startswith(b"HTTP/1.1 401")
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("size", [BODY_BYTES_MAX, BODY_BYTES_MAX + 1, 5_000_000])
async def test_a_body_that_cannot_be_read_is_logged_once_and_never_comes_back(issuer: Issuer, size: int) -> None:
    """Every other status would bring it back for ever; of a larger one no more than 64 kB are kept."""
    recorder = Recorder()
    with structlog.testing.capture_logs() as logged:
        async with door(issuer, recorder) as at:
            assert (await at.post(issuer.token(), body=b"x" * size)).status_code == 200
            assert (await at.post(issuer.token())).status_code == 200
    assert recorder.seen == [command(1)]
    set_aside = [entry for entry in logged if entry["event"] == "queue_message_set_aside"]
    assert [(len(entry["body"]), entry["log_level"]) for entry in set_aside] == [(min(size, BODY_BYTES_MAX), "error")]
    assert set_aside[0]["error"]


async def test_the_answers(issuer: Issuer) -> None:
    recorder = Recorder(Done(), RetryAfter(61.2), Release(), RuntimeError("failed"), asyncio.CancelledError())
    async with door(issuer, recorder) as at:
        answers = [await at.post(issuer.token()) for _ in range(6)]
    statuses = [(answer.status_code, answer.headers.get("retry-after")) for answer in answers]
    assert statuses == [(200, None), (503, "62"), (429, "1"), (500, None), (500, None), (200, None)]
    assert all(answer.content == b"" for answer in answers)


async def test_full_answers_429_and_the_handler_never_hears_of_it(issuer: Issuer) -> None:
    blocker = Blocker()
    async with door(issuer, blocker, slots=1) as at:
        first = asyncio.create_task(at.post(issuer.token()))
        await eventually(lambda: blocker.inside == 1)
        answer = await at.post(issuer.token())
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
        blocker.may_end.set()
        assert (await first).status_code == 200
        assert (await at.post(issuer.token())).status_code == 200
    assert len(blocker.seen) == 2


async def test_draining_answers_429_while_the_running_one_ends(issuer: Issuer) -> None:
    blocker = Blocker()
    async with door(issuer, blocker) as at:
        first = asyncio.create_task(at.post(issuer.token()))
        await eventually(lambda: blocker.inside == 1)
        at.stop.set()
        answer = await at.post(issuer.token())
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert not at.task.done()
        blocker.may_end.set()
        assert (await first).status_code == 200
    assert len(blocker.seen) == 1


async def test_the_handler_goes_on_when_cloud_tasks_stops_listening(issuer: Issuer) -> None:
    """The dispatch deadline: the connection ends, the work does not."""
    blocker = Blocker()
    async with door(issuer, blocker) as at:
        dispatch = asyncio.create_task(at.post(issuer.token()))
        await eventually(lambda: blocker.inside == 1)
        dispatch.cancel()
        await asyncio.wait({dispatch})
        await asyncio.sleep(0.2)
        assert (blocker.inside, blocker.cancelled) == (1, 0)
        blocker.may_end.set()
        await eventually(lambda: blocker.inside == 0)
    assert blocker.cancelled == 0


async def test_another_path_or_method_is_no_door(issuer: Issuer) -> None:
    recorder = Recorder()
    async with door(issuer, recorder) as at:
        headers = {"Authorization": f"Bearer {issuer.token()}"}
        assert (await at.client.get("/tasks", headers=headers)).status_code == 405
        assert (await at.client.post("/", headers=headers)).status_code == 404
    assert recorder.seen == []


async def test_keys_rotate(issuer: Issuer) -> None:
    now = 0.0
    async with httpx2.AsyncClient() as client:
        keys = KeySet(f"{issuer.url}/certs", client, now=lambda: now)
        await keys.key("first")
        issuer.keys["second"] = SECOND
        with pytest.raises(Refused):
            await keys.key("second")  # within the pause: 401, and Cloud Tasks sends it again
        now += FETCH_PAUSE_SECONDS
        await keys.key("second")
        assert issuer.fetched == 2
        del issuer.keys["first"]
        now += 3600
        with pytest.raises(Refused) as refused:
            await keys.key("first")
        assert refused.value.status == 401


async def test_unknown_keys_do_not_make_us_ask_the_issuer_each_time(issuer: Issuer) -> None:
    async with door(issuer, Recorder()) as at:
        answers = await asyncio.gather(*(at.post(issuer.token(f"made-up-{number}", key=STRANGER)) for number in range(20)))
        assert {answer.status_code for answer in answers} == {401}
        assert (await at.post(issuer.token())).status_code == 200
    assert issuer.fetched == 1


async def test_without_the_issuers_keys_the_task_comes_back(issuer: Issuer) -> None:
    """503 and not 401: nothing can be said of the token, and nothing of it is believed."""
    issuer.is_down = True
    recorder = Recorder()
    async with door(issuer, recorder) as at:
        answer = await at.post(issuer.token())
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert recorder.seen == []


async def test_known_keys_outlive_an_outage_of_their_issuer_for_a_day(issuer: Issuer) -> None:
    now = 0.0
    async with httpx2.AsyncClient() as client:
        keys = KeySet(f"{issuer.url}/certs", client, now=lambda: now)
        await keys.key("first")
        issuer.is_down = True
        now = 3600.0
        await keys.key("first")
        now = 3600.0 + KEYS_STALE_SECONDS_MAX
        with pytest.raises(Refused) as refused:
            await keys.key("first")
        assert refused.value.status == 503
        issuer.is_down = False
        now += FETCH_PAUSE_SECONDS
        await keys.key("first")


async def test_an_address_that_is_taken_is_a_wrong_setting(issuer: Issuer) -> None:
    async with door(issuer, Recorder()) as at:
        settings = CloudTasksSettings(target_url=TARGET, service_account=ACCOUNT, listen_port=at.client.base_url.port or 0)
        async with CloudTasksConsumer.open(settings) as second:
            with pytest.raises(ConfigError, match=r"queue\.cloud_tasks\.listen_port"):
                await second.run(Recorder(), slots=1, stop=asyncio.Event())


@pytest.mark.parametrize("missing", ["target_url", "service_account"])
async def test_without_a_target_or_an_account_nothing_opens(missing: str) -> None:
    complete = CloudTasksSettings(target_url=TARGET, service_account=ACCOUNT, endpoint="127.0.0.1:1")
    settings = msgspec.structs.replace(complete, **{missing: ""})
    with pytest.raises(ConfigError, match=missing):
        async with CloudTasksConsumer.open(settings):
            pass
    with pytest.raises(ConfigError, match=missing):
        async with CloudTasksEnqueuer.open("cloudtasks://p/l/q", settings):
            pass


async def test_a_task_that_the_emulator_sends_is_admitted_and_one_for_another_account_is_not(
    cloud_tasks_emulator: CloudTasksEmulator,
) -> None:
    port = free_ports(1)[0]
    settings = CloudTasksSettings(
        target_url=f"http://127.0.0.1:{port}/tasks",
        service_account=ACCOUNT,
        listen_port=port,
        endpoint=cloud_tasks_emulator.endpoint,
        issuer=cloud_tasks_emulator.issuer,
        certificates_url=cloud_tasks_emulator.certificates_url,
    )
    url = "cloudtasks://test/here/door"
    recorder, stop = Recorder(), asyncio.Event()
    async with AsyncExitStack() as stack:
        creator = await stack.enter_async_context(CloudTasksCreator.open(url, settings))
        assert [change.wanted for change in await creator.create(slots=100, check=False)] == ["a queue"]
        theirs = msgspec.structs.replace(settings, service_account="other@test.iam.gserviceaccount.com")
        stranger = await stack.enter_async_context(CloudTasksEnqueuer.open(url, theirs))
        ours = await stack.enter_async_context(CloudTasksEnqueuer.open(url, settings))
        consumer = await stack.enter_async_context(CloudTasksConsumer.open(settings))
        with structlog.testing.capture_logs() as logged:
            running = asyncio.create_task(consumer.run(recorder, slots=4, stop=stop))
            await stranger.enqueue(command(1))
            await ours.enqueue(command(2))
            await eventually(lambda: recorder.seen and any(entry["event"] == "task_refused" for entry in logged))
            stop.set()
            await running
    assert recorder.numbers() == [2]
    assert {entry["status"] for entry in logged if entry["event"] == "task_refused"} == {403}


async def test_the_queue_is_made_once_and_differences_are_told(cloud_tasks_emulator: CloudTasksEmulator) -> None:
    settings = CloudTasksSettings(endpoint=cloud_tasks_emulator.endpoint)
    async with CloudTasksCreator.open("cloudtasks://test/here/made", settings) as creator:
        name = "projects/test/locations/here/queues/made"
        missing = [Change(name, "", "", "a queue")]
        assert await creator.create(slots=100, check=True) == missing
        assert await creator.create(slots=100, check=False) == missing
        assert await creator.create(slots=100, check=True) == []
        differs = [Change(name, "rate_limits.max_concurrent_dispatches", "100", "50")]
        assert await creator.create(slots=50, check=True) == differs
        with pytest.raises(QueueUnavailable):  # what the emulator cannot: it refuses, and that is said
            await creator.create(slots=50, check=False)
