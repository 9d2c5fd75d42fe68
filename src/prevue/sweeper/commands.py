"""Protocol rule 2, its second part: commands in comments that no delivery brought (protocol section 6).

GitHub may never send a webhook, or lose it. Comments are read by repository since the last scan; a command that has no request is handed
to the App's own way in, which gives it the same identity as its webhook would have: whoever comes second changes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from prevue.clock import Clock
from prevue.commands import parse
from prevue.errors import GitHubUnavailable, PermanentError
from prevue.github.comments import refused_marker
from prevue.github.port import FoundComment, Repositories, Repository
from prevue.model import PreviewKey, Source, comment_marker
from prevue.statestore.port import CursorStore, JanitorStore
from prevue.sweeper.found import AcceptCommand, Answer, FoundCommand
from prevue.sweeper.own_comments import OwnComments
from prevue.sweeper.repositories import KnownRepositories

log = structlog.get_logger(__name__)

LOOK_BACK = timedelta(minutes=10)
"""At a repository's very first scan: no command of a time before Prevue came is carried out."""
OVERLAP = timedelta(seconds=60)
"""Read again at each scan: GitHub's lists lag, and an entry may appear behind one that was read already."""
AGE_SECONDS = 20.0
"""Younger comments are left to their webhook: most are on their way."""
BATCH_REPOSITORIES = 30
"""A turn, in turns: a call each, of an installation's 5,000 an hour."""
REFUSED_MAX = 10_000


class CommandScan:
    """Finds commands without a request."""

    def __init__(
        self,
        *,
        github: Repositories,
        repositories: KnownRepositories,
        store: JanitorStore,
        cursors: CursorStore,
        accept: AcceptCommand,
        own: OwnComments,
        is_configured: Callable[[str], bool],
        clock: Clock,
        github_host: str,
    ) -> None:
        self._github = github
        self._repositories = repositories
        self._store = store
        self._cursors = cursors
        self._accept = accept
        self._own = own
        self._is_configured = is_configured
        self._clock = clock
        self._github_host = github_host
        self._refused: OrderedDict[int, None] = OrderedDict()
        self._next = 0

    async def sweep(self) -> int:
        """One turn over the next repositories; returns how many commands were taken. A repository that fails stops no other."""
        known = [one for one in await self._repositories.all() if self._is_configured(one.full_name)]
        if not known:
            return 0
        count = min(BATCH_REPOSITORIES, len(known))
        chosen = [known[(self._next + offset) % len(known)] for offset in range(count)]
        self._next = (self._next + count) % len(known)
        taken = 0
        for repository in chosen:
            try:
                taken += await self._scan(repository)
            except (GitHubUnavailable, PermanentError) as exc:
                log.warning("a repository cannot be scanned", action="sweep_item_failed", repo=repository.full_name, error=str(exc))
        return taken

    async def _scan(self, repository: Repository) -> int:
        name = f"comments/{self._github_host}/{repository.id}"
        stored = await self._cursors.cursor(name)
        begin = datetime.fromisoformat(stored) if stored else self._clock.now() - LOOK_BACK
        reached, taken = begin, 0
        comments = await self._github.comments_since(repository.installation_id, repository.full_name, begin - OVERLAP)
        # Who was refused has an answer: a pull request that is reopened, or a right that is given since, does not bring the command back.
        refused = {refused_marker(comment.body) for comment in comments if comment.is_bot}
        for comment in comments:
            if (self._clock.now() - comment.updated_at).total_seconds() < AGE_SECONDS:
                break
            if comment.is_bot:
                await self._own.look(repository, comment)
            elif await self._is_new_command(repository, comment, refused):
                answer = await self._accept(_command(repository, comment))
                log.info("a command that no delivery brought", action="command_found", repo=repository.full_name, answer=answer)
                if answer is Answer.LATER:
                    break
                if answer is Answer.REFUSED:
                    self._remember(comment.id)
                taken += answer is Answer.TAKEN
            reached = max(reached, comment.updated_at)
        if stored is None or reached > begin:
            await self._cursors.set_cursor(name, reached.isoformat())
        return taken

    async def _is_new_command(self, repository: Repository, comment: FoundComment, refused: set[str]) -> bool:
        """As the App would see its webhook: no edits, the bare command; and not known yet."""
        if comment.is_edited or comment.id in self._refused:
            return False
        command = parse(comment.body)
        if command is None or command.words:
            return False
        key = PreviewKey(self._github_host, repository.id, comment.pr_number)
        if comment_marker(key, Source.COMMENT, str(comment.id)) in refused:
            return False
        return not await self._store.is_registered(key, Source.COMMENT, str(comment.id))

    def _remember(self, comment_id: int) -> None:
        """Not asked about again while its comment is read again. One that was taken is not remembered: a restored queue has lost it."""
        self._refused[comment_id] = None
        while len(self._refused) > REFUSED_MAX:
            self._refused.popitem(last=False)


def _command(repository: Repository, comment: FoundComment) -> FoundCommand:
    return FoundCommand(
        installation_id=repository.installation_id,
        repo=repository.full_name,
        repository_id=repository.id,
        pr_number=comment.pr_number,
        comment_id=comment.id,
        requested_by=comment.author,
        requested_at=comment.created_at,
    )
