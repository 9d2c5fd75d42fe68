"""The App's HTTP door: `POST /webhook`, `/healthz`, `/readyz`.

A delivery's parts are looked at in the order of what a stranger may cost us: method and headers before the body, the body's size while
it comes in, the signature before its content. One table says which outcome is which HTTP status; GitHub takes everything but 2xx as a
failed delivery. Nearly all deliveries ask for nothing, so their path has no await but the body's.
https://docs.github.com/en/webhooks/using-webhooks/best-practices-for-using-webhooks
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from time import perf_counter
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from prevue.config import AppSettings
from prevue.errors import QueueUnavailable
from prevue.github.port import GitHub
from prevue.github_app.acknowledge import Acknowledger
from prevue.github_app.delivery import InvalidSignature, MalformedDelivery, read_headers, verify
from prevue.github_app.handle import Handler, Outcome, Result
from prevue.masking import foreign_text
from prevue.queue.port import Enqueuer
from prevue.telemetry import Log, get_logger

STATUS: Final = {
    Result.ENQUEUED: 202,
    Result.ALREADY_ENQUEUED: 202,
    Result.REFUSED: 200,
    Result.IGNORED: 200,
    Result.PONG: 200,
    Result.MALFORMED: 400,
    Result.INVALID_SIGNATURE: 401,
    Result.METHOD_NOT_ALLOWED: 405,
    Result.TOO_SLOW: 408,
    Result.TOO_LARGE: 413,
    Result.ERROR: 500,
    Result.UNAVAILABLE: 503,
}
"""Every outcome's HTTP status. 2xx: GitHub need not send it again; 503: it should; the rest would end the same the next time."""

BODY_SECONDS_MAX: Final = 10.0
"""A body takes no longer: GitHub itself has given the delivery up by then."""
READY_SECONDS_MAX: Final = 2.0

_CLOSE: Final = frozenset({Result.TOO_LARGE, Result.TOO_SLOW, Result.INVALID_SIGNATURE, Result.METHOD_NOT_ALLOWED})
"""After these the connection is closed: an unread body may stand in it."""

_WORD: Final = re.compile(r"[A-Za-z0-9_-]*")

_log = get_logger()
_encode = msgspec.json.Encoder().encode


class _BodyTooLarge(Exception):
    """More bytes than `app.body_bytes_max` were announced or have come."""


class _Disconnected(Exception):
    """The client has gone before the body's end."""


def create_app(
    *, github: GitHub, enqueuer: Enqueuer, acknowledger: Acknowledger, settings: AppSettings, secrets: Sequence[bytes], github_host: str
) -> ASGIApp:
    """The App. Whoever made `acknowledger` drains it after the server has stopped.

    `secrets`: one or two secrets of the webhook, each accepted.
    """
    handler = Handler(github=github, enqueuer=enqueuer, acknowledger=acknowledger, settings=settings, github_host=github_host)
    webhook = Webhook(handler, secrets=secrets, body_bytes_max=settings.body_bytes_max)

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"result": "alive"})

    async def readyz(_request: Request) -> Response:
        try:
            async with asyncio.timeout(READY_SECONDS_MAX):
                await enqueuer.check()
        except (QueueUnavailable, TimeoutError):
            return JSONResponse({"result": "unavailable", "reason": "queue_unavailable"}, status_code=503)
        return JSONResponse({"result": "ready"})

    rest = Starlette(routes=[Route("/healthz", healthz), Route("/readyz", readyz)])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # The one hot path goes round the framework's routing and middleware, a third of its time.
        if scope["type"] == "http" and scope["path"] == "/webhook":
            await webhook(scope, receive, send)
        else:
            await rest(scope, receive, send)

    return app


