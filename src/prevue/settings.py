"""Read settings: a YAML file, the environment over it; and ask them which rules hold for a repository.

Every error names the setting, its place (file and line, or the variable) and what is accepted; all of them are reported together.
Values of settings that may hold secrets never stand in an error. Whether the settings fit together is `settings_check.py`'s question.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit, urlunsplit

import msgspec
import yaml

from prevue.config import PreviewSettings, RepositorySettings, Settings, UrlSettings
from prevue.errors import ConfigError
from prevue.settings_file import Raw, read_file
from prevue.values import overlay

PREFIX = "PREVUE_"
SEARCH = ("prevue.yaml", ".prevue/prevue.yaml")
"""Where a file is looked for when neither --config nor PREVUE_CONFIG names one; the first that exists is read."""

SECRET = re.compile(r"^(github\.webhook_secrets|queue\.url|statestore\.url|(defaults|repositories\[\d+\])\.values)")
_PATHS = re.compile(r"^(github\.private_key_file|github\.webhook_secrets_file|cluster\.kubeconfig|cluster\.helm|.+\.chart)$")
_SECRET_KEY = re.compile(r"secret|password|passwd|token|credential|private|api_?key", re.IGNORECASE)
MASK = "********"


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """Settings and where each of them stands."""

    settings: Settings
    file: Path | None
    places: dict[str, str]
    """`deployer.slots` → `prevue.yaml:12` or `PREVUE_DEPLOYER__SLOTS`; absent: the default."""


def load(config: Path | None = None, *, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> Loaded:
    """The settings: `config`, else PREVUE_CONFIG, ./prevue.yaml, .prevue/prevue.yaml, or no file; then the environment over them.

    Relative paths in the file are relative to the file, those of the environment to the working directory.

    Raises:
        ConfigError: with all errors that were found.
    """
    environ = os.environ if environ is None else environ
    cwd = Path.cwd() if cwd is None else cwd
    file = _find_file(config, environ, cwd)
    errors: list[str] = []
    root = read_file(file, errors, shown=_shown(file, cwd)) if file else Raw({}, "")
    if root.value is None:
        root = Raw({}, root.place)
    if isinstance(root.value, dict):
        _lay_environment(root, environ, errors)
    decoder = _Decoder(errors, base=file.parent if file else cwd, cwd=cwd)
    settings = decoder.decode(Settings, root, "")
    if errors or not isinstance(settings, Settings):
        raise config_error(errors)
    return Loaded(settings=_read_secrets(settings, decoder.places), file=file, places=decoder.places)


def config_error(errors: list[str]) -> ConfigError:
    """One error for all that were found."""
    if len(errors) == 1:
        return ConfigError(errors[0])
    return ConfigError(f"{len(errors)} settings are wrong:\n" + "\n".join(f"  {error}" for error in errors))


def settings_for(settings: Settings, repo: str) -> PreviewSettings | None:
    """The rules of `repo` (`owner/name`): the first entry of `repositories` that matches, laid over `defaults`; None: no previews."""
    for entry in settings.repositories:
        if matches(entry.match, repo):
            return laid_over(settings.defaults, entry)
    return None


def matches(pattern: str, repo: str) -> bool:
    """GitHub's names are case-insensitive, and so is the glob."""
    return fnmatchcase(repo.casefold(), pattern.casefold())


def laid_over(defaults: PreviewSettings, entry: RepositorySettings) -> PreviewSettings:
    """`entry` laid over `defaults`: values and url key by key, the rest as a whole.

    Raises:
        ConfigError: a key of the values is given twice (`image.tag` and `image: {tag: …}`).
    """
    given = {name: getattr(entry, name) for name in entry.__struct_fields__ if name not in ("match", "values", "url")}
    changes = {name: value for name, value in given.items() if value is not None}
    changes["values"] = overlay(defaults.values, entry.values or {})
    if entry.url:
        changes["url"] = msgspec.structs.replace(defaults.url, **entry.url)
    return msgspec.structs.replace(defaults, **changes)


