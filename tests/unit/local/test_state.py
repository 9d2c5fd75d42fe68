"""The state folder, its locks and its records, and the rules that are taken away again."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

import msgspec
import pytest

from prevue.local.cluster import LocalClusterError, handle, network
from prevue.local.cluster.locks import FileLock
from prevue.local.cluster.state import DEFAULT_STATE, Layout, StateFolder, boot_id, read_layout, read_record, write_whole


def test_many_share_a_lock_and_one_may_have_it_alone(tmp_path: Path) -> None:
    first, second, third = (FileLock(tmp_path / "lock") for _ in range(3))
    assert first.try_shared()
    assert second.try_shared()
    assert not third.try_exclusive()
    first.release()
    second.release()
    assert third.try_exclusive()
    assert not first.try_shared()
    third.release()
    third.release()  # twice is harmless
    assert first.try_shared()
    first.release()


def test_the_only_user_may_change_between_shared_and_alone(tmp_path: Path) -> None:
    lock, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert lock.try_shared()
    assert lock.try_exclusive()
    assert not other.try_shared()
    assert lock.try_shared()
    assert other.try_shared()
    lock.release()
    other.release()


def test_a_killed_holder_gives_its_lock_back(tmp_path: Path) -> None:
    script = "import sys, time; from pathlib import Path; from prevue.local.cluster.locks import FileLock; "
    script += "lock = FileLock(Path(sys.argv[1])); assert lock.try_exclusive(); print('held', flush=True); time.sleep(60)"
    lock = FileLock(tmp_path / "lock")
    with subprocess.Popen([sys.executable, "-c", script, str(lock.path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert not lock.try_shared()
        holder.kill()
    assert lock.try_shared()
    lock.release()


def test_a_child_does_not_inherit_a_lock(tmp_path: Path) -> None:
    """A program that outlives its starter must not keep the cluster alive."""
    lock, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert lock.try_shared()
    with subprocess.Popen([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        lock.release()
        assert other.try_exclusive()
        child.kill()
    other.release()


def test_the_state_belongs_to_the_machine_not_to_a_home() -> None:
    assert StateFolder.of({"HOME": "/somewhere"}).root == DEFAULT_STATE
    assert StateFolder.of({"PREVUE_CLUSTER_STATE": "/tmp/state"}).root == Path("/tmp/state")


def test_a_state_folder_must_leave_room_for_a_sockets_path() -> None:
    with pytest.raises(LocalClusterError, match="too long"):
        StateFolder.of({"PREVUE_CLUSTER_STATE": "/" + "x" * 100})


def test_a_record_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    assert read_record(folder) is None
    folder.record.write_text("{half")
    assert read_record(folder) is None


def layout(boot: str) -> Layout:
    return Layout(network=244, api_port=20001, etcd_port=20002, etcd_peer_port=20003, forwarding={}, boot_id=boot)


def test_the_layout_of_an_earlier_boot_is_history(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    write_whole(folder.layout, msgspec.json.encode(layout(boot_id())))
    assert read_layout(folder) == layout(boot_id())
    write_whole(folder.layout, msgspec.json.encode(layout("another boot")))
    assert read_layout(folder) is None


def test_a_layouts_ranges_do_not_meet() -> None:
    chosen = layout("boot")
    pods, services, node = ip_network(chosen.pod_range), ip_network(chosen.service_range), ip_address(chosen.node_ip)
    assert not pods.overlaps(services)
    assert node not in pods
    assert node not in services
    assert ip_address(chosen.first_service_ip) in services


@pytest.mark.parametrize(("system", "user", "message"), [("Darwin", 0, "needs Linux"), ("Linux", 1000, "needs root")])
def test_where_it_cannot_run_the_error_names_the_other_way(monkeypatch: pytest.MonkeyPatch, system: str, user: int, message: str) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("os.geteuid", lambda: user)
    with pytest.raises(LocalClusterError, match=rf"{message}.*--kubeconfig FILE.*--image-loader.*kind"):
        handle.join(print)


SAVED = """\
*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
:KUBE-SERVICES - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A KUBE-SERVICES -m comment --comment "x" -j KUBE-NODEPORTS
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -j DOCKER-USER
COMMIT
"""


def test_only_kubernetes_chains_and_the_jumps_to_them_are_removed() -> None:
    [script] = network.removal_scripts(SAVED.splitlines())
    assert script.splitlines() == [
        "*nat",
        ":KUBE-SERVICES - [0:0]",
        ":CNI-HOSTPORT-DNAT - [0:0]",
        '-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        "-D PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
        "-X KUBE-SERVICES",
        "-X CNI-HOSTPORT-DNAT",
        "COMMIT",
    ]