class Webhook:
    """`POST /webhook` as an ASGI application."""

    def __init__(self, handler: Handler, *, secrets: Sequence[bytes], body_bytes_max: int) -> None:
        self._handler = handler
        self._secrets = tuple(secrets)
        self._body_bytes_max = body_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        raw = dict(scope["headers"])
        outcome: Outcome | None
        try:
            outcome = await self._answer(scope["method"], raw, receive)
        except _Disconnected:
            outcome = Outcome(result=Result.TOO_SLOW, reason="disconnected")
        except Exception:  # noqa: BLE001 -- the last line of defence: logged, and answered without a word of it
            _log.exception(Log.DELIVERY_FAILED, **_identity(raw))
            outcome = Outcome(result=Result.ERROR)
        status = STATUS[outcome.result]
        await _respond(send, status, outcome)
        _log_delivery(raw, outcome, status, perf_counter() - started)

    async def _answer(self, method: str, raw: dict[bytes, bytes], receive: Receive) -> Outcome:
        if method != "POST":
            return Outcome(result=Result.METHOD_NOT_ALLOWED)
        try:
            headers = read_headers(raw)
            body = await self._body(raw, receive)
            # Signature, then content: nothing of an unsigned body is parsed.
            request = self._handler.ignore(verify(headers, body, self._secrets))
            return request if isinstance(request, Outcome) else await self._handler.carry_out(request)
        except InvalidSignature as exc:
            return Outcome(result=Result.INVALID_SIGNATURE, detail=str(exc))
        except MalformedDelivery as exc:
            return Outcome(result=Result.MALFORMED, reason=str(exc))
        except _BodyTooLarge:
            return Outcome(result=Result.TOO_LARGE, reason=f"at most {self._body_bytes_max} bytes")
        except TimeoutError:
            return Outcome(result=Result.TOO_SLOW, reason=f"the body took more than {BODY_SECONDS_MAX:.0f} s")

    async def _body(self, raw: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body, counted as it comes: a Content-Length may be absent or a lie."""
        announced = raw.get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self._body_bytes_max:
            raise _BodyTooLarge
        async with asyncio.timeout(BODY_SECONDS_MAX):
            message = await receive()
            if not message.get("more_body", False) and message["type"] == "http.request":
                first: bytes = message.get("body", b"")
                if len(first) > self._body_bytes_max:
                    raise _BodyTooLarge
                return first
            return await self._long_body(message, receive)

    async def _long_body(self, message: Any, receive: Receive) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while True:
            if message["type"] != "http.request":
                raise _Disconnected
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size > self._body_bytes_max:
                raise _BodyTooLarge
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)
            message = await receive()


async def _respond(send: Send, status: int, outcome: Outcome) -> None:
    answer = {"result": outcome.result.value}
    if outcome.reason:
        answer["reason"] = outcome.reason
    body = _encode(answer)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if outcome.result in _CLOSE:
        headers.append((b"connection", b"close"))
    if outcome.result is Result.METHOD_NOT_ALLOWED:
        headers.append((b"allow", b"POST"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _identity(raw: dict[bytes, bytes]) -> dict[str, str]:
    """Delivery id and event as the client gave them: they may be forged, and anything may stand in them."""
    return {"delivery_id": _word(raw.get(b"x-github-delivery", b"")), "github_event": _word(raw.get(b"x-github-event", b""))}


def _word(raw: bytes) -> str:
    text = raw.decode("latin-1")
    return text if len(text) <= 100 and _WORD.fullmatch(text) else foreign_text(text, limit=100)


def _log_delivery(raw: dict[bytes, bytes], outcome: Outcome, status: int, seconds: float) -> None:
    fields: dict[str, object] = {**_identity(raw), "result": outcome.result, "status": status, "duration_ms": round(seconds * 1000, 2)}
    if outcome.reason:
        fields["reason"] = outcome.reason
    if outcome.detail:
        fields["detail"] = outcome.detail
    message = outcome.message
    if message is not None:
        fields.update(repo=message.repo, pr_number=message.pr_number, commit_sha=message.commit_sha, requested_action=message.action)
    if status >= 500:
        _log.warning(Log.DELIVERY, **fields)
    else:
        _log.info(Log.DELIVERY, **fields)
