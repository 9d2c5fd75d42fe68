"""The local GitHub over HTTP: control paths, faults that really wait, webhooks that really go out, pages."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prevue.local.github import server
from prevue.local.github.ci import CiError, OnPush, command_hook, imported_hook
from prevue.local.github.door import create_app
from prevue.local.github.pump import WebhookPump
from prevue.testing.contracts.github_description import ContractMismatch, GitHubDescription, ValidatingTransport
from prevue.testing.github import FakeGitHub
from prevue.testing.github.app_key import AppKey

SECRET = "a webhook secret"
DESCRIPTION = Path(__file__).parents[1] / "contract" / "github_description"
LOCAL = "/_local/repos/acme/hello"


@pytest.fixture(scope="module")
def key() -> AppKey:
    return AppKey.generate()


@pytest.fixture
def github(key: AppKey) -> FakeGitHub:
    github = FakeGitHub(now=lambda: datetime.now(UTC), public_key=key.public_pem, webhook_secret=SECRET, html_url="http://local")
    server.seed(github)
    return github


@pytest.fixture(scope="module")
def description() -> GitHubDescription:
    return GitHubDescription(DESCRIPTION)


@contextlib.asynccontextmanager
async def door(github: FakeGitHub, on_push: OnPush | None = None) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=create_app(github, on_push=on_push))
    async with httpx2.AsyncClient(transport=transport, base_url="http://local") as client:
        yield client


async def opened(client: httpx2.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post(f"{LOCAL}/pulls", json={"user": "writer", **fields})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


# -- control paths ------------------------------------------------------------------------------------------------------


async def test_control_paths_tell_a_whole_story(github: FakeGitHub) -> None:
    async with door(github) as client:
        pull = await opened(client)
        number, head = pull["number"], pull["head_sha"]
        assert re.fullmatch(r"[0-9a-f]{40}", head)
        pushed = (await client.post(f"{LOCAL}/pulls/{number}/push", json={"sha": "a" * 40})).json()
        assert pushed["head_sha"] == "a" * 40
        assert (await client.get(f"/repos/acme/hello/pulls/{number}")).json()["head"]["sha"] == "a" * 40
        comment = await client.post(f"{LOCAL}/issues/{number}/comments", json={"user": "writer", "body": "/preview"})
        assert (comment.status_code, comment.json()["user"]["login"]) == (201, "writer")
        edited = await client.patch(f"{LOCAL}/issues/comments/{comment.json()['id']}", json={"body": "/preview please"})
        assert edited.json()["body"] == "/preview please"
        assert (await client.delete(f"{LOCAL}/issues/comments/{comment.json()['id']}")).status_code == 204
        assert (await client.post(f"{LOCAL}/pulls/{number}/close")).json()["state"] == "closed"
        assert (await client.post(f"{LOCAL}/pulls/{number}/reopen", json={})).json()["state"] == "open"
        assert (await client.put(f"{LOCAL}/collaborators/reader", json={"permission": "triage"})).status_code == 200
        issue = (await client.post(f"{LOCAL}/issues", json={"user": "reader"})).json()["number"]
        assert "pull_request" not in (await client.get(f"/repos/acme/hello/issues/{issue}")).json()
        fork = await opened(client, fork=True, head_sha="b" * 40)
        assert (await client.get(f"/repos/acme/hello/pulls/{fork['number']}")).json()["head"]["repo"]["fork"] is True
        deliveries = (await client.get("/_local/deliveries")).json()
    actions = [(delivery["event"], delivery["request"]["payload"]["action"]) for delivery in deliveries]
    story = ["opened", "reopened", "closed", "deleted", "edited", "created", "synchronize", "opened"]
    assert [action for _, action in actions] == story


async def test_deliveries_are_listed_newest_first_by_event(github: FakeGitHub) -> None:
    async with door(github) as client:
        number = (await opened(client))["number"]
        for body in ("one", "two"):
            await client.post(f"{LOCAL}/issues/{number}/comments", json={"user": "writer", "body": body})
        listed = (await client.get("/_local/deliveries", params={"event": "issue_comment", "per_page": 1})).json()
        assert [delivery["request"]["payload"]["comment"]["body"] for delivery in listed] == ["two"]
        again = (await client.post(f"/_local/deliveries/{listed[0]['guid']}/redeliver")).json()
        assert (again["guid"], again["redelivery"], again["response"]) == (listed[0]["guid"], True, None)
        signed = listed[0]["request"]["body"].encode()
        signature = hmac.digest(SECRET.encode(), signed, "sha256").hex()
        assert listed[0]["request"]["headers"]["X-Hub-Signature-256"] == f"sha256={signature}"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/pulls", b"{", 422, "not JSON"),
        ("POST", "/pulls", b"[]", 422, "object"),
        ("POST", "/pulls", b"{}", 422, "user"),
        ("POST", "/pulls", b'{"user": 5}', 422, "$.user"),
        ("POST", "/pulls", b'{"user": "writer", "sha": "x"}', 422, "sha"),
        ("POST", "/pulls", b'{"user": "writer", "head_sha": "main"}', 422, "40 hex digits"),
        ("POST", "/pulls/1/push", b'{"sha": 1}', 422, "$.sha"),
        ("POST", "/pulls/99/push", b"{}", 404, "99"),
        ("POST", "/pulls/one/push", b"{}", 404, "one"),
        ("POST", "/pulls/1/reopen", b"", 422, "open already"),
        ("POST", "/issues/1/comments", b'{"user": "writer"}', 422, "body"),
        ("POST", "/issues/1/comments", b'{"user": "writer", "body": " "}', 422, "blank"),
        ("PUT", "/collaborators/reader", b'{"permission": "root"}', 422, "admin, maintain"),
        ("POST", "/../../../faults", b'{"path": "repos"}', 422, "slash"),
        ("POST", "/../../../faults", b'{"path": "/", "times": 0}', 422, "$.times"),
        ("POST", "/../../../faults", b'{"path": "/", "status": "500"}', 422, "$.status"),
        ("POST", "/../../../limits", b'{"content_per_minute": -1}', 422, "content_per_minute"),
        ("POST", "/../../../limits", b'{"per_minute": 1}', 422, "per_minute"),
        ("GET", "/../../../deliveries?per_page=many", b"", 422, "many"),
        ("POST", "/../../../deliveries/none/redeliver", b"", 404, "none"),
    ],
)
async def test_bad_control_request_is_answered_with_its_reason(
    github: FakeGitHub, method: str, path: str, body: bytes, status: int, said: str
) -> None:
    async with door(github) as client:
        await opened(client)
        url = f"{LOCAL}{path}".replace("/repos/acme/hello/../../..", "")
        answer = await client.request(method, url, content=body)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["message"]


async def test_unknown_path_is_404(github: FakeGitHub) -> None:
    async with door(github) as client:
        for path in ("/_local/nothing", "/repos/acme/hello/nothing", "/acme/nothing", "/acme/hello/pull/7", "/x/y/z/w"):
            assert (await client.get(path)).status_code == 404, path


async def test_limits_are_set_and_switched_off(github: FakeGitHub) -> None:
    async with door(github) as client:
        answer = await client.post("/_local/limits", json={"content_per_minute": 5, "content_per_hour": None})
    assert answer.json() == {"content_per_minute": 5, "content_per_hour": None, "requests_per_hour": None}
    assert github.rate_limits.limits.content_per_hour is None


async def test_fault_waits_before_it_answers(github: FakeGitHub) -> None:
    async with door(github) as client:
        fault = {"path": "/repos", "status": 500, "times": 1, "delay_ms": 150, "method": "get"}
        assert (await client.post("/_local/faults", json=fault)).status_code == 201
        started = time.monotonic()
        assert (await client.get("/repos/acme/hello")).status_code == 500
        assert time.monotonic() - started >= 0.15
        assert (await client.get("/repos/acme/hello")).status_code == 200
        await client.post("/_local/faults", json={**fault, "times": 9})
        assert (await client.get("/_local/faults")).json()[0]["times"] == 9
        assert (await client.delete("/_local/faults")).status_code == 204
        assert (await client.get("/repos/acme/hello")).status_code == 200


# -- the CI -------------------------------------------------------------------------------------------------------------


async def test_ci_makes_an_image_at_each_new_head_unless_told_not_to(github: FakeGitHub) -> None:
    made: list[tuple[str, str]] = []

    async def on_push(full_name: str, sha: str) -> None:
        await asyncio.sleep(0)
        made.append((full_name, sha))

    async with door(github, on_push) as client:
        first = await opened(client)
        without = await opened(client, image=False)
        pushed = (await client.post(f"{LOCAL}/pulls/{first['number']}/push", json={})).json()
        await client.post(f"{LOCAL}/pulls/{without['number']}/push", json={"image": False})
    assert made == [("acme/hello", first["head_sha"]), ("acme/hello", pushed["head_sha"])]


async def test_failing_ci_is_told_and_the_push_stands(github: FakeGitHub) -> None:
    async def on_push(full_name: str, sha: str) -> None:
        raise CiError("no space left")

    async with door(github, on_push) as client:
        answer = await client.post(f"{LOCAL}/pulls", json={"user": "writer"})
        assert answer.status_code == 502
        assert "no space left" in answer.json()["message"]
        assert (await client.get("/repos/acme/hello/pulls/1")).status_code == 200


async def test_ci_command_gets_owner_name_and_commit(tmp_path: Path) -> None:
    hook = command_hook(f"touch {tmp_path}/{{owner}}-{{repo}}-{{sha}}")
    await hook("acme/hello", "a" * 40)
    made = await asyncio.to_thread(lambda: [path.name for path in tmp_path.iterdir()])
    assert made == [f"acme-hello-{'a' * 40}"]
    with pytest.raises(CiError, match="cannot open"):
        await command_hook(f"{sys.executable} -c 'import sys; sys.exit(\"cannot open\")'")("acme/hello", "a" * 40)


@pytest.mark.parametrize("template", ["make {image}", "make {0}", "make 'image"])
def test_ci_command_that_cannot_be_filled_in_is_refused_at_once(template: str) -> None:
    with pytest.raises(ValueError):
        command_hook(template)


async def never_called(full_name: str, sha: str) -> None:
    """Stand for a hook of the local stack."""


@pytest.mark.parametrize("name", ["nothing.here:hook", "json:nothing", "json:dumps", "json"])
def test_ci_hook_that_is_none_is_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError):
        imported_hook(name)


# -- the contract, through HTTP -----------------------------------------------------------------------------------------


async def test_what_goes_over_http_is_as_github_describes_it(github: FakeGitHub, description: GitHubDescription, key: AppKey) -> None:
    transport = ValidatingTransport(description, httpx2.ASGITransport(app=create_app(github)))
    async with door(github) as people, httpx2.AsyncClient(transport=transport, base_url="http://local") as client:
        number = (await opened(people))["number"]
        bearer = {"authorization": f"Bearer {key.jwt(issuer=1, now=datetime.now(UTC))}"}
        installation = (await client.get("/repos/acme/hello/installation", headers=bearer)).json()["id"]
        made = await client.post(f"/app/installations/{installation}/access_tokens", headers=bearer)
        client.headers["authorization"] = f"Bearer {made.json()['token']}"
        comment = (await client.post(f"/repos/acme/hello/issues/{number}/comments", json={"body": "hello"})).json()
        assert (await client.get(comment["url"].replace("https://api.github.com", ""))).json() == comment
        with pytest.raises(ContractMismatch):
            await client.post(f"/repos/acme/hello/issues/{number}/comments", json={"text": "hello"})
    assert len(transport.checked) == 4
    assert len(transport.mismatches) == 1


# -- webhooks -----------------------------------------------------------------------------------------------------------


class Receiver:
    """An App's webhook endpoint that notes what arrives."""

    def __init__(self, answer: Callable[[], Awaitable[Response]]) -> None:
        self.received: list[tuple[dict[str, str], bytes]] = []
        self._answer = answer
        self.transport = httpx2.ASGITransport(app=Starlette(routes=[Route("/webhook", self._take, methods=["POST"])]))

    async def _take(self, request: Request) -> Response:
        self.received.append((dict(request.headers), await request.body()))
        return await self._answer()


