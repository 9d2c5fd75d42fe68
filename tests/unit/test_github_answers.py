"""What GitHub's answers mean."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from prevue.errors import GitHubUnavailable, NotFound, NotInstalled, PermanentError, PrevueError, RateLimited
from prevue.github.answers import error_of

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
RESET = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(NOW.timestamp()) + 120)}


def meaning(status: int, headers: dict[str, str] | None = None, body: bytes = b'{"message":"said"}') -> PrevueError | None:
    return error_of(status, headers or {}, body, what="GET /x", now=NOW)


@pytest.mark.parametrize("status", [200, 201, 204])
def test_good_answers_are_no_error(status: int) -> None:
    assert meaning(status) is None


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (301, GitHubUnavailable),
        (401, NotInstalled),
        (403, NotInstalled),
        (404, NotFound),
        (408, GitHubUnavailable),
        (410, NotFound),
        (422, PermanentError),
        (500, GitHubUnavailable),
        (502, GitHubUnavailable),
        (503, GitHubUnavailable),
    ],
)
def test_statuses(status: int, expected: type[PrevueError]) -> None:
    error = meaning(status)
    assert type(error) is expected
    assert str(status) in str(error)
    assert "said" in str(error)


@pytest.mark.parametrize(
    ("status", "headers", "body", "wait"),
    [
        (429, {}, b"", 60),
        (429, {"retry-after": "7"}, b"", 7),
        (403, {"retry-after": "7"}, b"", 7),
        (403, {"retry-after": "-3"}, b"", 1),
        (403, {"retry-after": "999999"}, b"", 3600),
        (403, RESET, b"", 120),
        (403, {**RESET, "date": "Thu, 01 Jan 2026 12:01:00 GMT"}, b"", 60),
        (403, {**RESET, "date": "nonsense"}, b"", 120),
        (403, {**RESET, "retry-after": "7"}, b"", 7),
        (403, {"x-ratelimit-remaining": "0"}, b"", 60),
        (403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "soon"}, b"", 60),
        (403, {}, b'{"message":"You have exceeded a secondary rate limit."}', 60),
        (403, {"retry-after": "soon"}, b'{"message":"You have triggered an abuse detection mechanism."}', 60),
    ],
)
def test_limits_say_how_long_to_wait(status: int, headers: dict[str, str], body: bytes, wait: float) -> None:
    error = meaning(status, headers, body)
    assert isinstance(error, RateLimited)
    assert error.retry_after == wait


def test_remaining_requests_make_a_403_no_limit() -> None:
    assert type(meaning(403, {"x-ratelimit-remaining": "10", "x-ratelimit-reset": "1"})) is NotInstalled


def test_what_github_says_is_cut_and_masked() -> None:
    said = b'{"message":"token ghs_abcdefghijklmnopqrstuvwxyz0123456789 \\u0007 ' + b"x" * 10_000 + b'"}'
    text = str(meaning(500, body=said))
    assert "ghs_" not in text
    assert "\x07" not in text
    assert len(text) < 400


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"message":3}', b"\xff"])
def test_a_body_that_is_not_githubs_is_left_out(body: bytes) -> None:
    assert str(meaning(500, body=body)) == "GitHub answered 500 to GET /x"
