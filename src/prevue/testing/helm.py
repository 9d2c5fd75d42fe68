"""Helm without processes: the same revisions, statuses, labels and failures, written one by one into a `FakeClusterState`.

Between any two writes a `FakeHelm` can be stopped (`stop`, as by SIGSTOP), killed with its worker (`crash`), ended by its deadline or
cancelled, as the real one; what it leaves is what Helm leaves: a pending release after a kill, `failed` after a cancel.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import TYPE_CHECKING

from prevue.cluster.port import LABEL_COMMIT
from prevue.helm.port import Helm, HelmRun, ReleaseSpec
from prevue.testing.cluster import HISTORY_MAX, FakeClusterState, FakeNamespace, FakeObject, FakeRevision, FenceRefused, Step, fake_manifest

KILLED = -9


class _Ended(Exception):
    """The process ends here: killed (negative) or by itself."""

    def __init__(self, exit_code: int, error: str = "", *, deadline_passed: bool = False) -> None:
        super().__init__(error)
        self.run = HelmRun(exit_code=exit_code, output="", error=error, deadline_passed=deadline_passed)


class _Process:
    """One Helm: its identity, its deadline, and the writes that it has made."""

    def __init__(self, helm: FakeHelm, namespace: str, kubeconfig: str, deadline: float, verb: str, commit: str = "") -> None:
        identity = json.loads(kubeconfig)
        self.namespace = namespace
        self.home: str = identity["namespace"]
        self.token: int = identity["token"]
        self.verb = verb
        self.commit = commit
        self._helm = helm
        self._state = helm.state
        self._deadline = deadline
        self._writes = 0
        self._fail = self._state.take("fail_helm", self.namespace, commit) if verb == "upgrade" else None
        self._kill = self._state.take("kill_helm", self.namespace, commit)

    async def pause(self, step: str) -> None:
        """Time passes; the deadline, a stop or a test's rule may strike."""
        rest = self._deadline - self._state.clock.boottime()
        await asyncio.sleep(max(0.0, min(self._helm.step_seconds, rest)))
        if self._helm.step is not None:
            await self._helm.step(step)
        await self._helm.running.wait()
        if self._state.clock.boottime() >= self._deadline:
            raise _Ended(KILLED, deadline_passed=True)
        if self._kill is not None and self._writes >= self._kill.after_writes:
            raise _Ended(KILLED)
        if self._fail is not None and self._writes >= self._fail.after_writes:
            raise _Ended(1, f"Error: {self._fail.reason}")

    async def write(self, verb: str, kind: str, name: str) -> FakeNamespace:
        """One request to the API server."""
        await self.pause(f"helm.{self.verb}.{verb}.{kind}")
        if self.home != self.namespace:
            raise FenceRefused(f"forbidden: the deployer of {self.home} has no rights in {self.namespace}")
        namespace = self._state.write(self.namespace, self.token, verb, kind, name, self.commit)
        self._writes += 1
        return namespace

    @property
    def has_begun(self) -> bool:
        """Whether a pending revision can be there."""
        return self._writes > 0


