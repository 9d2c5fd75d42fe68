"""`prevue render REPO PR`: what a deploy of the pull request's head would apply. Reads GitHub, chart and settings; writes nothing."""

from __future__ import annotations

from typing import Any

import httpx2
import msgspec
import yaml

from prevue.clock import SystemClock
from prevue.cluster.port import UrlSource
from prevue.config import Settings
from prevue.deployer.plan import Plan, make_plan
from prevue.errors import ChartInvalid, GitHubUnavailable, NotInstalled
from prevue.github.client import GitHubClient
from prevue.github.port import PullRequest
from prevue.github.tokens import AppIdentity
from prevue.helm.command import HelmCommand
from prevue.helm.port import ReleaseSpec
from prevue.model import PreviewKey, preview_namespace, release_name

RENDER_SECONDS = 30.0


class Rendered(msgspec.Struct, frozen=True, kw_only=True):
    """What would be applied."""

    pull_request: PullRequest
    namespace: str
    release: str
    url: str
    """Empty where only the cluster will know it."""
    url_source: str
    manifest: str


async def render(
    settings: Settings,
    repo: str,
    pr_number: int,
    *,
    installation_id: int | None = None,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> Rendered:
    """Render the chart for the head of the pull request as GitHub shows it now; `transport` instead of the network, for tests.

    Raises:
        NotConfigured: no entry of `repositories` matches.
        ChartInvalid: Helm refuses chart or values.
        GitHubUnavailable, NotFound, NotInstalled: as GitHub says.
    """
    installation = installation_id or await find_installation(settings, repo, transport=transport)
    async with GitHubClient.open(settings.github, transport=transport) as github:
        pull = await github.pull_request(installation, repo, pr_number)
    namespace = preview_namespace(PreviewKey(settings.github.host, pull.repository_id, pr_number), pull.repo)
    release = release_name(pr_number)
    plan = make_plan(
        settings,
        repo=pull.repo,
        pr_number=pr_number,
        commit_sha=pull.head_sha,
        branch=pull.head_ref,
        namespace=namespace,
        release=release,
    )
    spec = ReleaseSpec(
        namespace=namespace,
        name=release,
        chart=plan.chart,
        values=plan.values,
        labels={},
        hooks_timeout_seconds=plan.helm_timeout_seconds,
    )
    async with HelmCommand.open(settings.cluster.helm) as helm:
        run = await helm.render(spec, timeout_seconds=RENDER_SECONDS)
    if run.exit_code != 0:
        raise ChartInvalid(f"the chart {plan.chart} does not render: {run.error.strip()}")
    return Rendered(
        pull_request=pull,
        namespace=namespace,
        release=release,
        url=expected_url(plan, run.output),
        url_source=plan.url_source,
        manifest=run.output,
    )


def expected_url(plan: Plan, manifest: str) -> str:
    """The URL as far as it is known before the deploy: from the template, or from an Ingress that names its host."""
    if plan.url_source is UrlSource.TEMPLATE:
        return plan.url
    if plan.url_source is not UrlSource.INGRESS:
        return ""
    for document in yaml.safe_load_all(manifest):
        if isinstance(document, dict) and document.get("kind") == "Ingress":
            spec: dict[str, Any] = document.get("spec") or {}
            host = next((rule["host"] for rule in spec.get("rules") or [] if rule.get("host")), "")
            scheme = "https" if spec.get("tls") else "http"
            return f"{scheme}://{host}{plan.url_path}" if host else ""
    return ""


async def find_installation(settings: Settings, repo: str, *, transport: httpx2.AsyncBaseTransport | None = None) -> int:
    """The App's installation on `repo`, asked with the App's JWT: a person does not know its number.

    Raises:
        NotInstalled: there is none, or GitHub refuses the App's identity.
        GitHubUnavailable: no answer.
    """
    identity = AppIdentity.from_settings(settings.github, SystemClock())
    headers = {"authorization": f"Bearer {identity.jwt()}", "accept": "application/vnd.github+json"}
    url = f"{settings.github.api_url.rstrip('/')}/repos/{repo}/installation"
    try:
        async with httpx2.AsyncClient(headers=headers, timeout=10, follow_redirects=True, transport=transport) as http:
            response = await http.get(url)
            if response.status_code == 200:
                return msgspec.json.decode(response.content, type=_Installation).id
    except (httpx2.HTTPError, msgspec.MsgspecError) as exc:
        raise GitHubUnavailable(f"no answer from GitHub about the App's installation on {repo}: {type(exc).__name__}") from exc
    if response.status_code in (401, 403, 404):
        raise NotInstalled(f"the App is not installed on {repo}, or GitHub does not know the App (HTTP {response.status_code})")
    raise GitHubUnavailable(f"GitHub answers HTTP {response.status_code} about the App's installation on {repo}")


class _Installation(msgspec.Struct, frozen=True):
    id: int
