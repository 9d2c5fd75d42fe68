"""No hot statement reads the past: counted by the server, on twenty thousand requests that ended and two hundred messages that wait."""

from __future__ import annotations

import asyncpg

from prevue.testing.statestore_past import REQUESTS_EACH, fill_backlog, fill_past
from prevue.testing.statestore_reads import hot_reads

PAST, BACKLOG = 20_000, 200
READ_MAX = 1000
"""What waits may be read; the past's requests, and its previews, are more."""


async def filled(url: str) -> asyncpg.Connection:
    connection = await asyncpg.connect(url)
    await fill_past(connection, PAST)
    await fill_backlog(connection, BACKLOG)
    return connection


async def test_hot_statements_read_what_waits_and_not_the_past(postgres_url: str) -> None:
    connection = await filled(postgres_url)
    await connection.close()
    assert PAST // REQUESTS_EACH >= 4 * READ_MAX
    reads = await hot_reads(postgres_url)
    assert len(reads) > 15
    assert [each for each in reads if each.rows >= READ_MAX] == []
    assert min(each.rows for each in reads) > 0


async def test_statement_that_reads_the_past_is_seen(postgres_url: str) -> None:
    """The count is not blind: without its index the list of dead letters reads every request."""
    connection = await filled(postgres_url)
    await connection.execute("DROP INDEX request_dead")
    await connection.close()
    assert [each.call for each in await hot_reads(postgres_url) if each.rows >= READ_MAX] == ["dead letters, the list", "dead letters, one"]
