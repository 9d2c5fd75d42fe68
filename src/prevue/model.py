"""The words of the domain as values: message, request, order, preview, claim.

Nothing here does I/O or reads a clock. The message is the decision record's payload, field for field, plus optional fields;
identity and order of a request are those of the claim protocol (protocol sections 1 and 4).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple

import msgspec

from prevue.errors import MessageInvalid

MESSAGE_BYTES_MAX = 16 * 1024
"""A message larger than this is refused at enqueue and at receipt. Cloud Tasks takes 100 kB, Pub/Sub 10 MB; ours have ~500 bytes."""

GITHUB_COM = "github.com"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Action(StrEnum):
    """What a request asks for."""

    DEPLOY = "deploy"
    DESTROY = "destroy"


class Source(StrEnum):
    """What brought a request about; with `source_id` it is the request's identity on its pull request."""

    COMMENT = "comment"
    CLOSE = "close"
    PUSH = "push"
    REPLAY = "replay"
    SWEEP = "sweep"
    EXPIRY = "expiry"


class RequestState(StrEnum):
    """States of a request; `docs/state-machine.md` says who moves each on and what happens if the process dies there."""

    WAITING = "waiting"
    CLAIMED = "claimed"
    DEPLOYED = "deployed"
    DESTROYED = "destroyed"
    SUPERSEDED = "superseded"
    REJECTED = "rejected"
    FAILED = "failed"
    DEAD = "dead"

    @property
    def is_terminal(self) -> bool:
        """Terminal states never change again."""
        return self not in (RequestState.WAITING, RequestState.CLAIMED)


class PreviewState(StrEnum):
    """States of a preview; a destroyed preview's row stays, it is the tombstone."""

    REQUESTED = "requested"
    DEPLOYING = "deploying"
    READY = "ready"
    FAILED = "failed"
    DESTROYING = "destroying"
    DESTROYED = "destroyed"


class Order(NamedTuple):
    """Which of two requests of one pull request is newer: GitHub's times, never arrival, never a clock of ours.

    GitHub's times have whole seconds; at an equal time the close wins (`rank` 1), then the larger comment id (`tie`).
    """

    at: datetime
    rank: int
    tie: int

    @property
    def text(self) -> str:
        """The order as part of an identity: stable, and never read back."""
        return f"{self.at.astimezone(UTC).isoformat()}/{self.rank}/{self.tie}"


