"""The App from the webhook's bytes to what GitHub and the queue hold: production's code over the fake GitHub and the fake queue."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from prevue.clock import SystemClock
from prevue.config import AppSettings, GitHubSettings
from prevue.github.client import GitHubClient
from prevue.github_app.acknowledge import Acknowledger
from prevue.github_app.asgi import STATUS, create_app
from prevue.github_app.budget import Budget
from prevue.github_app.handle import Result
from prevue.model import Action, Message, Source
from prevue.queue.port import AlreadyEnqueued, Enqueued
from prevue.testing.github import Comment, FakeGitHub, Fault
from prevue.testing.github.transport import FakeGitHubTransport
from prevue.testing.queue import FakeQueue, QueueDisk

REPO = "acme/hello"
SECRET = "a secret of the tests"
MIB = 1024 * 1024


@dataclass
class World:
    """One App process, one GitHub, one queue."""

    github: FakeGitHub
    disk: QueueDisk
    acknowledger: Acknowledger
    http: httpx2.AsyncClient
    logs: list[MutableMapping[str, Any]] = field(default_factory=list)

    async def deliver(self) -> list[httpx2.Response]:
        """Send what GitHub has to send, all at once, and let the App's background work end."""
        responses = await asyncio.gather(
            *(
                self.http.post("/webhook", content=delivery.payload, headers=dict(delivery.headers))
                for delivery in self.github.webhooks.take()
            )
        )
        await self.acknowledger.drain(5)
        return responses

    async def send(self, body: bytes, **headers: str) -> httpx2.Response:
        """A delivery signed with the right secret, unless `headers` say otherwise (`_` for `-`)."""
        signed = {
            "x-hub-signature-256": "sha256=" + hmac.digest(SECRET.encode(), body, "sha256").hex(),
            "x-github-event": "issue_comment",
            "x-github-delivery": "d-1",
            "content-type": "application/json",
        }
        signed.update({name.replace("_", "-"): value for name, value in headers.items()})
        return await self.http.post("/webhook", content=body, headers={name: value for name, value in signed.items() if value})

    def pull_request(self, **arguments: Any) -> int:
        number = self.github.open_pull_request(REPO, "writer", **arguments).number
        self.github.webhooks.take()
        return number

    async def command(self, number: int, *, user: str = "writer", body: str = "/preview") -> httpx2.Response:
        self.github.comment(REPO, number, user, body)
        (response,) = await self.deliver()
        self.github.webhooks.take()  # the App's own comment comes back as a webhook; `test_own_comments_…` sends that one
        return response

    def bot_comments(self, number: int) -> list[Comment]:
        comments = self.github.issue(REPO, number).comments.values()
        return [comment for comment in comments if comment.author is self.github.app.bot]

    def reactions(self, number: int) -> list[str]:
        return [r.content for comment in self.github.issue(REPO, number).comments.values() for r in comment.reactions]

    @property
    def messages(self) -> list[Message]:
        return self.disk.messages()


@pytest.fixture(scope="session")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def settings() -> AppSettings:
    return AppSettings(github_timeout_seconds=0.5)


@pytest.fixture
async def world(key: rsa.RSAPrivateKey, settings: AppSettings, tmp_path: Path) -> AsyncIterator[World]:
    private, public = serialization.PrivateFormat.TraditionalOpenSSL, serialization.PublicFormat.SubjectPublicKeyInfo
    pem = tmp_path / "app.pem"
    pem.write_bytes(key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption()))
    github = FakeGitHub(
        now=SystemClock().now, public_key=key.public_key().public_bytes(serialization.Encoding.PEM, public), webhook_secret=SECRET
    )
    github.add_repository(REPO)
    for login, permission in (("writer", "write"), ("reader", "read"), ("maintainer", "maintain"), ("triager", "triage")):
        github.set_permission(REPO, login, permission)
    disk = QueueDisk()
    queue = FakeQueue(disk)
    async with GitHubClient.open(GitHubSettings(app_id=1, private_key_file=str(pem)), transport=FakeGitHubTransport(github)) as client:
        budget = Budget(
            per_minute=settings.comments_per_minute, per_hour=settings.comments_per_hour, replicas=1, now=SystemClock().boottime
        )
        acknowledger = Acknowledger(client, budget)
        app = create_app(
            github=client,
            enqueuer=queue,
            acknowledger=acknowledger,
            settings=settings,
            secrets=[b"the next secret", SECRET.encode()],
            github_host="github.com",
        )
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://app", timeout=20) as http:
            with structlog.testing.capture_logs() as logs:
                yield World(github=github, disk=disk, acknowledger=acknowledger, http=http, logs=logs)
                await acknowledger.drain(5)


