"""A cache of programs, one folder per name and version, filled at most once.

A folder that is there is complete: it is filled under another name and renamed. A file lock keeps two processes from
building the same program twice, and whoever waits says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from prevue.local.cluster.errors import LocalClusterError
from prevue.local.cluster.locks import FileLock

Progress = Callable[[str], None]
"""Shows one line of progress to a person."""

PROGRESS_SECONDS = 10.0
"""How often a long step says that it goes on."""


def cache_root(environ: Mapping[str, str]) -> Path:
    """`$XDG_CACHE_HOME/prevue`, or `~/.cache/prevue`; a relative XDG path is ignored, as its specification demands."""
    configured = environ.get("XDG_CACHE_HOME", "")
    if configured and Path(configured).is_absolute():
        return Path(configured) / "prevue"
    return Path(environ.get("HOME") or Path.home()) / ".cache" / "prevue"


class ProgramCache:
    """Folders of programs below one root, named after what they hold and its version."""

    def __init__(self, root: Path, progress: Progress) -> None:
        self.root = root
        self.progress = progress

    def ensure(self, name: str, fill: Callable[[Path], None]) -> Path:
        """The folder `name`, filled by `fill` when it is not there yet. `fill` gets an empty folder and may fail at any point."""
        folder = self.root / name
        if folder.is_dir():
            return folder
        with self._locked(name):
            if folder.is_dir():
                return folder
            self._remove_abandoned(name)
            work = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=self.root))
            try:
                fill(work)
                work.chmod(0o755)
                work.rename(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        return folder

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LocalClusterError(
                f"the cache folder {self.root} cannot be made ({error.strerror}): set XDG_CACHE_HOME to a folder that can be written"
            ) from error
        lock = FileLock(self.root / f".{name}.lock")
        said_at = float("-inf")
        while not lock.try_exclusive():
            if time.monotonic() - said_at >= PROGRESS_SECONDS:
                self.progress(f"{name}: another process is preparing it, waiting")
                said_at = time.monotonic()
            time.sleep(0.2)
        try:
            yield
        finally:
            lock.release()

    def _remove_abandoned(self, name: str) -> None:
        """Remove what a killed process left half filled; we hold the lock, so nobody works there."""
        for leftover in self.root.glob(f".{name}.*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)


def run_step(
    command: Sequence[str | Path],
    *,
    what: str,
    next_step: str,
    progress: Progress,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    count: str | None = None,
) -> None:
    """Run a long command and show that it goes on; its last lines are in the error when it fails.

    Args:
        what: the step's name, for progress and error.
        next_step: what the reader can do when it fails.
        count: the unit of a line of output ("packages"), shown as a growing number.
    """
    started_at = said_at = time.monotonic()
    with tempfile.TemporaryFile() as output:
        try:
            child = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environ, cwd=cwd,
            )  # fmt: skip
        except OSError as error:
            raise LocalClusterError(f"{what} failed: {command[0]} cannot be run ({error.strerror}): {next_step}") from error
        try:
            while child.poll() is None:
                time.sleep(0.05)
                now = time.monotonic()
                if now - said_at >= PROGRESS_SECONDS:
                    said_at = now
                    detail = f", {_line_count(output.fileno())} {count}" if count else ""
                    progress(f"{what}: {now - started_at:.0f} s{detail}")
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        if child.returncode != 0:
            raise LocalClusterError(f"{what} failed: {_tail(output.fileno())}\n{next_step}")


def _line_count(descriptor: int) -> int:
    count, offset = 0, 0
    while chunk := os.pread(descriptor, 1 << 20, offset):
        count += chunk.count(b"\n")
        offset += len(chunk)
    return count


def _tail(descriptor: int, *, lines_max: int = 12) -> str:
    size = os.fstat(descriptor).st_size
    text = os.pread(descriptor, 8192, max(0, size - 8192)).decode(errors="replace")
    return "\n".join(text.strip().splitlines()[-lines_max:]) or "no output"