@contextlib.asynccontextmanager
async def pumping(github: FakeGitHub, transport: httpx2.AsyncBaseTransport) -> AsyncIterator[WebhookPump]:
    pump = WebhookPump(github, "http://app/webhook", transport=transport)
    task = asyncio.create_task(pump.run())
    try:
        yield pump
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 -- what is waited for is another's state, which has no event
            await asyncio.sleep(0.01)


async def accepted() -> Response:
    """Answer as the App does to a command."""
    return Response("queued", status_code=202)


async def test_webhook_goes_out_signed_and_its_response_is_in_the_log(github: FakeGitHub) -> None:
    github.open_pull_request("acme/hello", "writer")  # before the pump runs: it is sent all the same
    receiver = Receiver(accepted)
    async with pumping(github, receiver.transport), door(github) as client:
        await client.post(f"{LOCAL}/issues/1/comments", json={"user": "writer", "body": "/preview"})
        await until(lambda: len(receiver.received) == 2 and all(d.response for d in github.webhooks.log()))
        listed = (await client.get("/_local/deliveries?event=issue_comment")).json()
    headers, body = receiver.received[-1]
    assert headers["x-hub-signature-256"] == "sha256=" + hmac.digest(SECRET.encode(), body, "sha256").hex()
    assert headers["content-type"] == "application/json"
    assert listed[0]["response"]["status_code"] == 202
    assert listed[0]["response"]["payload"] == "queued"
    assert (listed[0]["status"], listed[0]["status_code"]) == ("OK", 202)


