"""The local stack's "CI": at each push it makes the commit's image of the example and loads it into the cluster.

Runs inside the local GitHub's process (`--ci-hook prevue.local.ci:on_push`), since a burst of fifty pushes would otherwise start fifty
Pythons. What it needs to know stands in the file that PREVUE_STACK_IMAGES names.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path

import msgspec

from prevue.local.cluster import Cluster, ExternalCluster, join, write_example_image

VARIABLE = "PREVUE_STACK_IMAGES"
REGISTRY = "prevue.local"
"""No such registry exists: an image is on the node or nowhere."""
LOADS_AT_ONCE = 2

_loads = asyncio.Semaphore(LOADS_AT_ONCE)
_joining = threading.Lock()


class ImageSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How images are made and where they go."""

    page: str
    """Path of the example's page."""
    kubeconfig: str = ""
    """Of the user's own cluster; empty: the local cluster."""
    image_loader: str | None = None


async def on_push(repo: str, sha: str) -> None:
    """Make the image of a commit; at return a pod can use it."""
    async with _loads:
        await asyncio.to_thread(make_image, repo, sha)


def make_image(repo: str, sha: str) -> None:
    """Write the archive and load it."""
    settings, cluster = _cluster()
    with tempfile.TemporaryDirectory(prefix="prevue-image-") as work:
        archive = Path(work) / f"{sha}.tar"
        page = Path(settings.page).read_text()
        write_example_image(archive, reference=image_reference(repo, sha), busybox=cluster.busybox, commit_sha=sha, page=page)
        cluster.load_image(archive)


def image_reference(repo: str, sha: str) -> str:
    """The full name of a commit's image."""
    return f"{REGISTRY}/{repo.lower()}:{sha}"


def _cluster() -> tuple[ImageSettings, Cluster]:
    with _joining:
        return _joined()


@cache
def _joined() -> tuple[ImageSettings, Cluster]:
    """A share of the stack's cluster; the stack holds one itself, so this finds it running."""
    settings = msgspec.json.decode(Path(os.environ[VARIABLE]).read_bytes(), type=ImageSettings)
    if settings.kubeconfig:
        return settings, ExternalCluster(Path(settings.kubeconfig), settings.image_loader, _say)
    return settings, join(_say)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
