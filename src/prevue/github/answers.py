"""What an answer of GitHub's means: pure functions from status, headers and body to the tree of errors, or to nothing.

They stand apart from the client so that every line of GitHub's rules can be tested as a table.
https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api
https://docs.github.com/en/rest/using-the-rest-api/troubleshooting-the-rest-api
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

import msgspec

from prevue.errors import GitHubUnavailable, NotFound, NotInstalled, PermanentError, PrevueError, RateLimited
from prevue.github.payloads import Problem
from prevue.masking import foreign_text

WAIT_UNSAID_SECONDS: Final = 60.0
"""GitHub's rule where a limit names no time: wait at least one minute."""
WAIT_MAX_SECONDS: Final = 3600.0
"""The primary limit's window is an hour; a header that says more is wrong."""

_LIMIT_WORDS: Final = re.compile(r"rate limit|abuse detection", re.IGNORECASE)

_problem = msgspec.json.Decoder(Problem)


def message_of(body: bytes) -> str:
    """GitHub's `message`, fit for an error of ours; empty where the body is not GitHub's."""
    try:
        return foreign_text(_problem.decode(body).message)
    except msgspec.MsgspecError:
        return ""


def server_time(headers: Mapping[str, str]) -> datetime | None:
    """GitHub's clock as the answer's `Date` shows it."""
    try:
        return parsedate_to_datetime(headers["date"])
    except (KeyError, ValueError):
        return None


def _seconds(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def rate_limit_wait(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> float | None:
    """Seconds to wait, when the answer is a rate limit's (primary or secondary); else None.

    403 is both "no right" and "limit": a limit shows by `retry-after`, by no remaining requests, or by its words.
    """
    if status not in (403, 429):
        return None
    retry_after = _seconds(headers.get("retry-after"))
    if retry_after is not None:
        return min(max(retry_after, 1.0), WAIT_MAX_SECONDS)
    if headers.get("x-ratelimit-remaining") == "0":
        reset = _seconds(headers.get("x-ratelimit-reset"))
        if reset is not None:
            wait = reset - (server_time(headers) or now).timestamp()
            return min(max(wait, 1.0), WAIT_MAX_SECONDS)
        return WAIT_UNSAID_SECONDS
    if status == 429 or _LIMIT_WORDS.search(message_of(body)):
        return WAIT_UNSAID_SECONDS
    return None


def error_of(status: int, headers: Mapping[str, str], body: bytes, *, what: str, now: datetime) -> PrevueError | None:
    """The error that an answer stands for, None for a good one; `what` names the call (`GET /repos/…`)."""
    if 200 <= status < 300:
        return None
    wait = rate_limit_wait(status, headers, body, now)
    said = message_of(body)
    text = f"GitHub answered {status} to {what}" + (f": {said}" if said else "")
    if wait is not None:
        return RateLimited(text, retry_after=wait)
    if status >= 500 or status in (408, 425):
        return GitHubUnavailable(text, retry_after=_seconds(headers.get("retry-after")))
    if status in (404, 410):
        return NotFound(text)
    if status in (401, 403):
        return NotInstalled(text)
    if 300 <= status < 400:
        return GitHubUnavailable(f"{text}: a redirect that is not followed")
    return PermanentError(text)
