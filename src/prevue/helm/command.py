"""The Helm command as a child process: `helm` 3.18 or newer, or 4, under the wrapper of protocol step 6.

Nothing of the machine's own Helm reaches a run: no HELM_* variable, no plugin, no repository file, no context. What is shared between
runs is the cache of the API server's discovery, which spares each Helm some thirty requests. Linux only: the wrapper needs PDEATHSIG
and an absolute timer that counts suspends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from prevue.clock import Clock, SystemClock
from prevue.errors import ConfigError
from prevue.helm.port import Helm, HelmRun, ReleaseSpec
from prevue.masking import cut, without_secrets

WRAPPER = Path(__file__).with_name("wrapper.py")
ERROR_CHARACTERS_MAX = 4_000
HISTORY_MAX = 3
VERSION_MIN = (3, 18)
SERVER_SIDE_SINCE = 4
"""Helm 4 installs by server-side apply; Helm 3 does not know it."""

HOME_PREFIX = "prevue-helm-"

GRACE_SECONDS = 2.0
"""From SIGTERM to SIGKILL. Helm writes `failed` within some 10 ms of a SIGTERM; more would only delay the worker's stop."""
LATE_SECONDS = 1.0
"""A wrapper that has not ended so long after it should have is stopped or hangs: its worker kills Helm and wrapper by their ids."""
QUICK_SECONDS = 20.0
"""For `helm version`: a cold disk, never a network."""

_ENVIRONMENT = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LC_ALL|TZ|TMPDIR|SSL_CERT_FILE|SSL_CERT_DIR|KUBERNETES_SERVICE_(HOST|PORT)"
    r"|(?i:https?_proxy|no_proxy|all_proxy)|(GOOGLE|CLOUDSDK|USE_GKE|AWS|AZURE|AAD)_\w+"
)
"""What Helm and the credential plug-ins of a kubeconfig (gcloud, aws, azure) need; Prevue's own settings are not among it."""

_GO_RUNTIME = {"GOMAXPROCS": "1", "GOGC": "400", "GOMEMLIMIT": "128MiB"}
"""One Helm is one sequence of requests: a second thread for its collector costs CPU that fifty Helms at once do not have."""


