"""Helm values and names of one preview: templates filled in, dotted keys nested, a digest of what would be applied.

Pure but for `values_digest`, which reads the chart's files. The pull request supplies names only (commit, branch, number); a value that
stands in a name is never read as a template again, so a branch called `{commit_sha}` stays what it is.
"""

from __future__ import annotations

import json
import os
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from prevue.errors import ConfigError

BRANCH_SLUG_CHARS_MAX = 40
"""Leaves room for a prefix and a number in a DNS label of 63 characters."""

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class PreviewNames(msgspec.Struct, frozen=True, kw_only=True):
    """What templates may name, for one preview."""

    commit_sha: str
    short_sha: str
    branch: str
    branch_slug: str
    pr_number: int
    repo: str
    """`owner/name` as GitHub spells it."""
    owner: str
    name: str
    namespace: str
    release: str
    host: str = ""
    """The rendered `host` setting; empty where none is set."""


NAMES: tuple[str, ...] = PreviewNames.__struct_fields__


def branch_slug(branch: str) -> str:
    """`branch` as part of a DNS label: lower case, digits and dashes, at most 40 characters.

    A name that had to be cut, or of which nothing is left, ends in a short hash: two long branches do not meet in one slug.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", branch.lower()).strip("-")
    if slug and len(slug) <= BRANCH_SLUG_CHARS_MAX:
        return slug
    tag = sha256(branch.encode()).hexdigest()[:6]
    head = slug[: BRANCH_SLUG_CHARS_MAX - len(tag) - 1].strip("-") or "branch"
    return f"{head}-{tag}"


def render_template(template: str, names: PreviewNames) -> str:
    """`template` with {name} filled in; {{ and }} are literal braces.

    Raises:
        ConfigError: an unknown name, or a brace without its partner.
    """
    return _substitute(template, {name: str(getattr(names, name)) for name in NAMES})


def check_template(template: str, *, without: tuple[str, ...] = ()) -> None:
    """Return if `template` can be rendered.

    Raises:
        ConfigError: an unknown name, or a brace without its partner.
    """
    _substitute(template, {name: "" for name in NAMES if name not in without})


def _substitute(template: str, known: dict[str, str]) -> str:
    def one(match: re.Match[str]) -> str:
        token = match.group()
        if token in ("{{", "}}"):
            return token[0]
        if match.group(1) is None:
            raise ConfigError(f"a single {token} in a template: write {token * 2} for a literal brace")
        try:
            return known[match.group(1)]
        except KeyError:
            accepted = ", ".join("{" + name + "}" for name in known)
            raise ConfigError(f"unknown name {token} in a template; accepted: {accepted}; literal braces: {{{{ and }}}}") from None

    return _TOKEN.sub(one, template)


def nest(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with the dotted keys of the top level nested: `image.tag: x` is `image: {tag: x}`.

    Deeper keys are taken as they are: annotations and labels have dots of their own.

    Raises:
        ConfigError: two keys mean the same value, or one lies below a value that is no mapping.
    """
    nested: dict[str, Any] = {}
    for key, value in values.items():
        parts = key.split(".")
        if not all(parts):
            raise ConfigError(f"the key {key!r} has an empty part between its dots")
        _put(nested, parts, value, key)
    return nested


def _put(target: dict[str, Any], parts: list[str], value: Any, key: str) -> None:
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise ConfigError(f"the key {key!r} lies below {part!r}, which is no mapping")
    last = parts[-1]
    if isinstance(value, dict):
        below = target.setdefault(last, {})
        if not isinstance(below, dict):
            raise ConfigError(f"the key {key!r} is given twice")
        for name, item in value.items():
            _put(below, [str(name)], item, f"{key}.{name}")
    elif last in target:
        raise ConfigError(f"the key {key!r} is given twice")
    else:
        target[last] = value


def overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, key by key: mappings are merged, anything else is replaced; dotted keys are nested first."""
    return _merge(nest(below), nest(above))


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def render_values(values: dict[str, Any], names: PreviewNames) -> dict[str, Any]:
    """Values for Helm: dotted keys nested, templates in strings filled in; what is no string stays untouched.

    A template's result stays a string: `tag: "{short_sha}"` never turns into a number, though a commit may be all digits.

    Raises:
        ConfigError: an unknown name; the text has the value's key and the accepted names.
    """
    known = {name: str(getattr(names, name)) for name in NAMES}
    return {key: _render(value, known, key) for key, value in nest(values).items()}


def check_values(values: dict[str, Any]) -> None:
    """Return if `values` can be rendered.

    Raises:
        ConfigError: as `render_values`.
    """
    known = dict.fromkeys(NAMES, "")
    for key, value in nest(values).items():
        _render(value, known, key)


def _render(value: Any, known: dict[str, str], key: str) -> Any:
    if isinstance(value, str):
        try:
            return _substitute(value, known)
        except ConfigError as exc:
            raise ConfigError(f"{key}: {exc}") from None
    if isinstance(value, dict):
        return {name: _render(item, known, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list):
        return [_render(item, known, f"{key}[{index}]") for index, item in enumerate(value)]
    return value


_Signature = tuple[tuple[str, int, int], ...]
_chart_digests: dict[Path, tuple[_Signature, bytes]] = {}


def values_digest(chart: Path, values: dict[str, Any]) -> str:
    """16 hex digits over the chart's files and the rendered values: the same digest means the same release. A valid label value.

    Raises:
        ConfigError: the chart folder cannot be read.
    """
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return sha256(_chart_digest(chart) + canonical.encode()).hexdigest()[:16]


def _chart_digest(chart: Path) -> bytes:
    """Read again only when a file's time or size has changed: a deployer asks for every request."""
    try:
        files = sorted(Path(folder, name) for folder, _, names in os.walk(chart, followlinks=True) for name in names)
        if not files:
            raise ConfigError(f"the chart {chart} is empty or cannot be read")
        signature: _Signature = tuple((str(file.relative_to(chart)), (stat := file.stat()).st_mtime_ns, stat.st_size) for file in files)
        cached = _chart_digests.get(chart)
        if cached and cached[0] == signature:
            return cached[1]
        digest = sha256()
        for file in files:
            content = file.read_bytes()
            # Lengths keep a file's end and the next one's name apart.
            digest.update(f"{file.relative_to(chart).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    except OSError as exc:
        raise ConfigError(f"the chart {chart} cannot be read: {exc.strerror}") from exc
    _chart_digests[chart] = (signature, digest.digest())
    return digest.digest()
