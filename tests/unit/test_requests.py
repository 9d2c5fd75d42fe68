"""What deliveries ask for, also GitHub's own published examples."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prevue.github_app.delivery import Delivery, MalformedDelivery
from prevue.github_app.requests import DeployRequest, DestroyRequest, Ignored, Ping, read
from prevue.model import Action, Source

EXAMPLES = sorted((Path(__file__).parents[1] / "contract/github_description/examples").glob("*.json"))

COMMENT: dict[str, Any] = {
    "action": "created",
    "issue": {"number": 7, "pull_request": {"url": "x"}},
    "comment": {"id": 5, "body": "/preview", "created_at": "2026-02-12T10:00:00Z", "user": {"login": "ada", "type": "User"}},
    "repository": {"id": 42, "full_name": "acme/hello"},
    "sender": {"login": "ada", "type": "User"},
    "installation": {"id": 3},
}
CLOSE: dict[str, Any] = {
    "action": "closed",
    "pull_request": {"number": 7, "closed_at": "2026-02-12T10:00:00Z"},
    "repository": {"id": 42, "full_name": "acme/hello"},
    "sender": {"login": "ada", "type": "User"},
    "installation": {"id": 3},
}


def asked(event: str, body: Any) -> object:
    return read(Delivery(event=event, delivery_id="d", body=json.dumps(body).encode()), github_host="github.com")


def changed(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(body))
    *parents, last = path.split(".")
    at = copy
    for parent in parents:
        at = at[parent]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return copy


def test_a_command_is_a_deploy_request() -> None:
    request = asked("issue_comment", COMMENT)
    assert isinstance(request, DeployRequest)
    message = request.message(repo="acme/renamed", commit_sha="ab" * 20)
    assert (message.action, message.source, message.source_id, message.comment_id) == (Action.DEPLOY, Source.COMMENT, "5", 5)
    assert (message.repo, message.repository_id, message.pr_number, message.installation_id) == ("acme/renamed", 42, 7, 3)
    assert message.idempotency_key == f"acme/renamed#7:{'ab' * 20}"
    assert message.is_complete


def test_a_close_is_a_destroy_request() -> None:
    request = asked("pull_request", CLOSE)
    assert isinstance(request, DestroyRequest)
    message = request.message
    assert (message.action, message.source, message.source_id) == (Action.DESTROY, Source.CLOSE, "2026-02-12T10:00:00Z")
    assert message.order.rank == 1
    assert message.is_complete


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("action", "edited", Ignored.ACTION),
        ("action", "deleted", Ignored.ACTION),
        ("issue.pull_request", ..., Ignored.NOT_A_PULL_REQUEST),
        ("issue.pull_request", None, Ignored.NOT_A_PULL_REQUEST),
        ("sender.type", "Bot", Ignored.BOT),
        ("comment.user.type", "Bot", Ignored.BOT),
        ("comment.body", "hello", Ignored.NO_COMMAND),
        ("comment.body", None, Ignored.NO_COMMAND),
        ("comment.body", "/preview down", Ignored.UNKNOWN_VERB),
        ("installation", ..., Ignored.NO_INSTALLATION),
        ("installation", None, Ignored.NO_INSTALLATION),
    ],
)
def test_what_is_no_command_is_ignored(path: str, value: Any, reason: Ignored) -> None:
    assert asked("issue_comment", changed(COMMENT, path, value)) is reason


def test_the_account_of_the_comment_may_be_gone() -> None:
    assert isinstance(asked("issue_comment", changed(COMMENT, "comment.user", None)), DeployRequest)


@pytest.mark.parametrize(
    "path", ["action", "issue", "issue.number", "comment", "comment.id", "comment.created_at", "repository.id", "sender"]
)
def test_a_missing_field_is_named(path: str) -> None:
    with pytest.raises(MalformedDelivery, match=path.rpartition(".")[2]):
        asked("issue_comment", changed(COMMENT, path, ...))


@pytest.mark.parametrize("action", ["opened", "synchronize", "reopened", "labeled"])
def test_other_actions_of_pull_requests_are_ignored(action: str) -> None:
    assert asked("pull_request", changed(CLOSE, "action", action)) is Ignored.ACTION


def test_a_close_without_its_time_is_malformed() -> None:
    with pytest.raises(MalformedDelivery, match="closed_at"):
        asked("pull_request", changed(CLOSE, "pull_request.closed_at", None))


def test_ping_and_unknown_events_are_not_read() -> None:
    assert read(Delivery(event="ping", delivery_id="d", body=b""), github_host="h") == Ping()
    assert read(Delivery(event="workflow_run", delivery_id="d", body=b""), github_host="h") is Ignored.EVENT


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_githubs_own_examples_are_read(path: Path) -> None:
    event, action, _ = path.name.split(".", 2)
    body = path.read_bytes()
    request = read(Delivery(event=event, delivery_id="d", body=body), github_host="github.com")
    if (event, action) == ("pull_request", "closed"):
        assert isinstance(request, DestroyRequest) or (request is Ignored.NO_INSTALLATION and b'"installation"' not in body)
    else:
        assert isinstance(request, Ignored)


_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
)


@given(
    st.sampled_from(
        ["action", "issue", "issue.number", "issue.pull_request", "comment", "comment.body", "comment.created_at", "sender", "repository"]
    ),
    _VALUES,
)
def test_any_value_anywhere_is_read_or_malformed(path: str, value: Any) -> None:
    with contextlib.suppress(MalformedDelivery):
        asked("issue_comment", changed(COMMENT, path, value))