def masked(settings: Settings) -> dict[str, Any]:
    """The settings as plain values for people, without secrets."""
    shown: dict[str, Any] = msgspec.to_builtins(settings)
    shown["github"]["webhook_secrets"] = [MASK for _ in settings.github.webhook_secrets]
    for section in ("queue", "statestore"):
        shown[section]["url"] = masked_url(shown[section]["url"])
    for rules in (shown["defaults"], *shown["repositories"]):
        rules["values"] = _mask_values(rules["values"])
    return shown


def masked_url(url: str) -> str:
    """`url` with its password, and whatever its query says, hidden."""
    try:
        parts = urlsplit(url)
        netloc = parts.netloc
        if "@" in netloc:
            login, _, server = netloc.rpartition("@")
            user, colon, _ = login.partition(":")
            netloc = f"{user}:{MASK}@{server}" if colon else f"{user}@{server}"
        query = MASK if _SECRET_KEY.search(parts.query) else parts.query
        return urlunsplit(parts._replace(netloc=netloc, query=query))
    except ValueError:
        return MASK


def _mask_values(value: Any, *, hide: bool = False) -> Any:
    if isinstance(value, dict):
        return {key: _mask_values(item, hide=hide or bool(_SECRET_KEY.search(str(key)))) for key, item in value.items()}
    if isinstance(value, list):
        return [_mask_values(item, hide=hide) for item in value]
    return MASK if hide and isinstance(value, str) and value else value


def _find_file(config: Path | None, environ: Mapping[str, str], cwd: Path) -> Path | None:
    named = [("--config", str(config))] if config else []
    if environ.get("PREVUE_CONFIG"):
        named.append(("PREVUE_CONFIG", environ["PREVUE_CONFIG"]))
    for origin, name in named:
        path = cwd / Path(name).expanduser()
        if not path.is_file():
            raise ConfigError(f"{origin}: there is no file {path}; it names the YAML file with the settings")
        return path
    return next((cwd / name for name in SEARCH if (cwd / name).is_file()), None)


def _shown(file: Path, cwd: Path) -> str:
    return str(file.relative_to(cwd)) if file.is_relative_to(cwd) else str(file)


def _read_secrets(settings: Settings, places: dict[str, str]) -> Settings:
    """Fill `webhook_secrets` from its file. An unreadable file is the App's error alone (`settings_check`): deployers do not mount it."""
    github = settings.github
    if not github.webhook_secrets_file:
        return settings
    if github.webhook_secrets:
        place = places["github.webhook_secrets_file"]
        raise ConfigError(f"github.webhook_secrets_file ({place}): set either this or github.webhook_secrets, not both")
    try:
        lines = Path(github.webhook_secrets_file).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return settings
    secrets = [line.strip() for line in lines if line.strip()]
    return msgspec.structs.replace(settings, github=msgspec.structs.replace(github, webhook_secrets=secrets))


# --- the environment


def _lay_environment(root: Raw, environ: Mapping[str, str], errors: list[str]) -> None:
    for variable in sorted(environ):
        if variable.startswith(PREFIX) and variable != "PREVUE_CONFIG":
            parts = variable.removeprefix(PREFIX).lower().split("__")
            kind = _kind_of(parts, variable, errors)
            if kind is not None:
                _put(root, parts, _from_text(kind, variable, environ[variable], ".".join(parts), errors))


def _kind_of(parts: list[str], variable: str, errors: list[str]) -> Any:
    """The type of the setting that a variable names; None: not ours, or an error was noted."""
    kind: Any = Settings
    for depth, part in enumerate(parts):
        if not _is_struct(kind):
            errors.append(f"{variable}: {'.'.join(parts[:depth])} has no settings of its own; give {_variable(parts[:depth])} as JSON")
            return None
        hints = get_type_hints(kind)
        if part not in hints:
            # Kubernetes puts variables of its own into a pod for a service called `prevue`; none has a double underscore.
            if len(parts) > 1:
                suggestion = _suggest(part, list(hints), parts[:depth], parts[depth + 1 :], as_variable=True)
                errors.append(f"{variable}: unknown setting; {suggestion}")
            elif (single := _single_underscore(part)) is not None:
                errors.append(f"{variable}: unknown setting; did you mean {single}? Section and name are parted by two underscores")
            return None
        kind = hints[part]
    if _is_struct(kind):
        errors.append(f"{variable}: names a group of settings; expected such as {variable}__{next(iter(get_type_hints(kind))).upper()}")
        return None
    return kind


