"""The GitHub port: what App, deployer and sweeper need of GitHub, without a vendor's type.

Every call is made as an installation of the App. Errors: `RateLimited` (with `retry_after`), `GitHubUnavailable` (no answer, 5xx, a body
that cannot be read), `NotFound`, `NotInstalled` (401/403 that stays after a few seconds of a fresh token, suspended).
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Protocol

import msgspec


class Permission(StrEnum):
    """A user's right on a repository, as the collaborator-permission API's `role_name` gives it; custom roles become their base."""

    NONE = "none"
    READ = "read"
    TRIAGE = "triage"
    WRITE = "write"
    MAINTAIN = "maintain"
    ADMIN = "admin"

    @property
    def may_preview(self) -> bool:
        """Who may push may preview: write, maintain, admin."""
        return self in (Permission.WRITE, Permission.MAINTAIN, Permission.ADMIN)


class PullRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What Prevue reads of a pull request."""

    repo: str
    """`owner/name` of the base repository as GitHub spells it now."""
    repository_id: int
    number: int
    is_open: bool
    is_fork: bool
    """The head is in another repository, or that repository is gone."""
    head_sha: str
    head_ref: str
    closed_at: datetime | None


class Comment(msgspec.Struct, frozen=True, kw_only=True):
    """An issue comment."""

    id: int
    body: str
    author: str
    is_ours: bool
    """Written by this App's own bot user, compared by numeric id."""
    created_at: datetime


class GitHub(Protocol):
    """GitHub through one App's installations."""

    async def pull_request(self, installation_id: int, repo: str, number: int) -> PullRequest:
        """The pull request as GitHub shows it now; its answer may lag a moment behind a webhook."""
        ...

    async def permission(self, installation_id: int, repo: str, login: str) -> Permission:
        """The user's right, by the collaborator-permission API, never by `author_association`; an unknown user has none."""
        ...

    async def comment(self, installation_id: int, repo: str, comment_id: int) -> Comment:
        """One comment."""
        ...

    async def find_comments(self, installation_id: int, repo: str, number: int, *, marker: str) -> list[Comment]:
        """Our own comments on the pull request whose body begins with `marker`, all pages read, oldest first."""
        ...

    async def create_comment(self, installation_id: int, repo: str, number: int, body: str) -> Comment:
        """POST a comment; never repeated by the client itself: an unanswered POST may have been carried out."""
        ...

    async def update_comment(self, installation_id: int, repo: str, comment_id: int, body: str) -> None:
        """PATCH a comment."""
        ...

    async def delete_comment(self, installation_id: int, repo: str, comment_id: int) -> None:
        """DELETE a comment; one that is gone is no error."""
        ...

    async def react(self, installation_id: int, repo: str, comment_id: int, content: str) -> None:
        """Add a reaction (`eyes`, `rocket`, …) to a comment; adding it twice is harmless."""
        ...


class Repository(msgspec.Struct, frozen=True, kw_only=True):
    """A repository on which the App is installed."""

    id: int
    full_name: str
    installation_id: int


class FoundComment(msgspec.Struct, frozen=True, kw_only=True):
    """A comment of some pull request of a repository, as the sweeper's scan finds it."""

    id: int
    pr_number: int
    body: str
    author: str
    is_bot: bool
    is_edited: bool
    created_at: datetime
    updated_at: datetime


class HookDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the App's log of deliveries; a redelivery is an entry of its own with the same `guid`."""

    id: int
    guid: str
    event: str
    action: str
    delivered_at: datetime
    is_pending: bool
    """It is on its way: nothing is known of its end yet."""
    status_code: int
    """What the App answered; 0: nothing."""

    @property
    def is_delivered(self) -> bool:
        """The App took it."""
        return 200 <= self.status_code < 300


class DeliveryPage(msgspec.Struct, frozen=True, kw_only=True):
    """Some entries, newest first, and where the older ones begin; empty: there are none."""

    deliveries: list[HookDelivery]
    older: str


class InstalledRepositories(msgspec.Struct, frozen=True, kw_only=True):
    """What the App is installed on, as far as GitHub tells at the moment."""

    repositories: list[Repository]
    silent_installations: frozenset[int]
    """They are there, and their repositories could not be read: nothing is known of what they have now."""


class GitHubApp(Protocol):
    """What the App asks in its own name, not as one installation."""

    async def repositories(self) -> InstalledRepositories:
        """Every repository of every installation that is not suspended. An installation that does not answer stops no other."""
        ...

    async def deliveries(self, *, older: str = "") -> DeliveryPage:
        """A page of the App's webhook deliveries, which GitHub keeps for three days; `older` of the page before, or the newest."""
        ...

    async def delivery_payload(self, delivery_id: int) -> bytes:
        """The JSON that was sent."""
        ...

    async def redeliver(self, delivery_id: int) -> None:
        """Have GitHub send it again, to the webhook's address as it is now. Not repeated by the client."""
        ...


class Repositories(Protocol):
    """What the sweeper asks of a repository as a whole."""

    async def open_pull_requests(self, installation_id: int, repo: str) -> frozenset[int]:
        """The numbers of all that are open now."""
        ...

    async def comments_since(self, installation_id: int, repo: str, since: datetime) -> list[FoundComment]:
        """Comments of pull requests that were written or edited since, oldest change first; as many pages as one scan may read.

        Issues that are no pull requests are left out.
        """
        ...