# -- accepted ---------------------------------------------------------------------------------------------------------


async def test_a_command_is_enqueued_and_then_acknowledged(world: World) -> None:
    number = world.pull_request(head_sha="ab" * 20)
    response = await world.command(number)
    assert (response.status_code, response.json()) == (202, {"result": "enqueued"})
    (message,) = world.messages
    command = next(c for c in world.github.issue(REPO, number).comments.values() if c.body == "/preview")
    assert message == Message(
        idempotency_key=f"{REPO}#{number}:{'ab' * 20}",
        repo=REPO,
        pr_number=number,
        commit_sha="ab" * 20,
        installation_id=next(iter(world.github.installations)),
        comment_id=command.id,
        action=Action.DEPLOY,
        repository_id=world.github.repository(REPO).id,
        delivery_id=world.github.webhooks.log(event="issue_comment")[-1].guid,
        requested_by="writer",
        requested_at=command.created_at,
        source=Source.COMMENT,
        source_id=str(command.id),
    )
    (comment,) = world.bot_comments(number)
    assert comment.body.startswith(f"<!-- prevue:github.com/{message.repository_id}/{number}/comment/{command.id} -->")
    assert "Deployment requested! Setting up preview environment..." in comment.body
    assert "abababababab" in comment.body
    assert world.reactions(number) == ["eyes"]


@pytest.mark.parametrize("user", ["maintainer", "acme"])
async def test_maintainers_and_admins_may_too(world: World, user: str) -> None:
    assert (await world.command(world.pull_request(), user=user)).status_code == 202


async def test_twenty_equal_deliveries_at_once_are_one_request_and_one_comment(world: World) -> None:
    number = world.pull_request()
    world.github.comment(REPO, number, "writer", "/preview")
    guid = world.github.webhooks.log()[0].guid
    for _ in range(19):
        world.github.webhooks.redeliver(guid)
    responses = await world.deliver()
    assert [response.status_code for response in responses] == [202] * 20
    assert sorted(response.json()["result"] for response in responses) == ["already_enqueued"] * 19 + ["enqueued"]
    assert len(world.messages) == len(world.bot_comments(number)) == len(world.reactions(number)) == 1


async def test_a_redelivery_after_the_message_was_settled_writes_no_second_acknowledgement(world: World) -> None:
    number = world.pull_request()
    await world.command(number)
    world.disk.entries.clear()
    world.github.webhooks.redeliver(world.github.webhooks.log(event="issue_comment")[-1].guid)
    (response,) = await world.deliver()
    assert response.json() == {"result": "enqueued"}
    assert len(world.bot_comments(number)) == 1


async def test_a_closed_pull_request_is_destroyed_without_a_word(world: World) -> None:
    number = world.pull_request()
    closed = world.github.close_pull_request(REPO, number, user="reader")
    (response,) = await world.deliver()
    assert response.status_code == 202
    (message,) = world.messages
    assert (message.action, message.source, message.comment_id, message.commit_sha) == (Action.DESTROY, Source.CLOSE, 0, "")
    assert message.requested_at == closed.closed_at
    assert message.is_complete
    assert world.bot_comments(number) == []


async def test_the_newest_commit_is_the_one_that_is_deployed(world: World) -> None:
    number = world.pull_request()
    world.github.push(REPO, number, sha="cd" * 20)
    await world.deliver()
    await world.command(number)
    assert world.messages[0].commit_sha == "cd" * 20


async def test_the_message_spells_the_repository_as_github_does_now(world: World) -> None:
    """The webhook of a redelivery may have an old name or spelling; the API's answer has today's."""
    number = world.pull_request()
    world.github.comment(REPO, number, "writer", "/preview")
    (delivery,) = world.github.webhooks.take()
    response = await world.send(delivery.payload.replace(b'"full_name":"acme/hello"', b'"full_name":"ACME/Hello"'))
    assert response.status_code == 202
    assert world.messages[0].repo == REPO


