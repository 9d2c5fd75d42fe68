"""Cross-checks: what a process refuses to start with, and what only warns."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from prevue.cluster.port import UrlSource
from prevue.errors import ConfigError
from prevue.settings import load
from prevue.settings_check import PROCESSES, QUEUE_SCHEMES, URL_SOURCES, Process, check
from prevue.wiring.queues import BACKENDS

SECRET = "hunter2-very-secret"
PKCS8 = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

BASE = {
    "PREVUE_GITHUB__APP_ID": "1",
    "PREVUE_GITHUB__PRIVATE_KEY_FILE": "key.pem",
    "PREVUE_GITHUB__WEBHOOK_SECRETS": SECRET,
    "PREVUE_QUEUE__URL": f"postgresql://app:{SECRET}@127.0.0.1/prevue",
    "PREVUE_STATESTORE__URL": "postgresql:///prevue?host=/run/postgresql",
    "PREVUE_DEFAULTS__CHART": "chart",
    "PREVUE_REPOSITORIES": '[{"match": "acme/*"}]',
}


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an App's key, a chart, and keys that are no App's."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "key.pem").write_bytes(rsa.generate_private_key(65537, 2048).private_bytes(*PKCS8))
    (folder / "small.pem").write_bytes(rsa.generate_private_key(65537, 1024).private_bytes(*PKCS8))
    (folder / "curve.pem").write_bytes(ec.generate_private_key(ec.SECP256R1()).private_bytes(*PKCS8))
    (folder / "text.pem").write_text(f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n")
    (folder / "chart").mkdir()
    (folder / "chart" / "Chart.yaml").write_text("name: x\nversion: 1.0.0\n")
    (folder / "empty").mkdir()
    return folder


def checked(keys: Path, process: Process, **changes: str) -> list[str]:
    environ = {name: value for name, value in (BASE | changes).items() if value}
    loaded = load(environ=environ, cwd=keys)
    return check(loaded.settings, process=process, places=loaded.places)


@pytest.mark.parametrize("process", PROCESSES)
def test_good_settings_pass_without_a_warning(keys: Path, process: Process) -> None:
    assert checked(keys, process) == []


@pytest.mark.parametrize(
    ("process", "setting", "value", "expected"),
    [
        ("github-app", "GITHUB__APP_ID", "", "github.app_id (not set): is required: the number on the App's settings page"),
        ("github-app", "GITHUB__WEBHOOK_SECRETS", "", "github.webhook_secrets (not set): is required: one secret, or two"),
        ("github-app", "GITHUB__WEBHOOK_SECRETS", "a,b,c", "github.webhook_secrets (*): expected one or two secrets, got 3"),
        ("github-app", "GITHUB__WEBHOOK_SECRETS", '["a"," "]', "github.webhook_secrets (*): an empty secret would accept"),
        ("github-app", "GITHUB__PRIVATE_KEY_FILE", "", "github.private_key_file (not set): is required"),
        ("github-app", "GITHUB__PRIVATE_KEY_FILE", "gone.pem", "gone.pem cannot be read: No such file"),
        ("deployer", "GITHUB__PRIVATE_KEY_FILE", "text.pem", "text.pem is no unencrypted PEM private key"),
        ("deployer", "GITHUB__PRIVATE_KEY_FILE", "curve.pem", "curve.pem is no RSA key"),
        ("deployer", "GITHUB__PRIVATE_KEY_FILE", "small.pem", "small.pem has 1024 bits; at least 2048"),
        ("github-app", "GITHUB__API_URL", "api.github.com", "github.api_url (*): expected a URL such as"),
        ("github-app", "GITHUB__HOST", "https://x", "github.host (*): expected a host name"),
        ("github-app", "QUEUE__URL", "", "queue.url (not set): is required: accepted: postgresql://, postgres://, redis://"),
        (
            "github-app",
            "QUEUE__URL",
            f"amqp://:{SECRET}@h",
            "queue.url (*): its scheme must be one of postgresql://, postgres://, redis://",
        ),
        ("github-app", "QUEUE__URL", f"postgresql://u:{SECRET}[@h", "queue.url (*): is no URL"),
        ("github-app", "QUEUE__URL", "postgresql://", "queue.url (*): names no host and no database"),
        ("operator", "STATESTORE__URL", f"mysql://{SECRET}@h/d", "statestore.url (*): its scheme must be one of"),
        ("sweeper", "SWEEPER__POLL_SECONDS", "0", "sweeper.poll_seconds (*): expected more than 0 s, got 0"),
        ("deployer", "SWEEPER__OVERDUE_SECONDS", "-1", "sweeper.overdue_seconds (*): expected more than 0 s, got -1"),
        ("deployer", "DEFAULTS__TTL_SECONDS", "-1", "defaults.ttl_seconds (*): expected at least 0 s, got -1"),
        ("sweeper", "STATESTORE__URL", "", "statestore.url (not set): is required"),
        ("github-app", "APP__REPLICAS", "0", "app.replicas (*): expected at least 1, got 0"),
        ("github-app", "APP__LISTEN_PORT", "70000", "app.listen_port (*): expected 0 to 65535, got 70000"),
        ("github-app", "APP__GITHUB_TIMEOUT_SECONDS", "10", "expected more than 0 and less than 10 s"),
        (
            "github-app",
            "APP__COMMENTS_PER_MINUTE",
            "36",
            "36 and deployer.comments_per_minute 45 are 81 together; GitHub allows 80 a minute",
        ),
        ("deployer", "DEPLOYER__COMMENTS_PER_HOUR", "401", "GitHub allows 500 an hour"),
        ("deployer", "DEPLOYER__SLOTS", "0", "deployer.slots (*): expected at least 1, got 0"),
        ("deployer", "DEPLOYER__HELM_PARALLEL", "0", "deployer.helm_parallel (*): expected at least 1, got 0"),
        ("deployer", "DEPLOYER__ATTEMPTS_MAX", "0", "deployer.attempts_max (*): expected at least 1, got 0"),
        ("deployer", "DEPLOYER__LEASE_SECONDS", "1", "deployer.lease_seconds (*): expected at least 2 s: three heartbeats may fail"),
        ("deployer", "DEPLOYER__HELM_DEADLINE_GRACE_SECONDS", "0.5", "expected at least 1 s, got 0.5"),
        ("deployer", "DEPLOYER__BACKOFF_SECONDS", "0", "deployer.backoff_seconds (*): expected more than 0 s, got 0"),
        ("deployer", "DEPLOYER__BACKOFF_SECONDS", "301", "expected at most deployer.backoff_max_seconds (300 s), got 301"),
        ("deployer", "DEPLOYER__SHUTDOWN_GRACE_SECONDS", "-1", "expected at least 0, got -1"),
        ("deployer", "DEPLOYER__HELM_DEADLINE_SECONDS", "40", "less than deployer.helm_deadline_seconds (40 s), got 40"),
        ("deployer", "CLUSTER__KUBECONFIG", "gone", "cluster.kubeconfig (*): there is no file"),
        ("render", "DEFAULTS__CHART", "", "defaults.chart (not set): is required: the path of a chart folder"),
        ("render", "DEFAULTS__CHART", "gone", "defaults.chart (*): there is no folder"),
        ("render", "DEFAULTS__CHART", "empty", "has no Chart.yaml"),
        ("deployer", "DEFAULTS__URL__SOURCE", "route", "expected one of template, node_port, ingress, load_balancer; got 'route'"),
        ("deployer", "DEFAULTS__URL__SOURCE", "template", "defaults.url.template (default): expected such as https://"),
        ("deployer", "DEFAULTS__URL__TEMPLATE", "https://{nr}/", "defaults.url.template (*): unknown name {nr} in a template; accepted:"),
        ("deployer", "DEFAULTS__URL__PATH", "x", "expected a path that begins with /, got 'x'"),
        ("deployer", "DEFAULTS__URL__STATUSES", "[]", "expected at least one HTTP status"),
        ("deployer", "DEFAULTS__URL__STATUSES", "200,99", "expected HTTP statuses from 200 to 599, got 99"),
        ("deployer", "DEFAULTS__URL__TIMEOUT_SECONDS", "0", "expected more than 0 s, got 0"),
        ("deployer", "DEFAULTS__READINESS_TIMEOUT_SECONDS", "0", "expected more than 0 s, got 0"),
        ("deployer", "DEFAULTS__IMAGE_WAIT_SECONDS", "-1", "expected at least 0 s, got -1"),
        ("deployer", "DEFAULTS__HOST", "{host}", "defaults.host (*): unknown name {host}"),
        ("deployer", "DEFAULTS__VALUES", '{"image": {"tag": "{sha}"}}', "defaults.values.image.tag (*): unknown name {sha}"),
        ("deployer", "DEFAULTS__VALUES", '{"a.b": 1, "a": 2}', "the key 'a' is given twice"),
        ("deployer", "REPOSITORIES", '[{"match": "acme"}]', "repositories[0].match (*): expected owner/name or a glob"),
        ("deployer", "REPOSITORIES", '[{"match": "a/b", "host": "{x}"}]', "repositories[0].host (*): unknown name {x}"),
        ("deployer", "LOG__LEVEL", "loud", "log.level (*): expected one of debug, info, warning, error; got 'loud'"),
    ],
)
def test_a_broken_rule_names_setting_place_and_what_is_accepted(
    keys: Path, process: Process, setting: str, value: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(keys, process, **{f"PREVUE_{setting}": value})
    assert expected.replace("*", f"PREVUE_{setting}") in str(caught.value)
    assert SECRET not in str(caught.value)


def test_all_broken_rules_are_reported_together(keys: Path) -> None:
    with pytest.raises(ConfigError, match=r"^3 settings are wrong:\n"):
        checked(keys, "deployer", PREVUE_DEPLOYER__SLOTS="0", PREVUE_DEPLOYER__ATTEMPTS_MAX="0", PREVUE_QUEUE__URL="")


def test_an_error_in_the_defaults_is_told_once(keys: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(keys, "deployer", PREVUE_DEFAULTS__HOST="{x}", PREVUE_REPOSITORIES='[{"match": "a/b"}, {"match": "c/*"}]')
    assert str(caught.value).count("defaults.host") == 1


def test_a_process_asks_for_no_more_than_it_needs(keys: Path) -> None:
    """The App has no statestore, chart or cluster; the deployer no webhook secret; the operator's commands only the statestore."""
    app_only = {"PREVUE_STATESTORE__URL": "", "PREVUE_DEFAULTS__CHART": "", "PREVUE_CLUSTER__KUBECONFIG": "gone"}
    assert checked(keys, "github-app", **app_only) == []
    assert checked(keys, "deployer", PREVUE_GITHUB__WEBHOOK_SECRETS="") == []
    operator = {name: "" for name in BASE if name != "PREVUE_STATESTORE__URL"}
    assert checked(keys, "operator", **operator) == []


