"""`prevue verify` from end to end: every preview's rows, then its namespace and release, its pull request and its comments.

The system goes on while it is looked at. So whatever seems wrong is looked at once more, and only what is wrong both times is told;
a preview that somebody is working on is compared with nothing outside the statestore.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from prevue.cluster.port import (
    LABEL_COMMIT,
    LABEL_DIGEST,
    LABEL_REQUEST,
    LABEL_TOKEN,
    Cluster,
    Fence,
    FenceKind,
    NamespaceList,
    OwnedNamespace,
    UrlProbe,
)
from prevue.errors import NotReady, PermanentError
from prevue.github.port import GitHub, GitHubApp
from prevue.model import PreviewKey, PreviewState, comment_marker
from prevue.statestore.port import AuditCase, Auditor, TokenStore
from prevue.verify.invariants import Invariant, Patience, Violation, check_case, where

PAGE_PREVIEWS = 200
CONCURRENT_PREVIEWS = 4
PROBE_SECONDS = 10.0
LOOK_AGAIN_SECONDS = 2.0
"""Between the two looks at what seems wrong: longer than a finish and its echo in the cluster take."""


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """One invariant's result."""

    invariant: Invariant
    ok: bool
    scope: str
    """What it was checked on."""
    violations: list[Violation]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    ok: bool
    previews: int
    requests: int
    namespaces: int
    invariants: list[Checked]
    unreadable: list[str]
    """What could not be looked at, with the reason: nothing is claimed about it."""


class Store(Auditor, TokenStore, Protocol):
    """What is read of the statestore."""


class FullCluster(Cluster, NamespaceList, Protocol):
    """What is read of the cluster."""


class AppGitHub(GitHub, GitHubApp, Protocol):
    """What is read of GitHub."""


SCOPE = {
    Invariant.ACCEPTED_REACHES_TERMINAL_STATE: "requests",
    Invariant.NOTHING_ENDS_WITHOUT_A_WORD: "requests, outbox",
    Invariant.ONE_STATUS_COMMENT_PER_COMMAND: "conversations of the last seven days",
    Invariant.ONE_MUTATING_WORKER_PER_RELEASE: "ledger, fences",
    Invariant.NO_WRITE_AFTER_LOST_CLAIM: "ledger",
    Invariant.ONE_OUTCOME_PER_REQUEST: "ledger",
    Invariant.GENERATION_NEVER_DECREASES: "ledger",
    Invariant.NEWEST_WINS: "requests, previews",
    Invariant.READY_MEANS_READY_AT_THAT_COMMIT: "previews, releases, URLs",
    Invariant.EVERY_APPLY_WAS_AUTHORISED_FOR_THAT_COMMIT: "ledger, releases; the permission of the time is not stored",
    Invariant.NAMES_ARE_INJECTIVE: "previews, namespaces",
    Invariant.DEAD_LETTER_IS_ANNOUNCED: "requests, outbox",
    Invariant.CLOSED_PULL_REQUEST_LEAVES_NOTHING: "previews, pull requests, namespaces",
    Invariant.REDELIVERY_CHANGES_NOTHING: "requests",
    Invariant.QUIET_AFTER_FAULTS_STOP: "requests, outbox",
}


