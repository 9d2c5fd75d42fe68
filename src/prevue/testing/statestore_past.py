"""Fills a migrated database with a past: requests that ended long ago, and a backlog that waits, as a busy year leaves them.

For the benchmark of the claim and for the test that no hot statement reads the past. The database itself makes the rows.
"""
# ruff: noqa: S608 (SQL is put together from constants and numbers)

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from prevue.model import Message, PreviewKey, Source, encode_message, idempotency_key

REPOSITORIES = 1000
REQUESTS_EACH = 5
"""Requests of one pull request of the past."""
FIRST_REPOSITORY = 5000
FIRST_BACKLOG_PR = 1_000_000
INSTALLATIONS = 50
_EXAMPLE = Message(
    idempotency_key=idempotency_key("acme/repository-111111", 222222, "c0ffee33"),
    repo="acme/repository-111111",
    pr_number=222222,
    commit_sha="c0ffee33",
    installation_id=444444,
    comment_id=555555,
    repository_id=666666,
    delivery_id="01234567-89ab-cdef-0123-456789abcdef",
    requested_by="somebody",
    requested_at=datetime(2026, 1, 1, 10, tzinfo=UTC),
    source=Source.COMMENT,
    source_id="555555",
)
_PLACES = {"111111": "repo", "222222": "pr", "c0ffee33": "sha", "444444": "installation", "555555": "comment", "666666": "repository"}


def _message() -> str:
    """SQL: the message's body, of the columns repo, pr, sha, installation, comment and repository."""
    text = encode_message(_EXAMPLE).decode()
    for number, found in enumerate(_PLACES, start=1):
        text = text.replace(found, f"%{number}$s")
    return f"format('{text}', {', '.join(_PLACES.values())})"


_REQUEST = f"""
INSERT INTO request (github_host, repository_id, pr_number, source, source_id, installation_id, action, repo, commit_sha, idempotency_key,
                     comment_id, requested_by, message, at, rank, tie, state, attempts, token, reason, url,
                     registered_at, sent_at, finished_at)
SELECT 'github.com', repository, pr, 'comment', comment::text, installation, 'deploy', 'acme/repository-' || repo, sha,
       'acme/repository-' || repo || '#' || pr || ':' || sha, comment, 'somebody', {_message()}, at, 0, comment,
       state, attempts, token, reason, url, at, at, finished_at
"""
_PREVIEW = """
INSERT INTO preview (github_host, repository_id, pr_number, repo, cluster, namespace, releases, desired_at, desired_rank, desired_tie,
                     desired_request, state, live_sha, live_digest, live_request, live_token, token, url, expires_at)
SELECT 'github.com', r.repository_id, r.pr_number, r.repo, 'default', format('pv-past-%s-%s', r.repository_id, r.pr_number),
       ARRAY['preview-pr-' || r.pr_number], r.at, 0, r.tie, r.id, state_of.state,
       CASE WHEN is_ready THEN r.commit_sha END, CASE WHEN is_ready THEN 'digest' END, CASE WHEN is_ready THEN r.id END,
       CASE WHEN is_ready THEN r.token END, r.token, r.url,
       CASE WHEN is_ready THEN clock_timestamp() + (r.id % 100 - 10) * interval '1 hour' END
  FROM (SELECT DISTINCT ON (repository_id, pr_number) * FROM request WHERE {which} ORDER BY repository_id, pr_number, tie DESC) r,
       LATERAL (SELECT {state} AS state) state_of, LATERAL (SELECT state_of.state = 'ready' AS is_ready) ready
"""