class FakeHelm:
    """One worker's Helm command; `step` is called before every write (`helm.VERB.create.Deployment`, …)."""

    def __init__(self, state: FakeClusterState, *, step: Step | None = None, step_seconds: float = 0.0) -> None:
        self.state = state
        self.step = step
        self.step_seconds = step_seconds
        self.running = asyncio.Event()
        self.running.set()
        self._crashed = False

    def stop(self) -> None:
        """As SIGSTOP to every Helm of this worker."""
        self.running.clear()

    def go_on(self) -> None:
        """As SIGCONT."""
        self.running.set()

    def crash(self) -> None:
        """The worker was killed: its Helms are dead (PDEATHSIG), none writes `failed` any more. Then cancel the worker's task."""
        self._crashed = True
        self.running.clear()

    async def upgrade_install(self, spec: ReleaseSpec, *, kubeconfig: str, deadline: float) -> HelmRun:
        commit = spec.labels.get(LABEL_COMMIT, "")
        process = _Process(self, spec.namespace, kubeconfig, deadline, "upgrade", commit)
        return await self._run(process, spec.name, self._upgrade(process, spec))

    async def rollback(self, namespace: str, name: str, *, kubeconfig: str, deadline: float) -> HelmRun:
        process = _Process(self, namespace, kubeconfig, deadline, "rollback")
        return await self._run(process, name, self._rollback(process, name))

    async def uninstall(self, namespace: str, name: str, *, kubeconfig: str, deadline: float) -> HelmRun:
        process = _Process(self, namespace, kubeconfig, deadline, "uninstall")
        return await self._run(process, name, self._uninstall(process, name))

    async def render(self, spec: ReleaseSpec, *, timeout_seconds: float) -> HelmRun:  # noqa: ARG002  the fake renders at once
        await asyncio.sleep(0)
        rule = self.state.take("fail_helm", spec.namespace, spec.labels.get(LABEL_COMMIT, ""))
        if rule is not None:
            return HelmRun(exit_code=1, output="", error=f"Error: {rule.reason}", deadline_passed=False)
        manifest = fake_manifest(self._objects(spec), spec.labels.get(LABEL_COMMIT, ""))
        return HelmRun(exit_code=0, output=manifest, error="", deadline_passed=False)

    async def version(self) -> str:
        return "v4.3.1"

    async def _run(self, process: _Process, name: str, work: Coroutine[None, None, str]) -> HelmRun:
        mark = (process.namespace, process.token)
        self.state.helms_running.append(mark)
        try:
            await process.pause(f"helm.{process.verb}")
            return HelmRun(exit_code=0, output=await work, error="", deadline_passed=False)
        except _Ended as ended:
            if ended.run.exit_code > 0:
                self._mark_failed(process, name)
            return ended.run
        except FenceRefused as refused:
            self._mark_failed(process, name)
            return HelmRun(exit_code=1, output="", error=f"Error: {refused}", deadline_passed=False)
        except asyncio.CancelledError:
            if not self._crashed:
                self._mark_failed(process, name)
            raise
        finally:
            work.close()
            self.state.helms_running.remove(mark)

    def _mark_failed(self, process: _Process, name: str) -> None:
        """What Helm still tries when it fails or gets SIGTERM: its own pending revision becomes `failed`, if the fence lets it."""
        if not process.has_begun or process.verb == "uninstall":
            return
        try:
            namespace = self.state.write(process.namespace, process.token, "update", "Secret", name, process.commit)
        except FenceRefused:
            return
        revisions = namespace.releases.get(name)
        if revisions and revisions[-1].status.startswith("pending-"):
            revisions[-1].status = "failed"

    def _objects(self, spec: ReleaseSpec) -> list[tuple[str, str]]:
        return [(kind, name.format(release=spec.name)) for kind, name in self.state.chart_objects]

    def _revisions(self, process: _Process, name: str) -> list[FakeRevision]:
        namespace = self.state.find(process.namespace)
        return namespace.releases.get(name, []) if namespace else []

    async def _upgrade(self, process: _Process, spec: ReleaseSpec) -> str:
        before = self._revisions(process, spec.name)
        if before and before[-1].status.startswith("pending-"):
            raise _Ended(1, "Error: UPGRADE FAILED: another operation (install/upgrade/rollback) is in progress")
        if before and before[-1].status == "uninstalling":
            raise _Ended(1, f'Error: UPGRADE FAILED: "{spec.name}" has no deployed releases')
        revision = FakeRevision(
            revision=before[-1].revision + 1 if before else 1,
            status="pending-upgrade" if before else "pending-install",
            labels=dict(spec.labels),
            objects=self._objects(spec),
            commit=process.commit,
            values=json.dumps(spec.values, sort_keys=True, default=str),
        )
        await self._apply(process, spec.name, revision)
        manifest = fake_manifest(revision.objects, revision.commit)
        return json.dumps({"name": spec.name, "version": revision.revision, "manifest": manifest})

    async def _rollback(self, process: _Process, name: str) -> str:
        before = self._revisions(process, name)
        target = next((item for item in reversed(before) if item.status == "deployed"), before[-2] if len(before) > 1 else None)
        if target is None:
            raise _Ended(1, "Error: release has no 0 version")
        # Helm copies the old revision's labels, its token too: why a label is no fence (protocol, section 8).
        revision = FakeRevision(
            revision=before[-1].revision + 1,
            status="pending-rollback",
            labels=dict(target.labels),
            objects=list(target.objects),
            commit=target.commit,
            values=target.values,
        )
        process.commit = target.commit
        await self._apply(process, name, revision)
        return ""

    async def _apply(self, process: _Process, name: str, revision: FakeRevision) -> None:
        namespace = await process.write("create", "Secret", name)
        revisions = namespace.releases.setdefault(name, [])
        older = {item for past in revisions for item in past.objects}
        revisions.append(revision)
        for kind, object_name in revision.objects:
            verb = "update" if (kind, object_name) in namespace.objects else "create"
            namespace = await process.write(verb, kind, object_name)
            namespace.objects[kind, object_name] = FakeObject(
                kind=kind, name=object_name, commit=revision.commit, values=revision.values, token=process.token
            )
        for kind, object_name in sorted(older - set(revision.objects)):
            namespace = await process.write("delete", kind, object_name)
            namespace.objects.pop((kind, object_name), None)
        if self.state.take("lie_helm", process.namespace, process.commit):
            return
        for past in revisions:
            if past is not revision and past.status == "deployed":
                await process.write("update", "Secret", name)
                past.status = "superseded"
        await process.write("update", "Secret", name)
        for past in revisions:
            if past is not revision and past.status.startswith("pending-"):
                past.status = "superseded"
        revision.status = "deployed"
        del revisions[:-HISTORY_MAX]

    async def _uninstall(self, process: _Process, name: str) -> str:
        revisions = self._revisions(process, name)
        if not revisions:
            return f'release "{name}" uninstalled'
        namespace = await process.write("update", "Secret", name)
        revisions[-1].status = "uninstalling"
        for kind, object_name in sorted({item for past in revisions for item in past.objects}):
            namespace = await process.write("delete", kind, object_name)
            namespace.objects.pop((kind, object_name), None)
        await process.write("delete", "Secret", name)
        namespace.releases.pop(name, None)
        return f'release "{name}" uninstalled'


if TYPE_CHECKING:
    _helm: type[Helm] = FakeHelm