async def test_failed_delivery_is_not_sent_again_but_by_hand(github: FakeGitHub) -> None:
    answers = iter([503, 202])

    async def answer() -> Response:
        return Response(status_code=next(answers))

    receiver = Receiver(answer)
    async with pumping(github, receiver.transport), door(github) as client:
        await opened(client)
        await until(lambda: all(d.response for d in github.webhooks.log()))
        await asyncio.sleep(0.1)
        (failed,) = (await client.get("/_local/deliveries")).json()
        assert (failed["response"]["status_code"], len(receiver.received)) == (503, 1)
        await client.post(f"/_local/deliveries/{failed['guid']}/redeliver")
        await until(lambda: all(d.response for d in github.webhooks.log()))
        again, _ = (await client.get("/_local/deliveries")).json()
    assert (again["guid"], again["response"]["status_code"]) == (failed["guid"], 202)
    assert receiver.received[0][1] == receiver.received[1][1]


async def test_fifty_deliveries_are_on_the_wire_at_once(github: FakeGitHub) -> None:
    gate, waiting = asyncio.Event(), 0

    async def answer() -> Response:
        nonlocal waiting
        waiting += 1
        await gate.wait()
        return Response(status_code=202)

    async with pumping(github, Receiver(answer).transport) as pump:
        for _ in range(50):
            github.open_pull_request("acme/hello", "writer")
        await until(lambda: waiting == 50)
        assert pump.in_flight == 50
        gate.set()
        await until(lambda: pump.in_flight == 0)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        pytest.param(httpx2.ConnectError("refused"), "failed to connect to host", id="refused"),
        pytest.param(httpx2.ReadTimeout("slow"), "timed out", id="too slow"),
    ],
)
async def test_delivery_that_nobody_answers_says_why(github: FakeGitHub, error: Exception, said: str) -> None:
    def fail(_: httpx2.Request) -> httpx2.Response:
        raise error

    async with pumping(github, httpx2.MockTransport(fail)), door(github) as client:
        await opened(client)
        await until(lambda: all(d.response for d in github.webhooks.log()))
        (delivery,) = (await client.get("/_local/deliveries")).json()
    assert (delivery["response"]["status_code"], delivery["response"]["error"]) == (0, said)


