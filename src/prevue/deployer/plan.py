"""What is to be deployed for one claim: chart, values, digest and URL rule, from the operator's configuration and the pinned commit.

Pure but for the chart's files, whose digest is part of "the same preview": changed values or a changed chart deploy again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import yaml

from prevue.cluster.port import ReadyLimits, UrlSource
from prevue.config import Settings
from prevue.errors import ConfigError, NotConfigured
from prevue.settings import settings_for
from prevue.values import PreviewNames, branch_slug, render_template, render_values, values_digest


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment, completely decided."""

    commit_sha: str
    chart: Path
    values: dict[str, Any]
    digest: str
    helm_timeout_seconds: float
    ready: ReadyLimits
    url: str
    """Known beforehand (a template), or empty: then found by `url_source`."""
    url_source: UrlSource
    url_host: str
    url_path: str
    url_statuses: frozenset[int]
    url_timeout_seconds: float
    chart_name: str = ""
    """From its Chart.yaml; a release of another chart is not upgraded. Empty: unknown."""
    ttl_seconds: float = 0
    """How long the preview stays after this deploy; 0: until its pull request is closed."""


def make_plan(settings: Settings, *, repo: str, pr_number: int, commit_sha: str, branch: str, namespace: str, release: str) -> Plan:
    """The plan for `commit_sha` of a pull request.

    Raises:
        NotConfigured: no entry of `repositories` matches, or a template in its values is wrong.
    """
    preview = settings_for(settings, repo)
    if preview is None:
        raise NotConfigured(f"{repo} is not listed in Prevue's configuration (repositories)")
    owner, name = repo.split("/", 1)
    names = PreviewNames(
        commit_sha=commit_sha,
        short_sha=commit_sha[:7],
        branch=branch,
        branch_slug=branch_slug(branch),
        pr_number=pr_number,
        repo=repo,
        owner=owner,
        name=name,
        namespace=namespace,
        release=release,
        host="",
    )
    try:
        names = msgspec.structs.replace(names, host=render_template(preview.host, names))
        values = render_values(preview.values, names)
        url = render_template(preview.url.template, names) if preview.url.source == UrlSource.TEMPLATE else ""
    except ConfigError as exc:
        raise NotConfigured(f"Prevue's configuration for {repo} is wrong: {exc}") from exc
    chart = Path(preview.chart)
    return Plan(
        commit_sha=commit_sha,
        chart=chart,
        chart_name=_chart_name(chart),
        values=values,
        digest=values_digest(chart, values),
        helm_timeout_seconds=preview.helm_timeout_seconds,
        ready=ReadyLimits(
            readiness_timeout_seconds=preview.readiness_timeout_seconds,
            image_wait_seconds=preview.image_wait_seconds,
            commit_sha=commit_sha,
        ),
        url=url,
        url_source=UrlSource(preview.url.source),
        url_host=preview.url.host,
        url_path=preview.url.path,
        url_statuses=frozenset(preview.url.statuses),
        url_timeout_seconds=preview.url.timeout_seconds,
        ttl_seconds=preview.ttl_seconds,
    )


def _chart_name(chart: Path) -> str:
    """Empty where it cannot be told: then Helm says what is wrong with the chart."""
    try:
        described = yaml.safe_load((chart / "Chart.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return ""
    name = described.get("name") if isinstance(described, dict) else None
    return name if isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", name) else ""
