"""The command line: help, exit codes, errors of one line, and the JSON that it promises."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog

from prevue import cli
from prevue.config import QueueSettings, Settings
from prevue.errors import OutageError
from prevue.lifecycle import deployed
from prevue.model import Live, Message, PreviewState
from prevue.queue.port import Depth
from prevue.statestore.port import ClaimLimits, Dead, Granted, PreviewReader
from prevue.testing.statestore import FakeStateStore
from prevue.wiring import operator
from prevue.wiring.queues import BACKENDS

SHA = "0123456789abcdef0123456789abcdef01234567"
FIELDS = ["repo", "pr_number", "state", "commit_sha", "url", "namespace", "release", "token", "attempts", "error"]
COMMANDS = [
    "github-app",
    "deployer",
    "sweeper",
    "migrate",
    "previews",
    "previews list",
    "previews show",
    "dead-letters",
    "dead-letters list",
    "dead-letters show",
    "dead-letters replay",
    "dead-letters drop",
    "queue",
    "queue depth",
    "doctor",
    "verify",
    "config",
    "config check",
    "config show",
    "render",
    "dev",
    "dev up",
    "dev down",
    "dev status",
]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder, and no settings but the statestore's URL."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREVUE_STATESTORE__URL", "postgresql://127.0.0.1/prevue")
    monkeypatch.setenv("COLUMNS", "120")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, err = run(capsys, *command.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: {f'prevue {command}'.strip()}")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert (code, out.split()[0]) == (0, "prevue")


def test_help_loads_no_process() -> None:
    """What a person waits for when they type `prevue`; and the App's command must not load what the App may not touch."""
    program = (
        "import sys; from prevue.cli import main; code = main(['--help']); "
        "loaded = [n for n in ('sqlalchemy', 'asyncpg', 'alembic', 'lightkube', 'uvicorn', 'starlette', 'httpx2', 'cryptography') "
        "if n in sys.modules]; assert not loaded, loaded; sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nonsense"], 'prevue: Unknown command "nonsense".'),
        (["previews", "show", "a/b"], 'prevue: Command "previews show" parameter PR requires an argument; --help'),
        (["previews", "show", "a/b", "x"], 'prevue: Invalid value for PR: unable to convert "x" into int; --help'),
        (["previews", "list", "--jsn"], "prevue: Unknown option: --jsn. Did you mean --json?"),
        (["migrate", "--config", "gone.yaml"], "prevue: --config: there is no file"),
        (["migrate", "--app-password-file", "x"], "prevue: --app-password-file: the password of which role?"),
        (["migrate", "--app-role", "r", "--app-password-file", "x"], "prevue: --app-password-file: x cannot be read"),
        (["deployer"], "prevue: 3 settings are wrong:"),
        (["github-app"], "prevue: 4 settings are wrong:"),
        (["sweeper"], "prevue: 3 settings are wrong:"),
        (["verify"], "prevue: 3 settings are wrong:"),
        (["dead-letters", "replay", "x"], 'prevue: Invalid value for ID: unable to convert "x" into int; --help'),
        (["render", "a/b", "1"], "prevue: 2 settings are wrong:"),
    ],
)
def test_a_wrong_command_line_or_configuration_is_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(expected)
    assert "Traceback" not in err


def use(monkeypatch: pytest.MonkeyPatch, store: FakeStateStore | Exception) -> None:
    @asynccontextmanager
    async def open_reader(_settings: Settings) -> AsyncIterator[PreviewReader]:
        if isinstance(store, Exception):
            raise store
        yield store

    monkeypatch.setattr(operator, "open_reader", open_reader)


def message(pr_number: int, comment_id: int) -> Message:
    return Message(
        idempotency_key=f"Acme/Hello#{pr_number}:{SHA}",
        repo="Acme/Hello",
        pr_number=pr_number,
        commit_sha=SHA,
        installation_id=1,
        comment_id=comment_id,
        repository_id=42,
        requested_by="writer",
        requested_at=datetime(2026, 2, 12, 10, 0, comment_id, tzinfo=UTC),
    )


