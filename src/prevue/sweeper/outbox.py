"""The outbox's drainer: one status comment per request, always the newest text (protocol section 5, protocol rule 4).

One drainer at a time an installation, by a lane lease that only saves work: every step is safe without it. A drainer that was stopped in
a POST may finish after another has marked the row, so each row is verified once more when no earlier writer can be left.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import msgspec
import structlog

from prevue.clock import Clock, SystemClock
from prevue.errors import GitHubUnavailable, PermanentError, PrevueError, RateLimited, StateStoreUnavailable
from prevue.github import comments
from prevue.github.port import GitHub
from prevue.statestore.port import Outbox, OutboxItem

log = structlog.get_logger(__name__)

LANE_SECONDS = 30.0
BATCH_ITEMS = 20
POLL_SECONDS = 2.0
"""Waiting is notification plus polling: another process may have written the row."""
UNREACHABLE_SECONDS = 600.0
"""A repository that is gone, or where the App is not installed any more, is asked again this rarely."""
LIMITED, LIMITED_SECONDS = "github's limit", 60.0
"""Who holds an installation's lane until GitHub takes writes again, and how long where it does not say (its own advice)."""
RETRY_SECONDS = 5.0
RETRY_SECONDS_MAX = 300.0


class OutboxLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Content writes an installation; their reasons stand in `config.DeployerSettings`."""

    per_minute: int = 45
    per_hour: int = 400


class OutboxDrainer:
    """Writes what is due, until stopped."""

    def __init__(self, *, holder: str, outbox: Outbox, github: GitHub, limits: OutboxLimits, clock: Clock | None = None) -> None:
        self._holder = holder
        self._outbox = outbox
        self._github = github
        self._limits = limits
        self._clock = clock or SystemClock()
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Something was written to the outbox just now."""
        self._wake.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Drain until `stop`; an outage is waited out."""
        while not stop.is_set():
            self._wake.clear()
            wait = POLL_SECONDS
            try:
                await self.drain()
                due_in = await self._outbox.seconds_until_due()
                # What is still due after a pass waits for a lane, a budget or GitHub's limit: asking faster brings nothing.
                wait = POLL_SECONDS if not due_in else min(POLL_SECONDS, max(0.1, due_in))
            except StateStoreUnavailable as exc:
                log.warning("outbox not readable", action="outbox_delayed", error=str(exc))
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()

    async def drain(self) -> None:
        """One pass over all installations with something due; each is isolated from the others."""
        installations = await self._outbox.due_installations()
        await asyncio.gather(*(self._drain_lane(installation) for installation in installations))

    async def _drain_lane(self, installation_id: int) -> None:
        if not await self._outbox.acquire_lane(installation_id, holder=self._holder, seconds=LANE_SECONDS):
            return
        limited: RateLimited | None = None
        try:
            while True:
                # Nothing that was read is written later than a lane's lease: after a longer pause another has written a newer text and
                # verified it, and nobody would mend an older one any more. `verify_at` counts on it (protocol section 5).
                write_until = self._clock.boottime() + LANE_SECONDS
                items = await self._outbox.due(installation_id, limit=BATCH_ITEMS)
                if not items:
                    return
                for item in items:
                    if not await self._outbox.acquire_lane(installation_id, holder=self._holder, seconds=LANE_SECONDS):
                        return
                    if not await self._deliver(item, write_until):
                        return
        except RateLimited as exc:
            limited = exc
        finally:
            with suppress(StateStoreUnavailable):
                await self._outbox.release_lane(installation_id, holder=self._holder)
                if limited is not None:
                    # GitHub's patience is the installation's: no row of it is written by any process before, and none loses its place.
                    seconds = limited.retry_after or LIMITED_SECONDS
                    await self._outbox.acquire_lane(installation_id, holder=LIMITED, seconds=seconds)
                    log.warning("GitHub's limit", action="outbox_limited", installation_id=installation_id, seconds=seconds)

    async def _deliver(self, item: OutboxItem, write_until: float) -> bool:
        """Protocol outbox drain or protocol outbox verify of one item; False ends the lane's turn, since the next item would meet the same.

        Raises:
            RateLimited: GitHub takes nothing of this installation for a while.
        """
        try:
            comment_id = await self._write(item, write_until)
        except (RateLimited, StateStoreUnavailable):
            raise
        except GitHubUnavailable as exc:
            await self._postpone(item, exc.retry_after or RETRY_SECONDS, exc)
            return False
        except PermanentError as exc:
            await self._postpone(item, UNREACHABLE_SECONDS, exc)
            return True
        except PrevueError as exc:
            await self._postpone(item, RETRY_SECONDS_MAX, exc)
            return True
        if comment_id is None:
            return False
        await self._outbox.sent(item, comment_id=comment_id)
        return True

    async def _write(self, item: OutboxItem, write_until: float) -> int | None:
        """List, PATCH the oldest or POST, list again, delete all but the oldest; None where the budget is used up for now, or too late."""
        notice = item.notice
        where = (notice.installation_id, notice.repo, notice.key.pr_number)
        body = comments.status(notice)
        found = await self._github.find_comments(*where, marker=notice.marker)
        if len(found) == 1 and found[0].body.strip() == body.strip():
            return found[0].id
        wait = await self._outbox.reserve_write(notice.installation_id, per_minute=self._limits.per_minute, per_hour=self._limits.per_hour)
        if wait > 0:
            # The row stays due: a turn that finds the budget free again takes the newest text then.
            await asyncio.sleep(min(wait, POLL_SECONDS))
            return None
        if self._clock.boottime() >= write_until:
            return None
        if found:
            await self._github.update_comment(notice.installation_id, notice.repo, found[0].id, body)
        else:
            await self._github.create_comment(*where, body)
        standing = await self._github.find_comments(*where, marker=notice.marker)
        for extra in standing[1:]:
            await self._github.delete_comment(notice.installation_id, notice.repo, extra.id)
        if not standing:
            # GitHub's list lags behind its own POST: the verify pass looks again.
            return 0
        log.info("status comment written", action="comment_written", state=notice.state, comment_id=standing[0].id, version=item.version)
        return standing[0].id

    async def _postpone(self, item: OutboxItem, delay: float, exc: PrevueError) -> None:
        log.warning("status comment delayed", action="comment_delayed", error=str(exc), delay=round(delay, 1))
        await self._outbox.postpone(item, delay=delay, error=str(exc))