def _single_underscore(name: str) -> str | None:
    """`deployer_slots` → `PREVUE_DEPLOYER__SLOTS`, where there is such a setting."""
    return next((_variable(path.split(".")) for path in _all_names(Settings) if path.replace(".", "_") == name), None)


def _variable(parts: list[str]) -> str:
    return PREFIX + "__".join(parts).upper()


def _from_text(kind: Any, variable: str, text: str, path: str, errors: list[str]) -> Raw:
    """What a variable's text means for a setting of this type; what cannot be converted stays text, and the decoder refuses it."""
    kind = _without_none(kind)
    value: Any = text
    origin = get_origin(kind)
    if kind in (int, float):
        with contextlib.suppress(ValueError):
            value = kind(text)
    elif kind is bool:
        value = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}.get(
            text.strip().lower(), text
        )
    elif origin is list and not text.lstrip().startswith("[") and not _is_struct(get_args(kind)[0]):
        items = [item.strip() for item in text.split(",") if item.strip()]
        return Raw([_from_text(get_args(kind)[0], variable, item, path, errors) for item in items], variable, from_env=True)
    elif origin in (list, dict):
        try:
            value = json.loads(text)
        except ValueError as exc:
            errors.append(f"{path} ({variable}): expected JSON, {_described(kind)}; {getattr(exc, 'msg', 'it cannot be read')}")
            value = [] if origin is list else {}
    return _wrap(value, variable)


def _wrap(value: Any, variable: str) -> Raw:
    if isinstance(value, dict):
        return Raw({key: _wrap(item, variable) for key, item in value.items()}, variable, from_env=True)
    if isinstance(value, list):
        return Raw([_wrap(item, variable) for item in value], variable, from_env=True)
    return Raw(value, variable, from_env=True)


def _put(root: Raw, parts: list[str], raw: Raw) -> None:
    for part in parts[:-1]:
        child = root.value.get(part)
        if child is None or child.value is None:
            child = root.value[part] = Raw({}, "")
        if not isinstance(child.value, dict):
            return  # the file has no mapping there: the decoder says so
        root = child
    root.value[parts[-1]] = raw


# --- types


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _without_none(kind: Any) -> Any:
    if get_origin(kind) is UnionType:
        return next(part for part in get_args(kind) if part is not type(None))
    return kind


def _described(kind: Any) -> str:
    if get_origin(kind) is list:
        item = get_args(kind)[0]
        return "a list of " + ("mappings" if _is_struct(item) else {str: "texts", int: "whole numbers"}[item])
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(kind, "a mapping")


def _got(value: Any, path: str) -> str:
    match value:
        case None:
            return "nothing (leave it out for the default)"
        case dict():
            return "a mapping"
        case list():
            return "a list"
    if SECRET.match(path):
        return "text" if isinstance(value, str) else "a number or a truth value; put it in quotes"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else text[:40] + "…"


def _all_names(kind: Any, prefix: str = "") -> Iterator[str]:
    for name, hint in get_type_hints(kind).items():
        if _is_struct(hint):
            yield from _all_names(hint, f"{prefix}{name}.")
        else:
            yield prefix + name


def _suggest(name: str, known: list[str], parents: list[str], below: Sequence[str] = (), *, as_variable: bool = False) -> str:
    """What somebody who wrote `name` may have meant: a neighbour, else the same name in another section, else all that there is."""
    write = _variable if as_variable else ".".join
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.6):
        return f"did you mean {write([*parents, close[0], *below])}?"
    elsewhere = [path for path in _all_names(Settings) if path.rpartition(".")[2] == name]
    if elsewhere:
        return "did you mean " + " or ".join(write(path.split(".")) for path in elsewhere) + "?"
    return "accepted: " + ", ".join(write([*parents, item]) if as_variable else item for item in known)


