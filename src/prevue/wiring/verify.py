"""`prevue verify`: opens statestore, cluster and GitHub, and has the invariants checked on them."""

from __future__ import annotations

from contextlib import AsyncExitStack

from prevue.cluster.kubernetes import KubernetesCluster
from prevue.cluster.probe import HttpProbe
from prevue.config import Settings
from prevue.github.client import GitHubClient
from prevue.postgres import check_schema
from prevue.settings import settings_for
from prevue.statestore.port import ClaimLimits
from prevue.statestore.postgres import PostgresStateStore
from prevue.verify.invariants import Patience
from prevue.verify.run import Report, Verifier


async def verify(settings: Settings, *, patience: Patience, conversations: bool) -> Report:
    """Look at everything; writes nothing.

    Raises:
        ConfigError: a setting is wrong.
        OutageError: something does not answer, so nothing is known.
    """
    await check_schema(settings.statestore.url)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(
            PostgresStateStore.open(settings.statestore.url, ClaimLimits(), cluster_name=settings.cluster.name)
        )
        github = await stack.enter_async_context(GitHubClient.open(settings.github))
        cluster = await stack.enter_async_context(KubernetesCluster.open(settings.cluster))
        probe = await stack.enter_async_context(HttpProbe.open())

        def statuses(repo: str) -> frozenset[int]:
            return frozenset((settings_for(settings, repo) or settings.defaults).url.statuses)

        verifier = Verifier(
            store=store,
            cluster=cluster,
            github=github,
            probe=probe,
            github_host=settings.github.host,
            patience=patience,
            statuses=statuses,
            conversations=conversations,
        )
        return await verifier.run()
