"""Helm's process under its wrapper, with a shell script in Helm's place: deadlines, signals, deaths, environment."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from prevue.clock import SystemClock
from prevue.errors import ConfigError
from prevue.helm.command import WRAPPER, HelmCommand
from prevue.helm.port import HelmRun, ReleaseSpec

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the wrapper needs Linux")

VERSION = 'if [ "$1" = version ]; then echo v4.3.1+gabc; exit 0; fi\n'
SPEC = ReleaseSpec(
    namespace="ns", name="r", chart=Path("/chart"), values={"a": "b"}, labels={"prevue.dev/token": "5"}, hooks_timeout_seconds=40
)
boottime = SystemClock().boottime
HelmOf = Callable[..., AbstractAsyncContextManager[HelmCommand]]


def script(folder: Path, text: str) -> Path:
    """A program in Helm's place."""
    program = folder / "helm"
    program.write_text("#!/bin/sh\n" + text)
    program.chmod(0o755)
    return program


@pytest.fixture
def helm_of(tmp_path: Path) -> HelmOf:
    """A HelmCommand whose Helm is a script."""

    @asynccontextmanager
    async def opened(text: str, environ: dict[str, str] | None = None) -> AsyncIterator[HelmCommand]:
        program = script(tmp_path, VERSION + text)
        async with HelmCommand.open(str(program), environ=environ or dict(os.environ)) as helm:
            yield helm

    return opened


async def upgrade(helm: HelmCommand, seconds: float = 20) -> HelmRun:
    return await helm.upgrade_install(SPEC, kubeconfig="secret-kubeconfig", deadline=boottime() + seconds)


