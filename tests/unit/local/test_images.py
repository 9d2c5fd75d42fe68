"""Images written by hand: their layout, and that the same content is always the same image."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from prevue.local.cluster import write_example_image, write_image

SHA = "0123456789abcdef0123456789abcdef01234567"


def elf(machine: int = 0x3E) -> bytes:
    """A header that says which architecture a program is for."""
    return struct.pack("<4sBBB9xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 2, machine, 1, 0, 64, 0, 0, 64, 56, 0, 0, 0, 0)


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    path = tmp_path / "busybox"
    path.write_bytes(elf() + b"the same in every image")
    return path


class Archive:
    """A docker-archive, read back."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(path) as archive:
            self.files = {entry.name: self._read(archive, entry) for entry in archive.getmembers()}
        [self.manifest] = json.loads(self.files["manifest.json"])
        self.config: dict[str, Any] = json.loads(self.files[self.manifest["Config"]])
        self.layers = [self.files[name] for name in self.manifest["Layers"]]

    @staticmethod
    def _read(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
        file = archive.extractfile(entry)
        assert file is not None
        return file.read()

    def layer(self, number: int) -> tarfile.TarFile:
        return tarfile.open(fileobj=io.BytesIO(self.layers[number]))


def write(path: Path, busybox: Path, *, sha: str = SHA) -> Archive:
    write_example_image(path, reference=f"prevue.local/acme/hello:{sha}", busybox=busybox, commit_sha=sha, page="<p>{commit_sha}</p>")
    return Archive(path)


def test_an_image_names_its_layers_by_their_content(tmp_path: Path, busybox: Path) -> None:
    image = write(tmp_path / "image.tar", busybox)
    assert image.manifest["RepoTags"] == [f"prevue.local/acme/hello:{SHA}"]
    assert image.config["rootfs"]["diff_ids"] == [f"sha256:{sha256(layer).hexdigest()}" for layer in image.layers]
    assert image.manifest["Config"] == f"{sha256(image.files[image.manifest['Config']]).hexdigest()}.json"
    assert len(image.config["history"]) == len(image.layers)


def test_the_commit_lies_in_files_inside_the_image(tmp_path: Path, busybox: Path) -> None:
    layer = write(tmp_path / "image.tar", busybox).layer(1)
    contents = {name: layer.extractfile(name) for name in ("www/commit", "www/index.html")}
    assert {name: file.read().decode() for name, file in contents.items() if file} == {
        "www/commit": f"{SHA}\n",
        "www/index.html": f"<p>{SHA}</p>",
    }


def test_the_example_runs_without_root_on_8080(tmp_path: Path, busybox: Path) -> None:
    config = write(tmp_path / "image.tar", busybox).config["config"]
    assert config["User"] == "65532"
    assert list(config["ExposedPorts"]) == ["8080/tcp"]
    assert config["Entrypoint"][0] == "/bin/busybox"


def test_images_of_two_commits_share_the_layer_with_busybox(tmp_path: Path, busybox: Path) -> None:
    first, second = write(tmp_path / "1.tar", busybox), write(tmp_path / "2.tar", busybox, sha="f" * 40)
    assert first.layers[0] == second.layers[0]
    assert first.layers[1] != second.layers[1]


def test_the_same_content_is_the_same_image(tmp_path: Path, busybox: Path) -> None:
    write(tmp_path / "1.tar", busybox)
    write(tmp_path / "2.tar", busybox)
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()


def test_a_replaced_busybox_is_noticed(tmp_path: Path, busybox: Path) -> None:
    first = write(tmp_path / "1.tar", busybox)
    busybox.write_bytes(elf() + b"another one")
    assert write(tmp_path / "2.tar", busybox).layers[0] != first.layers[0]


def test_busybox_can_be_executed_and_folders_come_before_their_files(tmp_path: Path, busybox: Path) -> None:
    layer = write(tmp_path / "image.tar", busybox).layer(0)
    assert [(entry.name, entry.isdir(), oct(entry.mode)) for entry in layer.getmembers()] == [
        ("bin", True, "0o755"),
        ("bin/busybox", False, "0o755"),
    ]


@pytest.mark.parametrize(("machine", "name"), [(0x3E, "amd64"), (0xB7, "arm64")])
def test_the_architecture_is_that_of_busybox(tmp_path: Path, machine: int, name: str) -> None:
    busybox = tmp_path / f"busybox-{name}"
    busybox.write_bytes(elf(machine))
    write_image(tmp_path / "image.tar", reference="prevue.local/x:1", busybox=busybox, files={}, command=["busybox"])
    image = Archive(tmp_path / "image.tar")
    assert image.config["architecture"] == name
    assert len(image.layers) == 1, "without files there is only the layer with busybox"
