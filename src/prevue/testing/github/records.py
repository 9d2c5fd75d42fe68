"""What the fake GitHub remembers: plain records, no behaviour, no JSON.

They exist apart from the state so that rendering (`render.py`) and the rules (`state.py`, `rest.py`) can share them.
One invariant: every time is aware UTC and a whole second, because GitHub's API knows nothing finer
(https://docs.github.com/rest/using-the-rest-api/timezones-and-the-rest-api).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Literal

import msgspec

UserType = Literal["User", "Bot", "Organization"]
State = Literal["open", "closed"]

PERMISSIONS: Mapping[str, str] = {
    "admin": "admin",
    "maintain": "write",
    "write": "write",
    "triage": "read",
    "read": "read",
    "none": "none",
}
"""Role → the coarse `permission` that GitHub reports for it: maintain reads as write and triage as read
(https://docs.github.com/rest/collaborators/collaborators#get-repository-permissions-for-a-user)."""

REACTIONS = ("+1", "-1", "laugh", "confused", "heart", "hooray", "rocket", "eyes")
"""The contents that GitHub accepts (https://docs.github.com/rest/reactions/reactions)."""

COMMENT_CHARACTERS_MAX = 65_536
"""GitHub refuses a longer comment body with 422."""


@dataclass(kw_only=True, eq=False)
class User:
    """An account: a person, an App's bot or an organisation."""

    id: int
    login: str
    type: UserType
    created_at: datetime


@dataclass(kw_only=True, eq=False)
class Reaction:
    """One user's reaction to a comment; a user has each content at most once."""

    id: int
    user: User
    content: str
    created_at: datetime


@dataclass(kw_only=True, eq=False)
class Comment:
    """A comment in the conversation of an issue or of a pull request."""

    id: int
    author: User
    body: str
    created_at: datetime
    updated_at: datetime
    via_app: bool = False
    reactions: list[Reaction] = field(default_factory=list)
    listed: tuple[object, msgspec.Raw] | None = None
    """What lists show of it, and for which of its states."""


@dataclass(kw_only=True, eq=False)
class Happening:
    """What a conversation shows between its comments: `opened`, `pushed`, `force-pushed`, `closed` or `reopened`.

    `id` is from the comments' sequence, so that ordering by id is ordering by time within one second too.
    """

    id: int
    kind: str
    user: User
    at: datetime
    sha: str


@dataclass(kw_only=True, eq=False)
class Commit:
    """A commit on a pull request's branch; only what a page and a payload show of it."""

    sha: str
    message: str
    author: User
    created_at: datetime


@dataclass(kw_only=True, eq=False)
class Pull:
    """What makes an issue a pull request; `commits` is never empty and its last entry is the head."""

    id: int
    head_repository: Repository
    head_ref: str
    base_sha: str
    commits: list[Commit]

    @property
    def head_sha(self) -> str:
        """The commit that a preview would show, 40 hex digits."""
        return self.commits[-1].sha


@dataclass(kw_only=True, eq=False)
class Issue:
    """An issue; with `pull` set, a pull request (GitHub numbers both in one sequence)."""

    id: int
    number: int
    title: str
    body: str
    author: User
    created_at: datetime
    updated_at: datetime
    closed_at: datetime | None = None
    state: State = "open"
    pull: Pull | None = None
    comments: dict[int, Comment] = field(default_factory=dict)
    history: list[Happening] = field(default_factory=list)


@dataclass(kw_only=True, eq=False)
class Repository:
    """A public repository. `collaborators` maps a lower-case login to a role of `PERMISSIONS`."""

    id: int
    owner: User
    name: str
    created_at: datetime
    pushed_at: datetime
    parent: Repository | None = None
    installed: bool = True
    next_number: int = 1
    collaborators: dict[str, str] = field(default_factory=dict)
    issues: dict[int, Issue] = field(default_factory=dict)
    comments: dict[int, tuple[Issue, Comment]] = field(default_factory=dict)

    @property
    def full_name(self) -> str:
        """`owner/name`, as GitHub spells it."""
        return f"{self.owner.login}/{self.name}"


@dataclass(kw_only=True, eq=False)
class App:
    """The GitHub App that this GitHub knows, with the permissions that every installation has granted it."""

    id: int
    client_id: str
    slug: str
    owner: User
    bot: User
    created_at: datetime
    permissions: Mapping[str, str]
    events: tuple[str, ...]


@dataclass(kw_only=True, eq=False)
class Installation:
    """The App on one account; it covers that account's repositories whose `installed` is true."""

    id: int
    account: User
    created_at: datetime
    suspended_at: datetime | None = None


@dataclass(kw_only=True, eq=False)
class Token:
    """An installation token: valid until `expires_at`, perhaps for some repositories only (None = all)."""

    value: str
    installation: Installation
    permissions: Mapping[str, str]
    expires_at: datetime
    repository_ids: frozenset[int] | None = None


@dataclass(kw_only=True, eq=False)
class DeliveryResponse:
    """What came back for a delivery. `status_code` 0: nothing, and `error` says why."""

    status_code: int
    headers: Mapping[str, str]
    payload: str
    duration_seconds: float
    error: str = ""


@dataclass(kw_only=True, eq=False)
class Delivery:
    """One webhook on its way, or sent: the exact bytes and headers, and the response once there is one.

    A redelivery is a record of its own with a new `id` and the same `guid`
    (https://docs.github.com/webhooks/testing-and-troubleshooting-webhooks/redelivering-webhooks).
    """

    id: int
    guid: str
    event: str
    action: str
    installation_id: int
    repository_id: int
    delivered_at: datetime
    headers: Mapping[str, str]
    payload: bytes
    redelivery: bool = False
    response: DeliveryResponse | None = None


@dataclass(kw_only=True, eq=False)
class Fault:
    """A failure to play, `times` times, to requests whose path starts with `path` (and whose method is `method`, if set).

    `status` 0: no answer at all, the connection breaks after the delay. Below 400: the ordinary answer, late.
    From 400: that answer in place of the work, or, with `after`, once the work is done.
    """

    path: str
    status: int
    times: int
    method: str | None = None
    delay_seconds: float = 0.0
    after: bool = False
    message: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Limits:
    """How much an installation may do; None = off.

    Content writes (comments written or edited, reactions) are GitHub's secondary limit, 80 a minute and 500 an hour;
    `requests_per_hour` is the primary limit. It is off here (reported, never exhausted): a machine-local stack polls
    more than a real one would (https://docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api).
    """

    content_per_minute: int | None = 80
    content_per_hour: int | None = 500
    requests_per_hour: int | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP request to the API. `path` is as on the wire (percent-encoded), `query` without the question mark."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = MappingProxyType({})
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """Return a header, whatever its case; None when it is absent."""
        wanted = name.lower()
        return next((value for key, value in self.headers.items() if key.lower() == wanted), None)


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP answer. `delay_seconds`: how long the caller has to wait before it; `status` 0: never an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    delay_seconds: float = 0.0
