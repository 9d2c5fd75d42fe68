"""Container images written by hand: a docker-archive of a static busybox and some files, in a few milliseconds.

Nothing is pulled and nothing is built: previews of the example need an image whose content depends on the commit, and a
machine without Docker and without a registry has to make it. The layer with busybox is the same bytes in every image, so
containerd stores it once.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

EXAMPLE_USER = 65532
"""The user that the example runs as: Pod Security "restricted" refuses root."""
EXAMPLE_PORT = 8080


def write_image(
    path: Path,
    *,
    reference: str,
    busybox: Path,
    files: Mapping[str, bytes],
    command: Sequence[str],
    user: int = 0,
    ports: Sequence[int] = (),
    labels: Mapping[str, str] | None = None,
) -> None:
    """Write a docker-archive (`docker load`, `ctr images import`, `kind load image-archive`) with `/bin/busybox` and `files`.

    Args:
        reference: the full name with its tag, such as `prevue.local/acme/hello:0123…`.
        busybox: a statically linked busybox.
        files: absolute path in the image → content.
        command: the image's entry point.
    """
    layers = [_busybox_layer(busybox, busybox.stat().st_mtime_ns)]
    if files:
        layers.append(_layer({name.lstrip("/"): (content, 0o644) for name, content in files.items()}))
    digests = [sha256(layer).hexdigest() for layer in layers]
    config = json.dumps(
        {
            "architecture": _architecture(busybox),
            "os": "linux",
            "config": {
                "Entrypoint": list(command),
                "Env": ["PATH=/bin"],
                "User": str(user) if user else "",
                "ExposedPorts": {f"{port}/tcp": {} for port in ports},
                "Labels": dict(labels or {}),
                "WorkingDir": "/",
                # As process 1, busybox ignores SIGTERM; it serves files, so it may simply end.
                "StopSignal": "SIGKILL",
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
            "history": [{"created_by": "prevue"} for _ in layers],
        },
        sort_keys=True,
    ).encode()
    config_name = f"{sha256(config).hexdigest()}.json"
    names = [f"{digest}/layer.tar" for digest in digests]
    manifest = json.dumps([{"Config": config_name, "RepoTags": [reference], "Layers": names}]).encode()
    with tarfile.open(path, "w") as archive:
        _add(archive, config_name, config, 0o644)
        for name, layer in zip(names, layers, strict=True):
            _add(archive, name, layer, 0o644)
        _add(archive, "manifest.json", manifest, 0o644)


def write_example_image(path: Path, *, reference: str, busybox: Path, commit_sha: str, page: str) -> None:
    """The image of `examples/hello` for one commit: what its page shows is read from a file inside this image.

    `page` is the app's template; `{commit_sha}` in it is replaced when the image is made, as a build would do.
    """
    serve = f'echo "hello: serving $(busybox cat /www/commit) on port {EXAMPLE_PORT}"; exec busybox httpd -f -p {EXAMPLE_PORT} -h /www'
    write_image(
        path,
        reference=reference,
        busybox=busybox,
        files={
            "/www/commit": f"{commit_sha}\n".encode(),
            "/www/index.html": page.replace("{commit_sha}", commit_sha).encode(),
            "/etc/passwd": f"hello:x:{EXAMPLE_USER}:{EXAMPLE_USER}::/:/bin/sh\n".encode(),
        },
        command=["/bin/busybox", "sh", "-c", serve],
        user=EXAMPLE_USER,
        ports=[EXAMPLE_PORT],
        labels={"org.opencontainers.image.revision": commit_sha},
    )


@lru_cache(maxsize=4)
def _busybox_layer(busybox: Path, _changed_at: int) -> bytes:
    """The layer that all images share; `_changed_at` makes a replaced program a new entry."""
    return _layer({"bin/busybox": (busybox.read_bytes(), 0o755)})


def _layer(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    """A tar with the files and their folders, in a fixed order and without times: the same content is the same digest."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as layer:
        folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
        for folder in sorted(folders):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            layer.addfile(entry)
        for name, (content, mode) in sorted(files.items()):
            _add(layer, name, content, mode)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


@lru_cache(maxsize=4)
def _architecture(busybox: Path) -> str:
    """What the ELF header says, in Go's words; an image of another architecture is refused by the runtime."""
    with busybox.open("rb") as file:
        machine = int.from_bytes(file.read(20)[18:20], "little")
    return {0x3E: "amd64", 0xB7: "arm64", 0x28: "arm", 0x03: "386", 0xF3: "riscv64"}.get(machine, "amd64")
