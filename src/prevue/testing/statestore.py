"""The statestore's fake: the claim protocol's transactions in memory, on a `StateStoreDisk` that survives the object.

It is written from the protocol, not from the SQL, and passes the same contract suite. Its database's time is the clock's, plus what a
test lets pass with `advance`. A method runs from its first check to its last write without giving way to another task: one transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from prevue.errors import StaleClaim
from prevue.lifecycle import BEGUN, Finish, LiveAfter, PreviewEvent, Reason, RequestEvent, preview_step, request_step
from prevue.model import (
    Action,
    Claim,
    Live,
    Message,
    Order,
    PreviewKey,
    PreviewState,
    RequestState,
    Source,
    preview_namespace,
    release_name,
)
from prevue.statestore.port import (
    Began,
    ClaimStore,
    Dead,
    Done,
    Granted,
    InProgress,
    Later,
    NewerDesired,
    Outbox,
    OutboxItem,
    PreviewReader,
    Superseded,
    SweepStore,
    Verdict,
)
from prevue.statestore.rules import STATUS, VERIFIED, is_told, storable
from prevue.testing.statestore_disk import NEVER, OutboxRow, PreviewRow, RequestRow, is_busy, is_verify, next_at, notice_of
from prevue.testing.statestore_reader import FakeReader
from prevue.testing.statestore_sweep import FakeSweep


class FakeStateStore(FakeReader, FakeSweep):
    """Every protocol of the port, on one disk."""

    # -- ClaimStore ------------------------------------------------------------------------------------------------------------------

    async def register_and_claim(self, message: Message, *, holder: str) -> Verdict:
        """T1."""
        granted_at_boottime = self.clock.boottime()
        now = await self._begin_transaction()
        request, is_new = self._register(message, now)
        preview = self._preview_of(request, now)
        if is_new and preview.repo != message.repo:
            preview.repo, preview.changed_at = message.repo, now
        order = request.message.order
        if preview.desired < order:
            preview.desired, preview.desired_request, preview.changed_at = order, request.id, now
        verdict = self._verdict(request, preview, now)
        if isinstance(verdict, Superseded):
            self._end(request, RequestEvent.OVERTAKEN, Reason.NEWER_REQUEST, now)
        elif isinstance(verdict, Dead):
            self._end(request, RequestEvent.SPENT, Reason.ATTEMPTS_SPENT, now)
            preview.holder = None
            self._move(preview, PreviewEvent.SPENT, now)
        elif verdict is None:
            verdict = Granted(self._grant(request, preview, holder, now, granted_at_boottime))
        if is_new and request.message.effective_source is Source.COMMENT and not request.state.is_terminal:
            due_at = now + timedelta(seconds=self.limits.acknowledge_after_seconds)
            self.disk.outbox[request.id, STATUS] = OutboxRow(request.id, STATUS, due_at)
        return verdict

    async def heartbeat(self, claim: Claim) -> Order:
        """Extend the lease."""
        now = await self._begin_transaction()
        preview = self._held(claim)
        if preview.lease_until <= now:
            raise StaleClaim
        preview.lease_until = now + timedelta(seconds=self.limits.lease_seconds)
        return preview.desired

    async def begin(
        self, claim: Claim, *, preview_state: PreviewState, deadline_seconds: float, values_digest: str = ""
    ) -> Began | NewerDesired:
        """Step 5."""
        now = await self._begin_transaction()
        preview = self._held(claim)
        if preview.desired > claim.order:
            return NewerDesired()
        if preview.lease_until <= now:
            raise StaleClaim
        preview.helm_deadline = now + timedelta(seconds=deadline_seconds)
        self._move(preview, BEGUN[preview_state], now)
        if values_digest:
            self.disk.requests[claim.request_id].values_digest = values_digest
        self._record(claim.request_id, claim.token, "began", now, state=preview_state.value, deadline_seconds=deadline_seconds)
        return Began()

    async def finish(self, claim: Claim, finish: Finish) -> None:
        """Step 10."""
        now = await self._begin_transaction()
        preview, request = self._held(claim), self._claimed(claim)
        told = finish.tell and is_told(request.message, finish.outcome, preview.state)
        self._move(preview, finish.preview_event, now, live=finish.live)
        self._free(preview, now)
        if finish.preview_state is not None:
            preview.url = finish.url if preview.live is not None else ""
        if finish.ttl_seconds is not None:
            preview.expires_at = now + timedelta(seconds=finish.ttl_seconds) if finish.ttl_seconds > 0 else None
        self._end(request, finish.request_event, finish.reason, now, error=finish.error, url=finish.url, told=told)

    async def give_back(self, claim: Claim, *, delay: float, counted: bool, error: str) -> None:
        """Transient failure or give-back."""
        now = await self._begin_transaction()
        preview, request = self._held(claim), self._claimed(claim)
        self._free(preview, now)
        step = request_step(request.state, RequestEvent.ATTEMPT_FAILED if counted else RequestEvent.GIVEN_BACK)
        request.state, request.attempts, request.error = step.to, request.attempts + step.attempts, storable(error)
        request.not_before = now + timedelta(seconds=delay)
        self._record(request.id, claim.token, "given_back", now, counted=counted, delay=delay, error=error)

    async def waiting(self, key: PreviewKey) -> list[Message]:
        """Waiting requests of one preview."""
        now = await self._begin_transaction()
        rows = [row for row in self._requests_of(key) if row.state is RequestState.WAITING and row.not_before <= now]
        return [row.message for row in sorted(rows, key=lambda row: (row.message.order, row.id), reverse=True)]

    async def is_expired(self, claim: Claim) -> bool:
        """By the database's clock."""
        now = await self._begin_transaction()
        preview = self._held(claim)
        return preview.expires_at is not None and preview.expires_at <= now

    async def note(self, claim: Claim, event: str, details: dict[str, str | int | float | bool]) -> None:
        """One row in the ledger."""
        now = await self._begin_transaction()
        self._record(claim.request_id, claim.token, event, now, **details)

    # -- Outbox ----------------------------------------------------------------------------------------------------------------------

    async def due_installations(self) -> list[int]:
        """Installations with something to do now."""
        now = await self._begin_transaction()
        rows = [row for row in self.disk.outbox.values() if (at := next_at(row)) is not None and at <= now]
        return sorted({self._installation(row) for row in rows})

    async def seconds_until_due(self) -> float | None:
        """Until the next row."""
        now = await self._begin_transaction()
        times = [at for row in self.disk.outbox.values() if (at := next_at(row)) is not None]
        return max(0.0, (min(times) - now).total_seconds()) if times else None

    async def acquire_lane(self, installation_id: int, *, holder: str, seconds: float) -> bool:
        """Take or extend."""
        return await self.acquire_lease(f"outbox/{installation_id}", holder=holder, seconds=seconds)

    async def release_lane(self, installation_id: int, *, holder: str) -> None:
        """Give back."""
        await self.release_lease(f"outbox/{installation_id}", holder=holder)

    async def due(self, installation_id: int, *, limit: int) -> list[OutboxItem]:
        """Outcomes, acknowledgements, verifications."""
        now = await self._begin_transaction()

        def rank(row: OutboxRow) -> tuple[int, datetime, int]:
            at = next_at(row)
            is_outcome = self.disk.requests[row.request_id].state.is_terminal
            return (2 if is_verify(row) else 0 if is_outcome else 1), at or NEVER, row.request_id

        rows = [
            row
            for row in self.disk.outbox.values()
            if self._installation(row) == installation_id and (at := next_at(row)) is not None and at <= now
        ]
        return [self._item(row) for row in sorted(rows, key=rank)[:limit]]

    async def reserve_write(self, installation_id: int, *, per_minute: int, per_hour: int) -> float:
        """Two sliding windows."""
        now = await self._begin_transaction()
        writes = [at for at in self.disk.writes.get(installation_id, []) if at > now - timedelta(hours=1)]
        wait = 0.0
        for limit, seconds in ((per_minute, 60.0), (per_hour, 3600.0)):
            inside = sorted(at for at in writes if at > now - timedelta(seconds=seconds))
            if len(inside) >= limit:
                oldest = inside[len(inside) - limit] if limit > 0 else now
                wait = max(wait, seconds - (now - oldest).total_seconds())
        if wait == 0:
            writes.append(now)
        self.disk.writes[installation_id] = writes
        return wait

    async def sent(self, item: OutboxItem, *, comment_id: int) -> None:
        """Mark as sent or verified."""
        now = await self._begin_transaction()
        row = self.disk.outbox.get((item.notice.request_id, item.kind))
        if row is None:
            return
        if item.is_verify:
            if row.version == item.version == row.sent_version and row.verify_at is not None and row.verify_at == item.verify_at:
                row.verify_at, row.comment_id, row.attempts, row.error = None, comment_id, 0, ""
                self._told(item, VERIFIED, comment_id, now)
        elif row.sent_version < item.version:
            row.sent_version, row.comment_id, row.attempts, row.error = item.version, comment_id, 0, ""
            row.verify_at = now + timedelta(seconds=self.limits.verify_after_seconds)
            self._told(item, "comment_written", comment_id, now)

    def _told(self, item: OutboxItem, event: str, comment_id: int, now: datetime) -> None:
        text = item.notice.state.value
        self._record(item.notice.request_id, None, event, now, comment_id=comment_id, text=text, version=item.version)

    async def postpone(self, item: OutboxItem, *, delay: float, error: str) -> None:
        """Later again."""
        now = await self._begin_transaction()
        row = self.disk.outbox.get((item.notice.request_id, item.kind))
        if row is None or row.version != item.version:
            return
        row.attempts, row.error = row.attempts + 1, storable(error)
        if item.is_verify:
            row.verify_at = now + timedelta(seconds=delay)
        else:
            row.due_at = now + timedelta(seconds=delay)

    # -- SweepStore ------------------------------------------------------------------------------------------------------------------

    async def unheld(self, *, quiet_seconds: float, limit: int) -> list[Message]:
        """Rule 1."""
        now = await self._begin_transaction()
        rows = [
            row
            for row in self.disk.requests.values()
            if not row.state.is_terminal
            and row.not_before <= now
            and row.sent_at <= now - timedelta(seconds=quiet_seconds)
            and not is_busy(self.disk.previews[row.message.key], now)
        ]
        chosen = sorted(rows, key=lambda row: (row.sent_at, row.id))[:limit]
        for row in chosen:
            row.sent_at = now
        return [row.message for row in chosen]

    # -- pieces of T1 ----------------------------------------------------------------------------------------------------------------

    def _register(self, message: Message, now: datetime) -> tuple[RequestRow, bool]:
        if not message.is_complete:
            raise ValueError("the message must be complete before it is registered")
        identity = (message.key, message.effective_source, message.effective_source_id)
        for row in self.disk.requests.values():
            if (row.message.key, row.message.effective_source, row.message.effective_source_id) == identity:
                return row, False
        row = RequestRow(len(self.disk.requests) + 1, message, now, now)
        self.disk.requests[row.id] = row
        self._record(row.id, None, "registered", now)
        return row, True

    def _preview_of(self, request: RequestRow, now: datetime) -> PreviewRow:
        message = request.message
        if message.key not in self.disk.previews:
            self.disk.previews[message.key] = PreviewRow(
                key=message.key,
                repo=message.repo,
                cluster=self.cluster_name,
                namespace=preview_namespace(message.key, message.repo),
                releases=(release_name(message.pr_number),),
                desired=message.order,
                desired_request=request.id,
                changed_at=now,
            )
        return self.disk.previews[message.key]

    def _verdict(self, request: RequestRow, preview: PreviewRow, now: datetime) -> Verdict | None:
        """The first that fits; None is the seventh, Granted."""
        busy = is_busy(preview, now)
        rules: list[tuple[bool, Callable[[], Verdict]]] = [
            (request.state.is_terminal, lambda: Done(request.state)),
            (busy and preview.holder_request == request.id, InProgress),
            (request.message.order < preview.desired, Superseded),
            (busy, InProgress),
            (request.not_before > now, lambda: Later((request.not_before - now).total_seconds())),
            (request.message.action is Action.DEPLOY and request.attempts >= self.limits.attempts_max, Dead),
        ]
        return next((verdict() for fits, verdict in rules if fits), None)

    def _grant(self, request: RequestRow, preview: PreviewRow, holder: str, now: datetime, boottime: float) -> Claim:
        self.disk.last_token += 1
        preview.token, preview.holder, preview.holder_request = self.disk.last_token, holder, request.id
        preview.lease_until, preview.helm_deadline = now + timedelta(seconds=self.limits.lease_seconds), NEVER
        preview.changed_at = now
        step = request_step(request.state, RequestEvent.GRANTED)
        request.state, request.token, request.attempts = step.to, preview.token, request.attempts + step.attempts
        request.sent_at = now
        self._record(request.id, preview.token, "granted", now, attempt=request.attempts, holder=holder)
        return Claim(
            key=preview.key,
            request_id=request.id,
            token=preview.token,
            attempt=request.attempts,
            message=request.message,
            order=request.message.order,
            cluster=preview.cluster,
            namespace=preview.namespace,
            releases=preview.releases,
            preview_state=preview.state,
            live=preview.live,
            url=preview.url,
            registered_at=request.registered_at,
            granted_at_boottime=boottime,
        )

    # -- pieces of the writes under a claim --------------------------------------------------------------------------------------------

    def _held(self, claim: Claim) -> PreviewRow:
        preview = self.disk.previews.get(claim.key)
        if preview is None or preview.token != claim.token:
            raise StaleClaim
        return preview

    def _claimed(self, claim: Claim) -> RequestRow:
        request = self.disk.requests.get(claim.request_id)
        if request is None or request.token != claim.token or request.state is not RequestState.CLAIMED:
            raise StaleClaim
        return request

    def _move(self, preview: PreviewRow, event: PreviewEvent, now: datetime, *, live: Live | None = None) -> None:
        step = preview_step(preview.state, event)
        preview.state, preview.changed_at = step.to, now
        if step.live is not LiveAfter.AS_BEFORE:
            preview.live = live if step.live is LiveAfter.FOUND else None

    def _free(self, preview: PreviewRow, now: datetime) -> None:
        preview.holder, preview.holder_request, preview.changed_at = None, None, now
        preview.lease_until, preview.helm_deadline = NEVER, NEVER

    def _end(
        self,
        request: RequestRow,
        event: RequestEvent,
        reason: Reason,
        now: datetime,
        *,
        error: str | None = None,
        url: str = "",
        told: bool | None = None,
    ) -> None:
        """A terminal state and its outbox row; `error` None keeps that of the last attempt."""
        outcome = request_step(request.state, event).to
        preview = self.disk.previews[request.message.key]
        if told is None:
            told = is_told(request.message, outcome, preview.state)
        request.state, request.reason, request.finished_at = outcome, reason.value, now
        request.error = request.error if error is None else storable(error)
        request.url = url
        details = {"outcome": outcome.value, "reason": reason.value, "error": storable(error or ""), "url": url}
        self._record(request.id, request.token, "finished", now, **{name: value for name, value in details.items() if value})
        if not told:
            return
        row = self.disk.outbox.get((request.id, STATUS))
        if row is None:
            self.disk.outbox[request.id, STATUS] = OutboxRow(request.id, STATUS, now)
        else:
            row.version, row.due_at, row.attempts = row.version + 1, now, 0

    # -- small things ------------------------------------------------------------------------------------------------------------------

    def _installation(self, row: OutboxRow) -> int:
        return self.disk.requests[row.request_id].message.installation_id

    def _item(self, row: OutboxRow) -> OutboxItem:
        return OutboxItem(
            notice=notice_of(self.disk, row.request_id),
            kind=row.kind,
            version=row.version,
            known_comment_id=row.comment_id,
            is_verify=is_verify(row),
            verify_at=row.verify_at,
        )


_claims: type[ClaimStore] = FakeStateStore
_outbox: type[Outbox] = FakeStateStore
_sweep: type[SweepStore] = FakeStateStore
_reader: type[PreviewReader] = FakeStateStore