class HelmCommand:
    """Runs Helm; one object a process, any number of runs at once."""

    def __init__(self, program: str, *, home: Path, environ: Mapping[str, str], clock: Clock | None = None) -> None:
        self._program = program
        found = shutil.which(program, path=environ.get("PATH"))
        self._path = str(Path(found).absolute()) if found else ""
        self._home = home
        self._clock = clock or SystemClock()
        self._environ = {name: value for name, value in environ.items() if _ENVIRONMENT.fullmatch(name)} | _GO_RUNTIME
        for name in ("CACHE", "CONFIG", "DATA"):
            self._environ[f"HELM_{name}_HOME"] = str(home / name.lower())
        self._environ["KUBECACHEDIR"] = str(home / "kube")
        self._environ["KUBECONFIG"] = "/dev/null"
        self._applies_on_server = False

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, program: str, *, environ: Mapping[str, str] | None = None, clock: Clock | None = None
    ) -> AsyncIterator[HelmCommand]:
        """A Helm with a private folder of its own, which is removed at the end.

        Raises:
            ConfigError: the program is missing, or older than 3.18.
        """
        _remove_leftovers()
        home = Path(tempfile.mkdtemp(prefix=f"{HOME_PREFIX}{os.getpid()}-"))
        try:
            command = cls(program, home=home, environ=os.environ if environ is None else environ, clock=clock)
            await command.version()
            yield command
        finally:
            shutil.rmtree(home, ignore_errors=True)

    async def upgrade_install(self, spec: ReleaseSpec, *, kubeconfig: str, deadline: float) -> HelmRun:
        """No `--wait`: hooks are waited for without it, by Helm 3 and 4 alike; readiness has its own step."""
        arguments = ["upgrade", "--install", spec.name, str(spec.chart), "--namespace", spec.namespace, "--values", "-", "--output", "json"]
        arguments += ["--timeout", f"{spec.hooks_timeout_seconds:g}s", "--history-max", str(HISTORY_MAX)]
        if self._applies_on_server:
            # Server-side apply refuses unknown fields by itself; the client's own check fetches and parses the API's whole schema first,
            # a third of Helm's CPU time.
            arguments.append("--disable-openapi-validation")
        for name, value in spec.labels.items():
            arguments += ["--labels", f"{name}={value}"]
        return await self._run(arguments, kubeconfig=kubeconfig, deadline=deadline, standard_input=msgspec.json.encode(spec.values))

    async def rollback(self, namespace: str, name: str, *, kubeconfig: str, deadline: float) -> HelmRun:
        """To the last deployed revision; where there is none, to the previous one."""
        where = ["--namespace", namespace]
        history = await self._run(["history", name, *where, "--output", "json"], kubeconfig=kubeconfig, deadline=deadline)
        if history.exit_code != 0:
            return history
        arguments = ["rollback", name, str(_last_deployed(history.output)), *where, "--timeout", self._rest(deadline)]
        return await self._run([*arguments, "--history-max", str(HISTORY_MAX)], kubeconfig=kubeconfig, deadline=deadline)

    async def uninstall(self, namespace: str, name: str, *, kubeconfig: str, deadline: float) -> HelmRun:
        """With `--wait`: an install that follows must not meet a volume claim that is still being deleted."""
        arguments = ["uninstall", name, "--namespace", namespace, "--ignore-not-found", "--wait", "--timeout", self._rest(deadline)]
        return await self._run(arguments, kubeconfig=kubeconfig, deadline=deadline)

    async def render(self, spec: ReleaseSpec, *, timeout_seconds: float) -> HelmRun:
        arguments = ["template", spec.name, str(spec.chart), "--namespace", spec.namespace, "--values", "-"]
        deadline = self._clock.boottime() + timeout_seconds
        return await self._run(arguments, kubeconfig=None, deadline=deadline, standard_input=msgspec.json.encode(spec.values))

    async def version(self) -> str:
        if not sys.platform.startswith("linux"):
            raise ConfigError("Helm is run under Linux only: its deadline needs PDEATHSIG and an absolute timer")
        if not self._path:
            raise ConfigError(f"cluster.helm: the program {self._program!r} was not found; accepted: a name on PATH or a path")
        run = await self._run(["version", "--short"], kubeconfig=None, deadline=self._clock.boottime() + QUICK_SECONDS)
        found = re.match(r"v(\d+)\.(\d+)(?:\.\S+?)?(?=\+|\s|$)", run.output)  # one built by hand says `v3.18`
        if run.exit_code != 0 or found is None:
            raise ConfigError(f"cluster.helm: `{self._program} version` did not say a version: {run.error or run.output}")
        if (int(found[1]), int(found[2])) < VERSION_MIN:
            raise ConfigError(f"cluster.helm: {self._program} is {found[0]}; accepted: 3.18 or newer, or 4")
        self._applies_on_server = int(found[1]) >= SERVER_SIDE_SINCE
        return found[0]

    def _rest(self, deadline: float) -> str:
        """Helm's own time-out a little before the deadline: it then ends by itself, and says why."""
        return f"{max(deadline - self._clock.boottime() - GRACE_SECONDS, 1):.0f}s"

    async def _run(self, arguments: list[str], *, kubeconfig: str | None, deadline: float, standard_input: bytes = b"") -> HelmRun:
        with _in_memory(kubeconfig) as file:
            flags = ["--kubeconfig", f"/proc/self/fd/{file}"] if file is not None else []
            child = _Child([self._path, *arguments, *flags], self._environ, deadline, self._clock, file)
            run = await _uncancelled(child, standard_input)
        return msgspec.structs.replace(run, error=run.error.replace(str(self._home), "…"))


@contextlib.contextmanager
def _in_memory(kubeconfig: str | None) -> Iterator[int | None]:
    """The claim's kubeconfig holds a credential: it is never on a disk, and gone with its last process, however that one ends."""
    if kubeconfig is None:
        yield None
        return
    file = os.memfd_create("kubeconfig", os.MFD_CLOEXEC)
    try:
        os.fchmod(file, 0o600)
        os.write(file, kubeconfig.encode())
        yield file
    finally:
        os.close(file)


def _remove_leftovers() -> None:
    """Folders of workers that were killed: they hold caches alone, but would pile up."""
    for folder in Path(tempfile.gettempdir()).glob(f"{HOME_PREFIX}*-*"):
        pid = folder.name.removeprefix(HOME_PREFIX).partition("-")[0]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)


async def _uncancelled(child: _Child, standard_input: bytes) -> HelmRun:
    """Run to the end; a cancellation ends Helm first, then goes on its way: nothing runs when this returns or raises."""
    task = asyncio.create_task(child.run(standard_input), name="helm")
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        child.stop()
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):  # a second one changes nothing: the wait is bounded by GRACE_SECONDS
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # looked at, so that nobody warns: the cancellation is what the caller gets
        raise


