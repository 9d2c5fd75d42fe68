"""Values: templates, dotted keys, slugs, digests."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prevue.errors import ConfigError
from prevue.values import (
    NAMES,
    PreviewNames,
    branch_slug,
    check_template,
    check_values,
    nest,
    overlay,
    render_template,
    render_values,
    values_digest,
)

SHA = "0123456789abcdef0123456789abcdef01234567"


def names(*, branch: str = "feature/Log-in") -> PreviewNames:
    return PreviewNames(
        commit_sha=SHA,
        short_sha=SHA[:7],
        branch=branch,
        branch_slug=branch_slug(branch),
        pr_number=7,
        repo="Acme/Hello",
        owner="Acme",
        name="Hello",
        namespace="pv-acme-hello-1-7",
        release="preview-pr-7",
        host="pr-7.example.com",
    )


def test_every_name_can_be_used() -> None:
    rendered = render_template(" ".join("{" + name + "}" for name in NAMES), names())
    assert rendered == (
        f"{SHA} 0123456 feature/Log-in feature-log-in 7 Acme/Hello Acme Hello pv-acme-hello-1-7 preview-pr-7 pr-7.example.com"
    )


def test_doubled_braces_are_literal() -> None:
    assert render_template('{{"sha": "{short_sha}"}}', names()) == '{"sha": "0123456"}'


def test_a_name_that_looks_like_a_template_is_not_rendered_again() -> None:
    assert render_template("{branch}", names(branch="{commit_sha}{{")) == "{commit_sha}{{"


@pytest.mark.parametrize("template", ["{sha}", "{}", "{commit_sha!r}", "{commit_sha.__class__}", "{pr_number:03}", "{ branch }"])
def test_an_unknown_name_is_refused_with_the_accepted_ones(template: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown name .* accepted: \{commit_sha\}, .*\{host\}"):
        render_template(template, names())


@pytest.mark.parametrize("template", ["{", "}", "a } b", "{{}"])
def test_a_brace_alone_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="literal brace"):
        render_template(template, names())


def test_the_host_cannot_name_itself() -> None:
    check_template("pr-{pr_number}.example.com", without=("host",))
    with pytest.raises(ConfigError, match=r"unknown name \{host\}"):
        check_template("x.{host}", without=("host",))


def test_values_are_nested_and_rendered_and_other_types_stay() -> None:
    rendered = render_values(
        {
            "image.tag": "{commit_sha}",
            "image": {"repository": "acme/hello"},
            "replicas": 2,
            "debug": True,
            "nothing": None,
            "env": [{"name": "PR", "value": "{pr_number}"}],
            "ingress": {"annotations": {"nginx.ingress.kubernetes.io/host": "{host}"}},
        },
        names(),
    )
    assert rendered == {
        "image": {"tag": SHA, "repository": "acme/hello"},
        "replicas": 2,
        "debug": True,
        "nothing": None,
        "env": [{"name": "PR", "value": "7"}],
        "ingress": {"annotations": {"nginx.ingress.kubernetes.io/host": "pr-7.example.com"}},
    }


def test_an_unknown_name_in_values_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"^env\[1\]\.value: unknown name \{tag\}"):
        check_values({"env": ["x", {"value": "{tag}"}]})


@pytest.mark.parametrize(
    "values",
    [{"a.b": 1, "a": {"b": 2}}, {"a": 1, "a.b": 2}, {"a.b": 1, "a": 2}, {"a..b": 1}, {".a": 1}],
    ids=["twice", "below a number", "above a mapping", "empty part", "empty first part"],
)
def test_keys_that_do_not_fit_together_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="the key"):
        nest(values)


def test_overlay_merges_mappings_and_replaces_the_rest() -> None:
    below = {"image.tag": "a", "image": {"repository": "r"}, "env": [1], "keep": 1}
    assert overlay(below, {"image": {"tag": "b"}, "env": [2]}) == {"image": {"tag": "b", "repository": "r"}, "env": [2], "keep": 1}
    assert below["image"] == {"repository": "r"}


@given(st.text(min_size=1, max_size=120))
def test_a_branch_slug_is_part_of_a_dns_label(branch: str) -> None:
    slug = branch_slug(branch)
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", slug)
    assert len(slug) <= 40


def test_long_branches_with_one_beginning_have_two_slugs() -> None:
    assert branch_slug("feature/" + "x" * 60 + "1") != branch_slug("feature/" + "x" * 60 + "2")
    assert branch_slug("日本") != branch_slug("中国")


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    folder = tmp_path / "chart"
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("name: hello\nversion: 1.0.0\n")
    (folder / "templates" / "web.yaml").write_text("kind: Service\n")
    return folder


def test_the_digest_is_a_label_value_and_ignores_the_order_of_keys(chart: Path) -> None:
    digest = values_digest(chart, {"a": 1, "b": {"c": "é", "d": [1, 2]}})
    assert re.fullmatch(r"[0-9a-f]{16}", digest)
    assert values_digest(chart, {"b": {"d": [1, 2], "c": "é"}, "a": 1}) == digest
    assert values_digest(chart, {"a": 2, "b": {"c": "é", "d": [1, 2]}}) != digest


def test_the_digest_follows_the_charts_files(chart: Path) -> None:
    before = values_digest(chart, {})
    web = chart / "templates" / "web.yaml"
    web.write_text("kind: Secret \n")
    os.utime(web, ns=(1, 1))
    changed = values_digest(chart, {})
    web.rename(chart / "templates" / "other.yaml")
    assert len({before, changed, values_digest(chart, {})}) == 3


def test_the_digest_does_not_read_unchanged_files_again(chart: Path) -> None:
    web = chart / "templates" / "web.yaml"
    os.utime(web, ns=(5, 5))
    before = values_digest(chart, {})
    web.write_text("kind: XXXXXXX\n")  # the same size, and below the same time
    os.utime(web, ns=(5, 5))
    assert values_digest(chart, {}) == before


def test_a_missing_chart_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        values_digest(tmp_path / "nowhere", {})