async def fill_past(connection: Any, requests: int) -> None:
    """`requests` that ended, five a pull request over a thousand repositories, most of them torn down; ledger and outbox rows too."""
    previews = max(1, requests // REQUESTS_EACH)
    rows = f"""
    SELECT *,
           CASE WHEN n % 1000 = 999 THEN 'dead' WHEN n % 5 = 3 THEN 'superseded' WHEN n % 5 = 4 THEN 'failed' ELSE 'deployed' END AS state,
           1 AS attempts, n + 1 AS token, 'ready' AS reason, 'https://pr-' || pr || '.example' AS url,
           clock_timestamp() - interval '300 days' + n * interval '20 seconds' AS at,
           clock_timestamp() - interval '300 days' + n * interval '20 seconds' + interval '1 minute' AS finished_at
      FROM (SELECT n, n % {previews} % {REPOSITORIES} AS repo, n % {previews} / {REPOSITORIES} + 1 AS pr, md5(n::text) || '00000000' AS sha,
                   n % {previews} % {REPOSITORIES} % {INSTALLATIONS} + 1 AS installation, n + 1 AS comment,
                   n % {previews} % {REPOSITORIES} + {FIRST_REPOSITORY} AS repository
              FROM generate_series(0, {requests} - 1) AS n) AS numbers
    """
    state = "CASE WHEN r.id % 10 < 7 THEN 'destroyed' WHEN r.id % 10 = 7 THEN 'failed' ELSE 'ready' END"
    statements = [
        f"{_REQUEST} FROM ({rows}) AS past",
        _PREVIEW.format(which="finished_at IS NOT NULL", state=state),
        """INSERT INTO outbox (request_id, kind, installation_id, repository_id, pr_number, version, sent_version, due_at, comment_id)
           SELECT id, 'status', installation_id, repository_id, pr_number, 2, 2, finished_at, id
             FROM request WHERE finished_at IS NOT NULL""",
        """INSERT INTO ledger (request_id, token, event, at, details)
           SELECT id, token, event, registered_at, '{"attempt": 1, "holder": "deployer-0/1"}'
             FROM request, unnest(ARRAY['registered', 'granted', 'began', 'finished', 'comment_verified']) AS event
            WHERE finished_at IS NOT NULL""",
        f"SELECT setval('claim_token', {requests + 1})",
    ]
    await _run(connection, statements)


async def fill_backlog(connection: Any, messages: int) -> None:
    """`messages` in the queue, each of a pull request of its own; every second one is registered already, and waits."""
    rows = f"""
    SELECT n, n % {REPOSITORIES} AS repo, n / {REPOSITORIES} + {FIRST_BACKLOG_PR} AS pr, md5(n::text) || '00000000' AS sha,
           n % {INSTALLATIONS} + 1 AS installation, n + 100000000 AS comment, n % {REPOSITORIES} + {FIRST_REPOSITORY} AS repository,
           'waiting' AS state, 0 AS attempts, NULL::bigint AS token, '' AS reason, '' AS url,
           date_trunc('second', clock_timestamp()) - interval '1 hour' AS at, NULL::timestamptz AS finished_at
      FROM generate_series(0, {messages} - 1) AS n
    """
    statements = [
        f"""INSERT INTO queue_message (identity, body)
            SELECT format('github.com/%s/%s/comment/%s', repository, pr, comment), {_message()} FROM ({rows}) AS backlog""",
        f"{_REQUEST} FROM ({rows}) AS backlog WHERE n % 2 = 0",
        _PREVIEW.format(which="state = 'waiting'", state="'requested'"),
        # Most acknowledgements were found; some are still to be written or verified.
        """INSERT INTO outbox (request_id, kind, installation_id, repository_id, pr_number, version, sent_version, due_at, verify_at)
           SELECT id, 'status', installation_id, repository_id, pr_number, 1, CASE WHEN id % 10 = 0 THEN 0 ELSE 1 END, registered_at,
                  CASE WHEN id % 10 = 1 THEN registered_at END
             FROM request WHERE state = 'waiting'""",
        "INSERT INTO ledger (request_id, event) SELECT id, 'registered' FROM request WHERE state = 'waiting'",
    ]
    await _run(connection, statements)


async def _run(connection: Any, statements: list[str]) -> None:
    """Without the checks of foreign keys, which these rows keep; afterwards the planner knows what is there."""
    await connection.execute("SET session_replication_role = replica")
    await connection.execute("SET synchronous_commit = off")
    for statement in statements:
        await connection.execute(statement)
    await connection.execute("RESET session_replication_role")
    await connection.execute("RESET synchronous_commit")
    await connection.execute("VACUUM ANALYZE")


def past_key(number: int) -> PreviewKey:
    """A preview of the past."""
    return PreviewKey("github.com", FIRST_REPOSITORY + number % REPOSITORIES, number // REPOSITORIES + 1)
