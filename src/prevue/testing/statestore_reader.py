"""The reading half of the statestore's fake: previews, dead letters and the ledger for people."""

from __future__ import annotations

from prevue.model import RequestState
from prevue.statestore.port import PreviewReader, PreviewView, RequestView
from prevue.statestore.rules import SETTLED
from prevue.testing.statestore_base import FakeStore
from prevue.testing.statestore_disk import NEVER, PreviewRow, request_view


class FakeReader(FakeStore):
    """PreviewReader."""

    async def previews(self, *, repo: str | None = None, limit: int = 100) -> list[PreviewView]:
        """Newest change first."""
        await self._begin_transaction()
        rows = [row for row in self.disk.previews.values() if repo is None or row.repo.lower() == repo.lower()]
        return [self._preview_view(row, 1) for row in sorted(rows, key=lambda row: row.changed_at, reverse=True)[:limit]]

    async def preview(self, repo: str, pr_number: int) -> PreviewView | None:
        """One preview."""
        await self._begin_transaction()
        row = self._find(repo, pr_number)
        return self._preview_view(row, 100) if row is not None else None

    async def dead_letters(self, *, limit: int = 100) -> list[RequestView]:
        """Dead requests, newest first."""
        await self._begin_transaction()
        settled = {row.request_id for row in self.disk.ledger if row.event in SETTLED}
        rows = [row for row in self.disk.requests.values() if row.state is RequestState.DEAD and row.id not in settled]
        return [request_view(row) for row in sorted(rows, key=lambda row: (row.finished_at or NEVER, row.id), reverse=True)[:limit]]

    async def dead_letter(self, request_id: int) -> RequestView | None:
        """One dead request."""
        await self._begin_transaction()
        row = self.disk.requests.get(request_id)
        return request_view(row) if row is not None and row.state is RequestState.DEAD else None

    async def ledger(self, repo: str, pr_number: int) -> list[dict[str, str | int | float | bool | None]]:
        """Oldest first."""
        await self._begin_transaction()
        preview = self._find(repo, pr_number)
        ids = {row.id for row in self._requests_of(preview.key)} if preview is not None else set()
        return [
            {**row.details, "at": row.at.isoformat(), "request_id": row.request_id, "token": row.token, "event": row.event}
            for row in self.disk.ledger
            if row.request_id in ids
        ]

    def _preview_view(self, row: PreviewRow, requests_max: int) -> PreviewView:
        requests = sorted(self._requests_of(row.key), key=lambda each: (each.message.order, each.id), reverse=True)
        newest = requests[0]
        return PreviewView(
            repo=row.repo,
            pr_number=row.key.pr_number,
            state=row.state.value,
            commit_sha=(row.live and row.live.sha) or newest.message.commit_sha,
            url=row.url,
            namespace=row.namespace,
            release=row.releases[0],
            token=row.token,
            attempts=newest.attempts,
            error=newest.error,
            repository_id=row.key.repository_id,
            github_host=row.key.github_host,
            cluster=row.cluster,
            requests=[request_view(each) for each in requests[:requests_max]],
        )


_reader: type[PreviewReader] = FakeReader
