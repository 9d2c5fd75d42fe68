"""The local GitHub against GitHub's published description: every endpoint, every webhook, and planted mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from prevue.testing.contracts.github_description import ContractMismatch, GitHubDescription, load_examples
from prevue.testing.github import FakeGitHub, Request, Response
from prevue.testing.github.app_key import AppKey
from prevue.testing.github.records import Fault, Limits
from prevue.testing.github.routes import ROUTES

FOLDER = Path(__file__).parent / "github_description"
NOW = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)


@pytest.fixture(scope="module")
def description() -> GitHubDescription:
    return GitHubDescription(FOLDER)


@pytest.fixture(scope="module")
def key() -> AppKey:
    return AppKey.generate()


class World:
    """A GitHub with something of everything in it, and the two ways to ask it."""

    def __init__(self, description: GitHubDescription, key: AppKey) -> None:
        self.description = description
        self.key = key
        self.github = FakeGitHub(now=lambda: NOW, public_key=key.public_pem, webhook_secret="s", limits=Limits())
        self.github.add_repository("acme/hello")
        self.github.set_permission("acme/hello", "writer", "write")
        self.github.set_permission("acme/hello", "triager", "triage")
        self.pull = self.github.open_pull_request("acme/hello", "writer", body="Hello")
        self.fork = self.github.open_pull_request("acme/hello", "outsider", fork=True)
        self.issue = self.github.open_issue("acme/hello", "writer")
        self.github.push("acme/hello", self.pull.number)
        self.comment = self.github.comment("acme/hello", self.pull.number, "writer", "/preview")
        installation = self.github.installation_of(self.github.repository("acme/hello"))
        assert installation is not None
        self.installation = installation
        self.token = self.github.new_token(installation).value
        self.seen: set[tuple[str, str]] = set()

    def ask(self, method: str, path: str, body: Any = None, *, query: str = "", credential: str | None = None) -> Response:
        """Ask as the installation (or with `credential`, empty for none) and hold both directions against the description."""
        request = Request(
            method=method,
            path=path,
            query=query,
            headers={"user-agent": "test"},
            body=b"" if body is None else json.dumps(body).encode(),
        )
        credential = self.token if credential is None else credential
        if credential:
            request = msgspec.structs.replace(request, headers={**request.headers, "authorization": f"Bearer {credential}"})
        operation = self.description.check_request(method, path, query, request.body, request.headers)
        self.seen.add((operation.method, operation.template))
        response = self.github.handle(request)
        self.description.check_response(operation, response.status, response.body)
        return response

    def ask_as_app(self, method: str, path: str, body: Any = None, *, query: str = "") -> Response:
        """Ask as the App, with a JWT."""
        return self.ask(method, path, body, query=query, credential=self.key.jwt(issuer=1, now=NOW))


@pytest.fixture
def world(description: GitHubDescription, key: AppKey) -> World:
    return World(description, key)


def test_every_route_answers_as_github_describes_it(world: World) -> None:
    """Goal: no endpoint is left out. Method: call each, then compare what was called with the table of routes."""
    repo, comment = "/repos/acme/hello", f"/repos/acme/hello/issues/comments/{world.comment.id}"
    number = world.pull.number
    expected: list[tuple[Callable[[], Response], int]] = [
        (lambda: world.ask_as_app("GET", "/app"), 200),
        (lambda: world.ask_as_app("GET", "/app/installations"), 200),
        (lambda: world.ask_as_app("GET", f"/app/installations/{world.installation.id}"), 200),
        (lambda: world.ask_as_app("POST", f"/app/installations/{world.installation.id}/access_tokens"), 201),
        (
            lambda: world.ask_as_app(
                "POST",
                f"/app/installations/{world.installation.id}/access_tokens",
                {"repositories": ["hello"], "permissions": {"issues": "write"}},
            ),
            201,
        ),
        (lambda: world.ask_as_app("GET", "/app/hook/deliveries", query="per_page=2"), 200),
        (lambda: world.ask_as_app("GET", f"/app/hook/deliveries/{world.github.webhooks.log()[0].id}"), 200),
        (lambda: world.ask_as_app("POST", f"/app/hook/deliveries/{world.github.webhooks.log()[0].id}/attempts"), 202),
        (lambda: world.ask("GET", "/installation/repositories"), 200),
        (lambda: world.ask("GET", "/rate_limit"), 200),
        (lambda: world.ask("GET", "/users/writer"), 200),
        (lambda: world.ask("GET", "/users/prevue-local%5Bbot%5D"), 200),
        (lambda: world.ask("GET", repo), 200),
        (lambda: world.ask("GET", "/repos/outsider/hello"), 200),
        (lambda: world.ask("GET", "/repositories/1001"), 200),
        (lambda: world.ask_as_app("GET", f"{repo}/installation"), 200),
        (lambda: world.ask("GET", f"{repo}/collaborators/triager/permission"), 200),
        (lambda: world.ask("GET", f"{repo}/pulls", query="state=all&per_page=1&sort=updated&direction=desc"), 200),
        (lambda: world.ask("GET", f"{repo}/pulls/{number}"), 200),
        (lambda: world.ask("GET", f"{repo}/pulls/{world.fork.number}"), 200),
        (lambda: world.ask("GET", f"{repo}/pulls/{number}/commits"), 200),
        (lambda: world.ask("GET", f"{repo}/issues/{number}"), 200),
        (lambda: world.ask("GET", f"{repo}/issues/{world.issue.number}"), 200),
        (lambda: world.ask("POST", f"{repo}/issues/{number}/comments", {"body": "Deployment requested!"}), 201),
        (lambda: world.ask("GET", f"{repo}/issues/{number}/comments", query="since=2026-03-01T00:00:00Z"), 200),
        (lambda: world.ask("GET", f"/repositories/1001/issues/{number}/comments"), 200),
        (lambda: world.ask("GET", f"{repo}/issues/comments", query="sort=updated&direction=asc&page=1"), 200),
        (lambda: world.ask("GET", comment), 200),
        (lambda: world.ask("PATCH", comment, {"body": "edited"}), 200),
        (lambda: world.ask("POST", f"{comment}/reactions", {"content": "eyes"}), 201),
        (lambda: world.ask("POST", f"{comment}/reactions", {"content": "eyes"}), 200),
        (lambda: world.ask("GET", f"{comment}/reactions"), 200),
        (lambda: world.ask("DELETE", f"{comment}/reactions/{world.comment.reactions[0].id}"), 204),
        (lambda: world.ask("DELETE", comment), 204),
    ]
    for call, status in expected:
        assert call().status == status
    assert world.seen == {(route.method, route.path) for route in ROUTES}


def test_errors_are_as_github_describes_them(world: World) -> None:
    repo, comments = "/repos/acme/hello", f"/repos/acme/hello/issues/{world.pull.number}/comments"
    assert world.ask("GET", "/repos/acme/nothing").status == 404
    assert world.ask("GET", f"{repo}/pulls/{world.issue.number}").status == 404
    assert world.ask("GET", f"{repo}/collaborators/writer/permission", credential="").status == 401
    assert world.ask("POST", comments, {"body": "x"}, credential="").status == 401
    assert world.ask("POST", comments, {"body": " "}).status == 422
    assert world.ask("GET", repo, credential="ghs_unknown").status == 401
    assert world.ask("GET", "/app").status == 401
    world.github.rate_limits.limits.content_per_minute = 0
    assert world.ask("POST", comments, {"body": "x"}).status == 403
    for status in (401, 403, 404, 422, 429, 500, 502, 503):
        world.github.faults.append(Fault(path="/repos", status=status, times=1))
        assert world.ask("GET", f"{repo}/pulls/{world.pull.number}").status == status


def test_every_webhook_is_as_github_describes_it(world: World) -> None:
    github, number = world.github, world.pull.number
    github.edit_comment("acme/hello", world.comment.id, "/preview again")
    github.comment("acme/hello", world.issue.number, "dependabot[bot]", "on an issue")
    github.write_comment(github.repository("acme/hello"), world.pull, github.app.bot, "ours", via_app=True)
    github.delete_comment("acme/hello", world.comment.id)
    github.close_pull_request("acme/hello", number)
    github.reopen_pull_request("acme/hello", number)
    for delivery in github.webhooks.log():
        world.description.check_webhook(delivery.event, delivery.payload, delivery.headers)
    assert {(delivery.event, delivery.action) for delivery in github.webhooks.log()} == {
        ("issue_comment", "created"),
        ("issue_comment", "edited"),
        ("issue_comment", "deleted"),
        ("pull_request", "opened"),
        ("pull_request", "synchronize"),
        ("pull_request", "closed"),
        ("pull_request", "reopened"),
    }


@pytest.mark.parametrize(
    ("method", "path", "query", "body"),
    [
        pytest.param("POST", "/repos/o/r/issues/1/comments", "", {"body": 5}, id="wrong type"),
        pytest.param("POST", "/repos/o/r/issues/1/comments", "", {"text": "x"}, id="missing field"),
        pytest.param("POST", "/repos/o/r/issues/1/comments", "", {"body": "x", "marker": 1}, id="unknown field"),
        pytest.param("POST", "/repos/o/r/issues/1/comments", "", None, id="no body"),
        pytest.param("POST", "/repos/o/r/issues/comments/1/reactions", "", {"content": "tada"}, id="unknown reaction"),
        pytest.param("GET", "/repos/o/r/pulls", "state=merged", None, id="wrong enum in the query"),
        pytest.param("GET", "/repos/o/r/pulls", "status=open", None, id="unknown query parameter"),
        pytest.param("GET", "/repos/o/r/pulls/one", "", None, id="wrong path parameter"),
        pytest.param("GET", "/repos/o/r/pull/1", "", None, id="unknown path"),
        pytest.param("PUT", "/repos/o/r/pulls/1", "", None, id="unknown method"),
    ],
)
def test_planted_mistake_in_a_request_is_found(description: GitHubDescription, method: str, path: str, query: str, body: Any) -> None:
    with pytest.raises(ContractMismatch):
        description.check_request(method, path, query, b"" if body is None else json.dumps(body).encode())


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda body: body.pop(name)


def _with(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body.update({name: value})


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(_without("head"), id="missing field"),
        pytest.param(_with("number", "7"), id="wrong type"),
        pytest.param(_with("head_sha", "0" * 40), id="unknown field"),
        pytest.param(_with("user", None), id="null where none may be"),
        pytest.param(_with("state", "merged"), id="wrong enum"),
        pytest.param(lambda body: body["head"]["repo"].update(slug="x"), id="unknown field deep inside"),
        pytest.param(_with("created_at", "yesterday"), id="wrong format"),
    ],
)
def test_planted_mistake_in_a_response_is_found(world: World, spoil: Callable[[dict[str, Any]], None]) -> None:
    response = world.ask("GET", f"/repos/acme/hello/pulls/{world.pull.number}")
    operation = world.description.check_request("GET", "/repos/acme/hello/pulls/1")
    body = json.loads(response.body)
    world.description.check_response(operation, 200, json.dumps(body).encode())
    spoil(body)
    with pytest.raises(ContractMismatch):
        world.description.check_response(operation, 200, json.dumps(body).encode())


def test_status_that_github_does_not_give_is_found(world: World) -> None:
    operation = world.description.check_request("GET", "/repos/acme/hello")
    with pytest.raises(ContractMismatch, match="not one that GitHub gives"):
        world.description.check_response(operation, 202, b"{}")


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda body: body["comment"].pop("user"), id="missing field"),
        pytest.param(lambda body: body["issue"].update(number="1"), id="wrong type"),
        pytest.param(lambda body: body.update(delivery=1), id="unknown field"),
        pytest.param(lambda body: body["repository"].update(installed=True), id="unknown field deep inside"),
        pytest.param(lambda body: body.update(action="invented"), id="unknown action"),
    ],
)
def test_planted_mistake_in_a_webhook_is_found(world: World, spoil: Callable[[dict[str, Any]], None]) -> None:
    delivery = next(d for d in world.github.webhooks.log() if d.event == "issue_comment")
    body = json.loads(delivery.payload)
    spoil(body)
    with pytest.raises(ContractMismatch):
        world.description.check_webhook("issue_comment", json.dumps(body).encode())


def test_missing_webhook_header_is_found(world: World) -> None:
    delivery = world.github.webhooks.log()[0]
    headers = {name: value for name, value in delivery.headers.items() if name != "X-Hub-Signature-256"}
    with pytest.raises(ContractMismatch, match="x-hub-signature-256"):
        world.description.check_webhook(delivery.event, delivery.payload, headers)


@pytest.mark.parametrize("event", ["issue_comment", "pull_request"])
def test_community_examples_are_there_to_be_parsed(event: str) -> None:
    examples = load_examples(FOLDER, event)
    assert len(examples) >= 9
    for payload in examples.values():
        assert json.loads(payload)["repository"]["id"] > 0