# -- pages --------------------------------------------------------------------------------------------------------------


async def test_page_shows_the_conversation_and_hides_markers(github: FakeGitHub) -> None:
    async with door(github) as client:
        await opened(client, title="Say <hello>")
        comment = github.comment("acme/hello", 1, "writer", "<!-- secret marker -->\n**ready** <script>alert(1)</script>")
        github.react("acme/hello", comment.id, github.app.bot, "eyes")
        page = (await client.get("/acme/hello/pull/1")).text
        assert "Say &lt;hello&gt;" in page
        assert "<strong>ready</strong>" in page
        assert "secret marker" not in page
        assert "<script>alert" not in page
        assert "👀 1" in page
        assert (await client.get("/acme/hello/issues/1")).status_code == 307
        for path in ("/", "/acme/hello", "/acme/hello?state=closed"):
            assert (await client.get(path)).status_code == 200
        for path in ("/_local/static/page.css", "/_local/static/page.js", "/_local/avatars/writer"):
            assert (await client.get(path)).status_code == 200


async def test_live_parts_change_with_the_conversation_only(github: FakeGitHub) -> None:
    async with door(github) as client:
        await opened(client)
        first = await client.get("/acme/hello/pull/1/live")
        assert set(first.json()) == {"heading", "timeline", "side"}
        same = await client.get("/acme/hello/pull/1/live", headers={"if-none-match": first.headers["etag"]})
        assert same.status_code == 304
        github.comment("acme/hello", 1, "writer", "/preview")
        changed = await client.get("/acme/hello/pull/1/live", headers={"if-none-match": first.headers["etag"]})
        assert "/preview" in changed.json()["timeline"]


