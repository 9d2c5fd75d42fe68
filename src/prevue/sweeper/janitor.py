"""What should not stand any more: protocol rules 2 (closed pull requests), 3 (orphans) and 5 (expiry); protocol section 6.

Nothing is deleted here. Each finding becomes a request like any other; whoever claims the preview looks again, since all that is read
here may be old by then. A request that is registered already is not sent: protocol rule 1 cares for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Protocol

import structlog

from prevue.cluster.port import NamespaceList, OwnedNamespace
from prevue.errors import GitHubUnavailable, MessageInvalid, PermanentError
from prevue.github.port import GitHub, PullRequest, Repositories
from prevue.model import Message, Order, PreviewKey, PreviewState, Source, destroy_request, format_time
from prevue.queue.port import Enqueuer
from prevue.statestore.port import JanitorStore, StandingPreview
from prevue.sweeper.repositories import KnownRepositories

log = structlog.get_logger(__name__)

BATCH_PREVIEWS = 500
NEVER_BEGUN = "never-begun"
"""In a sweep's identity, where there is no namespace to be named."""
NEVER = datetime.min.replace(tzinfo=UTC)
"""The order's time of a sweep where nothing is known: below every request that GitHub can give."""


class _GitHub(GitHub, Repositories, Protocol):
    """Both ports."""


