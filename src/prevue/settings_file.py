"""A YAML file as values that remember their lines.

PyYAML's own loading forgets where a value stood, takes the last of two equal keys in silence and reads `no`, `22:22` and `2026-02-12` as
a truth value, a number and a date: none of that may happen to settings or Helm values. So nodes are composed by PyYAML and read here,
with YAML 1.2's plain scalars.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from prevue.errors import ConfigError

FILE_BYTES_MAX = 1024 * 1024
"""A configuration has a few kB; this bounds what a wrong path (a log, a disk image) may cost."""


class Raw:
    """A value before its type is known: a scalar, a dict or list of `Raw`; and where it stood."""

    __slots__ = ("from_env", "place", "value")

    def __init__(self, value: Any, place: str, *, from_env: bool = False) -> None:
        self.value = value
        self.place = place
        self.from_env = from_env

    def plain(self) -> Any:
        """The value without its places."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value


class _Loader(yaml.SafeLoader):
    """Scalars as in YAML 1.2's core schema."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^(?:[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+)$", "-+0123456789"),
    ("float", r"^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)$", "-+0123456789."),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("merge", r"^(?:<<)$", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def read_file(file: Path, errors: list[str], *, shown: str) -> Raw:
    """The values in `file`; what is wrong with its form beyond a syntax error is added to `errors`.

    Raises:
        ConfigError: it cannot be read or is no YAML; the text has the line, and nothing of the content.
    """
    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            raise ConfigError(f"{shown}: larger than {FILE_BYTES_MAX} bytes; is it the configuration?")
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{shown}: not UTF-8") from None
    except OSError as exc:
        raise ConfigError(f"{shown}: cannot be read: {exc.strerror}") from exc
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return Raw({}, f"{shown}:1") if node is None else _Reader(loader, errors, shown).read(node)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        # The parser quotes what it stumbled over, which may be part of a secret.
        problem = re.sub(r"'[^']{2,}'", "…", exc.problem or "no valid YAML")
        place = f"{shown}:{mark.line + 1}" if mark else shown
        raise ConfigError(f"{place}: no valid YAML: {problem}") from None
    except yaml.YAMLError:
        raise ConfigError(f"{shown}: no valid YAML: it has characters that are not allowed") from None


class _Reader:
    def __init__(self, loader: _Loader, errors: list[str], shown: str) -> None:
        self._loader = loader
        self._errors = errors
        self._shown = shown
        self._open: set[int] = set()

    def read(self, node: yaml.Node, place: str = "") -> Raw:
        place = place or f"{self._shown}:{node.start_mark.line + 1}"
        if isinstance(node, yaml.ScalarNode):
            return Raw(self._loader.construct_object(node), place)
        if id(node) in self._open:
            raise ConfigError(f"{place}: an alias refers to what contains it")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return Raw([self.read(item) for item in node.value], place)
            return Raw(self._mapping(node), place)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: Any) -> dict[str, Raw]:
        self._note_duplicates(node)
        self._loader.flatten_mapping(node)
        # After `<<` is flattened the node's own keys come last, and win.
        return {str(key.value): self.read(item, f"{self._shown}:{key.start_mark.line + 1}") for key, item in node.value}

    def _note_duplicates(self, node: Any) -> None:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{self._shown}:{line}: a key must be a plain text")
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                self._errors.append(f"{key.value} ({self._shown}:{line}): given twice; first in line {seen[key.value]}")
            seen[key.value] = line