# -- the table of everything else ------------------------------------------------------------------------------------------


def test_every_result_has_a_status() -> None:
    assert set(STATUS) == set(Result)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("Looks good to me.", "no_command"),
        ("> /preview", "no_command"),
        ("```\n/preview\n```", "no_command"),
        ("    /preview", "no_command"),
        ("/preview stop", "unknown_verb"),
    ],
)
async def test_other_comments_are_ignored_with_the_reason(world: World, body: str, reason: str) -> None:
    number = world.pull_request()
    response = await world.command(number, body=body)
    assert (response.status_code, response.json()) == (200, {"result": "ignored", "reason": reason})
    assert (world.messages, world.bot_comments(number)) == ([], [])


async def test_a_comment_on_an_issue_is_ignored(world: World) -> None:
    number = world.github.open_issue(REPO, "writer").number
    response = await world.command(number)
    assert (response.status_code, response.json()["reason"]) == (200, "not_a_pull_request")
    assert world.bot_comments(number) == []


async def test_a_bots_command_is_ignored(world: World) -> None:
    world.github.set_permission(REPO, "helper[bot]", "admin")
    number = world.pull_request()
    response = await world.command(number, user="helper[bot]")
    assert (response.status_code, response.json()["reason"]) == (200, "bot")
    assert world.messages == []


async def test_our_own_comments_are_no_commands(world: World) -> None:
    number = world.pull_request()
    await world.command(number, user="reader")
    (refusal,) = world.bot_comments(number)
    assert "/preview" in refusal.body
    world.github.webhooks.redeliver(world.github.webhooks.log(event="issue_comment")[0].guid)
    (response,) = await world.deliver()
    assert response.json()["reason"] == "bot"
    assert len(world.bot_comments(number)) == 1


async def test_edited_and_deleted_comments_are_ignored(world: World) -> None:
    number = world.pull_request()
    comment = world.github.comment(REPO, number, "writer", "hello")
    await world.deliver()
    world.github.edit_comment(REPO, comment.id, "/preview")
    world.github.delete_comment(REPO, comment.id)
    responses = await world.deliver()
    assert [(response.status_code, response.json()["reason"]) for response in responses] == [(200, "action"), (200, "action")]
    assert world.messages == []


async def test_opening_pushing_and_reopening_ask_for_nothing(world: World) -> None:
    number = world.github.open_pull_request(REPO, "writer").number
    world.github.push(REPO, number)
    assert {response.json()["reason"] for response in await world.deliver()} == {"action"}


async def test_a_ping_is_answered(world: World) -> None:
    response = await world.send(b'{"zen":"Design for failure."}', x_github_event="ping")
    assert (response.status_code, response.json()) == (200, {"result": "pong"})


async def test_an_event_that_nobody_asked_for_is_ignored_unread(world: World) -> None:
    response = await world.send(b"not even JSON", x_github_event="star")
    assert (response.status_code, response.json()) == (200, {"result": "ignored", "reason": "event"})


@pytest.mark.parametrize(
    ("user", "permission"), [("reader", "read"), ("triager", "triage"), ("stranger", "read")], ids=["reader", "triager", "stranger"]
)
async def test_a_command_without_the_right_is_refused_once_with_the_reason(world: World, user: str, permission: str) -> None:
    number = world.pull_request()
    response = await world.command(number, user=user)
    assert (response.status_code, response.json()) == (200, {"result": "refused", "reason": "permission"})
    world.github.webhooks.redeliver(world.github.webhooks.log(event="issue_comment")[-1].guid)
    await world.deliver()
    (comment,) = world.bot_comments(number)
    assert "needs write access" in comment.body
    assert f"`{permission}`" in comment.body
    assert world.messages == []


async def test_a_command_on_a_closed_pull_request_is_refused(world: World) -> None:
    number = world.pull_request()
    world.github.close_pull_request(REPO, number)
    await world.deliver()
    world.disk.entries.clear()
    response = await world.command(number)
    assert (response.status_code, response.json()["reason"]) == (200, "closed")
    assert "is closed" in world.bot_comments(number)[0].body
    assert world.messages == []