def test_a_secrets_file_that_cannot_be_read_stops_the_app_alone(keys: Path) -> None:
    changes = {"PREVUE_GITHUB__WEBHOOK_SECRETS": "", "PREVUE_GITHUB__WEBHOOK_SECRETS_FILE": "gone"}
    assert checked(keys, "deployer", **changes) == []
    with pytest.raises(ConfigError, match="gone cannot be read or is empty; expected one or two lines"):
        checked(keys, "github-app", **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"PREVUE_DEPLOYER__HELM_DEADLINE_SECONDS": "60"}, "takes over within 70 s, more than two leases (60 s)"),
        ({"PREVUE_DEPLOYER__SHUTDOWN_GRACE_SECONDS": "31"}, "31 s is longer than the lease (30 s)"),
        ({"PREVUE_REPOSITORIES": "[]"}, "no repository is listed"),
        ({"PREVUE_REPOSITORIES": '[{"match": "a/b"}, {"match": "A/b"}]'}, "stands above already"),
        ({"PREVUE_GITHUB__API_URL": "http://127.0.0.1:1", "PREVUE_APP__COMMENTS_PER_MINUTE": "1000"}, "1045 together"),
    ],
)
def test_what_only_costs_time_is_a_warning(keys: Path, changes: dict[str, str], expected: str) -> None:
    (warning,) = checked(keys, "deployer", **changes)
    assert expected in warning


def test_the_words_of_url_sources_are_the_clusters() -> None:
    assert set(URL_SOURCES) == set(UrlSource)


def test_the_accepted_queues_are_those_that_there_are() -> None:
    assert set(QUEUE_SCHEMES) == set(BACKENDS)
