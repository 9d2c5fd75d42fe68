"""What the sweeper and the operator ask of the statestore's fake."""

from __future__ import annotations

from datetime import datetime, timedelta

from prevue.model import Message, PreviewKey, PreviewState, RequestState, Source
from prevue.statestore.port import (
    AlarmStore,
    AuditCase,
    AuditEvent,
    Auditor,
    AuditRequest,
    CursorStore,
    DeadLetterStore,
    JanitorStore,
    LeaseStore,
    RequestView,
    StandingPreview,
    TokenStore,
)
from prevue.statestore.rules import STATUS, VERIFIED
from prevue.testing.statestore_base import FakeStore
from prevue.testing.statestore_disk import NEVER, PreviewRow, RequestRow, is_busy, is_verify, request_view


class FakeSweep(FakeStore):
    """JanitorStore, LeaseStore, CursorStore, TokenStore, AlarmStore, DeadLetterStore and Auditor."""

    async def standing(self, *, after: PreviewKey | None = None, limit: int) -> list[StandingPreview]:
        """By key."""
        now = await self._begin_transaction()
        rows = [row for key, row in sorted(self.disk.previews.items()) if after is None or key > after]
        return [self._standing(row, now) for row in rows if row.state is not PreviewState.DESTROYED][:limit]

    async def find(self, key: PreviewKey) -> StandingPreview | None:
        """One."""
        now = await self._begin_transaction()
        row = self.disk.previews.get(key)
        return None if row is None else self._standing(row, now)

    async def expired(self, *, limit: int) -> list[StandingPreview]:
        """Rule 5."""
        now = await self._begin_transaction()
        due = [
            (row.expires_at, row)
            for row in self.disk.previews.values()
            if row.expires_at is not None and row.expires_at <= now and row.state is not PreviewState.DESTROYED
        ]
        found = [self._standing(row, now) for _, row in sorted(due, key=lambda pair: pair[0])]
        return [one for one in found if one.is_idle][:limit]

    async def is_registered(self, key: PreviewKey, source: Source, source_id: str) -> bool:
        """In any state."""
        await self._begin_transaction()
        identity = (source, source_id)
        return any((row.message.effective_source, row.message.effective_source_id) == identity for row in self._requests_of(key))

    async def verify_again(self, key: PreviewKey, source: Source, source_id: str, *, written_at: datetime) -> None:
        """By the ledger."""
        now = await self._begin_transaction()
        for row in self._requests_of(key):
            box = self.disk.outbox.get((row.id, STATUS))
            if (row.message.effective_source, row.message.effective_source_id) != (source, source_id) or box is None:
                continue
            is_seen = any(one.request_id == row.id and one.event == VERIFIED and one.at >= written_at for one in self.disk.ledger)
            if is_verify(box) and not is_seen:
                box.verify_at = max(box.verify_at or now, now)

    async def acquire_lease(self, name: str, *, holder: str, seconds: float) -> bool:
        """Take or extend."""
        now = await self._begin_transaction()
        other, until = self.disk.leases.get(name, (holder, NEVER))
        if other != holder and until > now:
            return False
        self.disk.leases[name] = (holder, now + timedelta(seconds=seconds))
        return True

    async def release_lease(self, name: str, *, holder: str) -> None:
        """Give back."""
        await self._begin_transaction()
        if self.disk.leases.get(name, ("", NEVER))[0] == holder:
            del self.disk.leases[name]

    async def cursor(self, name: str) -> str | None:
        """What was stored."""
        await self._begin_transaction()
        return self.disk.cursors.get(name)

    async def set_cursor(self, name: str, value: str) -> None:
        """Store it."""
        await self._begin_transaction()
        self.disk.cursors[name] = value

    async def last_token(self) -> int:
        """The sequence."""
        await self._begin_transaction()
        return self.disk.last_token

    async def raise_tokens(self, *, above: int) -> bool:
        """Only upwards."""
        await self._begin_transaction()
        if self.disk.last_token >= above:
            return False
        self.disk.last_token = above
        return True

    async def overdue(self, *, older_than_seconds: float, limit: int) -> list[RequestView]:
        """Open for too long."""
        now = await self._begin_transaction()
        before = now - timedelta(seconds=older_than_seconds)
        rows = [row for row in self.disk.requests.values() if not row.state.is_terminal and row.registered_at <= before]
        return [request_view(row) for row in sorted(rows, key=lambda row: (row.registered_at, row.id))[:limit]]

    async def dead_message(self, request_id: int) -> Message | None:
        """As it was registered."""
        await self._begin_transaction()
        row = self.disk.requests.get(request_id)
        return row.message if row is not None and row.state is RequestState.DEAD else None

    async def settle_dead_letter(self, request_id: int, event: str) -> None:
        """A row of the ledger."""
        now = await self._begin_transaction()
        self._record(request_id, None, event, now)

    async def audit_keys(self, *, after: PreviewKey | None = None, limit: int) -> list[PreviewKey]:
        """By key."""
        await self._begin_transaction()
        return [key for key in sorted(self.disk.previews) if after is None or key > after][:limit]

    async def audit(self, key: PreviewKey) -> AuditCase | None:
        """All of one preview."""
        now = await self._begin_transaction()
        row = self.disk.previews.get(key)
        if row is None:
            return None
        requests = sorted(self._requests_of(key), key=lambda one: one.id)
        ids = {one.id for one in requests}
        return AuditCase(
            preview=self._standing(row, now),
            live=row.live,
            url=row.url,
            release=row.releases[0],
            requests=[self._audit_request(one, now) for one in requests],
            events=[
                AuditEvent(
                    request_id=one.request_id,
                    token=one.token,
                    event=one.event,
                    state=str(one.details.get("state", one.details.get("outcome", ""))),
                )
                for one in self.disk.ledger
                if one.request_id in ids
            ],
        )

    def _audit_request(self, row: RequestRow, now: datetime) -> AuditRequest:
        told = self.disk.outbox.get((row.id, STATUS))
        is_sent = told is not None and told.sent_version >= told.version
        return AuditRequest(
            id=row.id,
            message=row.message,
            state=row.state,
            reason=row.reason,
            token=row.token,
            age_seconds=(now - (row.finished_at or row.registered_at)).total_seconds(),
            told_version=None if told is None else told.version,
            is_sent=is_sent,
            is_verified=is_sent and told is not None and told.verify_at is None,
        )

    def _standing(self, row: PreviewRow, now: datetime) -> StandingPreview:
        desired = self.disk.requests.get(row.desired_request)
        return StandingPreview(
            key=row.key,
            repo=row.repo,
            installation_id=desired.message.installation_id if desired is not None else 0,
            namespace=row.namespace,
            state=row.state,
            order=row.desired,
            is_idle=not is_busy(row, now) and (desired is None or desired.state.is_terminal),
            live_request=row.live.request_id if row.live is not None else None,
            token=row.token,
        )


_janitor: type[JanitorStore] = FakeSweep
_leases: type[LeaseStore] = FakeSweep
_cursors: type[CursorStore] = FakeSweep
_tokens: type[TokenStore] = FakeSweep
_alarms: type[AlarmStore] = FakeSweep
_dead_letters: type[DeadLetterStore] = FakeSweep
_auditor: type[Auditor] = FakeSweep
