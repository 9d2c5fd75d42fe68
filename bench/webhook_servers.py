"""The servers of `bench/webhook.py`, each a process of its own: `python bench/webhook_servers.py ROLE JSON`.

- `app`: Prevue's App as it runs in production, by its own wiring.
- `floor`: the least that could do the same outside work: a bare ASGI application with the same HTTP client, the same calls and the same
  INSERT; no signature, no permission check, no commands, no limits, no log.
- `github`: a stand-in that answers at once, without state and without limits, and counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from prevue.config import AppSettings, GitHubSettings, QueueSettings, Settings
from prevue.github.connections import Connections
from prevue.model import Message, Source, encode_message, idempotency_key

EXAMPLES = Path(__file__).parents[1] / "tests/contract/github_description/examples"
SHA = "ab" * 20
_AUTHORIZATION = {"authorization": "Bearer ghs_0123456789abcdefghij", "content-type": "application/json"}


class Spec(msgspec.Struct):
    """What a server is told."""

    port: int = 0
    queue_url: str = ""
    github_url: str = ""
    key_file: str = ""
    secret: str = ""


def serve_app(spec: Spec) -> None:
    """Prevue's App, limits of its own off."""
    from prevue.wiring.github_app import run

    run(
        Settings(
            github=GitHubSettings(app_id=1, private_key_file=spec.key_file, webhook_secrets=[spec.secret], api_url=spec.github_url),
            queue=QueueSettings(url=spec.queue_url),
            app=AppSettings(listen_port=spec.port, comments_per_minute=10**9, comments_per_hour=10**9),
        )
    )


class _Number(msgspec.Struct):
    number: int


class _Id(msgspec.Struct):
    id: int


class _Event(msgspec.Struct):
    issue: _Number
    comment: _Id


class Floor:
    """Receive, two look-ups, INSERT, 202; then list, comment, reaction."""

    def __init__(self, http: Connections, pool: Any, github_url: str) -> None:
        self._http = http
        self._repo = f"{github_url}/repos/acme/hello"
        self._pool = pool
        self._tasks: set[asyncio.Task[None]] = set()
        self._decode = msgspec.json.Decoder(_Event).decode

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        event = self._decode(body)
        await self._call("GET", "/collaborators/ada/permission")
        await self._call("GET", f"/pulls/{event.issue.number}")
        row = encode_message(
            Message(
                idempotency_key=idempotency_key("acme/hello", event.issue.number, SHA),
                repo="acme/hello",
                pr_number=event.issue.number,
                commit_sha=SHA,
                installation_id=1,
                comment_id=event.comment.id,
                source=Source.COMMENT,
                source_id=str(event.comment.id),
            )
        )
        sql = "INSERT INTO queue_message (identity, body) VALUES ($1, $2) ON CONFLICT DO NOTHING"
        await self._pool.execute(sql, f"floor/{event.comment.id}", row.decode())
        await send({"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})
        task = asyncio.create_task(self._tell(event.issue.number, event.comment.id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, number: int, comment_id: int) -> None:
        await self._call("GET", f"/issues/{number}/comments?per_page=100")
        await self._call("POST", f"/issues/{number}/comments", b'{"body":"Deployment requested!"}')
        await self._call("POST", f"/issues/comments/{comment_id}/reactions", b'{"content":"eyes"}')

    async def _call(self, method: str, path: str, content: bytes | None = None) -> None:
        await self._http.request(method, self._repo + path, headers=_AUTHORIZATION, content=content)


async def serve_floor(spec: Spec) -> None:
    """The floor, under the same server as the App."""
    import asyncpg

    from prevue.queue.postgres import ENQUEUE_CONNECTIONS

    headers = {"accept": "application/vnd.github+json", "user-agent": "floor"}
    async with (
        asyncpg.create_pool(spec.queue_url, min_size=1, max_size=ENQUEUE_CONNECTIONS) as pool,
        Connections.open(headers=headers) as http,
    ):
        config = uvicorn.Config(
            Floor(http, pool, spec.github_url),
            port=spec.port,
            lifespan="off",
            ws="none",
            access_log=False,
            log_level="warning",
            server_header=False,
            date_header=False,
        )
        await uvicorn.Server(config).serve()


_REQUEST = re.compile(rb"(?P<method>[A-Z]+) (?P<path>[^ ?]+)[^\r]*\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class StandIn(asyncio.Protocol):
    """GitHub's answers without GitHub: one canned answer for each of the App's calls, as large as GitHub's own."""

    counts: ClassVar[Counter[str]] = Counter()
    answers: ClassVar[dict[str, bytes]]

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (head := self._buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._buffer, 0, head)
            end = head + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < end:
                return
            request = _REQUEST.match(self._buffer)
            assert request is not None
            self._buffer = self._buffer[end:]
            self._transport.write(self._answer(request["method"], request["path"]))

    def _answer(self, method: bytes, path: bytes) -> bytes:
        if path == b"/_counts":
            return _http(200, json.dumps(self.counts).encode())
        if path.endswith(b"/access_tokens"):
            kind = "token"
        elif path.endswith(b"/permission"):
            kind = "permission"
        elif path.endswith(b"/reactions"):
            kind = "reaction"
        elif path.endswith(b"/comments"):
            kind = "comment" if method == b"POST" else "list"
        else:
            kind = "pull"
        self.counts[kind] += 1
        return self.answers[kind]


def _http(status: int, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json; charset=utf-8\r\ncontent-length: {len(body)}\r\n"
    head += "x-ratelimit-limit: 5000\r\nx-ratelimit-remaining: 4999\r\nx-ratelimit-reset: 1900000000\r\nserver: github.com\r\n\r\n"
    return head.encode() + body


def canned_answers() -> dict[str, bytes]:
    """One answer a call; pull request and comment are GitHub's published examples."""
    pull = json.loads((EXAMPLES / "pull_request.opened.1.json").read_text())["pull_request"]
    pull["head"]["sha"] = SHA
    pull["base"]["repo"]["full_name"] = pull["head"]["repo"]["full_name"] = "acme/hello"
    pull["head"]["repo"]["id"] = pull["base"]["repo"]["id"]
    pull["state"] = "open"
    comment = json.loads((EXAMPLES / "issue_comment.created.1.json").read_text())["comment"]
    return {
        "token": _http(201, b'{"token":"ghs_0123456789abcdefghij","expires_at":"2099-01-01T00:00:00Z"}'),
        "permission": _http(200, json.dumps({"permission": "write", "role_name": "write", "user": comment["user"]}).encode()),
        "pull": _http(200, json.dumps(pull).encode()),
        "list": _http(200, b"[]"),
        "comment": _http(201, json.dumps(comment).encode()),
        "reaction": _http(201, json.dumps({"id": 1, "content": "eyes", "user": comment["user"]}).encode()),
    }


async def serve_github(spec: Spec) -> None:
    """The stand-in, until it is killed."""
    StandIn.answers = canned_answers()
    server = await asyncio.get_running_loop().create_server(StandIn, "127.0.0.1", spec.port)
    await server.serve_forever()


def main() -> None:
    """Run one role."""
    role, text = sys.argv[1:]
    spec = msgspec.json.decode(text, type=Spec)
    with contextlib.suppress(KeyboardInterrupt):
        match role:
            case "app":
                serve_app(spec)
            case "floor":
                uvloop.run(serve_floor(spec))
            case "github":
                uvloop.run(serve_github(spec))
            case _:
                raise SystemExit(f"unknown role {role}")


if __name__ == "__main__":
    main()