class PreviewKey(NamedTuple):
    """The identity of a preview: one pull request of one repository (numeric id: it survives a rename) on one GitHub host."""

    github_host: str
    repository_id: int
    pr_number: int


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What the GitHub App puts on the queue: the decision record's payload plus optional fields.

    Unknown fields are ignored, absent optional ones default: an old message can be read by a new deployer and the other way round.
    `idempotency_key` is information and an index; a request's identity is (host, repository id, pull request, source, source id).
    """

    idempotency_key: str
    repo: str
    """`owner/name`, as GitHub spells it now; for texts and API paths."""
    pr_number: int
    commit_sha: str
    """The head commit at receipt, 40 hex digits; the one that is deployed. Empty for a destroy."""
    installation_id: int
    comment_id: int
    """The command's comment; 0 unless a command asked for it."""
    action: Action = Action.DEPLOY
    repository_id: int = 0
    delivery_id: str = ""
    """`X-GitHub-Delivery`, carried through logs as the correlation id."""
    requested_by: str = ""
    requested_at: datetime | None = None
    """The order's time: the comment's `created_at` or the pull request's `closed_at`; of one of ours that of what it repeats."""
    rank: int = 0
    """With `tie`, the rest of the order that a replay, sweep or expiry repeats; other sources have theirs from GitHub's facts."""
    tie: int = 0
    source: Source | None = None
    source_id: str = ""
    github_host: str = GITHUB_COM
    schema: int = 1

    def __post_init__(self) -> None:
        # Logins of managed users have an underscore before their enterprise's short code.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*/[A-Za-z0-9._-]{1,100}", self.repo):
            raise ValueError("repo: expected owner/name")
        if self.pr_number < 1:
            raise ValueError("pr_number: expected a positive number")
        if self.action is Action.DEPLOY and not re.fullmatch(r"[0-9a-f]{7,64}", self.commit_sha):
            raise ValueError("commit_sha: expected 7 to 64 lower-case hex digits")
        if self.requested_at is not None and self.requested_at.tzinfo is None:
            raise ValueError("requested_at: expected a time with its zone")

    @property
    def effective_source(self) -> Source:
        """`source`, or what its absence means: a comment with `comment_id`, else a close."""
        return self.source or (Source.COMMENT if self.comment_id else Source.CLOSE)

    @property
    def effective_source_id(self) -> str:
        """`source_id`, or what its absence means; empty where it must first be read from GitHub."""
        if self.source_id:
            return self.source_id
        match self.effective_source:
            case Source.COMMENT:
                return str(self.comment_id)
            case Source.CLOSE if self.requested_at:
                return format_time(self.requested_at)
            case Source.PUSH if self.requested_at:
                return f"{self.commit_sha}@{format_time(self.requested_at)}"
            case _:
                # A replay, sweep or expiry is made by us and says what it repeats.
                return ""

    @property
    def is_complete(self) -> bool:
        """Whether it can be registered as it is; else the missing fields are read from GitHub first."""
        return bool(
            self.repository_id
            and self.requested_at
            and self.effective_source_id
            and (self.requested_by or self.effective_source is not Source.COMMENT)
        )

    @property
    def key(self) -> PreviewKey:
        """The preview that it is about; `repository_id` must be known."""
        return PreviewKey(self.github_host, self.repository_id, self.pr_number)

    @property
    def order(self) -> Order:
        """Its place among the requests of its pull request (protocol section 4).

        Raises:
            MessageInvalid: `requested_at` is absent and has not been read from GitHub yet.
        """
        if self.requested_at is None:
            raise MessageInvalid("requested_at is absent: read it from GitHub before registering")
        match self.effective_source:
            case Source.CLOSE:
                return Order(self.requested_at, 1, 0)
            case Source.COMMENT:
                return Order(self.requested_at, 0, self.comment_id)
            case Source.REPLAY | Source.SWEEP | Source.EXPIRY:
                return Order(self.requested_at, self.rank, self.tie)
            case Source.PUSH:
                return Order(self.requested_at, 0, 0)


def repeating(message: Message, *, source: Source, source_id: str, order: Order) -> Message:
    """`message` as a request of ours that takes `order` over: equal to what it repeats, so that it neither supersedes nor is superseded."""
    return msgspec.structs.replace(
        message, source=source, source_id=source_id, requested_at=order.at, rank=order.rank, tie=order.tie, delivery_id=""
    )


def replay_of(request_id: int, message: Message) -> Message:
    """The dead request `request_id` once more, as a new request (protocol section 1)."""
    return repeating(message, source=Source.REPLAY, source_id=str(request_id), order=message.order)


def destroy_request(
    key: PreviewKey, *, repo: str, installation_id: int, source: Source, source_id: str = "", order: Order, requested_by: str = ""
) -> Message:
    """A destroy that no command asked for: a close, a sweep or an expiry."""
    return Message(
        # The record's key without a commit: a destroy is about whatever runs.
        idempotency_key=idempotency_key(repo, key.pr_number, ""),
        repo=repo,
        pr_number=key.pr_number,
        commit_sha="",
        installation_id=installation_id,
        comment_id=0,
        action=Action.DESTROY,
        repository_id=key.repository_id,
        requested_by=requested_by,
        requested_at=order.at,
        rank=0 if source is Source.CLOSE else order.rank,
        tie=0 if source is Source.CLOSE else order.tie,
        source=source,
        source_id=source_id or format_time(order.at),
        github_host=key.github_host,
    )


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Message)


def encode_message(message: Message) -> bytes:
    """JSON of a message.

    Raises:
        MessageInvalid: it is larger than `MESSAGE_BYTES_MAX`.
    """
    data = _encoder.encode(message)
    if len(data) > MESSAGE_BYTES_MAX:
        raise MessageInvalid(f"the message has {len(data)} bytes, at most {MESSAGE_BYTES_MAX} are allowed")
    return data


