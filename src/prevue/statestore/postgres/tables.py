"""The statestore's tables as SQLAlchemy Core sees them.

`prevue/migrations/sql/0001_tables.sql` makes them and holds the checks and the comments; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

metadata = MetaData()

_TIME = DateTime(timezone=True)
_NOW = func.clock_timestamp()
_OPEN = text("state IN ('waiting', 'claimed')")

request = Table(
    "request",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("github_host", Text, nullable=False),
    Column("repository_id", BigInteger, nullable=False),
    Column("pr_number", Integer, nullable=False),
    Column("source", Text, nullable=False),
    Column("source_id", Text, nullable=False),
    Column("installation_id", BigInteger, nullable=False),
    Column("action", Text, nullable=False),
    Column("repo", Text, nullable=False),
    Column("commit_sha", Text, nullable=False),
    Column("values_digest", Text, nullable=False, server_default=""),
    Column("idempotency_key", Text, nullable=False),
    Column("comment_id", BigInteger, nullable=False),
    Column("requested_by", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("at", _TIME, nullable=False),
    Column("rank", SmallInteger, nullable=False),
    Column("tie", BigInteger, nullable=False),
    Column("state", Text, nullable=False, server_default="waiting"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("not_before", _TIME, nullable=False, server_default="-infinity"),
    Column("token", BigInteger),
    Column("reason", Text, nullable=False, server_default=""),
    Column("error", Text, nullable=False, server_default=""),
    Column("url", Text, nullable=False, server_default=""),
    Column("registered_at", _TIME, nullable=False, server_default=_NOW),
    Column("sent_at", _TIME, nullable=False, server_default=_NOW),
    Column("finished_at", _TIME),
    UniqueConstraint("github_host", "repository_id", "pr_number", "source", "source_id", name="request_identity"),
    Index("request_open_by_sent_at", "sent_at", postgresql_where=_OPEN),
    Index("request_open_by_preview", "github_host", "repository_id", "pr_number", postgresql_where=_OPEN),
    Index("request_dead", "finished_at", postgresql_where=text("state = 'dead'")),
)

preview = Table(
    "preview",
    metadata,
    Column("github_host", Text),
    Column("repository_id", BigInteger),
    Column("pr_number", Integer),
    Column("repo", Text, nullable=False),
    Column("cluster", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("releases", ARRAY(Text), nullable=False),
    Column("desired_at", _TIME, nullable=False),
    Column("desired_rank", SmallInteger, nullable=False),
    Column("desired_tie", BigInteger, nullable=False),
    Column("desired_request", BigInteger, nullable=False),
    Column("state", Text, nullable=False, server_default="requested"),
    Column("live_sha", Text),
    Column("live_digest", Text),
    Column("live_request", BigInteger),
    Column("live_token", BigInteger),
    Column("token", BigInteger),
    Column("holder", Text),
    Column("holder_request", BigInteger),
    Column("lease_until", _TIME, nullable=False, server_default="-infinity"),
    Column("helm_deadline", _TIME, nullable=False, server_default="-infinity"),
    Column("url", Text, nullable=False, server_default=""),
    Column("expires_at", _TIME),
    Column("changed_at", _TIME, nullable=False, server_default=_NOW),
    PrimaryKeyConstraint("github_host", "repository_id", "pr_number", name="preview_pkey"),
    UniqueConstraint("cluster", "namespace", name="preview_namespace"),
)
Index("preview_by_repo", func.lower(preview.c.repo), preview.c.pr_number)
_IS_STANDING = text("state <> 'destroyed'")
Index("preview_standing", preview.c.github_host, preview.c.repository_id, preview.c.pr_number, postgresql_where=_IS_STANDING)
Index("preview_expiring", preview.c.expires_at, postgresql_where=text("expires_at IS NOT NULL AND state <> 'destroyed'"))

outbox = Table(
    "outbox",
    metadata,
    Column("request_id", BigInteger, ForeignKey("request.id")),
    Column("kind", Text),
    Column("installation_id", BigInteger, nullable=False),
    Column("repository_id", BigInteger, nullable=False),
    Column("pr_number", Integer, nullable=False),
    Column("version", Integer, nullable=False, server_default=text("1")),
    Column("sent_version", Integer, nullable=False, server_default=text("0")),
    Column("due_at", _TIME, nullable=False),
    Column("verify_at", _TIME),
    Column("comment_id", BigInteger, nullable=False, server_default=text("0")),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("error", Text, nullable=False, server_default=""),
    PrimaryKeyConstraint("request_id", "kind", name="outbox_pkey"),
    Index("outbox_due", "due_at", "installation_id", postgresql_where=text("sent_version < version")),
    Index(
        "outbox_verify",
        "verify_at",
        "installation_id",
        postgresql_where=text("sent_version = version AND verify_at IS NOT NULL"),
    ),
)

lease = Table(
    "lease",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("token", BigInteger, nullable=False, server_default=text("1")),
    Column("until", _TIME, nullable=False),
)

cursor = Table(
    "cursor",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("changed_at", _TIME, nullable=False, server_default=_NOW),
)

ledger = Table(
    "ledger",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("request_id", BigInteger, nullable=False),
    Column("token", BigInteger),
    Column("event", Text, nullable=False),
    Column("at", _TIME, nullable=False, server_default=_NOW),
    Column("details", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Index("ledger_by_request", "request_id"),
)

content_write = Table(
    "content_write",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("installation_id", BigInteger, nullable=False),
    Column("at", _TIME, nullable=False, server_default=_NOW),
    Index("content_write_by_installation", "installation_id", "at"),
)
