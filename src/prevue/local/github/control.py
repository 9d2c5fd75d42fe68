"""The control paths under `/_local`: what a person, a demo or a test does to the local GitHub.

They are not GitHub's. Every body is checked against a typed form, unknown fields included, and a mistake is answered
422 with a sentence that names it. Invariant: a refused control request has changed nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prevue.local.github.avatar import avatar
from prevue.local.github.ci import OnPush
from prevue.testing.github import ControlError, Delivery, FakeGitHub, Fault, Issue
from prevue.testing.github.delivery_log import short_delivery

BODY_BYTES_MAX = 1_000_000
PER_PAGE_DEFAULT = 30

Form = TypeVar("Form", bound=msgspec.Struct)
Amount = Annotated[int, msgspec.Meta(ge=0)]


class Refused(Exception):
    """A control request that cannot be carried out, with the status and the sentence that say so."""

    def __init__(self, message: str, *, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


class OpenPull(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /_local/repos/{owner}/{repo}/pulls`; `image` false: the CI makes no image of the commit."""

    user: str
    head_sha: str | None = None
    fork: bool = False
    image: bool = True
    title: str | None = None
    body: str = ""


class Push(msgspec.Struct, forbid_unknown_fields=True):
    """`POST …/pulls/{n}/push`; an earlier commit's `sha` is a force-push back to it."""

    sha: str | None = None
    image: bool = True
    message: str | None = None


class ChangeState(msgspec.Struct, forbid_unknown_fields=True):
    """`POST …/pulls/{n}/close` and `…/reopen`; without `user`, the pull request's author does it."""

    user: str | None = None


class OpenIssue(msgspec.Struct, forbid_unknown_fields=True):
    """`POST …/issues`: a plain issue, to try a command where there is no pull request."""

    user: str
    title: str = "A plain issue"
    body: str = ""


class WriteComment(msgspec.Struct, forbid_unknown_fields=True):
    """`POST …/issues/{n}/comments`; a user that is new gets an account, `name[bot]` a bot's."""

    user: str
    body: str


class EditComment(msgspec.Struct, forbid_unknown_fields=True):
    """`PATCH …/issues/comments/{id}`."""

    body: str


class SetPermission(msgspec.Struct, forbid_unknown_fields=True):
    """`PUT …/collaborators/{user}`: admin, maintain, write, triage, read or none."""

    permission: str


