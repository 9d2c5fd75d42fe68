"""Rate limits: the primary one (requests an hour) and the secondary one (content writes), and their headers.

The secondary limit is counted as GitHub documents it, on what makes content: at most 80 a minute and 500 an hour, here
per installation and in sliding windows. Invariant: a refused write is not counted.
(https://docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api#about-secondary-rate-limits)
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from prevue.testing.github.auth import ApiError
from prevue.testing.github.records import Limits

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
REPORTED_PER_HOUR = 5_000
"""What the headers say while the primary limit is off: an installation's documented minimum."""

_DOCUMENTATION = "https://docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api"


@dataclass(kw_only=True)
class _Account:
    resets_at: datetime
    used: int = 0
    content: deque[datetime] = field(default_factory=deque)


@dataclass(kw_only=True)
class RateLimits:
    """Counts what each caller (`key`) did; `limits` may be replaced at any time and holds from the next request."""

    limits: Limits = field(default_factory=Limits)
    _accounts: dict[str, _Account] = field(default_factory=dict)

    def _account(self, key: str, now: datetime) -> _Account:
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = _Account(resets_at=now + HOUR)
        elif account.resets_at <= now:
            account.used, account.resets_at = 0, now + HOUR
        return account

    def status(self, key: str, now: datetime) -> dict[str, int]:
        """Return limit, remaining, used and reset (epoch seconds), as `GET /rate_limit` shows them."""
        account = self._account(key, now)
        limit = self.limits.requests_per_hour
        used = 0 if limit is None else min(account.used, limit)
        shown = REPORTED_PER_HOUR if limit is None else limit
        reset = math.ceil(account.resets_at.timestamp())
        return {"limit": shown, "remaining": shown - used, "reset": reset, "used": used}

    def headers(self, key: str, now: datetime) -> dict[str, str]:
        """Return the x-ratelimit headers that every answer carries."""
        status = self.status(key, now)
        return {
            "x-ratelimit-limit": str(status["limit"]),
            "x-ratelimit-remaining": str(status["remaining"]),
            "x-ratelimit-reset": str(status["reset"]),
            "x-ratelimit-used": str(status["used"]),
            "x-ratelimit-resource": "core",
        }

    def count_request(self, key: str, now: datetime) -> None:
        """Count a request against the primary limit.

        Raises:
            ApiError: 403, nothing is left of this hour.
        """
        account, limit = self._account(key, now), self.limits.requests_per_hour
        if limit is not None and account.used >= limit:
            message = f"API rate limit exceeded for {key}."
            raise ApiError(403, message, documentation_url=f"{_DOCUMENTATION}#about-primary-rate-limits")
        account.used += 1

    def count_content(self, key: str, now: datetime) -> None:
        """Count a content write against the secondary limit.

        Raises:
            ApiError: 403 with `retry-after` (seconds until a write fits again), too much in a minute or an hour.
        """
        content = self._account(key, now).content
        while content and content[0] <= now - HOUR:
            content.popleft()
        waits = [
            (_free_at(content, now, window, limit) - now).total_seconds()
            for window, limit in ((MINUTE, self.limits.content_per_minute), (HOUR, self.limits.content_per_hour))
            if limit is not None
        ]
        wait = max(waits, default=0.0)
        if wait > 0:
            raise secondary_limit(math.ceil(wait))
        content.append(now)


def _free_at(content: deque[datetime], now: datetime, window: timedelta, limit: int) -> datetime:
    """Return when a window holds fewer than `limit` writes again; `now` when it does already."""
    if limit <= 0:
        return now + window
    if len(content) < limit or content[-limit] <= now - window:
        return now
    return content[-limit] + window


def secondary_limit(retry_after_seconds: int, *, status: int = 403) -> ApiError:
    """Return GitHub's answer to too many content writes."""
    return ApiError(
        status,
        "You have exceeded a secondary rate limit and have been temporarily blocked from content creation. "
        "Please retry your request again later.",
        headers={"retry-after": str(max(1, retry_after_seconds))},
        documentation_url=f"{_DOCUMENTATION}#about-secondary-rate-limits",
    )
