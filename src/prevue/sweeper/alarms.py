"""Protocol rule 6: what needs an operator; and tokens above the cluster's after a restore (protocol sections 1 and 6).

A database that was restored from a backup would give tokens out again. The cluster remembers: each namespace bears the token of its last
claim. Above the largest of them nothing was ever written under a claim that still stands.
"""

from __future__ import annotations

from typing import Protocol

import structlog

from prevue.cluster.port import NamespaceList
from prevue.statestore.port import AlarmStore, TokenStore
from prevue.sweeper.repositories import KnownRepositories

log = structlog.get_logger(__name__)

TOKEN_MARGIN = 100_000
"""Also skipped, at every start: tokens of lost claims that left no annotation, since they raised none or their namespace is gone. A restore
that no annotation shows looks like any other start; a bigint has room for ninety million million of them."""
OVERDUE_MAX = 20


class _Store(AlarmStore, TokenStore, Protocol):
    """Both ports."""


async def raise_tokens_above_cluster(tokens: TokenStore, namespaces: NamespaceList) -> None:
    """Called before anybody claims: no token is given out that a lost part of this database may have given out.

    Every namespace with our label counts, whoever's it is: too large a token does no harm.

    Raises:
        ClusterUnavailable, StateStoreUnavailable: nobody may claim, since it is not known whether tokens would be given out again.
    """
    await _skip_tokens(tokens, await namespaces.highest_fence(), always=True)


async def _skip_tokens(tokens: TokenStore, highest: int, *, always: bool) -> bool:
    """Whether the sequence was behind `highest`, which was read before it."""
    last = await tokens.last_token()
    is_behind = highest > last
    if is_behind or always:
        above = max(last, highest) + TOKEN_MARGIN
        await tokens.raise_tokens(above=above)
    if is_behind:
        log.warning("tokens were behind the cluster, as after a restore", action="tokens_raised", last=last, above=above)
    return is_behind


class Alarms:
    """One log line for each thing that a person should look at."""

    def __init__(
        self, *, store: _Store, namespaces: NamespaceList, repositories: KnownRepositories, github_host: str, overdue_seconds: float
    ) -> None:
        self._store = store
        self._namespaces = namespaces
        self._repositories = repositories
        self._github_host = github_host
        self._overdue_seconds = overdue_seconds

    async def sweep(self) -> int:
        """One turn; returns how many alarms there are."""
        # A restore under a running deployer: it may have claimed already, with tokens that the fences refuse. It gets better ones now.
        alarms = int(await _skip_tokens(self._store, await self._highest_fence_of_ours(), always=False))
        overdue = await self._store.overdue(older_than_seconds=self._overdue_seconds, limit=OVERDUE_MAX)
        for one in overdue:
            log.error(
                "a request is open for too long",
                action="request_overdue",
                request=one.id,
                repo=one.repo,
                pr_number=one.pr_number,
                state=one.state,
                attempts=one.attempts,
                error=one.error,
                registered_at=one.registered_at.isoformat(),
            )
        return alarms + len(overdue)

    async def _highest_fence_of_ours(self) -> int:
        """Another Prevue in the same cluster counts for itself: the two would overtake each other for ever."""
        highest, last = 0, await self._store.last_token()
        for one in await self._namespaces.owned(self._github_host):
            if one.fence > max(highest, last) and await self._repositories.find(one.key.repository_id) is not None:
                highest = one.fence
        return highest