class AddFault(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /_local/faults`; without `status` (or 0) no answer comes at all: the connection breaks after the delay."""

    path: str
    status: Annotated[int, msgspec.Meta(ge=0, le=599)] = 0
    times: Annotated[int, msgspec.Meta(ge=1)] = 1
    delay_ms: Annotated[float, msgspec.Meta(ge=0)] = 0
    method: str | None = None
    after: bool = False
    message: str | None = None
    headers: dict[str, str] = {}


class LoseWebhooks(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /_local/webhooks/lose`: the next happenings make no delivery; 0: none is lost any more."""

    times: Annotated[int, msgspec.Meta(ge=0)] = 1


class SetClock(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /_local/clock`: what happens from now on is dated so long ago; 0: now. Meanwhile an App's JWT seems to be of the future."""

    behind_seconds: Annotated[float, msgspec.Meta(ge=0, le=30 * 86_400)] = 0


class SetLimits(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /_local/limits`; null switches a limit off, an absent one stays as it is."""

    content_per_minute: Amount | msgspec.UnsetType | None = msgspec.UNSET
    content_per_hour: Amount | msgspec.UnsetType | None = msgspec.UNSET
    requests_per_hour: Amount | msgspec.UnsetType | None = msgspec.UNSET


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What control paths and pages share: the state, and the CI that runs at a push."""

    github: FakeGitHub
    on_push: OnPush | None

    async def open_pull(self, full_name: str, form: OpenPull) -> Issue:
        """Open a pull request and have its image made.

        Raises:
            ControlError: the state refuses.
            Refused: the CI failed (502); the pull request is open all the same.
        """
        issue = self.github.open_pull_request(
            full_name,
            form.user,
            head_sha=form.head_sha,
            fork=form.fork,
            title=form.title,
            body=form.body,
        )
        await self._make_image(full_name, issue, wanted=form.image)
        return issue

    async def push(self, full_name: str, number: int, form: Push) -> Issue:
        """Push to a pull request and have the image of its new head made.

        Raises:
            ControlError: the state refuses.
            Refused: the CI failed (502); the push has happened all the same.
        """
        issue = self.github.push(full_name, number, sha=form.sha, message=form.message)
        await self._make_image(full_name, issue, wanted=form.image)
        return issue

    async def _make_image(self, full_name: str, issue: Issue, *, wanted: bool) -> None:
        if not wanted or self.on_push is None or issue.pull is None:
            return
        try:
            await self.on_push(full_name, issue.pull.head_sha)
        except Exception as exc:
            # Whatever the stack's CI is: the push stands, and its failure is an answer.
            message = f"{full_name}#{issue.number} is at {issue.pull.head_sha}, but its image was not made: {exc}"
            raise Refused(message, status=502) from exc


async def refuse(_: Request, exc: Exception) -> Response:
    """Answer a `Refused`."""
    status = exc.status if isinstance(exc, Refused) else 500
    return JSONResponse({"message": str(exc)}, status_code=status)


async def read_form(request: Request, form: type[Form]) -> Form:
    """Read a JSON body into its form; no body at all counts as an empty object.

    Raises:
        Refused: not JSON, too large, a field that is missing, unknown or of another type.
    """
    body = await request.body()
    if len(body) > BODY_BYTES_MAX:
        raise Refused(f"the body is longer than {BODY_BYTES_MAX} bytes")
    try:
        return msgspec.json.decode(body.strip() or b"{}", type=form)
    except msgspec.ValidationError as exc:
        raise Refused(f"{exc}; accepted: {', '.join(form.__struct_fields__)}") from exc
    except msgspec.DecodeError as exc:
        raise Refused(f"the body is not JSON: {exc}") from exc


def full_name(request: Request) -> str:
    """Return the repository that the path names."""
    return f"{request.path_params['owner']}/{request.path_params['repo']}"


def number(request: Request, name: str = "number") -> int:
    """Return a numeric path parameter.

    Raises:
        Refused: it is not a number (404).
    """
    text = str(request.path_params[name])
    if not (text.isascii() and text.isdigit()):
        raise Refused(f"{text!r} is not a number", status=404)
    return int(text)


Handler = Callable[[Request], Awaitable[Response]]


def checked(handler: Handler) -> Handler:
    """Turn what the state refuses into an answer."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except ControlError as exc:
            raise Refused(str(exc), status=exc.status) from exc

    return answer


def show_delivery(delivery: Delivery) -> dict[str, Any]:
    """Return a delivery as the control path shows it: GitHub's own fields, the request, and the response (null: pending).

    `request.payload` is the decoded object, `request.body` the exact text that was signed.
    """
    response = delivery.response
    body = delivery.payload.decode()
    return {
        **short_delivery(delivery),
        "request": {"headers": dict(delivery.headers), "payload": msgspec.json.decode(body), "body": body},
        "response": None
        if response is None
        else {
            "status_code": response.status_code,
            "headers": dict(response.headers),
            "payload": response.payload,
            "error": response.error or None,
        },
    }


def _pull_json(github: FakeGitHub, name: str, issue: Issue) -> dict[str, Any]:
    page = github.render.page(github.repository(name), issue)
    sha = issue.pull.head_sha if issue.pull else None
    return {"number": issue.number, "head_sha": sha, "state": issue.state, "html_url": page}


def _pull_routes(desk: Desk) -> list[Route]:
    github = desk.github

    async def open_pull(request: Request) -> Response:
        issue = await desk.open_pull(full_name(request), await read_form(request, OpenPull))
        return JSONResponse(_pull_json(github, full_name(request), issue), status_code=201)

    async def push(request: Request) -> Response:
        issue = await desk.push(full_name(request), number(request), await read_form(request, Push))
        return JSONResponse(_pull_json(github, full_name(request), issue))

    async def close(request: Request) -> Response:
        form = await read_form(request, ChangeState)
        issue = github.close_pull_request(full_name(request), number(request), user=form.user)
        return JSONResponse(_pull_json(github, full_name(request), issue))

    async def reopen(request: Request) -> Response:
        form = await read_form(request, ChangeState)
        issue = github.reopen_pull_request(full_name(request), number(request), user=form.user)
        return JSONResponse(_pull_json(github, full_name(request), issue))

    pulls = "/repos/{owner}/{repo}/pulls"
    return [
        Route(pulls, checked(open_pull), methods=["POST"]),
        Route(pulls + "/{number}/push", checked(push), methods=["POST"]),
        Route(pulls + "/{number}/close", checked(close), methods=["POST"]),
        Route(pulls + "/{number}/reopen", checked(reopen), methods=["POST"]),
    ]


def _conversation_routes(desk: Desk) -> list[Route]:
    github = desk.github

    async def open_issue(request: Request) -> Response:
        form = await read_form(request, OpenIssue)
        issue = github.open_issue(full_name(request), form.user, title=form.title, body=form.body)
        return JSONResponse({"number": issue.number}, status_code=201)

    async def comment(request: Request) -> Response:
        form, name, where = await read_form(request, WriteComment), full_name(request), number(request)
        written = github.comment(name, where, form.user, form.body)
        return _comment_response(github, name, written.id, status=201)

    async def edit(request: Request) -> Response:
        form, name = await read_form(request, EditComment), full_name(request)
        return _comment_response(github, name, github.edit_comment(name, number(request), form.body).id)

    async def delete(request: Request) -> Response:
        github.delete_comment(full_name(request), number(request))
        return Response(status_code=204)

    async def set_permission(request: Request) -> Response:
        form, user = await read_form(request, SetPermission), request.path_params["user"]
        github.set_permission(full_name(request), user, form.permission)
        return JSONResponse({"user": user, "permission": form.permission})

    repo = "/repos/{owner}/{repo}"
    return [
        Route(repo + "/issues", checked(open_issue), methods=["POST"]),
        Route(repo + "/issues/{number}/comments", checked(comment), methods=["POST"]),
        Route(repo + "/issues/comments/{number}", checked(edit), methods=["PATCH"]),
        Route(repo + "/issues/comments/{number}", checked(delete), methods=["DELETE"]),
        Route(repo + "/collaborators/{user}", checked(set_permission), methods=["PUT"]),
    ]


def _comment_response(github: FakeGitHub, name: str, comment_id: int, *, status: int = 200) -> Response:
    body = github.render.comment(github.app, *github.find_comment(name, comment_id))
    return JSONResponse(body, status_code=status)


def _fault_json(fault: Fault) -> dict[str, Any]:
    return {
        "method": fault.method,
        "path": fault.path,
        "status": fault.status,
        "times": fault.times,
        "delay_ms": fault.delay_seconds * 1000,
        "after": fault.after,
    }


def _fault_routes(desk: Desk) -> list[Route]:
    github = desk.github

    async def add_fault(request: Request) -> Response:
        form = await read_form(request, AddFault)
        if not form.path.startswith("/"):
            raise Refused(f"path {form.path!r} does not start with a slash")
        if 100 <= form.status < 200:
            raise Refused(f"status {form.status} is not one that an answer ends with")
        fault = Fault(
            path=form.path,
            status=form.status,
            times=form.times,
            method=None if form.method is None else form.method.upper(),
            delay_seconds=form.delay_ms / 1000,
            after=form.after,
            message=form.message,
            headers=form.headers,
        )
        github.faults.append(fault)
        return JSONResponse(_fault_json(fault), status_code=201)

    async def list_faults(_: Request) -> Response:
        return JSONResponse([_fault_json(fault) for fault in github.faults])

    async def clear_faults(_: Request) -> Response:
        github.faults.clear()
        return Response(status_code=204)

    async def lose_webhooks(request: Request) -> Response:
        github.webhooks.losses = (await read_form(request, LoseWebhooks)).times
        return Response(status_code=204)

    async def set_clock(request: Request) -> Response:
        github.behind = timedelta(seconds=(await read_form(request, SetClock)).behind_seconds)
        return Response(status_code=204)

    async def set_limits(request: Request) -> Response:
        form, limits = await read_form(request, SetLimits), github.rate_limits.limits
        for name in form.__struct_fields__:
            value = getattr(form, name)
            if value is not msgspec.UNSET:
                setattr(limits, name, value)
        return JSONResponse({name: getattr(limits, name) for name in form.__struct_fields__})

    return [
        Route("/faults", add_fault, methods=["POST"]),
        Route("/faults", list_faults, methods=["GET"]),
        Route("/faults", clear_faults, methods=["DELETE"]),
        Route("/webhooks/lose", lose_webhooks, methods=["POST"]),
        Route("/clock", set_clock, methods=["POST"]),
        Route("/limits", set_limits, methods=["POST"]),
    ]


def _delivery_routes(desk: Desk) -> list[Route]:
    github = desk.github

    async def deliveries(request: Request) -> Response:
        text = request.query_params.get("per_page") or str(PER_PAGE_DEFAULT)
        if not (text.isascii() and text.isdigit()):
            raise Refused(f"per_page {text!r} is not a number")
        event = request.query_params.get("event") or None
        found = github.webhooks.log(event=event, per_page=int(text))
        return JSONResponse([show_delivery(delivery) for delivery in found])

    async def redeliver(request: Request) -> Response:
        guid = request.path_params["guid"]
        try:
            delivery = github.webhooks.redeliver(guid)
        except KeyError as exc:
            raise Refused(f"no delivery {guid}", status=404) from exc
        return JSONResponse(show_delivery(delivery), status_code=202)

    async def picture(request: Request) -> Response:
        headers = {"cache-control": "max-age=86400"}
        return Response(avatar(request.path_params["login"]), media_type="image/svg+xml", headers=headers)

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return [
        Route("/deliveries", deliveries, methods=["GET"]),
        Route("/deliveries/{guid}/redeliver", redeliver, methods=["POST"]),
        Route("/avatars/{login}", picture, methods=["GET"]),
        Route("/healthz", healthz, methods=["GET"]),
    ]


def routes(desk: Desk) -> list[Route]:
    """Return the control paths, to be mounted at `/_local`."""
    return [*_pull_routes(desk), *_conversation_routes(desk), *_fault_routes(desk), *_delivery_routes(desk)]
