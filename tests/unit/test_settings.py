"""Settings: where they come from, and that every error names setting, place and what is accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from prevue.config import Settings
from prevue.errors import ConfigError
from prevue.settings import MASK, Loaded, load, masked, masked_url, settings_for, to_yaml

SECRET = "hunter2-very-secret"


def loaded(tmp_path: Path, text: str = "", **environ: str) -> Loaded:
    (tmp_path / "prevue.yaml").write_text(text)
    return load(environ=environ, cwd=tmp_path)


def error_of(tmp_path: Path, text: str = "", **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text, **environ)
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_without_file_and_environment_all_is_default(tmp_path: Path) -> None:
    result = load(environ={}, cwd=tmp_path)
    assert result.settings == Settings()
    assert result.file is None
    assert result.places == {}


def test_the_file_is_looked_for_in_order(tmp_path: Path) -> None:
    (tmp_path / ".prevue").mkdir()
    for name, slots in ((".prevue/prevue.yaml", 1), ("prevue.yaml", 2), ("env.yaml", 3), ("option.yaml", 4)):
        (tmp_path / name).write_text(f"deployer: {{slots: {slots}}}\n")
    environ = {"PREVUE_CONFIG": "env.yaml"}
    found = [load(tmp_path / "option.yaml", environ=environ, cwd=tmp_path), load(environ=environ, cwd=tmp_path)]
    found.append(load(environ={}, cwd=tmp_path))
    (tmp_path / "prevue.yaml").unlink()
    found.append(load(environ={}, cwd=tmp_path))
    assert [one.settings.deployer.slots for one in found] == [4, 3, 2, 1]


@pytest.mark.parametrize(("option", "origin"), [(Path("gone.yaml"), "--config"), (None, "PREVUE_CONFIG")])
def test_a_named_file_must_be_there(tmp_path: Path, option: Path | None, origin: str) -> None:
    with pytest.raises(ConfigError, match=f"^{origin}: there is no file .*gone.yaml"):
        load(option, environ={"PREVUE_CONFIG": "gone.yaml"}, cwd=tmp_path)


def test_environment_stands_over_the_file(tmp_path: Path) -> None:
    result = loaded(
        tmp_path,
        "deployer: {slots: 3, lease_seconds: 40}\ngithub:\n",
        PREVUE_DEPLOYER__SLOTS="5",
        PREVUE_GITHUB__APP_ID="42",
        PREVUE_GITHUB__WEBHOOK_SECRETS="one, two",
        PREVUE_CLUSTER__REQUIRE_FENCE="True",
        PREVUE_DEFAULTS__URL__STATUSES="[200, 401]",
        PREVUE_DEFAULTS__VALUES='{"image.tag": "{short_sha}"}',
        PREVUE_REPOSITORIES='[{"match": "acme/*", "helm_timeout_seconds": 9}]',
        PREVUE_APP__GITHUB_TIMEOUT_SECONDS="2.5",
    )
    settings = result.settings
    assert (settings.deployer.slots, settings.deployer.lease_seconds) == (5, 40)
    assert settings.github.app_id == 42
    assert settings.github.webhook_secrets == ["one", "two"]
    assert settings.cluster.require_fence is True
    assert settings.defaults.url.statuses == [200, 401]
    assert settings.defaults.values == {"image.tag": "{short_sha}"}
    assert settings.repositories[0].match == "acme/*"
    assert settings.app.github_timeout_seconds == 2.5
    assert result.places["deployer.slots"] == "PREVUE_DEPLOYER__SLOTS"
    assert result.places["deployer.lease_seconds"] == "prevue.yaml:1"


def test_a_secret_with_a_comma_can_be_given_as_json(tmp_path: Path) -> None:
    assert loaded(tmp_path, PREVUE_GITHUB__WEBHOOK_SECRETS='["a,b"]').settings.github.webhook_secrets == ["a,b"]


def test_variables_of_others_are_left_alone(tmp_path: Path) -> None:
    """Kubernetes puts such into every pod beside a service called `prevue` or `prevue-deployer`."""
    environ = {"PREVUE_PORT": "tcp://10.0.0.1:80", "PREVUE_DEPLOYER_SERVICE_HOST": "10.0.0.1", "PREVUE_CACHE": "/x", "HOME": "/root"}
    assert loaded(tmp_path, "", **environ).settings == Settings()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("deployer:\n  slots: many\n", "deployer.slots (prevue.yaml:2): expected a whole number, got 'many'"),
        ("deployer:\n  slots: 2.5\n", "deployer.slots (prevue.yaml:2): expected a whole number, got 2.5"),
        ("deployer:\n  slots: true\n", "deployer.slots (prevue.yaml:2): expected a whole number, got True"),
        ("deployer:\n  slots:\n", "deployer.slots (prevue.yaml:2): expected a whole number, got nothing (leave it out for the default)"),
        ("deployer: [1]\n", "deployer (prevue.yaml:1): expected a mapping, got a list"),
        ("- 1\n", "the file (prevue.yaml:1): expected a mapping, got a list"),
        ("cluster: {require_fence: yes}\n", "cluster.require_fence (prevue.yaml:1): expected true or false, got 'yes'"),
        ("cluster:\n  name: 12\n", "cluster.name (prevue.yaml:2): expected text, got 12"),
        ("deployer:\n\n  slot: 2\n", "deployer.slot (prevue.yaml:3): unknown setting; did you mean deployer.slots?"),
        ("deployr: {slots: 2}\n", "deployr (prevue.yaml:1): unknown setting; did you mean deployer?"),
        ("slots: 2\n", "slots (prevue.yaml:1): unknown setting; did you mean deployer.slots?"),
        ("log: {colour: 1}\n", "log.colour (prevue.yaml:1): unknown setting; accepted: level, format"),
        ("repositories:\n  - chart: x\n", "repositories[0].match (prevue.yaml:2): is missing; expected text"),
        (
            "repositories:\n  - match: a/b\n    url: {sorce: ingress}\n",
            "repositories[0].url.sorce (prevue.yaml:3): unknown setting; did you mean repositories[0].url.source?",
        ),
        (
            "defaults: {url: {statuses: [200, ok]}}\n",
            "defaults.url.statuses[1] (prevue.yaml:1): expected a whole number, got 'ok'",
        ),
        ("deployer:\n  slots: 1\n  slots: 2\n", "slots (prevue.yaml:3): given twice; first in line 2"),
        ("defaults: {values: [1]}\n", "defaults.values (prevue.yaml:1): expected a mapping, got a list"),
        ("a: [\n", "prevue.yaml:2: no valid YAML: expected the node content, but found …"),
        ("a: 1\n---\nb: 2\n", "prevue.yaml:2: no valid YAML: but found another document"),
        ("log: &x\n  level: *x\n", "prevue.yaml:2: an alias refers to what contains it"),
        ("? [a]\n: 1\n", "prevue.yaml:1: a key must be a plain text"),
    ],
)
def test_an_error_of_the_file_names_setting_line_and_what_is_accepted(tmp_path: Path, text: str, expected: str) -> None:
    assert error_of(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("PREVUE_DEPLOYER__SLOTS", "many", "deployer.slots (PREVUE_DEPLOYER__SLOTS): expected a whole number, got 'many'"),
        ("PREVUE_DEPLOYER__LEASE_SECONDS", "nan", "deployer.lease_seconds (PREVUE_DEPLOYER__LEASE_SECONDS): expected a number, got nan"),
        ("PREVUE_DEPLOYER__SLOT", "1", "PREVUE_DEPLOYER__SLOT: unknown setting; did you mean PREVUE_DEPLOYER__SLOTS?"),
        ("PREVUE_DEPLOYR__SLOTS", "1", "PREVUE_DEPLOYR__SLOTS: unknown setting; did you mean PREVUE_DEPLOYER__SLOTS?"),
        (
            "PREVUE_DEPLOYER_SLOTS",
            "1",
            "PREVUE_DEPLOYER_SLOTS: unknown setting; did you mean PREVUE_DEPLOYER__SLOTS? Section and name are parted by two underscores",
        ),
        ("PREVUE_LOG", "debug", "PREVUE_LOG: names a group of settings; expected such as PREVUE_LOG__LEVEL"),
        ("PREVUE_APP__SLOTS", "1", "PREVUE_APP__SLOTS: unknown setting; did you mean PREVUE_DEPLOYER__SLOTS?"),
        (
            "PREVUE_DEFAULTS__VALUES__IMAGE",
            "x",
            "PREVUE_DEFAULTS__VALUES__IMAGE: defaults.values has no settings of its own; give PREVUE_DEFAULTS__VALUES as JSON",
        ),
        (
            "PREVUE_DEFAULTS__VALUES",
            "{",
            "defaults.values (PREVUE_DEFAULTS__VALUES): expected JSON, a mapping; Expecting property name enclosed in double quotes",
        ),
        (
            "PREVUE_CLUSTER__REQUIRE_FENCE",
            "maybe",
            "cluster.require_fence (PREVUE_CLUSTER__REQUIRE_FENCE): expected true or false, got 'maybe'",
        ),
    ],
)
def test_an_error_of_the_environment_names_the_variable(tmp_path: Path, variable: str, value: str, expected: str) -> None:
    assert error_of(tmp_path, "", **{variable: value}) == expected


def test_all_errors_are_reported_together(tmp_path: Path) -> None:
    text = error_of(tmp_path, "deployer:\n  slots: x\n  lease: 3\n", PREVUE_APP__REPLICAS="y")
    assert text.splitlines()[0] == "3 settings are wrong:"
    assert [line.split(" ")[2] for line in text.splitlines()[1:]] == ["deployer.slots", "deployer.lease", "app.replicas"]


@pytest.mark.parametrize(
    "text",
    [
        f"github: {{webhook_secrets: {SECRET}}}\n",
        f"github: {{webhook_secrets: [[{SECRET}]]}}\n",
        f"queue: {{url: [{SECRET}]}}\n",
        f"github:\n  webhook_secrets: *{SECRET}\n",
        f"queue:\n  url: '{SECRET}\n",
        f"defaults: {{values: {SECRET}}}\n",
    ],
)
def test_secrets_never_stand_in_an_error(tmp_path: Path, text: str) -> None:
    error_of(tmp_path, text)


def test_a_broken_secret_in_the_environment_is_not_shown(tmp_path: Path) -> None:
    assert "github.webhook_secrets" in error_of(tmp_path, "", PREVUE_GITHUB__WEBHOOK_SECRETS=f'["{SECRET}')


def test_plain_words_and_numbers_stay_what_they_look_like(tmp_path: Path) -> None:
    """YAML 1.1 would make a truth value, a sexagesimal number and a date of them, and Helm would get those."""
    text = "defaults:\n  values: {country: no, ports: 22:22, day: 2026-02-12, tag: 0123456, n: 12, f: 1.5, off: null}\n"
    values = loaded(tmp_path, text).settings.defaults.values
    assert values == {"country": "no", "ports": "22:22", "day": "2026-02-12", "tag": "0123456", "n": 12, "f": 1.5, "off": None}


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    text = "defaults:\n  values: &v {a: 1, b: 2}\nrepositories:\n  - match: a/b\n    values: {<<: *v, a: 3}\n"
    assert loaded(tmp_path, text).settings.repositories[0].values == {"a": 3, "b": 2}


def test_relative_paths_are_relative_to_where_they_were_written(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "prevue.yaml").write_text(
        "defaults: {chart: ../chart}\nrepositories: [{match: a/b, chart: ./own}]\ncluster: {helm: helm, kubeconfig: /k}\n"
    )
    environ = {"PREVUE_CONFIG": "etc/prevue.yaml", "PREVUE_GITHUB__PRIVATE_KEY_FILE": "key.pem"}
    settings = load(environ=environ, cwd=tmp_path).settings
    assert settings.defaults.chart == str(tmp_path / "chart")
    assert settings.repositories[0].chart == str(etc / "own")
    assert settings.cluster.helm == "helm"
    assert settings.cluster.kubeconfig == "/k"
    assert settings.github.private_key_file == str(tmp_path / "key.pem")


def test_webhook_secrets_come_from_their_file(tmp_path: Path) -> None:
    (tmp_path / "secrets").write_text("one\n\n two \n")
    assert loaded(tmp_path, "github: {webhook_secrets_file: secrets}\n").settings.github.webhook_secrets == ["one", "two"]
    assert "not both" in error_of(tmp_path, f"github: {{webhook_secrets_file: secrets, webhook_secrets: [{SECRET}]}}\n")


REPOSITORIES = """
defaults:
  chart: /charts/default
  values: {image.tag: "{commit_sha}", replicas: 1}
  url: {source: node_port, host: 10.0.0.1}