async def filled() -> FakeStateStore:
    """Pull request 1 is ready, pull request 2 has a dead letter."""
    store = FakeStateStore(limits=ClaimLimits(attempts_max=1))
    granted = await store.register_and_claim(message(1, 11), holder="w")
    assert isinstance(granted, Granted)
    claim = granted.claim
    await store.begin(claim, preview_state=PreviewState.DEPLOYING, deadline_seconds=50)
    await store.note(claim, "helm", {"exit_code": 0})
    live = Live(sha=SHA, digest="d", request_id=claim.request_id, token=claim.token)
    await store.finish(claim, deployed(live, "http://127.0.0.1:30001/"))
    granted = await store.register_and_claim(message(2, 12), holder="w")
    assert isinstance(granted, Granted)
    await store.give_back(granted.claim, delay=0, counted=True, error="Helm was killed\x1b[31m")
    assert isinstance(await store.register_and_claim(message(2, 12), holder="w"), Dead)
    return store


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> FakeStateStore:
    made = asyncio.run(filled())
    use(monkeypatch, made)
    return made


READY = {
    "repo": "Acme/Hello",
    "pr_number": 1,
    "state": "ready",
    "commit_sha": SHA,
    "url": "http://127.0.0.1:30001/",
    "namespace": "pv-acme-hello-16-1",
    "release": "preview-pr-1",
    "token": 1,
    "attempts": 1,
    "error": "",
}


@pytest.mark.usefixtures("store")
def test_previews_as_json_have_exactly_the_promised_fields(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "previews", "list", "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "")
    assert [list(row) for row in rows] == [FIELDS, FIELDS]
    assert [row["state"] for row in rows] == ["failed", "ready"]
    assert rows[1] == READY
    code, out, err = run(capsys, "previews", "show", "acme/hello", "1", "--json")
    assert (code, json.loads(out), err) == (0, READY, "")


def test_what_a_backend_logs_is_not_in_the_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @asynccontextmanager
    async def opened(_settings: Settings) -> AsyncIterator[PreviewReader]:
        structlog.get_logger("prevue.postgres").warning("statestore_unavailable", error="gone, postgresql://u:hunter2-secret@h/d")
        structlog.get_logger("prevue.postgres").info("connected")
        yield FakeStateStore()

    monkeypatch.setattr(operator, "open_reader", opened)
    monkeypatch.setenv("PREVUE_STATESTORE__URL", "postgresql://h/d")
    code, out, err = run(capsys, "previews", "list", "--json")
    assert (code, json.loads(out)) == (0, [])
    assert "statestore_unavailable" in err
    assert "hunter2" not in err
    assert "connected" not in err


@pytest.mark.usefixtures("store")
def test_dead_letters_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "dead-letters", "list", "--json")
    (row,) = json.loads(out)
    assert code == 0
    assert list(row) == ["id", *FIELDS]
    assert (row["pr_number"], row["state"], row["attempts"], row["release"]) == (2, "dead", 1, "preview-pr-2")
    assert row["namespace"] == "pv-acme-hello-16-2"
    code, out, _ = run(capsys, "dead-letters", "show", str(row["id"]), "--json")
    assert (code, json.loads(out)) == (0, row)


@pytest.mark.usefixtures("store")
def test_people_see_tables_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "previews", "list")
    assert out.splitlines()[0].split() == ["PULL", "REQUEST", "STATE", "COMMIT", "URL", "ATTEMPTS", "ERROR"]
    assert out.splitlines()[2].split() == ["Acme/Hello#1", "ready", "0123456", "http://127.0.0.1:30001/", "1"]
    _, out, _ = run(capsys, "previews", "show", "Acme/Hello", "1", "--ledger")
    assert "request 1: deploy 0123456789ab, comment by writer: deployed (ready)\n" in out
    assert "token 1       granted" in out
    assert "namespace   pv-acme-hello-16-1\n" in out
    assert "writer" in out
    assert "helm" in out
    _, out, _ = run(capsys, "dead-letters", "list")
    assert "Acme/Hello#2" in out
    _, shown, _ = run(capsys, "dead-letters", "show", "2")
    assert "Helm was killed" in out + shown
    assert "\x1b" not in out + shown


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["previews", "show", "acme/hello", "9"], "prevue: there is no preview of acme/hello#9; `prevue previews list` shows"),
        (["dead-letters", "show", "1"], "prevue: there is no dead letter 1; `prevue dead-letters list` shows"),
    ],
)
def test_what_is_not_there_is_exit_code_1(capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith(expected)


def test_nothing_to_show_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeStateStore())
    assert run(capsys, "previews", "list") == (0, "no previews\n", "")
    assert run(capsys, "previews", "list", "--json") == (0, "[]\n", "")
    assert run(capsys, "dead-letters", "list") == (0, "no dead letters\n", "")