class Verifier:
    """Looks, and writes nothing."""

    def __init__(
        self,
        *,
        store: Store,
        cluster: FullCluster,
        github: AppGitHub,
        probe: UrlProbe,
        github_host: str,
        statuses: Callable[[str], frozenset[int]],
        patience: Patience | None = None,
        look_again_seconds: float = LOOK_AGAIN_SECONDS,
        conversations: bool = True,
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._github = github
        self._probe = probe
        self._github_host = github_host
        self._patience = patience or Patience()
        self._statuses = statuses
        self._look_again_seconds = look_again_seconds
        self._conversations = conversations
        self._unreadable: dict[str, str] = {}

    async def run(self) -> Report:
        """Everything.

        Raises:
            OutageError: the statestore, the cluster or GitHub does not answer: nothing is known then.
        """
        keys = await self._keys()
        namespaces = await self._cluster.owned(self._github_host)
        turns = asyncio.Semaphore(CONCURRENT_PREVIEWS)

        async def one(key: PreviewKey) -> tuple[int, list[Violation]]:
            async with turns:
                return await self._twice(key)

        results = await asyncio.gather(*(one(key) for key in keys))
        violations = [violation for _, found in results for violation in found]
        violations += await self._cluster_wide(keys, namespaces)
        return Report(
            ok=not violations,
            previews=len(keys),
            requests=sum(count for count, _ in results),
            namespaces=len(namespaces),
            invariants=[self._checked(invariant, violations) for invariant in Invariant],
            unreadable=[f"{place}: {reason}" for place, reason in sorted(self._unreadable.items())],
        )

    def _checked(self, invariant: Invariant, violations: Iterable[Violation]) -> Checked:
        mine = [one for one in violations if one.invariant is invariant]
        scope = SCOPE[invariant]
        if invariant is Invariant.QUIET_AFTER_FAULTS_STOP and not self._patience.is_quiet:
            scope = "not checked: needs a system at rest (--quiet)"
        if invariant is Invariant.ONE_STATUS_COMMENT_PER_COMMAND and not self._conversations:
            scope = "not checked (--no-conversations)"
        return Checked(invariant=invariant, ok=not mine, scope=scope, violations=mine)

    async def _keys(self) -> list[PreviewKey]:
        keys: list[PreviewKey] = []
        after = None
        while page := await self._store.audit_keys(after=after, limit=PAGE_PREVIEWS):
            keys += page
            after = page[-1]
        return keys

    async def _twice(self, key: PreviewKey) -> tuple[int, list[Violation]]:
        count, found = await self._look(key)
        if not found:
            return count, []
        await asyncio.sleep(self._look_again_seconds)
        count, again = await self._look(key)
        return count, [
            violation for violation in again if (violation.invariant, violation.where) in {(v.invariant, v.where) for v in found}
        ]

    async def _look(self, key: PreviewKey) -> tuple[int, list[Violation]]:
        case = await self._store.audit(key)
        if case is None:
            return 0, []
        found = list(check_case(case, self._patience))
        if not case.preview.is_idle:
            return len(case.requests), found
        try:
            found += await self._check_outside(case)
        except PermanentError as exc:
            self._unreadable[where(case)] = str(exc)
        return len(case.requests), found

    async def _check_outside(self, case: AuditCase) -> list[Violation]:
        found = []
        if case.preview.state is PreviewState.READY:
            found += await self._check_ready(case)
        else:
            found += await self._check_closed(case)
        if self._conversations and case.preview.key.github_host == self._github_host:
            found += await self._check_conversation(case)
        return found

    async def _check_ready(self, case: AuditCase) -> list[Violation]:
        """Closed pull request, release, URL, in this order: the first that is wrong explains the others."""
        if closed := await self._check_closed(case):
            return closed
        live = case.live
        if live is None:
            return []
        name = Invariant.READY_MEANS_READY_AT_THAT_COMMIT
        fence = Fence(namespace=case.preview.namespace, token=live.token, uid="", resource_version="", kind=FenceKind.LEASE)  # only read
        record = await self._cluster.release(fence, case.release)
        if record is None or record.status != "deployed":
            return [
                Violation(invariant=name, where=where(case), text=f"ready, and its release is {record.status if record else 'not there'}")
            ]
        wanted = {
            LABEL_REQUEST: str(live.request_id),
            LABEL_COMMIT: live.sha,
            LABEL_DIGEST: live.digest,
            LABEL_TOKEN: str(live.token),
        }
        wrong = {label: record.labels.get(label) for label, value in wanted.items() if record.labels.get(label) != value}
        if wrong:
            said = ", ".join(f"{label}={value}" for label, value in wrong.items())
            return [Violation(invariant=name, where=where(case), text=f"the release is another one's: {said}")]
        try:
            await self._probe.probe(case.url, statuses=self._statuses(case.preview.repo), timeout_seconds=PROBE_SECONDS)
        except NotReady as exc:
            return [Violation(invariant=name, where=where(case), text=f"its URL does not answer: {exc}")]
        return []

    async def _check_closed(self, case: AuditCase) -> list[Violation]:
        preview = case.preview
        if preview.state in (PreviewState.DESTROYED, PreviewState.REQUESTED) or preview.key.github_host != self._github_host:
            return []
        if min((one.age_seconds for one in case.requests), default=0) <= self._patience.told_seconds:
            return []  # something has just ended here: a close may be on its way
        pull = await self._github.pull_request(preview.installation_id, preview.repo, preview.key.pr_number)
        if pull.is_open:
            return []
        text = f"the pull request is closed, and its preview is {preview.state}"
        return [Violation(invariant=Invariant.CLOSED_PULL_REQUEST_LEAVES_NOTHING, where=where(case), text=text)]

    async def _check_conversation(self, case: AuditCase) -> list[Violation]:
        """Exactly one comment of ours for each request that was told and verified; the marker is each comment's first line."""
        told = [
            one
            for one in case.requests
            if one.is_verified and one.state.is_terminal and one.age_seconds <= self._patience.conversation_seconds
        ]
        if not told:
            return []
        preview = case.preview
        marker = f"<!-- prevue:{preview.key.github_host}/{preview.key.repository_id}/{preview.key.pr_number}/"
        comments = await self._github.find_comments(preview.installation_id, preview.repo, preview.key.pr_number, marker=marker)
        count = Counter(comment.body.partition("\n")[0].strip() for comment in comments)
        found = []
        for one in told:
            number = count[comment_marker(preview.key, one.message.effective_source, one.message.effective_source_id)]
            if number != 1:
                place = f"{where(case)} request {one.id}"
                text = f"{number} status comments stand there"
                found.append(Violation(invariant=Invariant.ONE_STATUS_COMMENT_PER_COMMAND, where=place, text=text))
        return found

    async def _cluster_wide(self, keys: list[PreviewKey], namespaces: list[OwnedNamespace]) -> list[Violation]:
        """Namespaces without a preview, two of one preview, fences above the sequence."""
        found: list[Violation] = []
        known = set(keys)
        # Another Prevue may use the same cluster, for other repositories and with another database.
        repositories = {one.id for one in (await self._github.repositories()).repositories}
        ours = [one for one in namespaces if not one.is_terminating and (one.key in known or one.key.repository_id in repositories)]
        for other in {one.name for one in namespaces if not one.is_terminating} - {one.name for one in ours}:
            self._unreadable[other] = "it bears our label, and neither a preview nor a repository of the App is known for it"
        names = Counter(one.key for one in ours)
        last = await self._store.last_token()
        for namespace in ours:
            found += await self._check_namespace(namespace, is_known=namespace.key in known)
            if names[namespace.key] > 1:
                text = f"{names[namespace.key]} namespaces bear the labels of one preview"
                found.append(Violation(invariant=Invariant.NAMES_ARE_INJECTIVE, where=namespace.name, text=text))
            if namespace.fence > last:
                text = f"its fence is {namespace.fence}, above the last token {last}: restart a deployer, it raises the sequence"
                found.append(Violation(invariant=Invariant.ONE_MUTATING_WORKER_PER_RELEASE, where=namespace.name, text=text))
        return found

    async def _check_namespace(self, namespace: OwnedNamespace, *, is_known: bool) -> list[Violation]:
        name = Invariant.CLOSED_PULL_REQUEST_LEAVES_NOTHING
        case = await self._store.audit(namespace.key) if is_known else None
        if case is None:
            text = "it bears our label, and the statestore knows no preview of it"
            return [Violation(invariant=name, where=namespace.name, text=text)]
        if case.preview.namespace != namespace.name:
            text = f"it bears the labels of {where(case)}, whose namespace is {case.preview.namespace}"
            return [Violation(invariant=Invariant.NAMES_ARE_INJECTIVE, where=namespace.name, text=text)]
        age = min((one.age_seconds for one in case.requests), default=0)
        if case.preview.is_idle and case.preview.state is PreviewState.DESTROYED and age > self._patience.told_seconds:
            return [Violation(invariant=name, where=namespace.name, text=f"{where(case)} is destroyed, and its namespace stands")]
        return []