repositories:
  - match: Acme/Hello
    values: {image: {repository: hello}, replicas: 2}
    url: {path: /health}
  - match: acme/*
    chart: /charts/acme
"""


def test_the_first_entry_that_matches_is_laid_over_the_defaults(tmp_path: Path) -> None:
    settings = loaded(tmp_path, REPOSITORIES).settings
    hello, other = settings_for(settings, "acme/hello"), settings_for(settings, "ACME/Other")
    assert hello is not None
    assert other is not None
    assert hello.chart == "/charts/default"
    assert hello.values == {"image": {"tag": "{commit_sha}", "repository": "hello"}, "replicas": 2}
    assert (hello.url.source, hello.url.host, hello.url.path) == ("node_port", "10.0.0.1", "/health")
    assert (other.chart, other.values) == ("/charts/acme", {"image": {"tag": "{commit_sha}"}, "replicas": 1})
    assert settings_for(settings, "someone/hello") is None


def test_what_is_shown_has_no_secrets(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        f"""
github: {{webhook_secrets: ["{SECRET}"]}}
queue: {{url: "postgresql://app:{SECRET}@db/prevue"}}
statestore: {{url: "postgresql://db/prevue?password={SECRET}"}}
defaults: {{values: {{db: {{password: "{SECRET}", host: db}}, tokens: ["{SECRET}"]}}}}
repositories: [{{match: a/b, values: {{api_key: "{SECRET}"}}}}]
""",
    ).settings
    shown = to_yaml(settings)
    assert SECRET not in shown
    assert f"postgresql://app:{MASK}@db/prevue" in shown
    assert masked(settings)["defaults"]["values"]["db"] == {"password": MASK, "host": "db"}


def test_a_url_that_cannot_be_read_is_hidden_as_a_whole() -> None:
    assert masked_url(f"postgresql://[{SECRET}") == MASK


def test_what_is_shown_can_be_read_again(tmp_path: Path) -> None:
    settings = loaded(tmp_path, REPOSITORIES).settings
    again = loaded(tmp_path, to_yaml(settings)).settings
    assert again == settings


def test_every_setting_can_be_given_by_a_variable(tmp_path: Path) -> None:
    """Each leaf's own default, as text, is read back as that default."""
    defaults: dict[str, Any] = msgspec.to_builtins(Settings())
    environ: dict[str, str] = {}

    def walk(value: Any, parts: tuple[str, ...]) -> None:
        if isinstance(value, dict) and value:
            for name, item in value.items():
                walk(item, (*parts, name))
        else:
            text = msgspec.json.encode(value).decode() if isinstance(value, list | dict) else str(value)
            environ["PREVUE_" + "__".join(parts).upper()] = text

    walk(defaults, ())
    assert len(environ) > 40
    assert load(environ=environ, cwd=tmp_path).settings == Settings()
