"""The real thing: `prevue dev up --detach` in a folder of its own, once for all acceptance tests, and nothing left of it at the end."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest
import yaml

from prevue.local import processes
from prevue.local.client import HELLO, Comment, LocalGitHub, Pull, connect, wait_for
from prevue.local.folder import DevFile, StackFolder
from prevue.model import GITHUB_COM, PreviewKey, preview_namespace

CHART = Path(__file__).parent / "chart"
UP_SECONDS = 1800
"""The first run on a machine builds the cluster's programs."""
DOWN_SECONDS = 180

OVERLAY: dict[str, Any] = {
    # A takeover after a crash needs the lease and Helm's deadline to pass: short ones, still longer than a Helm of a busy machine.
    "deployer": {
        "lease_seconds": 8,
        "helm_deadline_seconds": 18,
        "helm_deadline_grace_seconds": 1,
        "sweep_interval_seconds": 1,
        "sweep_quiet_seconds": 2,
        "backoff_seconds": 1,
        "shutdown_grace_seconds": 5,
    },
    "sweeper": {"deliveries_seconds": 2, "comments_seconds": 3, "previews_seconds": 3, "expiry_seconds": 2, "alarm_seconds": 3},
    "defaults": {"helm_timeout_seconds": 15, "readiness_timeout_seconds": 90},
    "repositories": [{"match": "acme/hello"}, {"match": "acme/other", "chart": str(CHART), "image_wait_seconds": 5}],
}


