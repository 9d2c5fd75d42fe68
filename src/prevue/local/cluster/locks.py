"""File locks that the kernel gives back when their holder dies, however it dies.

Two of them carry the whole life of the local cluster: every user holds a shared lock, the daemon may stop when it gets the
same lock exclusively, and a second lock says whether a daemon lives. No process identifier has to be believed.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class FileLock:
    """One `flock` on one file. The file stays behind, so that everybody always locks the same inode."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        return self._descriptor is not None

    def try_shared(self) -> bool:
        """Take the lock together with others; False while somebody holds it exclusively."""
        return self._try(fcntl.LOCK_SH)

    def try_exclusive(self) -> bool:
        """Take the lock alone; False while anybody else holds it. A shared lock that is held may be lost on failure."""
        return self._try(fcntl.LOCK_EX)

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _try(self, kind: int) -> bool:
        descriptor = self._descriptor
        if descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Not inheritable by exec: a child that outlives us must not keep the lock.
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            self._descriptor = None
            return False
        self._descriptor = descriptor
        return True