def is_running(pid: int) -> bool:
    """Whether it still runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent_of(pid: int) -> int:
    """Helm's wrapper."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def exists(path: Path) -> bool:
    return path.exists()


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def make_folders(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(exist_ok=True)


def text_of(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


async def pid_in(path: Path) -> int:
    """A process number that a script writes."""
    for _ in range(400):
        if text := text_of(path):
            return int(text)
        await asyncio.sleep(0.01)
    raise AssertionError(f"{path} was not written")


async def test_arguments_values_and_kubeconfig_reach_helm(helm_of: HelmOf, tmp_path: Path) -> None:
    async with helm_of('echo "$@"; cat; for f; do case $f in /proc/*) stat -Lc %a $f; cat $f; cat $f;; esac; done') as helm:
        run = await upgrade(helm)
    assert run.exit_code == 0
    assert "upgrade --install r /chart --namespace ns --values - --output json --timeout 40s --history-max 3" in run.output
    assert "--labels prevue.dev/token=5" in run.output
    assert '{"a":"b"}600\nsecret-kubeconfigsecret-kubeconfig' in run.output
    assert "--wait" not in run.output
    assert "--create-namespace" not in run.output


async def test_home_is_private_and_gone_afterwards(helm_of: HelmOf, tmp_path: Path) -> None:
    async with helm_of("mkdir -p $HELM_CACHE_HOME; echo $HELM_CACHE_HOME") as helm:
        run = await upgrade(helm)
        home = Path(run.output.strip()).parent
        assert mode_of(home) == 0o700
    assert not exists(home)


async def test_leftovers_of_killed_workers_are_removed(helm_of: HelmOf) -> None:
    gone, alive = (Path(tempfile.gettempdir()) / f"prevue-helm-{pid}-test" for pid in (2**22 + 1, os.getpid()))
    make_folders(gone, alive)
    try:
        async with helm_of(""):
            assert not exists(gone)
            assert exists(alive)
    finally:
        shutil.rmtree(alive)


async def test_environment_of_the_outside_does_not_leak(helm_of: HelmOf) -> None:
    outside = dict(os.environ) | {"HELM_NAMESPACE": "kube-system", "HELM_PLUGINS": "/evil", "PREVUE_STATESTORE__URL": "secret"}
    outside |= {"HTTPS_PROXY": "http://proxy:1", "KUBECONFIG": "/home/me/.kube/config"}
    async with helm_of("env", outside) as helm:
        run = await upgrade(helm)
    assert "HELM_NAMESPACE" not in run.output
    assert "/evil" not in run.output
    assert "PREVUE" not in run.output
    assert ".kube/config" not in run.output
    assert "HTTPS_PROXY=http://proxy:1" in run.output
    assert "HELM_CONFIG_HOME=" in run.output


@pytest.mark.parametrize("code", [0, 1, 3, 124, 127, 137])
async def test_exit_codes_of_helm_are_its_own(helm_of: HelmOf, code: int) -> None:
    async with helm_of(f"exit {code}") as helm:
        run = await upgrade(helm)
    assert (run.exit_code, run.deadline_passed) == (code, False)


async def test_death_by_a_signal_is_told(helm_of: HelmOf) -> None:
    async with helm_of("kill -SEGV $$") as helm:
        run = await upgrade(helm)
    assert (run.exit_code, run.deadline_passed) == (-signal.SIGSEGV, False)


async def test_error_is_cut_and_without_secrets(helm_of: HelmOf) -> None:
    async with helm_of(
        'i=0; while [ $i -lt 900 ]; do echo line-$i >&2; i=$((i+1)); done; echo "Authorization: Bearer abcdef0123456789" >&2; exit 1'
    ) as helm:
        run = await upgrade(helm)
    assert len(run.error) <= 4000
    assert "line-899" in run.error
    assert "abcdef0123456789" not in run.error


async def test_deadline_kills_helm_and_what_it_started(helm_of: HelmOf, tmp_path: Path) -> None:
    text = f"trap '' TERM; sleep 60 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/helm.pid; wait; sleep 60"
    async with helm_of(text) as helm:
        began = time.monotonic()
        run = await upgrade(helm, seconds=0.6)
        assert time.monotonic() - began < 3
    assert (run.exit_code, run.deadline_passed) == (-signal.SIGKILL, True)
    assert not is_running(await pid_in(tmp_path / "child"))
    assert not is_running(await pid_in(tmp_path / "helm.pid"))


async def test_nothing_is_started_past_the_deadline(helm_of: HelmOf, tmp_path: Path) -> None:
    async with helm_of(f"touch {tmp_path}/ran") as helm:
        run = await upgrade(helm, seconds=-0.001)
    assert run.deadline_passed
    assert not exists(tmp_path / "ran")


async def test_cancellation_asks_helm_first(helm_of: HelmOf, tmp_path: Path) -> None:
    """Helm writes `failed` on SIGTERM: it gets the time for it."""
    text = f"trap 'touch {tmp_path}/asked; exit 1' TERM; echo $$ > {tmp_path}/helm.pid; while :; do sleep 0.02; done"
    async with helm_of(text) as helm:
        task = asyncio.create_task(upgrade(helm))
        pid = await pid_in(tmp_path / "helm.pid")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert exists(tmp_path / "asked")
        assert not is_running(pid)


async def test_cancellation_kills_helm_that_does_not_listen(helm_of: HelmOf, tmp_path: Path) -> None:
    async with helm_of(f"trap '' TERM; echo $$ > {tmp_path}/helm.pid; while :; do sleep 0.05; done") as helm:
        task = asyncio.create_task(upgrade(helm))
        pid = await pid_in(tmp_path / "helm.pid")
        began = time.monotonic()
        task.cancel()
        await asyncio.sleep(0.1)
        task.cancel()  # a second one, from an impatient caller
        with pytest.raises(asyncio.CancelledError):
            await task
        assert 1.5 < time.monotonic() - began < 5
        assert not is_running(pid)


async def test_closing_the_loop_leaves_nothing(helm_of: HelmOf, tmp_path: Path) -> None:
    """As `asyncio.run` does it at its end: every task is cancelled, those inside HelmCommand too."""
    async with helm_of(f"trap '' TERM; echo $$ > {tmp_path}/helm.pid; while :; do sleep 0.05; done") as helm:
        running = asyncio.create_task(upgrade(helm))
        pid = await pid_in(tmp_path / "helm.pid")
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert running.cancelled()
        for _ in range(100):
            if not is_running(pid):
                break
            await asyncio.sleep(0.02)
        assert not is_running(pid)
        await asyncio.sleep(0.5)  # the loop hears of its children's ends


@pytest.mark.parametrize("cancelled", [True, False])
async def test_stopped_wrapper_does_not_save_helm(helm_of: HelmOf, tmp_path: Path, cancelled: bool) -> None:
    """SIGSTOP to the wrapper: its worker kills both by their ids, after a cancellation and after the deadline."""
    async with helm_of(f"trap '' TERM; echo $$ > {tmp_path}/helm.pid; while :; do sleep 0.05; done") as helm:
        task = asyncio.create_task(upgrade(helm, seconds=30 if cancelled else 1))
        pid = await pid_in(tmp_path / "helm.pid")
        wrapper = parent_of(pid)
        os.kill(wrapper, signal.SIGSTOP)
        if cancelled:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            run = await task
            assert run.deadline_passed
        assert not is_running(pid)
        assert not is_running(wrapper)


async def test_killed_wrapper_takes_helm_with_it(helm_of: HelmOf, tmp_path: Path) -> None:
    async with helm_of(f"echo $$ > {tmp_path}/helm.pid; exec sleep 60") as helm:
        task = asyncio.create_task(upgrade(helm))
        pid = await pid_in(tmp_path / "helm.pid")
        wrapper = parent_of(pid)
        os.kill(wrapper, signal.SIGKILL)
        run = await task
        assert (run.exit_code, run.deadline_passed) == (-signal.SIGKILL, False)
        assert not is_running(pid)


async def test_killed_worker_takes_everything_with_it(tmp_path: Path) -> None:
    """PDEATHSIG, twice: worker, wrapper, Helm."""
    worker = (
        "import subprocess,sys,os\n"
        f"subprocess.Popen([sys.executable,'-I','-S','-E',{str(WRAPPER)!r},'99999999999','2',str(os.getpid()),'2',"
        f"'/bin/sh','-c','echo $$ > {tmp_path}/helm.pid; exec sleep 60'])\n"
        "import time; time.sleep(60)\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", worker, stderr=asyncio.subprocess.DEVNULL)
    pid = await pid_in(tmp_path / "helm.pid")
    process.kill()
    await process.wait()
    for _ in range(200):
        if not is_running(pid):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("Helm outlived its worker")


async def test_many_at_once_do_not_mix(helm_of: HelmOf) -> None:
    async with helm_of('cat; echo "$@" >&2') as helm:

        async def one(number: int) -> HelmRun:
            spec = ReleaseSpec(
                namespace="ns", name=f"r{number}", chart=Path("/c"), values={"n": number}, labels={}, hooks_timeout_seconds=4
            )
            return await helm.upgrade_install(spec, kubeconfig="k", deadline=boottime() + 20)

        runs = await asyncio.gather(*(one(number) for number in range(20)))
    assert [run.output for run in runs] == [f'{{"n":{number}}}' for number in range(20)]
    assert all(f"--install r{number} " in run.error for number, run in enumerate(runs))


async def test_missing_program_is_a_setting_to_correct() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.helm"):
        async with HelmCommand.open("/nowhere/helm"):
            pass


@pytest.mark.parametrize(
    ("said", "ok"), [("v3.17.9+g1", False), ("v3.18.0+g1", True), ("v4.0.0", True), ("v3.18", True), ("version.BuildInfo{}", False)]
)
async def test_version_is_checked(tmp_path: Path, said: str, ok: bool) -> None:
    program = script(tmp_path, f"echo '{said}'\n")
    if ok:
        async with HelmCommand.open(str(program)) as helm:
            assert await helm.version() == said.partition("+")[0]
    else:
        with pytest.raises(ConfigError, match=r"cluster\.helm"):
            async with HelmCommand.open(str(program)):
                pass
