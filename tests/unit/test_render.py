"""`prevue render` without Helm: the installation, and the URL as far as it is known."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import httpx2
import msgspec
import pytest

from prevue.cluster.port import ReadyLimits, UrlSource
from prevue.config import GitHubSettings, Settings
from prevue.deployer.plan import Plan
from prevue.errors import GitHubUnavailable, NotInstalled
from prevue.local.github import server
from prevue.local.github.door import create_app
from prevue.testing.github import FakeGitHub
from prevue.testing.github.app_key import AppKey
from prevue.wiring.render import expected_url, find_installation

PLAN = Plan(
    commit_sha="0" * 40,
    chart=Path("chart"),
    values={},
    digest="",
    helm_timeout_seconds=40,
    ready=ReadyLimits(),
    url="",
    url_source=UrlSource.INGRESS,
    url_host="",
    url_path="/health",
    url_statuses=frozenset({200}),
    url_timeout_seconds=1,
)
INGRESS = """
kind: Service
---
---
kind: Ingress
spec:
  tls: [{hosts: [pr-7.example.com]}]
  rules: [{host: pr-7.example.com}]
"""


@pytest.mark.parametrize(
    ("plan", "manifest", "url"),
    [
        (PLAN, INGRESS, "https://pr-7.example.com/health"),
        (PLAN, "kind: Ingress\nspec: {rules: [{host: a.example.com}]}", "http://a.example.com/health"),
        (PLAN, "kind: Ingress\nspec: {defaultBackend: {}}", ""),
        (PLAN, "kind: Service", ""),
        (msgspec.structs.replace(PLAN, url_source=UrlSource.NODE_PORT), INGRESS, ""),
        (msgspec.structs.replace(PLAN, url_source=UrlSource.TEMPLATE, url="https://x/"), "", "https://x/"),
    ],
)
def test_the_url_as_far_as_it_is_known(plan: Plan, manifest: str, url: str) -> None:
    assert expected_url(plan, manifest) == url


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    key = AppKey.generate()
    (tmp_path / "key.pem").write_bytes(key.private_pem)
    (tmp_path / "public.pem").write_bytes(key.public_pem)
    return Settings(github=GitHubSettings(app_id=1, private_key_file=str(tmp_path / "key.pem"), api_url="http://local"))


def local_github(settings: Settings, *, public_pem: bytes | None = None) -> httpx2.AsyncBaseTransport:
    public = public_pem or Path(settings.github.private_key_file).with_name("public.pem").read_bytes()
    github = FakeGitHub(now=lambda: datetime.now(UTC), public_key=public, webhook_secret="s", html_url="http://local")
    server.seed(github)
    return httpx2.ASGITransport(app=create_app(github))


async def test_the_installation_is_found_by_the_repository(settings: Settings) -> None:
    assert await find_installation(settings, "acme/hello", transport=local_github(settings)) > 0


async def test_a_repository_without_the_app_is_told(settings: Settings) -> None:
    with pytest.raises(NotInstalled, match=r"not installed on acme/nothing.*404"):
        await find_installation(settings, "acme/nothing", transport=local_github(settings))


async def test_another_apps_key_is_told(settings: Settings) -> None:
    with pytest.raises(NotInstalled, match="401"):
        await find_installation(settings, "acme/hello", transport=local_github(settings, public_pem=AppKey.generate().public_pem))


async def test_no_answer_is_an_outage(settings: Settings) -> None:
    def refuse(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused", request=request)

    with pytest.raises(GitHubUnavailable, match="ConnectError"):
        await find_installation(settings, "acme/hello", transport=httpx2.MockTransport(refuse))
    with pytest.raises(GitHubUnavailable, match="500"):
        await find_installation(settings, "acme/hello", transport=httpx2.MockTransport(lambda _: httpx2.Response(500)))