class _Decoder:
    """Plain values to structs, field by field, so that one error does not hide the next."""

    def __init__(self, errors: list[str], *, base: Path, cwd: Path) -> None:
        self.errors = errors
        self.places: dict[str, str] = {}
        self._base = base
        self._cwd = cwd

    def decode(self, kind: Any, raw: Raw, path: str) -> Any:
        """The value of type `kind`, or None after noting an error."""
        if path and raw.place:
            self.places[path] = raw.place
        if _is_struct(kind):
            return self._struct(kind, raw, path)
        if raw.value is None and kind != _without_none(kind):
            return None
        kind = _without_none(kind)
        if get_origin(kind) is list and isinstance(raw.value, list):
            return [self.decode(get_args(kind)[0], item, f"{path}[{index}]") for index, item in enumerate(raw.value)]
        if get_origin(kind) is dict and isinstance(raw.value, dict):
            self._note_places(raw, path)
            return raw.plain()
        if self._fits(kind, raw.value):
            return self._as_path(raw, path) if kind is str and raw.value and _PATHS.match(path) else kind(raw.value)
        return self._refuse(raw, path, f"expected {_described(kind)}, got {_got(raw.value, path)}")

    def _note_places(self, raw: Raw, path: str) -> None:
        if isinstance(raw.value, dict):
            for name, item in raw.value.items():
                self.places[f"{path}.{name}"] = item.place
                self._note_places(item, f"{path}.{name}")

    def _fits(self, kind: Any, value: Any) -> bool:
        if kind is float:
            return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
        if kind is int:
            return isinstance(value, int) and not isinstance(value, bool)
        return kind in (str, bool) and isinstance(value, kind)

    def _struct(self, kind: type[msgspec.Struct], raw: Raw, path: str) -> msgspec.Struct | None:
        value = {} if raw.value is None else raw.value
        if not isinstance(value, dict):
            self._refuse(raw, path or "the file", f"expected a mapping, got {_got(raw.value, path)}")
            return None
        hints = get_type_hints(kind)
        given: dict[str, Any] = {}
        for name, item in value.items():
            below = f"{path}.{name}" if path else str(name)
            if name not in hints:
                self._refuse(item, below, f"unknown setting; {_suggest(str(name), list(hints), path.split('.') if path else [])}")
            elif kind is RepositorySettings and name == "url" and item.value is not None:
                given[name] = self._partial(UrlSettings, item, below)
            else:
                given[name] = self.decode(hints[name], item, below)
        missing = [field.name for field in msgspec.structs.fields(kind) if field.required and field.name not in given]
        for name in missing:
            self._refuse(raw, f"{path}.{name}", f"is missing; expected {_described(hints[name])}")
        return None if missing or self.errors else kind(**given)

    def _partial(self, kind: type[msgspec.Struct], raw: Raw, path: str) -> dict[str, Any] | None:
        """The given fields alone, checked as those of `kind`."""
        whole = self._struct(kind, raw, path)
        return None if whole is None else {name: getattr(whole, name) for name in raw.value}

    def _as_path(self, raw: Raw, path: str) -> str:
        text = str(raw.value)
        if path == "cluster.helm" and os.sep not in text:
            return text  # a program on PATH
        return os.path.normpath((self._cwd if raw.from_env else self._base) / Path(text).expanduser())

    def _refuse(self, raw: Raw, path: str, text: str) -> None:
        self.errors.append(f"{path} ({raw.place}): {text}")


def to_yaml(settings: Settings) -> str:
    """The settings as a file, secrets masked: what `prevue config show` prints."""
    return yaml.safe_dump(masked(settings), sort_keys=False, allow_unicode=True, width=120)