class Janitor:
    """Finds what should not stand, and asks for its removal."""

    def __init__(
        self,
        *,
        store: JanitorStore,
        namespaces: NamespaceList,
        github: _GitHub,
        repositories: KnownRepositories,
        enqueuer: Enqueuer,
        github_host: str,
    ) -> None:
        self._store = store
        self._namespaces = namespaces
        self._github = github
        self._repositories = repositories
        self._enqueuer = enqueuer
        self._github_host = github_host
        self._told: set[str] = set()

    # -- protocol rule 3 ------------------------------------------------------------------------------------------------------------------

    async def sweep_orphans(self) -> int:
        """Namespaces with our label whose preview is idle, and whose pull request is closed or whose row is missing or destroyed.

        The rows are read first, GitHub after them: the other order would give a sweep the order of a request that has come since.
        """
        rowless: list[OwnedNamespace] = []
        standing: list[tuple[OwnedNamespace, StandingPreview]] = []
        sent = 0
        for namespace in await self._namespaces.owned(self._github_host):
            if namespace.is_terminating:
                continue
            row = await self._store.find(namespace.key)
            if row is None:
                rowless.append(namespace)
            elif row.namespace != namespace.name:
                # A sweep would take away the preview's own namespace, not this one.
                self._tell_once(namespace, f"the preview's namespace is {row.namespace}; remove this one by hand")
            elif row.is_idle and row.state is PreviewState.DESTROYED:
                sent += await self._sweep(namespace, row.repo, await self._installation(row), row.order)
            elif row.is_idle:
                standing.append((namespace, row))
        closed = await self._closed(row for _, row in standing)
        for namespace, row in standing:
            if row.key not in closed:
                continue
            # The close itself first, where it was never seen: it tells the pull request what a sweep would do in silence.
            asked = await self._close(row, closed[row.key])
            sent += asked or await self._sweep(namespace, row.repo, await self._installation(row), row.order)
        for namespace in rowless:
            sent += await self._sweep_rowless(namespace)
        return sent

    async def _sweep_rowless(self, namespace: OwnedNamespace) -> int:
        """A lost row. Another Prevue in the same cluster has rows of its own: only what our App can see on GitHub is ours to judge."""
        repository = await self._repositories.find(namespace.key.repository_id)
        if repository is None:
            self._tell_once(
                namespace, "there is no row of it, and the App is not installed on its repository; remove it by hand if it is ours"
            )
            return 0
        try:
            pull = await self._github.pull_request(repository.installation_id, repository.full_name, namespace.key.pr_number)
        except PermanentError as exc:
            self._tell_once(namespace, f"there is no row of it, and its pull request cannot be read: {exc}")
            return 0
        order = Order(pull.closed_at, 1, 0) if pull.closed_at is not None and not pull.is_open else Order(NEVER, 0, 0)
        return await self._sweep(namespace, pull.repo, repository.installation_id, order)

    async def _sweep(self, namespace: OwnedNamespace, repo: str, installation_id: int, order: Order) -> int:
        log.warning("orphaned namespace", action="orphan", namespace=namespace.name, repo=repo, pr_number=namespace.key.pr_number)
        return await self._ask(namespace.key, repo, installation_id, Source.SWEEP, f"{namespace.uid}@{order.text}", order)

    def _tell_once(self, namespace: OwnedNamespace, text: str) -> None:
        if namespace.uid not in self._told:
            self._told.add(namespace.uid)
            log.warning("a namespace with our label is left alone", action="orphan_left", namespace=namespace.name, reason=text)

    # -- protocol rule 2, its third part --------------------------------------------------------------------------------------------------

    async def sweep_closed(self) -> int:
        """Previews that are not destroyed and whose pull request is closed: the `close` that no delivery brought."""
        sent, after = 0, None
        while rows := await self._store.standing(after=after, limit=BATCH_PREVIEWS):
            after = rows[-1].key
            closed = await self._closed(row for row in rows if row.key.github_host == self._github_host)
            for row in rows:
                if row.key in closed:
                    sent += await self._close(row, closed[row.key]) or await self._sweep_never_begun(row)
        return sent

    async def _sweep_never_begun(self, row: StandingPreview) -> int:
        """Its close is known, and the command that took over ended before it began: protocol rule 3 has no namespace to find it by."""
        if row.state is not PreviewState.REQUESTED or not row.is_idle:
            return 0
        return await self._ask(row.key, row.repo, await self._installation(row), Source.SWEEP, f"{NEVER_BEGUN}@{row.order.text}", row.order)

    async def _close(self, row: StandingPreview, pull: PullRequest) -> int:
        if pull.closed_at is None:
            return 0
        order = Order(pull.closed_at, 1, 0)
        return await self._ask(row.key, pull.repo, await self._installation(row), Source.CLOSE, format_time(pull.closed_at), order)

    async def _closed(self, rows: Iterable[StandingPreview]) -> dict[PreviewKey, PullRequest]:
        """Which of these pull requests are closed: one list of the open ones a repository, then a look at each that is not in it.

        A repository that cannot be read is left for the next turn; nothing is closed because GitHub did not answer.
        """
        groups: dict[tuple[int, str], list[StandingPreview]] = defaultdict(list)
        for row in rows:
            groups[await self._installation(row), row.repo].append(row)
        closed: dict[PreviewKey, PullRequest] = {}
        for (installation_id, repo), members in groups.items():
            try:
                is_open = await self._github.open_pull_requests(installation_id, repo)
                for row in members:
                    if row.key.pr_number not in is_open:
                        pull = await self._github.pull_request(installation_id, repo, row.key.pr_number)
                        if not pull.is_open and pull.repository_id == row.key.repository_id:
                            closed[row.key] = pull
            except (GitHubUnavailable, PermanentError) as exc:
                log.warning("a repository cannot be looked at", action="sweep_item_failed", repo=repo, error=str(exc))
        return closed

    # -- protocol rule 5 ------------------------------------------------------------------------------------------------------------------

    async def sweep_expired(self) -> int:
        """Previews whose time to live is over. Known by what is live and its order: the same commit may come and expire again."""
        sent = 0
        for row in await self._store.expired(limit=BATCH_PREVIEWS):
            # What a failed deploy left has nothing live to be known by; its last claim tells one from the next.
            live = f"{row.live_request}" if row.live_request is not None else f"token-{row.token}"
            sent += await self._ask(row.key, row.repo, await self._installation(row), Source.EXPIRY, f"{live}@{row.order.text}", row.order)
        return sent

    # -- all of them -----------------------------------------------------------------------------------------------------------------

    async def _installation(self, row: StandingPreview) -> int:
        """The App's installation of a preview's repository: as GitHub has it now, since it may have been installed anew."""
        try:
            found = await self._repositories.find(row.key.repository_id)
        except GitHubUnavailable:
            found = None
        return found.installation_id if found is not None else row.installation_id

    async def _ask(self, key: PreviewKey, repo: str, installation_id: int, source: Source, source_id: str, order: Order) -> int:
        if await self._store.is_registered(key, source, source_id):
            return 0
        try:
            message: Message = destroy_request(
                key, repo=repo, installation_id=installation_id, source=source, source_id=source_id, order=order
            )
            await self._enqueuer.enqueue(message)
        except (ValueError, MessageInvalid) as exc:
            log.warning("a request cannot be written down", action="sweep_item_failed", repo=repo, pr_number=key.pr_number, error=str(exc))
            return 0
        log.info("asked for a removal", action="removal_asked", source=source, repo=repo, pr_number=key.pr_number)
        return 1