def decode_message(data: bytes | str) -> Message:
    """The message in `data`.

    Raises:
        MessageInvalid: not JSON, too large, or a field is missing or wrong; the text names the field.
    """
    raw = data.encode() if isinstance(data, str) else data
    if len(raw) > MESSAGE_BYTES_MAX:
        raise MessageInvalid(f"the message has {len(raw)} bytes, at most {MESSAGE_BYTES_MAX} are allowed")
    try:
        return _decoder.decode(raw)
    except msgspec.MsgspecError as exc:
        raise MessageInvalid(f"the message cannot be read: {exc}") from exc


def idempotency_key(repo: str, pr_number: int, commit_sha: str) -> str:
    """The decision record's key: `owner/repo#123:abc123def`."""
    return f"{repo}#{pr_number}:{commit_sha}"


def format_time(at: datetime) -> str:
    """GitHub's form of a time: `2026-02-12T10:00:00Z`."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def base36(number: int) -> str:
    """`number` in base 36, lower case."""
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    text = ""
    while True:
        number, rest = divmod(number, 36)
        text = digits[rest] + text
        if number == 0:
            return text


def preview_namespace(key: PreviewKey, repo: str) -> str:
    """`pv-<slug>-<base36 repository id>-<pr>`: injective by id and number, at most 63 characters, a DNS label.

    The slug is for human eyes; the name is derived once, at the first registration, and stored: a rename keeps it.
    Another GitHub host than github.com adds a tag, since numeric ids are only unique within a host.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", repo.lower()).strip("-")[:20].strip("-") or "repo"
    host = "" if key.github_host == GITHUB_COM else "h" + sha256(key.github_host.encode()).hexdigest()[:6] + "-"
    return f"pv-{slug}-{host}{base36(key.repository_id)}-{key.pr_number}"


def release_name(pr_number: int) -> str:
    """The record's deterministic release name."""
    return f"preview-pr-{pr_number}"


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """What a preview is known to serve: set only by a finish that found it ready."""

    sha: str
    digest: str
    request_id: int
    token: int
    """The token under which it was deployed; the release's labels carry it."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's right to change one preview, from a Granted verdict until its finish; every write presents `token`."""

    key: PreviewKey
    request_id: int
    token: int
    attempt: int
    """Counted when the claim was granted; the first is 1."""
    message: Message
    """Complete: repository id, order and source are known."""
    order: Order
    cluster: str
    namespace: str
    releases: tuple[str, ...]
    preview_state: PreviewState
    live: Live | None
    url: str
    registered_at: datetime
    granted_at_boottime: float
    """CLOCK_BOOTTIME seconds before the claim's transaction was sent: the lease cannot have begun earlier."""


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """All that a status comment says about one request, read when it is written: always the newest state."""

    request_id: int
    key: PreviewKey
    repo: str
    installation_id: int
    source: Source
    source_id: str
    action: Action
    comment_id: int
    commit_sha: str
    requested_by: str
    state: RequestState
    attempts: int
    reason: str
    error: str
    url: str
    registered_at: datetime
    finished_at: datetime | None
    superseded_by_sha: str = ""

    @property
    def marker(self) -> str:
        """The hidden marker by which the status comment of this request is found."""
        return comment_marker(self.key, self.source, self.source_id)


def comment_marker(key: PreviewKey, source: Source, source_id: str) -> str:
    """Hidden first line of the status comment of one request; App and outbox compute the same."""
    return f"<!-- prevue:{key.github_host}/{key.repository_id}/{key.pr_number}/{source}/{source_id} -->"


_MARKER = re.compile(r"<!-- prevue:([^/\s]{1,255})/(\d{1,18})/(\d{1,9})/([a-z]+)/([ -~]{1,300}?) -->")


def request_of_comment(body: str) -> tuple[PreviewKey, Source, str] | None:
    """The identity in a comment's marker; None: it begins with none. Anybody can write one: whose comment it is must be asked, too."""
    found = _MARKER.match(body)
    if found is None or found[4] not in set(Source):
        return None
    return PreviewKey(found[1], int(found[2]), int(found[3])), Source(found[4]), found[5]
