"""The steps under a claim (protocol steps 2 to 9): read GitHub, fence, begin, Helm, read back, ready, URL; or tear down.

Returns how the request ends; raises a `TransientError` where another attempt may do better and `StaleClaim` where the claim is lost. When
it ends, by any way, its Helm is reaped: the Helm port promises it. Success is what the cluster says, never what Helm printed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from prevue import lifecycle
from prevue.clock import Clock
from prevue.cluster.port import (
    LABEL_CHART,
    LABEL_COMMIT,
    LABEL_DIGEST,
    LABEL_REQUEST,
    LABEL_TOKEN,
    Cluster,
    Fence,
    FenceKind,
    ReadyLimits,
    ReleaseRecord,
    UrlProbe,
)
from prevue.deployer.plan import Plan
from prevue.deployer.timing import StepTimes
from prevue.errors import (
    ChartInvalid,
    HelmInterrupted,
    NamespaceForeign,
    NamespaceTerminating,
    NotReady,
    PermanentError,
    ReleaseFailed,
    StateStoreUnavailable,
    TransientError,
)
from prevue.github.port import GitHub, PullRequest
from prevue.helm.port import Helm, HelmRun, ReleaseSpec
from prevue.lifecycle import Finish, Reason
from prevue.model import Action, Claim, Live, PreviewState, RequestState, Source
from prevue.statestore.port import ClaimStore, NewerDesired

log = structlog.get_logger(__name__)

LIVE_CHECK_SECONDS = 10
"""How long a preview that should be live may take to prove it, before it is deployed again."""


class PipelineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The pipeline's numbers; their reasons stand in `config.DeployerSettings`."""

    helm_deadline_seconds: float = 45
    helm_deadline_grace_seconds: float = 5
    helm_parallel: int = 6
    namespace_gone_seconds: float = 120
    """How long a deletion of the namespace may take before the attempt counts as failed; finalizers of load balancers take minutes."""


