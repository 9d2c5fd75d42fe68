"""Which rules a sweeper runs, and how often: protocol section 6 as a list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from prevue.clock import Clock
from prevue.cluster.port import NamespaceList
from prevue.config import SweeperSettings
from prevue.github.port import GitHub, GitHubApp, Repositories
from prevue.queue.port import Enqueuer
from prevue.statestore.port import AlarmStore, CursorStore, JanitorStore, TokenStore
from prevue.sweeper.alarms import Alarms
from prevue.sweeper.commands import CommandScan
from prevue.sweeper.deliveries import Redeliverer
from prevue.sweeper.found import AcceptCommand, AcceptDelivery
from prevue.sweeper.janitor import Janitor
from prevue.sweeper.own_comments import OwnComments
from prevue.sweeper.polling import DeliveryPoller
from prevue.sweeper.repositories import KnownRepositories
from prevue.sweeper.run import Rule


class SweeperStore(JanitorStore, CursorStore, TokenStore, AlarmStore, Protocol):
    """What the rules need of the statestore."""


class SweeperGitHub(GitHub, GitHubApp, Repositories, Protocol):
    """What the rules need of GitHub."""


class Door(Protocol):
    """The App's way in, for what was found."""

    @property
    def command(self) -> AcceptCommand:
        """A command in a comment."""
        ...

    @property
    def delivery(self) -> AcceptDelivery:
        """A delivery from GitHub's log."""
        ...


def make_rules(
    settings: SweeperSettings,
    *,
    store: SweeperStore,
    github: SweeperGitHub,
    namespaces: NamespaceList,
    enqueuer: Enqueuer,
    door: Door,
    is_configured: Callable[[str], bool],
    clock: Clock,
    github_host: str,
    poll_deliveries: bool = False,
) -> list[Rule]:
    """Protocol rules 2, 3, 5 and 6; protocol rules 1 and 4 run in every deployer (`waiting.py`, `outbox.py`): a command waits for them.

    With `poll_deliveries` deliveries are read instead of sent again: there is no address to which they could be sent.
    """
    repositories = KnownRepositories(github, clock)
    janitor = Janitor(
        store=store, namespaces=namespaces, github=github, repositories=repositories, enqueuer=enqueuer, github_host=github_host
    )
    scan = CommandScan(
        github=github,
        repositories=repositories,
        store=store,
        cursors=store,
        accept=door.command,
        own=OwnComments(github=github, store=store, github_host=github_host),
        is_configured=is_configured,
        clock=clock,
        github_host=github_host,
    )
    alarms = Alarms(
        store=store,
        namespaces=namespaces,
        repositories=repositories,
        github_host=github_host,
        overdue_seconds=settings.overdue_seconds,
    )
    if poll_deliveries:
        poller = DeliveryPoller(github=github, cursors=store, accept=door.delivery, clock=clock)
        deliveries = Rule(name="poll-deliveries", interval_seconds=settings.poll_seconds, sweep=poller.sweep)
    else:
        redeliverer = Redeliverer(github=github, cursors=store, clock=clock)
        deliveries = Rule(name="deliveries", interval_seconds=settings.deliveries_seconds, sweep=redeliverer.sweep)
    return [
        deliveries,
        Rule(name="comments", interval_seconds=settings.comments_seconds, sweep=scan.sweep),
        Rule(name="closed", interval_seconds=settings.previews_seconds, sweep=janitor.sweep_closed),
        Rule(name="orphans", interval_seconds=settings.previews_seconds, sweep=janitor.sweep_orphans),
        Rule(name="expiry", interval_seconds=settings.expiry_seconds, sweep=janitor.sweep_expired),
        Rule(name="alarms", interval_seconds=settings.alarm_seconds, sweep=alarms.sweep),
    ]
