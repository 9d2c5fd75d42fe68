"""The deployer's door for Cloud Tasks: `POST /tasks` runs the handler while the request is held, and the status settles the task.

| the handler | answer | Cloud Tasks |
|---|---|---|
| `Done` | 200 | deletes the task |
| `RetryAfter` | 503 with Retry-After | sends it again, not before that |
| `Release`; full; stopping | 429 with Retry-After | sends it again; no attempt counted: no claim was made, or it was given back |
| raised | 500 | sends it again, with its queue's backoff |

Every status but 2xx is sent again, 4xx too: what can never be read is logged with its content and answered 200. Whoever does not show
the right identity gets 401 or 403, the log the reason, and nothing of the body is read. When Cloud Tasks stops listening (its dispatch
deadline, a lost connection) the handler goes on: the work is half done, its claim keeps the repeat from doing it twice, and the repeat
is answered at once.
"""

from __future__ import annotations

import asyncio
import math

import structlog
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from prevue.errors import MessageInvalid
from prevue.masking import without_secrets
from prevue.model import Message, decode_message
from prevue.queue.handling import ask
from prevue.queue.oidc import Refused, Verifier
from prevue.queue.port import Done, Handler, Release, RetryAfter, Settlement

BODY_BYTES_MAX = 64 * 1024
"""What is read of a body; a message of ours is much smaller."""
BODY_SECONDS_MAX = 10.0
FULL_SECONDS, RELEASE_SECONDS = 2, 1
"""Retry-After where every slot is taken, and where this deployer stops or a message was released: another one may have room now."""

_log = structlog.get_logger(__name__)


class TasksDoor:
    """The ASGI application of one run of the consumer."""

    def __init__(self, verifier: Verifier, handler: Handler, *, slots: int, stop: asyncio.Event, group: asyncio.TaskGroup) -> None:
        self._verifier = verifier
        self._handler = handler
        self._slots = slots
        self._stop = stop
        self._group = group
        self._taken = 0
        self.is_closed = False
        """The group is ending: no handler may begin, though the server still answers."""
        self.handlers: set[asyncio.Task[Settlement | BaseException]] = set()
        """Those that run: the group's, so that no lost connection ends them and whoever cancels the group does."""
        self.app = Starlette(routes=[Route("/tasks", self._take, methods=["POST"])])

    async def _take(self, request: Request) -> Response:
        try:
            await self._verifier.verify(request.headers.get("authorization", ""))
        except Refused as refused:
            client = request.client.host if request.client else ""
            _log.warning("task_refused", status=refused.status, reason=str(refused), client=client)
            return _again(503, RELEASE_SECONDS) if refused.status == 503 else Response(status_code=refused.status)
        if self._is_stopping():
            return _again(429, RELEASE_SECONDS)
        if self._taken >= self._slots:
            return _again(429, FULL_SECONDS)
        self._taken += 1
        try:
            return await self._handle(request)
        finally:
            self._taken -= 1

    async def _handle(self, request: Request) -> Response:
        task = request.headers.get("x-cloudtasks-taskname", "")
        body = await _read(request)
        if body is None:
            return Response(status_code=408)
        try:
            message = decode_message(body)
        except MessageInvalid as exc:
            text = without_secrets(body[:BODY_BYTES_MAX].decode(errors="replace"))
            _log.error("queue_message_set_aside", queue_message=task, error=str(exc), body=text)
            return Response(status_code=200)
        if self._is_stopping():
            return _again(429, RELEASE_SECONDS)
        return await self._answer(task, message)

    def _is_stopping(self) -> bool:
        return self._stop.is_set() or self.is_closed

    async def _answer(self, task: str, message: Message) -> Response:
        running = self._group.create_task(ask(self._handler, message), name=f"queue-message-{task}")
        self.handlers.add(running)
        running.add_done_callback(self.handlers.discard)
        await asyncio.wait({running})
        answer = Release() if running.cancelled() else running.result()
        match answer:
            case Done():
                return Response(status_code=200)
            case RetryAfter(delay):
                return _again(503, delay)
            case Release():
                return _again(429, RELEASE_SECONDS)
            case _:
                _log.error("queue_handler_failed", queue_message=task, exc_info=answer)
                return Response(status_code=500)


async def _read(request: Request) -> bytes | None:
    """The body, or its beginning where it is too large; None: it did not come."""
    body = b""
    try:
        async with asyncio.timeout(BODY_SECONDS_MAX):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_BYTES_MAX:
                    break
    except (TimeoutError, ClientDisconnect):
        return None
    return body[: BODY_BYTES_MAX + 1]


def _again(status: int, seconds: float) -> Response:
    return Response(status_code=status, headers={"Retry-After": str(max(0, math.ceil(seconds)))})