class _Child:
    """One wrapper and its Helm."""

    def __init__(self, command: list[str], environ: Mapping[str, str], deadline: float, clock: Clock, kubeconfig: int | None) -> None:
        self._command = command
        self._inherited = () if kubeconfig is None else (kubeconfig,)
        self._environ = environ
        self._deadline = deadline
        self._clock = clock
        self._stop = asyncio.Event()
        self._status = b""

    def stop(self) -> None:
        """End Helm: SIGTERM, a short grace, SIGKILL."""
        self._stop.set()

    async def run(self, standard_input: bytes) -> HelmRun:
        """Start the wrapper, feed Helm, wait for both."""
        status, status_in = os.pipe()
        loop = asyncio.get_running_loop()
        os.set_blocking(status, False)
        loop.add_reader(status, self._read_status, status)
        try:
            try:
                wrapper = await self._start(status_in)
            finally:
                os.close(status_in)
            output, error = await self._wait(wrapper, standard_input)
            self._read_status(status)
            if not self._is_reaped():
                await _until_dead(self._helm_pid())
        finally:
            loop.remove_reader(status)
            os.close(status)
        return self._result(output.decode(errors="replace"), error.decode(errors="replace"))

    async def _start(self, status_in: int) -> asyncio.subprocess.Process:
        arguments = [f"{self._deadline:.6f}", str(GRACE_SECONDS), str(os.getpid()), str(status_in)]
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-E", str(WRAPPER), *arguments, *self._command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environ,
            pass_fds=(status_in, *self._inherited),
            start_new_session=True,
        )

    async def _wait(self, wrapper: asyncio.subprocess.Process, standard_input: bytes) -> tuple[bytes, bytes]:
        """Until all of Helm is gone: its pipes are at their end and the wrapper is reaped."""
        done = asyncio.create_task(wrapper.communicate(standard_input), name="helm-output")
        stop = asyncio.create_task(self._stop.wait(), name="helm-stop")
        try:
            rest = max(self._deadline - self._clock.boottime(), 0) + LATE_SECONDS
            await asyncio.wait({done, stop}, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
            if not done.done() and self._stop.is_set():
                with contextlib.suppress(ProcessLookupError):
                    wrapper.terminate()
                await asyncio.wait({done}, timeout=GRACE_SECONDS + LATE_SECONDS)
            if not done.done():
                self._kill(wrapper)
            return await done
        finally:
            stop.cancel()
            if wrapper.returncode is None:
                # This task itself was cancelled: the event loop is being closed, and gives no time for a grace.
                self._kill(wrapper)

    def _kill(self, wrapper: asyncio.subprocess.Process) -> None:
        """The wrapper did not do its work (stopped, say): kill Helm's group, then the wrapper, whose death kills Helm once more."""
        helm = self._helm_pid()
        if helm and _state_of(helm)[1] == wrapper.pid:  # ids are used again: a group is killed only while it is Helm's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(helm, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            wrapper.kill()

    def _read_status(self, status: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(status, 4096):
                self._status += data
            asyncio.get_running_loop().remove_reader(status)

    def _is_reaped(self) -> bool:
        """Whether the wrapper has lived to say how Helm ended."""
        return self._status.count(b"\n") > self._status.count(b"started ")

    def _helm_pid(self) -> int:
        found = re.search(rb"^started (\d+)$", self._status, re.MULTILINE)
        return int(found[1]) if found else 0

    def _result(self, output: str, error: str) -> HelmRun:
        """What the wrapper told; it tells nothing where it was killed, and its Helm with it."""
        lines = dict(line.partition(" ")[::2] for line in self._status.decode(errors="replace").splitlines())
        text = cut(without_secrets(error).strip(), ERROR_CHARACTERS_MAX)
        if "error" in lines:
            return HelmRun(exit_code=127, output="", error=f"Helm could not be started: {lines['error']}", deadline_passed=False)
        if "deadline" in lines or "refused" in lines:
            what = "Helm was ended by its deadline" if "deadline" in lines else "Helm was not started: its deadline was over"
            return HelmRun(exit_code=-signal.SIGKILL, output=output, error=f"{text}\n{what}".strip(), deadline_passed=True)
        if "exited" in lines:
            return HelmRun(exit_code=int(lines["exited"]), output=output, error=text, deadline_passed=False)
        late = self._clock.boottime() >= self._deadline
        return HelmRun(exit_code=-signal.SIGKILL, output=output, error=f"{text}\nHelm was killed".strip(), deadline_passed=late)


async def _until_dead(pid: int) -> None:
    """A killed process closes its pipes a moment before it is gone; who reaps it is another's matter then."""
    for _ in range(200):
        if _state_of(pid)[0] in "ZX":
            return
        await asyncio.sleep(0.005)


def _state_of(pid: int) -> tuple[str, int]:
    """State and parent of a process; `X` where it is gone."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return "X", 0
    return state, int(parent)


class _Revision(msgspec.Struct, frozen=True):
    """One line of `helm history`."""

    revision: int = 0
    status: str = ""


def _last_deployed(history: str) -> int:
    try:
        revisions = msgspec.json.decode(history, type=list[_Revision])
    except msgspec.MsgspecError:
        return 0
    return max((item.revision for item in revisions if item.status == "deployed"), default=0)


if TYPE_CHECKING:
    _: type[Helm] = HelmCommand
