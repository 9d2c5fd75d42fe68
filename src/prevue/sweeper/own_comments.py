"""Our own comments, looked at again where the comment scan reads them anyway (protocol section 5).

The verify pass counts on no earlier writer being left. One that is stopped between its last check and GitHub for longer than that, and
may be dead afterwards, writes all the same; its comment then bears a time later than the row's verification, and only here is that seen.
Two Apps that refuse one command at the same moment may both say so, and no outbox row looks after a refusal.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime, timedelta

import structlog

from prevue.errors import PermanentError
from prevue.github.comments import refused_marker
from prevue.github.port import FoundComment, GitHub, Repository
from prevue.model import request_of_comment
from prevue.statestore.port import JanitorStore

log = structlog.get_logger(__name__)

CLOCKS_APART_MAX = timedelta(seconds=30)
"""GitHub's clock and the database's differ by less than this, GitHub's whole seconds included. A verify that ended later than so long
after a comment was written has seen it; the ordinary one does (`verify_after_seconds`)."""
LOOKED_AT_MAX = 10_000


class OwnComments:
    """Has late writes verified once more, and leaves one refusal of a command standing."""

    def __init__(self, *, github: GitHub, store: JanitorStore, github_host: str) -> None:
        self._github = github
        self._store = store
        self._github_host = github_host
        self._looked_at: OrderedDict[tuple[int, datetime], None] = OrderedDict()

    async def look(self, repository: Repository, comment: FoundComment) -> None:
        """Once for each time that it was written.

        Raises:
            GitHubUnavailable: the conversation cannot be read or changed now. StateStoreUnavailable: the same of the rows.
        """
        found = request_of_comment(comment.body)
        known = comment.id, comment.updated_at
        if found is None or known in self._looked_at:
            return
        key, source, source_id = found
        if key != (self._github_host, repository.id, comment.pr_number):
            return
        if await self._store.is_registered(key, source, source_id):
            await self._store.verify_again(key, source, source_id, written_at=comment.updated_at + CLOCKS_APART_MAX)
        elif marker := refused_marker(comment.body):
            await self._leave_one(repository, comment.pr_number, marker)
        self._looked_at[known] = None
        while len(self._looked_at) > LOOKED_AT_MAX:
            self._looked_at.popitem(last=False)

    async def _leave_one(self, repository: Repository, pr_number: int, marker: str) -> None:
        installation_id, repo = repository.installation_id, repository.full_name
        try:
            for extra in (await self._github.find_comments(installation_id, repo, pr_number, marker=marker))[1:]:
                log.info("a second refusal is removed", action="refusal_removed", repo=repo, pr_number=pr_number)
                await self._github.delete_comment(installation_id, repo, extra.id)
        except PermanentError as exc:
            # A locked conversation must not keep the scan from the commands behind it.
            log.warning("a second refusal stays", action="refusal_left", repo=repo, pr_number=pr_number, error=str(exc))
