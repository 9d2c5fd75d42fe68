"""A door before an API server that shuts itself after a number of writes: so a Helm is in its middle for as long as a test wants.

Without it Helm sends the writes of a chart's many objects at once, and is done with them before anybody could stop it. What has arrived at
a shut gate is in flight: sent, not answered, and not taken back by the death of its sender.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
HOP_BY_HOP = frozenset({"host", "connection", "content-length", "transfer-encoding", "accept-encoding", "content-encoding"})


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of its own making, which nobody verifies, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(subject_name=name, issuer_name=name, public_key=key.public_key()).serial_number(1)
    certificate = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    files = folder / "gate.crt", folder / "gate.key"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


class Gate:
    """Passes requests on, whoever asks, with the asker's own credentials; writes one after the other, in the order of their arrival."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client
        self._turn = asyncio.Lock()
        self._opened = asyncio.Event()
        self._opened.set()
        self._left: int | None = None
        self.url = ""
        self.waiting = 0
        """Writes that have arrived and are not answered."""
        self.reading = 0
        """Other requests that are not answered."""
        self.answers: list[int] = []
        """The status of each write that was passed on."""

    @classmethod
    @asynccontextmanager
    async def before(cls, client: httpx2.AsyncClient, folder: Path) -> AsyncIterator[Gate]:
        """A gate on a free port of 127.0.0.1. It speaks TLS, since Helm sends no credentials without."""
        gate = cls(client)
        certificate, key = write_certificate(folder)
        app = Starlette(routes=[Route("/{path:path}", gate._pass, methods=METHODS)])
        config = uvicorn.Config(
            app, port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1, ssl_certfile=certificate, ssl_keyfile=key
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110  uvicorn has no event for it
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        gate.url = f"https://127.0.0.1:{port}"
        try:
            yield gate
        finally:
            gate.open()
            server.should_exit = True
            await serving

    def shut_after(self, writes: int) -> None:
        """So many more writes of ConfigMaps go through, and whatever comes between them; the next write waits, and all behind it."""
        self._left = writes

    def open(self) -> None:
        """Whatever waits goes through, one after the other."""
        self._left = None
        self._opened.set()

    @property
    def is_shut(self) -> bool:
        """Whether a write waits at it; all that went through before are answered."""
        return not self._opened.is_set()

    async def emptied(self) -> None:
        """Return when nothing waits."""
        while self.waiting:  # noqa: ASYNC110  a few times 20 ms
            await asyncio.sleep(0.02)

    async def _pass(self, request: Request) -> Response:
        body = await request.body()
        headers = {name: value for name, value in request.headers.items() if name not in HOP_BY_HOP}
        target = urlsplit(str(request.url))
        path = target.path + (f"?{target.query}" if target.query else "")
        if request.method == "GET":
            self.reading += 1
            try:
                return await self._forward(request.method, path, headers, body)
            finally:
                self.reading -= 1
        self.waiting += 1
        try:
            async with self._turn:
                await self._admit(target.path)
                answer = await self._forward(request.method, path, headers, body)
                self.answers.append(answer.status_code)
                return answer
        finally:
            self.waiting -= 1

    async def _admit(self, path: str) -> None:
        """Return when this write may go through."""
        if self._left is None or "/configmaps" not in path:
            return
        if self._left == 0:
            self._opened.clear()
            await self._opened.wait()
        else:
            self._left -= 1

    async def _forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Response:
        answer = await self._client.request(method, path, headers=headers, content=body)
        kept: dict[str, Any] = {name: value for name, value in answer.headers.items() if name not in HOP_BY_HOP}
        return Response(answer.content, status_code=answer.status_code, headers=kept)
