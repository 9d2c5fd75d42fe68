"""The stack's folder: its settings, their overlay, and what `down` leaves."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import yaml

from prevue.local import stack_services
from prevue.local.folder import OVERLAY_VARIABLE, DevFile, StackFolder, laid_over, replace
from prevue.local.ports import PORTS
from prevue.local.stack_services import Ports
from prevue.settings import load, settings_for
from prevue.settings_check import check


@pytest.fixture
def folder(tmp_path: Path) -> StackFolder:
    made = StackFolder(tmp_path / ".prevue")
    made.make()
    return made


@pytest.fixture
def ports() -> Ports:
    return Ports(github=20001, app=20002, deployers=(20003,))


def write_settings(folder: StackFolder, ports: Ports, overlay: dict[str, object]) -> None:
    folder.deployer_kubeconfig.write_text("")
    for path, statestore in ((folder.settings, "postgresql://owner:o@127.0.0.1/prevue"), (folder.app_settings, "")):
        content = stack_services.settings(
            folder,
            ports,
            queue={"url": "postgresql://app:a@127.0.0.1/prevue"},
            statestore_url=statestore,
            helm="/usr/bin/helm",
            node="127.0.0.1",
            overlay=overlay,
        )
        replace(path, yaml.safe_dump(content).encode())


def test_app_and_deployer_may_start_with_their_files(folder: StackFolder, ports: Ports) -> None:
    write_settings(folder, ports, {})
    app = load(folder.app_settings, environ={})
    check(app.settings, process="github-app", places=app.places)
    assert app.settings.statestore.url == "", "the App is not told where the statestore is"
    deployer = load(folder.settings, environ={})
    check(deployer.settings, process="deployer", places=deployer.places)
    hello = settings_for(deployer.settings, "acme/hello")
    assert hello is not None
    assert hello.values == {"image": {"repository": "prevue.local/{repo}", "tag": "{commit_sha}"}}


def test_an_overlay_changes_single_settings(folder: StackFolder, ports: Ports) -> None:
    write_settings(folder, ports, {"deployer": {"slots": 3}, "defaults": {"url": {"timeout_seconds": 5}}})
    settings = load(folder.settings, environ={}).settings
    assert settings.deployer.slots == 3
    assert settings.defaults.url.timeout_seconds == 5
    assert settings.defaults.url.source == "node_port"


def test_mappings_are_merged_and_lists_replaced() -> None:
    assert laid_over({"a": {"b": 1, "c": [1, 2]}, "d": 1}, {"a": {"c": [3]}, "e": 2}) == {"a": {"b": 1, "c": [3]}, "d": 1, "e": 2}


def test_the_overlay_is_named_or_lies_in_the_folder(folder: StackFolder, tmp_path: Path) -> None:
    assert folder.overlay({}) == {}
    (folder.root / "overlay.yaml").write_text("deployer: {slots: 1}")
    assert folder.overlay({}) == {"deployer": {"slots": 1}}
    (tmp_path / "other.yaml").write_text("deployer: {slots: 2}")
    assert folder.overlay({OVERLAY_VARIABLE: str(tmp_path / "other.yaml")}) == {"deployer": {"slots": 2}}
    with pytest.raises(ValueError, match=OVERLAY_VARIABLE):
        folder.overlay({OVERLAY_VARIABLE: str(tmp_path / "missing.yaml")})
    (tmp_path / "other.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="no mapping"):
        folder.overlay({OVERLAY_VARIABLE: str(tmp_path / "other.yaml")})


def test_secrets_are_for_their_owner_alone(folder: StackFolder) -> None:
    for path in (folder.private_key, folder.webhook_secret):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(folder.webhook_secret.read_text()) == 40


def test_down_leaves_logs_and_what_a_person_wrote(folder: StackFolder) -> None:
    (folder.logs / "deployer.log").write_text("x")
    (folder.root / "overlay.yaml").write_text("{}")
    folder.settings.write_text("{}")
    folder.remove()
    assert {path.name for path in folder.root.iterdir()} == {"logs", "overlay.yaml"}


def test_a_broken_dev_file_is_no_dev_file(folder: StackFolder) -> None:
    assert folder.read_dev() is None
    folder.dev.write_text("{")
    assert folder.read_dev() is None


def test_the_fields_of_dev_json_are_an_interface() -> None:
    assert DevFile.__struct_fields__ == (
        "github_url", "webhook_url", "webhook_secret", "database_url", "kubeconfig", "helm", "kubectl", "pids",
    )  # fmt: skip


def test_ports_are_free_and_below_the_ephemeral_ones() -> None:
    ports = Ports.choose(deployers=3)
    chosen = (ports.github, ports.app, *ports.deployers)
    assert len(set(chosen)) == 5
    assert all(port in PORTS for port in chosen)