def test_an_outage_is_one_line_and_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, OutageError("PostgreSQL: connection refused"))
    assert run(capsys, "previews", "list") == (1, "", "prevue: PostgreSQL: connection refused\n")
    code, _, err = run(capsys, "previews", "list", "--debug")
    assert code == 1
    assert "Traceback" in err


def test_an_unexpected_error_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ZeroDivisionError("division by zero"))
    assert run(capsys, "previews", "list") == (1, "", "prevue: unexpected ZeroDivisionError: division by zero; --debug shows where\n")


def test_the_error_inside_a_task_group_is_what_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ExceptionGroup("unhandled", [OutageError("the queue is gone")]))
    assert run(capsys, "previews", "list") == (1, "", "prevue: the queue is gone\n")


def test_config_check_lists_each_error_once(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "config", "check")
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert lines[0].startswith("prevue: warning: repositories (default)")
    assert lines[1] == "prevue: 4 settings are wrong:"
    assert len(lines) == 6


def test_config_show_masks_secrets(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREVUE_QUEUE__URL", "postgresql://app:hunter2@db/prevue")
    code, out, _ = run(capsys, "config", "show")
    assert code == 0
    assert "postgresql://app:********@db/prevue" in out
    assert "hunter2" not in out


@pytest.mark.usefixtures("store")
def test_the_ledger_as_json_is_beside_the_promised_fields(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "previews", "show", "acme/hello", "1", "--json", "--ledger")
    shown = json.loads(out)
    assert {name: shown[name] for name in FIELDS} == READY
    assert [event["event"] for event in shown["ledger"]] == ["registered", "granted", "began", "helm", "finished"]
    assert [one["reason"] for one in shown["requests"]] == ["ready"]


@pytest.mark.parametrize(
    ("answer", "text", "machine"),
    [
        (Depth(3, 12.34), "messages        3\noldest_seconds  12.3\n", {"messages": 3, "oldest_seconds": 12.34}),
        (Depth(0, 0.0), "messages        0\noldest_seconds  0.0\n", {"messages": 0, "oldest_seconds": 0.0}),
        (Depth(None, None), "messages        unknown\noldest_seconds  unknown\n", {"messages": None, "oldest_seconds": None}),
    ],
)
def test_queue_depth(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: Depth, text: str, machine: dict[str, object]
) -> None:
    class Gauge:
        async def depth(self) -> Depth:
            return answer

    @asynccontextmanager
    async def opened(_settings: QueueSettings) -> AsyncIterator[Gauge]:
        yield Gauge()

    monkeypatch.setenv("PREVUE_QUEUE__URL", "redis://h")
    monkeypatch.setitem(BACKENDS, "redis", replace(BACKENDS["redis"], gauge=opened))
    assert run(capsys, "queue", "depth") == (0, text, "")
    code, out, _ = run(capsys, "queue", "depth", "--json")
    assert (code, json.loads(out)) == (0, machine)


def test_what_is_logged_meanwhile_is_not_in_the_output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Gauge:
        async def depth(self) -> Depth:
            structlog.get_logger().info("queue_asked")
            structlog.get_logger().warning("queue_slow", url="redis://:hunter2@h")
            return Depth(0, 0.0)

    @asynccontextmanager
    async def opened(_settings: QueueSettings) -> AsyncIterator[Gauge]:
        yield Gauge()

    monkeypatch.setenv("PREVUE_QUEUE__URL", "redis://h")
    monkeypatch.setitem(BACKENDS, "redis", replace(BACKENDS["redis"], gauge=opened))
    code, out, err = run(capsys, "queue", "depth", "--json")
    assert (code, json.loads(out)) == (0, {"messages": 0, "oldest_seconds": 0.0})
    assert "queue_slow" in err
    assert "hunter2" not in err
    assert "queue_asked" not in err


def test_queue_that_is_down_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PREVUE_QUEUE__URL", "redis://:hunter2@127.0.0.1:1/0")
    code, out, err = run(capsys, "queue", "depth")
    assert (code, out) == (1, "")
    assert err.startswith("prevue: Redis: Error 111 connecting to 127.0.0.1:1")
    assert "hunter2" not in err