async def test_forms_work_without_a_script_and_refuse_other_sites(github: FakeGitHub) -> None:
    async with door(github) as client:
        form = {"user": "writer", "title": "By hand", "image": "on"}
        made = await client.post("/acme/hello/pulls", data=form)
        assert (made.status_code, made.headers["location"]) == (303, "/acme/hello/pull/1")
        said = await client.post("/acme/hello/pull/1/comment", data={"user": "writer", "body": "/preview & more"})
        assert said.status_code == 303
        for action in ("push", "close", "reopen"):
            assert (await client.post(f"/acme/hello/pull/1/{action}", data={})).status_code == 303
        quiet = await client.post("/acme/hello/pull/1/reopen", data={}, headers={"accept": "application/json"})
        assert (quiet.status_code, quiet.json()["message"]) == (422, "acme/hello#1 is open already")
        foreign = {"sec-fetch-site": "cross-site"}
        assert (await client.post("/acme/hello/pull/1/close", data={}, headers=foreign)).status_code == 403
    assert [comment.body for comment in github.issue("acme/hello", 1).comments.values()] == ["/preview & more"]


# -- the process --------------------------------------------------------------------------------------------------------


async def test_process_serves_on_a_real_port_and_breaks_connections_when_told(tmp_path: Path, key: AppKey) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    (tmp_path / "key.pem").write_bytes(key.public_pem)
    arguments = ["--webhook-secret-file", f"{tmp_path}/secret", "--public-key-file", f"{tmp_path}/key.pem"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "prevue.local.github", "--repository-id-start", "77000", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            line = (await process.stdout.readline()).decode()
        url = line.removeprefix("local GitHub: ").strip()
        async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=20) as client:
            repositories = [(await client.get(f"/repos/acme/{name}")).json() for name in ("hello", "other")]
            assert [repository["id"] for repository in repositories] == [77_000, 77_001]
            assert repositories[0]["url"] == f"{url}/repos/acme/hello"
            await client.post("/_local/faults", json={"path": "/repos", "status": 0, "times": 1, "delay_ms": 50})
            with pytest.raises(httpx2.RemoteProtocolError):
                await client.get("/repos/acme/hello")
            assert (await client.get("/_local/healthz")).json() == {"status": "ok"}
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0


def test_process_says_what_is_wrong_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "key.pem").write_text("no key")
    common = ["--webhook-secret-file", f"{tmp_path}/secret"]
    assert server.main([*common, "--public-key-file", f"{tmp_path}/key.pem"]) == 1
    assert server.main([*common, "--public-key-file", f"{tmp_path}/nothing.pem"]) == 1
    assert server.main([*common, "--public-key-file", f"{tmp_path}/key.pem", "--ci-command", "make {image}"]) == 1
    assert capsys.readouterr().err.count("local GitHub: ") == 3


def test_json_of_the_log_is_what_was_sent(github: FakeGitHub) -> None:
    github.open_pull_request("acme/hello", "writer")
    delivery = github.webhooks.log()[0]
    assert json.loads(delivery.payload)["repository"]["full_name"] == "acme/hello"
