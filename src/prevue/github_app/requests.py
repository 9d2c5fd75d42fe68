"""What a delivery asks for: pure, from the body to a deploy request, a destroy, or a reason to ignore it.

Only what is needed is decoded: a body of 25 kB costs microseconds, because everything else is skipped. Whether the asker may, and
which commit is meant, is not in the payload; `handle.py` asks GitHub. The payload's `author_association` is never looked at: it shows
private members of an organisation as strangers. https://docs.github.com/en/webhooks/webhook-events-and-payloads
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Final

import msgspec

from prevue.commands import parse
from prevue.github_app.delivery import Delivery, MalformedDelivery
from prevue.masking import foreign_text
from prevue.model import Action, Message, Source, format_time, idempotency_key


class Ignored(StrEnum):
    """Why nothing is done; a stable word in the answer and in the log."""

    EVENT = "event"
    """Not an event that Prevue acts on."""
    ACTION = "action"
    """A comment edited or deleted, a pull request opened or pushed to: edits would run a command twice."""
    NOT_A_PULL_REQUEST = "not_a_pull_request"
    BOT = "bot"
    """Bots give no commands; our own comments quote `/preview`, and two bots would answer each other for ever."""
    NO_COMMAND = "no_command"
    UNKNOWN_VERB = "unknown_verb"
    """Words follow `/preview`; so far only the bare command exists, and guessing what they mean would deploy by mistake."""
    NO_INSTALLATION = "no_installation"
    """A webhook of the repository's own, not of the App's installation: there is no token to act with."""


class Ping(msgspec.Struct, frozen=True):
    """GitHub tries the webhook out."""


class DeployRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A `/preview`, not yet authorised."""

    installation_id: int
    repo: str
    repository_id: int
    pr_number: int
    comment_id: int
    requested_by: str
    requested_at: datetime
    delivery_id: str
    github_host: str

    def message(self, *, repo: str, commit_sha: str) -> Message:
        """The queue's message, once GitHub has told the commit and how the repository is spelled now."""
        return Message(
            idempotency_key=idempotency_key(repo, self.pr_number, commit_sha),
            repo=repo,
            pr_number=self.pr_number,
            commit_sha=commit_sha,
            installation_id=self.installation_id,
            comment_id=self.comment_id,
            action=Action.DEPLOY,
            repository_id=self.repository_id,
            delivery_id=self.delivery_id,
            requested_by=self.requested_by,
            requested_at=self.requested_at,
            source=Source.COMMENT,
            source_id=str(self.comment_id),
            github_host=self.github_host,
        )


class DestroyRequest(msgspec.Struct, frozen=True):
    """A closed pull request; its message needs nothing more."""

    message: Message


Request = DeployRequest | DestroyRequest | Ping | Ignored


class _Account(msgspec.Struct, frozen=True, gc=False):
    login: str
    type: str = "User"


class _Id(msgspec.Struct, frozen=True, gc=False):
    id: int


class _Repository(msgspec.Struct, frozen=True, gc=False):
    id: int
    full_name: str


class _Links(msgspec.Struct, frozen=True, gc=False):
    """An issue's `pull_request`: its presence alone says that the issue is one."""


class _Issue(msgspec.Struct, frozen=True, gc=False):
    number: int
    pull_request: _Links | None = None


class _Comment(msgspec.Struct, frozen=True, gc=False):
    id: int
    created_at: datetime
    body: str | None = None
    user: _Account | None = None


class _IssueComment(msgspec.Struct, frozen=True, gc=False):
    action: str
    issue: _Issue
    comment: _Comment
    repository: _Repository
    sender: _Account
    installation: _Id | None = None


class _PullRequest(msgspec.Struct, frozen=True, gc=False):
    number: int
    closed_at: datetime | None = None


class _PullRequestEvent(msgspec.Struct, frozen=True, gc=False):
    action: str
    pull_request: _PullRequest
    repository: _Repository
    sender: _Account
    installation: _Id | None = None


_issue_comment: Final = msgspec.json.Decoder(_IssueComment)
_pull_request: Final = msgspec.json.Decoder(_PullRequestEvent)


def read(delivery: Delivery, *, github_host: str) -> Request:
    """What the delivery asks for.

    Raises:
        MalformedDelivery: the body is not JSON, or a field that Prevue needs is missing or wrong; the text names it.
    """
    try:
        match delivery.event:
            case "issue_comment":
                return _read_comment(_issue_comment.decode(delivery.body), delivery, github_host)
            case "pull_request":
                return _read_pull_request(_pull_request.decode(delivery.body), delivery, github_host)
            case "ping":
                return Ping()
            case _:
                return Ignored.EVENT
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as exc:
        raise MalformedDelivery(f"the body cannot be read: {foreign_text(str(exc), limit=120)}") from exc


def _read_comment(event: _IssueComment, delivery: Delivery, github_host: str) -> Request:
    comment = event.comment
    if event.action != "created":
        return Ignored.ACTION
    if event.issue.pull_request is None:
        return Ignored.NOT_A_PULL_REQUEST
    if event.sender.type == "Bot" or (comment.user is not None and comment.user.type == "Bot"):
        return Ignored.BOT
    command = parse(comment.body or "")
    if command is None:
        return Ignored.NO_COMMAND
    if command.words:
        return Ignored.UNKNOWN_VERB
    if event.installation is None:
        return Ignored.NO_INSTALLATION
    return DeployRequest(
        installation_id=event.installation.id,
        repo=event.repository.full_name,
        repository_id=event.repository.id,
        pr_number=event.issue.number,
        comment_id=comment.id,
        requested_by=event.sender.login,
        requested_at=comment.created_at,
        delivery_id=delivery.delivery_id,
        github_host=github_host,
    )


def _read_pull_request(event: _PullRequestEvent, delivery: Delivery, github_host: str) -> Request:
    if event.action != "closed":
        return Ignored.ACTION
    if event.installation is None:
        return Ignored.NO_INSTALLATION
    closed_at = event.pull_request.closed_at
    if closed_at is None:
        raise MalformedDelivery("a pull request was closed, and pull_request.closed_at is absent")
    repo = event.repository.full_name
    return DestroyRequest(
        Message(
            # The record's key without a commit: a close is about whatever runs.
            idempotency_key=idempotency_key(repo, event.pull_request.number, ""),
            repo=repo,
            pr_number=event.pull_request.number,
            commit_sha="",
            installation_id=event.installation.id,
            comment_id=0,
            action=Action.DESTROY,
            repository_id=event.repository.id,
            delivery_id=delivery.delivery_id,
            requested_by=event.sender.login,
            requested_at=closed_at,
            source=Source.CLOSE,
            source_id=format_time(closed_at),
            github_host=github_host,
        )
    )
