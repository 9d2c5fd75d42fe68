"""What Prevue reads of GitHub's REST answers: minimal structs, everything else is skipped while decoding.

They are GitHub's shapes, not ours: `client.py` turns them into the port's values at once.
https://docs.github.com/en/rest
"""

from __future__ import annotations

from datetime import datetime

import msgspec


class Account(msgspec.Struct, frozen=True):
    """A user, bot or organisation."""

    id: int
    login: str


class App(msgspec.Struct, frozen=True):
    """`GET /app`: the App that a JWT stands for."""

    id: int
    slug: str


class InstallationToken(msgspec.Struct, frozen=True):
    """`POST /app/installations/{id}/access_tokens`."""

    token: str
    expires_at: datetime


class Repository(msgspec.Struct, frozen=True):
    """A repository, as part of a pull request's head or base."""

    id: int
    full_name: str


class Head(msgspec.Struct, frozen=True):
    """The head of a pull request; `repo` is null when the fork has been deleted."""

    sha: str
    ref: str
    repo: Repository | None


class Base(msgspec.Struct, frozen=True):
    """The base of a pull request."""

    repo: Repository


class PullRequest(msgspec.Struct, frozen=True):
    """`GET /repos/{owner}/{repo}/pulls/{number}`."""

    number: int
    state: str
    head: Head
    base: Base
    closed_at: datetime | None = None


class Permission(msgspec.Struct, frozen=True):
    """`GET /repos/{owner}/{repo}/collaborators/{username}/permission`.

    `permission` knows only admin, write, read, none; `role_name` tells maintain, triage and custom roles apart.
    """

    permission: str
    role_name: str = ""


class Comment(msgspec.Struct, frozen=True):
    """An issue comment; `user` is null when the account is gone."""

    id: int
    created_at: datetime
    body: str | None = None
    user: Account | None = None


class OpenPullRequest(msgspec.Struct, frozen=True):
    """An entry of `GET /repos/{owner}/{repo}/pulls`."""

    number: int


class Author(msgspec.Struct, frozen=True):
    """Who wrote a comment."""

    login: str
    type: str = "User"


class RepositoryComment(msgspec.Struct, frozen=True):
    """An entry of `GET /repos/{owner}/{repo}/issues/comments`; the URLs say of what it is a comment."""

    id: int
    created_at: datetime
    updated_at: datetime
    issue_url: str
    html_url: str
    body: str | None = None
    user: Author | None = None


class Installation(msgspec.Struct, frozen=True):
    """An entry of `GET /app/installations`."""

    id: int
    suspended_at: datetime | None = None


class InstallationRepositories(msgspec.Struct, frozen=True):
    """A page of `GET /installation/repositories`."""

    repositories: list[Repository]


class HookDelivery(msgspec.Struct, frozen=True):
    """An entry of `GET /app/hook/deliveries`."""

    id: int
    guid: str
    delivered_at: datetime
    status: str
    status_code: int
    event: str
    action: str | None = None


class HookRequest(msgspec.Struct, frozen=True):
    """What was sent, as it was sent."""

    payload: msgspec.Raw


class FullHookDelivery(msgspec.Struct, frozen=True):
    """`GET /app/hook/deliveries/{id}`."""

    request: HookRequest


class Problem(msgspec.Struct, frozen=True):
    """The body of an answer that is an error."""

    message: str = ""