class Pipeline:
    """Carries one claim at a time a call; holds nothing between two calls but the turn for Helm."""

    def __init__(
        self,
        *,
        store: ClaimStore,
        github: GitHub,
        helm: Helm,
        cluster: Cluster,
        probe: UrlProbe,
        plan: Callable[[Claim, PullRequest], Plan],
        limits: PipelineLimits,
        clock: Clock,
    ) -> None:
        self._store = store
        self._github = github
        self._helm = helm
        self._cluster = cluster
        self._probe = probe
        self._plan = plan
        self._limits = limits
        self._clock = clock
        self._helm_turn = asyncio.Semaphore(limits.helm_parallel)

    async def __call__(self, claim: Claim) -> Finish:
        """Carry the claim out.

        Raises:
            StaleClaim: the claim is lost. TransientError: try again later; an OutageError is nobody's fault here.
        """
        times = StepTimes(self._clock)
        try:
            if claim.message.action is Action.DESTROY:
                return await self._destroy(claim, times)
            return await self._deploy(claim, times)
        finally:
            await self._note_times(claim, times)

    async def _destroy(self, claim: Claim, times: StepTimes) -> Finish:
        """A close is carried out as it is; what the sweeper asked for is looked at again first (protocol step 2)."""
        source = claim.message.effective_source
        if source in (Source.SWEEP, Source.EXPIRY):
            with times.step("look_again"):
                gone = await self._reason_is_gone(claim)
            if gone is not None:
                return lifecycle.superseded(gone, tell=False)
        reason = Reason.EXPIRED if source is Source.EXPIRY else Reason.TORN_DOWN
        return await self._teardown(claim, times, RequestState.DESTROYED, reason)

    async def _reason_is_gone(self, claim: Claim) -> Reason | None:
        """Whether the reason of protocol rules 3 or 5 is gone. What is live is *unknown*: somebody has begun, so go on.

        A sweep is asked for on what was read before any claim: meanwhile the pull request may be open and its preview rightful. An
        expiry has the order of what it ends, so a replay of equal order may have deployed since, and moved `expires_at`.
        """
        if claim.message.effective_source is Source.EXPIRY:
            if claim.live is None and claim.preview_state not in (PreviewState.REQUESTED, PreviewState.DESTROYED):
                return None
            return None if claim.live is not None and await self._store.is_expired(claim) else Reason.NOT_EXPIRED
        if claim.live is None:
            return None
        message = claim.message
        pull = await self._github.pull_request(message.installation_id, message.repo, message.pr_number)
        return Reason.PULL_REQUEST_OPEN if pull.is_open else None

    async def _deploy(self, claim: Claim, times: StepTimes) -> Finish:
        with times.step("github"):
            pull, refused = await self._read_github(claim)
        if refused is not None:
            return refused
        if not pull.is_open:
            # Rejecting alone is not enough: the older close may already have been superseded by this command (protocol step 2).
            return await self._teardown(claim, times, RequestState.SUPERSEDED, Reason.PULL_REQUEST_CLOSED)
        try:
            plan = self._plan(claim, pull)
        except PermanentError as exc:
            return lifecycle.rejected(Reason.NOT_CONFIGURED, str(exc))
        with times.step("live"):
            url = await self._live_url(claim, plan)
        if url:
            return lifecycle.already_live(url, ttl_seconds=plan.ttl_seconds)
        try:
            with times.step("fence"):
                fence = await self._raise_fence(claim, create=True)
        except NamespaceForeign as exc:
            return lifecycle.failed(Reason.NAMESPACE_FOREIGN, str(exc), began=False)
        if fence is None:
            raise TransientError("the namespace could not be created")
        return await self._release(claim, fence, plan, times)

    async def _read_github(self, claim: Claim) -> tuple[PullRequest, Finish | None]:
        """Protocol step 2: is it open, and does the asker still have the right? Asked at once, both are needed."""
        message = claim.message
        pull, permission = await asyncio.gather(
            self._github.pull_request(message.installation_id, message.repo, message.pr_number),
            self._github.permission(message.installation_id, message.repo, message.requested_by),
        )
        if not pull.is_open:
            return pull, None
        if message.effective_source in (Source.COMMENT, Source.REPLAY) and not permission.may_preview:
            text = f"{message.requested_by} has no write access any more (now: {permission})"
            return pull, lifecycle.rejected(Reason.PERMISSION_LOST, text)
        if pull.is_fork:
            return pull, lifecycle.rejected(Reason.FORK, "the pull request comes from a fork, and previews of forks are off")
        return pull, None

    async def _live_url(self, claim: Claim, plan: Plan) -> str:
        """The URL, if the preview serves this commit with these values already and proves it now; else empty."""
        live = claim.live
        if live is None or (live.sha, live.digest) != (plan.commit_sha, plan.digest) or claim.preview_state is not PreviewState.READY:
            return ""
        fence = Fence(namespace=claim.namespace, token=claim.token, uid="", resource_version="", kind=FenceKind.LEASE)  # only reads follow
        record = await self._cluster.release(fence, claim.releases[0])
        if not _is_ours(record, _labels(live.request_id, live.sha, live.digest, live.token)):
            return ""
        try:
            manifest = await self._cluster.manifest(fence, claim.releases[0])
            limits = msgspec.structs.replace(
                plan.ready, readiness_timeout_seconds=LIVE_CHECK_SECONDS, image_wait_seconds=LIVE_CHECK_SECONDS
            )
            return await self._wait_for_url(fence, manifest, plan, limits)
        except NotReady as exc:
            log.info("live preview does not prove itself, deploying again", action="live_check_failed", error=str(exc))
            return ""

    async def _raise_fence(self, claim: Claim, *, create: bool) -> Fence | None:
        """Protocol steps 3 and 4. A namespace that is still being deleted is waited for under the heartbeat: it costs no attempt,
        until that has lasted for too long."""
        give_up_at = self._clock.boottime() + self._limits.namespace_gone_seconds
        while True:
            try:
                fence = await self._cluster.raise_fence(claim.key, claim.namespace, claim.token, create=create)
                break
            except NamespaceTerminating:
                if self._clock.boottime() >= give_up_at:
                    raise
                await asyncio.sleep(1)
        if fence is not None:
            await self._cluster.fence_bites(fence)
            await self._note(claim, "fence", {"fence": fence.kind.value, "fence_means": fence.kind.meaning})
        return fence

    async def _release(self, claim: Claim, fence: Fence, plan: Plan, times: StepTimes) -> Finish:
        """Protocol steps 5 to 8. From the begin on, what is live is unknown until a finish says so."""
        spec = ReleaseSpec(
            namespace=claim.namespace,
            name=claim.releases[0],
            chart=plan.chart,
            values=plan.values,
            labels=_labels(claim.request_id, plan.commit_sha, plan.digest, claim.token)
            | ({LABEL_CHART: plan.chart_name} if plan.chart_name else {}),
            hooks_timeout_seconds=plan.helm_timeout_seconds,
        )
        if not fence.created:  # a namespace that this claim made is empty: one request less in a burst
            with times.step("release"):
                foreign = _why_foreign(await self._cluster.release(fence, spec.name), plan)
            if foreign:
                return lifecycle.failed(Reason.NAMESPACE_FOREIGN, foreign, began=False)
        with times.step("helm_turn"):
            await self._helm_turn.acquire()
        try:
            deadline = await self._begin(claim, PreviewState.DEPLOYING, plan.digest)
            if deadline is None:
                return lifecycle.superseded()
            with times.step("helm"):
                run = await self._run_helm(fence, spec, deadline)
            times.facts["helm_exit_code"] = run.exit_code
            with times.step("read_back"):
                times.facts["revision"] = await self._read_back(fence, spec, run)
        except (ChartInvalid, ReleaseFailed) as exc:
            reason = Reason.CHART_INVALID if isinstance(exc, ChartInvalid) else Reason.RELEASE_FAILED
            return lifecycle.failed(reason, _error(exc), began=True, ttl_seconds=plan.ttl_seconds)
        finally:
            self._helm_turn.release()
        try:
            with times.step("ready"):
                manifest = run.manifest or await self._cluster.manifest(fence, spec.name)
                url = await self._wait_for_url(fence, manifest, plan, plan.ready, times)
        except NotReady as exc:
            return lifecycle.failed(Reason.NOT_READY, _error(exc), began=True, ttl_seconds=plan.ttl_seconds)
        live = Live(sha=plan.commit_sha, digest=plan.digest, request_id=claim.request_id, token=claim.token)
        return lifecycle.deployed(live, url, ttl_seconds=plan.ttl_seconds)

    async def _begin(self, claim: Claim, state: PreviewState, digest: str = "") -> float | None:
        """Protocol step 5: the absolute deadline for Helm, or None where a newer request is desired."""
        deadline = self._clock.boottime() + self._limits.helm_deadline_seconds
        seconds = self._limits.helm_deadline_seconds + self._limits.helm_deadline_grace_seconds
        began = await self._store.begin(claim, preview_state=state, deadline_seconds=seconds, values_digest=digest)
        return None if isinstance(began, NewerDesired) else deadline

    async def _run_helm(self, fence: Fence, spec: ReleaseSpec, deadline: float) -> HelmRun:
        """Protocol step 6: recover what an interrupted Helm left, then upgrade or install; one Helm at a time, all before one deadline."""
        kubeconfig = self._cluster.kubeconfig(fence)
        record = None if fence.created else await self._cluster.release(fence, spec.name)
        if record is not None and (record.status.startswith("pending-") or record.status == "uninstalling"):
            log.info("recovering an interrupted release", action="recover", status=record.status, revision=record.revision)
            if record.revision == 1 or record.status == "uninstalling":
                run = await self._helm.uninstall(spec.namespace, spec.name, kubeconfig=kubeconfig, deadline=deadline)
            else:
                run = await self._helm.rollback(spec.namespace, spec.name, kubeconfig=kubeconfig, deadline=deadline)
            if run.exit_code != 0:
                raise HelmInterrupted(f"an interrupted release could not be recovered: {run.error}")
        return await self._helm.upgrade_install(spec, kubeconfig=kubeconfig, deadline=deadline)

    async def _read_back(self, fence: Fence, spec: ReleaseSpec, run: HelmRun) -> int:
        """Protocol step 7: the release Secret decides; exit code and text only explain. Returns the revision.

        Raises:
            ReleaseFailed, ChartInvalid: the chart's fault. TransientError: anything else that is not deployed and ours.
        """
        record = await self._cluster.release(fence, spec.name)
        if record is not None and _is_ours(record, spec.labels):
            return record.revision
        if run.deadline_passed or run.exit_code < 0:
            raise HelmInterrupted(f"Helm was ended after {self._limits.helm_deadline_seconds:.0f} s, before it had finished")
        if record is not None and record.status == "failed" and _has_labels(record, spec.labels):
            raise ReleaseFailed("Helm could not apply the release", details=run.error)
        # Nothing of ours was recorded: either the chart does not render, which can be told without a cluster, or something passing.
        rendered = await self._helm.render(spec, timeout_seconds=self._limits.helm_deadline_seconds)
        if rendered.exit_code > 0:
            raise ChartInvalid("The chart does not render", details=rendered.error)
        status = f"status {record.status}" if record else "no release"
        raise TransientError(f"Helm ended with code {run.exit_code} and the cluster shows {status}\n{run.error}")

    async def _wait_for_url(self, fence: Fence, manifest: str, plan: Plan, limits: ReadyLimits, times: StepTimes | None = None) -> str:
        """Protocol step 8: workloads, then the address, then an answer."""
        await self._cluster.wait_ready(fence, manifest, limits)
        times = times or StepTimes(self._clock)
        with times.step("url"):
            url = plan.url or await self._cluster.url(
                fence, manifest, plan.url_source, host=plan.url_host, timeout_seconds=plan.url_timeout_seconds
            )
            url = url.rstrip("/") + "/" + plan.url_path.lstrip("/") if not plan.url else url
        with times.step("probe"):
            status = await self._probe.probe(url, statuses=plan.url_statuses, timeout_seconds=plan.url_timeout_seconds)
        times.facts |= {"url": url, "url_status": status}
        return url

    async def _teardown(self, claim: Claim, times: StepTimes, outcome: RequestState, reason: Reason) -> Finish:
        """Protocol step 9: uninstall, delete the namespace under its preconditions, wait for 404. Repeated, it does no harm."""
        is_close = claim.message.action is Action.DESTROY
        with times.step("fence"):
            fence = await self._raise_fence(claim, create=False)
        if fence is None:
            # Told only where there was a preview: a pull request that never had one hears nothing of its close.
            had_preview = claim.preview_state not in (PreviewState.REQUESTED, PreviewState.DESTROYED)
            return lifecycle.torn_down(outcome, reason, tell=had_preview or not is_close)
        with times.step("helm_turn"):
            await self._helm_turn.acquire()
        try:
            deadline = await self._begin(claim, PreviewState.DESTROYING)
            if deadline is None:
                return lifecycle.superseded(tell=not is_close)
            with times.step("helm"):
                await self._uninstall(claim, fence, deadline)
        finally:
            self._helm_turn.release()
        with times.step("namespace"):
            await self._cluster.delete_namespace(fence, timeout_seconds=self._limits.namespace_gone_seconds)
        return lifecycle.torn_down(outcome, reason, tell=True)

    async def _uninstall(self, claim: Claim, fence: Fence, deadline: float) -> None:
        """Hooks get their chance; a release that cannot be uninstalled goes with its namespace, since a destroy is never given up."""
        if await self._cluster.release(fence, claim.releases[0]) is None:
            return
        kubeconfig = self._cluster.kubeconfig(fence)
        run = await self._helm.uninstall(claim.namespace, claim.releases[0], kubeconfig=kubeconfig, deadline=deadline)
        if run.exit_code != 0:
            log.warning("uninstall failed, deleting the namespace", action="uninstall_failed", error=run.error, code=run.exit_code)

    async def _note_times(self, claim: Claim, times: StepTimes) -> None:
        if times.facts:
            await self._note(claim, "seen", dict(times.facts))
        await self._note(claim, "steps", dict(times.milliseconds))

    async def _note(self, claim: Claim, event: str, details: dict[str, str | int | float | bool]) -> None:
        """Evidence is worth no attempt: a statestore that is down shows itself at the next step."""
        try:
            await self._store.note(claim, event, details)
        except StateStoreUnavailable:
            log.warning("not recorded in the ledger", action="note_failed", event_name=event)