async def test_a_command_on_a_fork_is_refused(world: World) -> None:
    number = world.pull_request(fork=True)
    response = await world.command(number)
    assert (response.status_code, response.json()["reason"]) == (200, "fork")
    assert "fork" in world.bot_comments(number)[0].body
    assert world.messages == []


async def test_a_wrong_signature_is_refused_and_nothing_is_parsed(world: World) -> None:
    for signature in ("sha256=" + "0" * 64, "", "sha1=" + "0" * 40):
        response = await world.send(b"{", x_hub_signature_256=signature)
        assert (response.status_code, response.json()) == (401, {"result": "invalid_signature"})


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"text"', b'{"action":"created"}', b'{"action":1}', b"\xff\xfe", b'{"action":"created","comment":{}}']
)
@pytest.mark.parametrize("event", ["issue_comment", "pull_request"])
async def test_a_malformed_body_is_answered_with_400(world: World, body: bytes, event: str) -> None:
    response = await world.send(body, x_github_event=event)
    assert (response.status_code, response.json()["result"]) == (400, "malformed")


async def test_a_body_that_is_too_large_is_cut_off_while_it_comes(world: World) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(26):
            sent += 1
            yield b"x" * MIB

    headers = {"x-hub-signature-256": "sha256=" + "0" * 64, "x-github-event": "push", "x-github-delivery": "1"}
    headers["content-type"] = "application/json"
    response = await world.http.post("/webhook", content=chunks(), headers=headers)
    assert "content-length" not in response.request.headers
    assert (response.status_code, response.json()["result"], sent) == (413, "too_large", 26)


async def test_a_body_that_announces_too_much_is_not_read(world: World) -> None:
    response = await world.send(b"{}", content_length=str(25 * MIB + 1))
    assert response.status_code == 413


async def test_the_largest_body_that_github_sends_is_taken(world: World) -> None:
    body = b'{"zen":"' + b"x" * (25 * MIB - 10) + b'"}'
    assert len(body) == 25 * MIB
    assert (await world.send(body, x_github_event="ping")).status_code == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS"])
async def test_other_methods_are_refused(world: World, method: str) -> None:
    response = await world.http.request(method, "/webhook")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


async def test_while_the_queue_is_down_503_then_a_redelivery_is_carried_out_once(world: World) -> None:
    number = world.pull_request()
    world.disk.outage = True
    response = await world.command(number)
    assert (response.status_code, response.json()) == (503, {"result": "unavailable", "reason": "queue_unavailable"})
    assert world.bot_comments(number) == []
    assert (await world.http.get("/readyz")).status_code == 503
    world.disk.outage = False
    assert (await world.http.get("/readyz")).status_code == 200
    world.github.webhooks.redeliver(world.github.webhooks.log(event="issue_comment")[0].guid)
    assert [response.status_code for response in await world.deliver()] == [202]
    assert len(world.messages) == len(world.bot_comments(number)) == 1


@pytest.mark.parametrize("path", ["/repos/acme/hello/pulls", "/repos/acme/hello/collaborators", "/app/installations"])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"status": 500}, "github_unavailable"),
        ({"status": 502}, "github_unavailable"),
        ({"status": 403}, "github_timeout"),
        ({"status": 403, "headers": {"retry-after": "7"}}, "github_rate_limited"),
        ({"status": 429}, "github_rate_limited"),
        ({"status": 0}, "github_unavailable"),
        ({"status": 200, "delay_seconds": 2.0}, "github_timeout"),
    ],
    ids=["500", "502", "403", "403 limit", "429", "broken connection", "silence"],
)
async def test_when_github_does_not_say_503_and_nothing_is_enqueued(world: World, path: str, fault: dict[str, Any], reason: str) -> None:
    """A 403 to a fresh token is asked again until the time is up; the App's own identity refused (403) is final at once."""
    number = world.pull_request()
    world.github.faults.append(Fault(path=path, times=100, **fault))
    response = await world.command(number)
    expected = "github_refuses" if (path, fault) == ("/app/installations", {"status": 403}) else reason
    assert (response.status_code, response.json()) == (503, {"result": "unavailable", "reason": expected})
    assert (world.messages, world.bot_comments(number), world.reactions(number)) == ([], [], [])
    world.github.faults.clear()
    world.github.webhooks.redeliver(world.github.webhooks.log(event="issue_comment")[-1].guid)
    (again,) = await world.deliver()
    assert again.status_code == 202
    assert len(world.messages) == len(world.bot_comments(number)) == 1


