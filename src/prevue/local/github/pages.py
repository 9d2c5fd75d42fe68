"""The local GitHub's pages: repositories, their pull requests, and a conversation that follows what happens.

Where they are is GitHub's own: `/{owner}/{repo}` and `/{owner}/{repo}/pull/{n}`. Every form is plain HTML and works
without a script; with one, the conversation refreshes by itself (`/live` beside the page) and a form does not reload
it. Invariant: a page changes nothing by being looked at, and what is being typed is never replaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from prevue.local.github import html
from prevue.local.github.control import Desk, OpenPull, Push, Refused, full_name, number
from prevue.testing.github import ControlError

_ACTIONS = ("comment", "push", "close", "reopen")


def routes(desk: Desk) -> list[Route]:
    """Return the pages' routes."""
    pages = _Pages(desk)
    return [
        Route("/", pages.index),
        Route("/{owner}/{repo}", pages.repository),
        Route("/{owner}/{repo}/pulls", pages.repository),
        Route("/{owner}/{repo}/pulls", pages.open_pull, methods=["POST"]),
        Route("/{owner}/{repo}/pull/{number}", pages.conversation),
        Route("/{owner}/{repo}/issues/{number}", pages.conversation),
        Route("/{owner}/{repo}/{kind}/{number}/live", pages.live),
        Route("/{owner}/{repo}/pull/{number}/{action}", pages.act, methods=["POST"]),
        Route("/{owner}/{repo}/issues/{number}/{action}", pages.act, methods=["POST"]),
    ]


async def _form(request: Request) -> dict[str, str]:
    """Return the fields of an HTML form.

    Raises:
        Refused: another site sent it (403).
    """
    if request.headers.get("sec-fetch-site") == "cross-site":
        raise Refused("this form was sent by another site", status=403)
    fields = parse_qs((await request.body()).decode(errors="replace"), keep_blank_values=True)
    return {name: values[-1] for name, values in fields.items()}


class _Pages:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._github = desk.github

    async def index(self, _: Request) -> Response:
        return HTMLResponse(html.index(self._github))

    async def repository(self, request: Request) -> Response:
        return await self._answer(request, self._show_repository)

    async def _show_repository(self, request: Request) -> Response:
        state = "closed" if request.query_params.get("state") == "closed" else "open"
        return HTMLResponse(html.repository(self._github, self._github.repository(full_name(request)), state=state))

    async def conversation(self, request: Request) -> Response:
        return await self._answer(request, self._show_conversation)

    async def _show_conversation(self, request: Request) -> Response:
        repository = self._github.repository(full_name(request))
        issue = self._github.issue(full_name(request), number(request))
        where = self._github.render.page(repository, issue).removeprefix(self._github.render.html_url)
        if request.url.path != where and request.url.path.lower() != where.lower():
            return RedirectResponse(where)
        return HTMLResponse(html.conversation(self._github, repository, issue))

    async def live(self, request: Request) -> Response:
        """Return the parts of a conversation's page that change, as JSON; 304 when none has since the reader's ETag."""
        try:
            repository = self._github.repository(full_name(request))
            issue = self._github.issue(full_name(request), number(request))
        except (ControlError, Refused) as exc:
            return JSONResponse({"message": str(exc)}, status_code=404)
        parts = html.live_parts(self._github, repository, issue)
        etag = f'"{hashlib.sha256("".join(parts.values()).encode()).hexdigest()[:32]}"'
        headers = {"etag": etag, "cache-control": "no-store"}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return JSONResponse(parts, headers=headers)

    async def open_pull(self, request: Request) -> Response:
        return await self._answer(request, self._open_pull)

    async def _open_pull(self, request: Request) -> Response:
        form, name = await _form(request), full_name(request)
        opening = OpenPull(
            user=form.get("user", ""),
            title=form.get("title", "").strip() or None,
            body=form.get("body", ""),
            fork="fork" in form,
            image="image" in form,
        )
        issue = await self._desk.open_pull(name, opening)
        return RedirectResponse(f"/{name}/pull/{issue.number}", status_code=303)

    async def act(self, request: Request) -> Response:
        return await self._answer(request, self._act)

    async def _act(self, request: Request) -> Response:
        form, name, where = await _form(request), full_name(request), number(request)
        action = request.path_params["action"]
        if action == "comment":
            self._github.comment(name, where, form.get("user", ""), form.get("body", ""))
        elif action == "push":
            await self._desk.push(name, where, Push(image="image" in form))
        elif action == "close":
            self._github.close_pull_request(name, where)
        elif action == "reopen":
            self._github.reopen_pull_request(name, where)
        else:
            raise Refused(f"{action!r} is not one of {', '.join(_ACTIONS)}", status=404)
        if request.headers.get("accept", "").startswith("application/json"):
            return Response(status_code=204)
        return RedirectResponse(request.url.path.rsplit("/", 1)[0], status_code=303)

    async def _answer(self, request: Request, page: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            return await page(request)
        except (ControlError, Refused) as exc:
            if request.headers.get("accept", "").startswith("application/json"):
                return JSONResponse({"message": str(exc)}, status_code=exc.status)
            return HTMLResponse(html.problem(str(exc)), status_code=exc.status)