def _why_foreign(record: ReleaseRecord | None, plan: Plan) -> str:
    """Why the release that is there must not be touched; empty: it is ours. Every release of ours bears our labels, also a rollback's."""
    if record is None:
        return ""
    if LABEL_REQUEST not in record.labels:
        return f"the release {record.name} in the preview's namespace was not made by Prevue; nothing was changed"
    chart = record.labels.get(LABEL_CHART, plan.chart_name)
    if plan.chart_name and chart != plan.chart_name:
        # An upgrade from one chart to another leaves objects of either kind, and "deployed" would be no proof of what is served.
        return f"the release {record.name} was made from the chart {chart}, and now {plan.chart_name} is configured; nothing was changed"
    return ""


def _labels(request_id: int, commit_sha: str, digest: str, token: int) -> dict[str, str]:
    return {LABEL_REQUEST: str(request_id), LABEL_COMMIT: commit_sha, LABEL_DIGEST: digest, LABEL_TOKEN: str(token)}


def _has_labels(record: ReleaseRecord, labels: dict[str, str]) -> bool:
    return all(record.labels.get(name) == value for name, value in labels.items())


def _is_ours(record: ReleaseRecord | None, labels: dict[str, str]) -> bool:
    return record is not None and record.status == "deployed" and _has_labels(record, labels)


def _error(exc: PermanentError) -> str:
    return f"{exc}\n{exc.details}" if exc.details else str(exc)