async def test_a_pull_request_that_the_api_does_not_know_yet_is_asked_for_again_later(world: World) -> None:
    number = world.pull_request()
    world.github.faults.append(Fault(path=f"/repos/acme/hello/pulls/{number}", status=404, times=1))
    response = await world.command(number)
    assert (response.status_code, response.json()["reason"]) == (503, "github_not_found")


async def test_an_unexpected_error_is_500_and_logged_without_secrets(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_self: FakeQueue, _message: Message) -> Enqueued | AlreadyEnqueued:
        raise RuntimeError("the password is in postgresql://user:hunter2@db/prevue")

    monkeypatch.setattr(FakeQueue, "enqueue", broken)
    response = await world.command(world.pull_request())
    assert (response.status_code, response.json()) == (500, {"result": "error"})
    assert any(line["event"] == "delivery_failed" for line in world.logs)


# -- the acknowledgement is best effort --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), [("POST", ""), ("GET", "")], ids=["writing", "listing"])
@pytest.mark.parametrize("status", [500, 403, 429, 0])
async def test_a_failing_acknowledgement_never_changes_the_202(world: World, method: str, path: str, status: int) -> None:
    number = world.pull_request()
    world.github.faults.append(Fault(method=method, path=f"/repos/acme/hello/issues/{number}/comments{path}", status=status, times=1))
    response = await world.command(number)
    assert response.status_code == 202
    assert len(world.messages) == 1
    expected = 1 if (method, status) == ("GET", 403) else 0  # a fresh token's 403 is asked again
    assert len(world.bot_comments(number)) == expected


async def test_an_acknowledgement_whose_answer_is_lost_is_not_written_twice(world: World) -> None:
    number = world.pull_request()
    path = f"/repos/acme/hello/issues/{number}/comments"
    world.github.faults.append(Fault(method="POST", path=path, status=502, times=1, after=True))
    assert (await world.command(number)).status_code == 202
    assert len(world.bot_comments(number)) == 1
    world.github.webhooks.redeliver(world.github.webhooks.log(event="issue_comment")[-1].guid)
    await world.deliver()
    assert len(world.bot_comments(number)) == 1


class TestBudget:
    """With five writes a minute: 5 comments at most, a reaction only while half is left."""

    @pytest.fixture
    def settings(self) -> AppSettings:
        return AppSettings(comments_per_minute=5)

    async def test_commands_beyond_the_budget_are_carried_out_unacknowledged(self, world: World) -> None:
        numbers = [world.pull_request() for _ in range(8)]
        for number in numbers:
            assert (await world.command(number)).status_code == 202
        comments = sum(len(world.bot_comments(number)) for number in numbers)
        reactions = sum(len(world.reactions(number)) for number in numbers)
        assert (len(world.messages), comments, reactions) == (8, 4, 1)


async def test_githubs_own_limit_stops_the_acknowledgements(world: World) -> None:
    numbers = [world.pull_request() for _ in range(3)]
    world.github.rate_limits.limits.content_per_minute = 1
    for number in numbers:
        assert (await world.command(number)).status_code == 202
    skipped = [line["reason"] for line in world.logs if line["event"] == "acknowledgement_skipped"]
    assert skipped == ["budget", "budget"]
    assert sum(len(world.bot_comments(number)) for number in numbers) == 1


async def test_one_line_tells_of_each_delivery(world: World) -> None:
    await world.command(world.pull_request(), body="hello")
    (line,) = [line for line in world.logs if line["event"] == "delivery"]
    assert line["delivery_id"] == world.github.webhooks.log(event="issue_comment")[0].guid
    assert (line["result"], line["reason"], line["status"], line["github_event"]) == ("ignored", "no_command", 200, "issue_comment")
    assert line["duration_ms"] >= 0
