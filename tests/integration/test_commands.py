"""The operator's commands against the real thing: `prevue` as a program on a real PostgreSQL, and `render` with a real Helm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import httpx2
import pytest
import yaml

from prevue.config import ClusterSettings, GitHubSettings, PreviewSettings, RepositorySettings, Settings, UrlSettings
from prevue.errors import ChartInvalid, NotConfigured
from prevue.lifecycle import deployed
from prevue.local.cluster.programs import client_programs
from prevue.local.github import server
from prevue.local.github.door import create_app
from prevue.model import Live, Message, PreviewState
from prevue.statestore.port import ClaimLimits, Granted
from prevue.statestore.postgres import PostgresStateStore
from prevue.testing.github import FakeGitHub
from prevue.testing.github.app_key import AppKey
from prevue.wiring.render import render

SHA = "0123456789abcdef0123456789abcdef01234567"
CHART = Path(__file__).parents[2] / "examples" / "hello" / "chart"


def prevue(url: str, *arguments: str) -> tuple[int, str, str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PREVUE_")}
    result = subprocess.run(
        [sys.executable, "-m", "prevue", *arguments],
        env=environ | {"PREVUE_STATESTORE__URL": url},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return result.returncode, result.stdout, result.stderr


async def test_a_database_without_a_schema_is_told_and_migrate_brings_it(empty_postgres_url: str, tmp_path: Path) -> None:
    code, out, err = prevue(empty_postgres_url, "previews", "list")
    assert (code, out) == (2, "")
    assert "run `prevue migrate`" in err
    assert "Traceback" not in err
    (tmp_path / "password").write_text("s3cret\n")
    role = f"app_{os.getpid()}"
    for _ in range(2):
        code, out, err = prevue(empty_postgres_url, "migrate", "--app-role", role, "--app-password-file", str(tmp_path / "password"))
        assert (code, err) == (0, "")
        assert out.startswith("the database has schema ")
    app = await asyncpg.connect(f"postgresql://{role}:s3cret@{empty_postgres_url.rpartition('@')[2]}")
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await app.fetch("SELECT * FROM preview")
    finally:
        await app.close()
    assert prevue(empty_postgres_url, "previews", "list") == (0, "no previews\n", "")


async def test_previews_are_read_from_the_statestore(postgres_url: str) -> None:
    message = Message(
        idempotency_key=f"Acme/Hello#1:{SHA}",
        repo="Acme/Hello",
        pr_number=1,
        commit_sha=SHA,
        installation_id=1,
        comment_id=11,
        repository_id=42,
        requested_by="writer",
        requested_at=datetime(2026, 2, 12, 10, 0, tzinfo=UTC),
    )
    async with PostgresStateStore.open(postgres_url, ClaimLimits(), cluster_name="default") as store:
        granted = await store.register_and_claim(message, holder="w")
        assert isinstance(granted, Granted)
        live = Live(sha=SHA, digest="d", request_id=granted.claim.request_id, token=granted.claim.token)
        await store.begin(granted.claim, preview_state=PreviewState.DEPLOYING, deadline_seconds=50)
        await store.finish(granted.claim, deployed(live, "http://127.0.0.1:30001/"))
    code, out, err = prevue(postgres_url, "previews", "list", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == [
        {
            "repo": "Acme/Hello",
            "pr_number": 1,
            "state": "ready",
            "commit_sha": SHA,
            "url": "http://127.0.0.1:30001/",
            "namespace": "pv-acme-hello-16-1",
            "release": "preview-pr-1",
            "token": granted.claim.token,
            "attempts": 1,
            "error": "",
        }
    ]
    code, out, _ = prevue(postgres_url, "previews", "show", "acme/HELLO", "1", "--ledger")
    assert code == 0
    assert "granted" in out


async def test_a_database_that_is_down_is_one_line() -> None:
    code, out, err = prevue("postgresql://user:hunter2@127.0.0.1:1/prevue", "previews", "list")
    assert (code, out) == (1, "")
    assert err.startswith("prevue: PostgreSQL: ")
    assert err.count("\n") == 1
    assert "hunter2" not in err


@pytest.fixture(scope="module")
def helm() -> str:
    return str(client_programs(lambda _line: None).helm)


@pytest.mark.cluster
class TestRender:
    """With Helm's own program; no cluster is asked, but its programs come the same way."""

    @pytest.fixture
    def github(self, tmp_path: Path) -> FakeGitHub:
        key = AppKey.generate()
        (tmp_path / "key.pem").write_bytes(key.private_pem)
        made = FakeGitHub(now=lambda: datetime.now(UTC), public_key=key.public_pem, webhook_secret="s", html_url="http://local")
        server.seed(made)
        return made

    def settings(self, tmp_path: Path, helm: str, **values: object) -> Settings:
        return Settings(
            github=GitHubSettings(app_id=1, private_key_file=str(tmp_path / "key.pem"), api_url="http://local"),
            cluster=ClusterSettings(helm=helm),
            defaults=PreviewSettings(
                chart=str(CHART),
                values={"image.tag": "{commit_sha}", **values},
                url=UrlSettings(source="node_port"),
                host="pr-{pr_number}.x",
            ),
            repositories=[RepositorySettings(match="ACME/hello")],
        )

    async def open_pull(self, transport: httpx2.AsyncBaseTransport, repo: str = "acme/hello") -> tuple[int, str]:
        async with httpx2.AsyncClient(transport=transport, base_url="http://local") as client:
            response = await client.post(f"/_local/repos/{repo}/pulls", json={"user": "writer", "image": False})
            return response.json()["number"], response.json()["head_sha"]

    async def test_it_shows_what_a_deploy_would_apply(self, tmp_path: Path, helm: str, github: FakeGitHub) -> None:
        transport = httpx2.ASGITransport(app=create_app(github))
        number, sha = await self.open_pull(transport)
        result = await render(self.settings(tmp_path, helm), "acme/hello", number, transport=transport)
        assert result.release == f"preview-pr-{number}"
        assert result.namespace.startswith("pv-acme-hello-")
        assert (result.url, result.url_source) == ("", "node_port")
        documents = [document for document in yaml.safe_load_all(result.manifest) if document]
        assert {document["kind"] for document in documents} == {"Deployment", "Service"}
        assert sha in result.manifest

    async def test_a_repository_that_is_not_listed_has_none(self, tmp_path: Path, helm: str, github: FakeGitHub) -> None:
        transport = httpx2.ASGITransport(app=create_app(github))
        number, _ = await self.open_pull(transport, "acme/other")
        with pytest.raises(NotConfigured, match="acme/other is not listed"):
            await render(self.settings(tmp_path, helm), "acme/other", number, transport=transport)

    async def test_a_chart_that_does_not_render_is_told_in_helms_words(self, tmp_path: Path, helm: str, github: FakeGitHub) -> None:
        transport = httpx2.ASGITransport(app=create_app(github))
        number, _ = await self.open_pull(transport)
        with pytest.raises(ChartInvalid, match="does not render: "):
            await render(self.settings(tmp_path, helm, service="no mapping"), "acme/hello", number, transport=transport)