@dataclass(frozen=True)
class Stack:
    """A running stack and what can be asked of it."""

    home: Path
    """Its working directory."""

    @property
    def dev(self) -> DevFile:
        """`dev.json` as it is now: process numbers change with every restart."""
        found = StackFolder(self.home / ".prevue").read_dev()
        assert found is not None
        return found

    def prevue(self, *arguments: str, seconds: float = 60, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a `prevue` command in the stack's directory."""
        return run_prevue(self.home, *arguments, seconds=seconds, environ=environ)

    def preview(self, pull: Pull) -> dict[str, Any]:
        """`prevue previews show --json`."""
        done = self.prevue("previews", "show", pull.repo, str(pull.number), "--json")
        assert done.returncode == 0, done.stderr
        shown: dict[str, Any] = json.loads(done.stdout)
        return shown

    def kubectl(self, *arguments: str) -> str:
        """The administrator's kubectl."""
        dev = self.dev
        return subprocess.run(
            [dev.kubectl, "--kubeconfig", dev.kubeconfig, *arguments], capture_output=True, text=True, check=True, timeout=60
        ).stdout

    def history(self, namespace: str, release: str) -> list[dict[str, Any]]:
        """`helm history`: every revision."""
        dev = self.dev
        command = [dev.helm, "--kubeconfig", dev.kubeconfig, "--namespace", namespace, "history", release, "-o", "json"]
        revisions: list[dict[str, Any]] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
        return revisions

    def has_namespace(self, namespace: str) -> bool:
        return bool(self.kubectl("get", "namespace", namespace, "--ignore-not-found", "-o", "name"))

    @contextmanager
    def without(self, *roles: str, number: signal.Signals = signal.SIGTERM) -> Iterator[None]:
        """Meanwhile no process of these roles runs: the supervisor, which starts again what has ended, is stopped."""
        (supervisor,) = self.dev.pids["supervisor"]
        ended = [pid for role in roles for pid in self.dev.pids[role]]
        os.kill(supervisor, signal.SIGSTOP)
        try:
            for pid in ended:
                os.kill(pid, number)
            # Dead, and not yet waited for by the one that is stopped.
            wait_until(lambda: all(process_state(pid) in ("", "Z") for pid in ended), seconds=30, what=f"the end of {roles}")
            yield
        finally:
            os.kill(supervisor, signal.SIGCONT)
        if "github-app" in roles:  # the tests that follow speak to it at once
            wait_until(self._app_answers, seconds=60, what="the App again")

    def _app_answers(self) -> bool:
        try:
            return httpx2.get(self.dev.webhook_url.replace("/webhook", "/readyz"), trust_env=False, timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False

    def pid(self, role: str) -> int:
        """The only process of that name."""
        (pid,) = self.dev.pids[role]
        return pid

    def sign(self, body: bytes) -> str:
        return "sha256=" + hmac.new(self.dev.webhook_secret.encode(), body, hashlib.sha256).hexdigest()

    async def post(self, http: httpx2.AsyncClient, delivery: Mapping[str, Any]) -> httpx2.Response:
        """Send a logged delivery again, byte for byte."""
        request = delivery["request"]
        return await http.post(self.dev.webhook_url, content=request["body"].encode(), headers=request["headers"])

    async def query(self, statement: str, *arguments: object) -> list[dict[str, Any]]:
        """Rows of the statestore."""
        connection = await asyncpg.connect(self.dev.database_url, timeout=10)
        try:
            rows = await connection.fetch(statement, *arguments)
        finally:
            await connection.close()
        return [dict(row) for row in rows]

    async def requests_of(self, pull: Pull) -> list[dict[str, Any]]:
        """The pull request's rows in the statestore, oldest first."""
        return await self.query("SELECT * FROM request WHERE repo = $1 AND pr_number = $2 ORDER BY id", pull.repo, pull.number)

    async def quiet(self, *, seconds: float) -> str:
        """Wait until `prevue verify --quiet` finds every promise kept; returns what it printed.

        Raises:
            Failed: it still finds something.
        """
        said = ""

        async def look() -> str | None:
            nonlocal said
            done = await asyncio.to_thread(self.prevue, "verify", "--quiet", seconds=180)
            said = done.stdout + done.stderr
            return said if done.returncode == 0 else None

        return await wait_for(look, seconds=seconds, what="a quiet stack with every promise kept", instead=lambda: said, every=3)

    async def namespace(self, github: LocalGitHub, pull: Pull) -> str:
        """The namespace of a pull request's preview."""
        return preview_namespace(PreviewKey(GITHUB_COM, await github.repository_id(pull.repo), pull.number), pull.repo)


def process_state(pid: int) -> str:
    """The kernel's letter for it, `Z` for one that has ended and was not waited for; empty: there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def run_prevue(
    home: Path, *arguments: str, seconds: float = 60, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a `prevue` command in `home`, with the caller's environment but not its Prevue settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREVUE_") or name == "PREVUE_CLUSTER_STATE"}
    return subprocess.run(
        [sys.executable, "-m", "prevue", *arguments],
        cwd=home,
        env={**kept, **(environ or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )


@contextmanager
def up_and_down(
    home: Path, *, deployers: int = 1, slots: int | None = None, queue: str = "postgresql", settings: Mapping[str, Any] = OVERLAY
) -> Iterator[Stack]:
    """Up, and down again: then no process of it may be left, nor anything but logs."""
    overlay = home / "overlay.yaml"
    slotted = {} if slots is None else {"deployer": {**settings.get("deployer", {}), "slots": slots}}
    overlay.write_text(yaml.safe_dump({**settings, **slotted}))
    environ = {"PREVUE_DEV_CONFIG": str(overlay)}
    options = ["--deployers", str(deployers), "--queue", queue]
    done = run_prevue(home, "dev", "up", "--detach", *options, seconds=UP_SECONDS, environ=environ)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    stack = Stack(home)
    try:
        yield stack
    finally:
        done = run_prevue(home, "dev", "down", seconds=DOWN_SECONDS)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        assert processes.marked(home / ".prevue") == []
        assert {path.name for path in (home / ".prevue").iterdir()} <= {"logs", "lock"}


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for all tests; each has pull requests of its own."""
    with up_and_down(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="session")
def prevue() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a `prevue` command in a folder."""
    return run_prevue


@pytest.fixture(scope="session")
def running_stack() -> Callable[..., AbstractContextManager[Stack]]:
    """For a test that needs a stack of its own: `with running_stack(folder, deployers=2) as stack`."""
    return up_and_down


@pytest.fixture
async def github(stack: Stack) -> AsyncIterator[LocalGitHub]:
    """A client of the stack's GitHub; faults that a test has planted end with it."""
    async with connect(stack.dev.github_url) as client:
        yield client
        await client.clear_faults()


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    """For webhooks that a test sends itself."""
    async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture
def sha() -> Callable[[str], str]:
    """A commit that begins with these digits: the acceptance chart's troubles are asked for by them."""

    def make(prefix: str) -> str:
        return prefix + secrets.token_hex(20)[len(prefix) :]

    return make


@pytest.fixture
def deploy(github: LocalGitHub) -> Callable[..., Any]:
    """Open a pull request, comment `/preview`, wait until it is ready."""

    async def run(repo: str = HELLO, **form: Any) -> tuple[Pull, Comment]:
        pull = await github.open_pull(repo, **form)
        await github.comment(pull)
        return pull, await github.wait_answer(pull, "Preview ready", seconds=100)

    return run


def wait_until(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Poll a blocking condition.

    Raises:
        AssertionError: it does not come true in time.
    """
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, f"waited {seconds} s for {what}"
        time.sleep(0.1)
