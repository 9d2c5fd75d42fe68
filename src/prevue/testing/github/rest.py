"""`FakeGitHub`: the state together with its REST API, as one function from request to response.

`handle` does what GitHub's front does around every endpoint: it plays the faults that were asked for, finds out who
calls, counts limits, and dresses the answer in GitHub's headers and error bodies. No socket, no waiting: a delay is a
number in the response, and whoever carries it over a wire waits.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import msgspec

from prevue.testing.github.auth import ApiError, Caller, identify
from prevue.testing.github.endpoints import Answer, Call
from prevue.testing.github.limits import secondary_limit
from prevue.testing.github.records import Fault, Request, Response
from prevue.testing.github.routes import ROUTES, Route
from prevue.testing.github.state import ControlError, GitHubState

API_PREFIXES = ("app", "installation", "rate_limit", "repos", "repositories", "users")
"""The first segments of the paths that are API, so that a door can keep its pages apart from them."""

_ROUTES = tuple((route, route.pattern()) for route in ROUTES)
_DOCUMENTATION = "https://docs.github.com/rest"
_FAULT_MESSAGES = {
    401: "Bad credentials",
    403: "Resource not accessible by integration",
    404: "Not Found",
    500: "Server Error",
    502: "Server Error",
    503: "Service Unavailable",
}


class FakeGitHub(GitHubState):
    """One GitHub: what people do (`GitHubState`) and what programs ask (`handle`)."""

    def handle(self, request: Request) -> Response:
        """Answer a request to the REST API, faults included; never raises for what a caller can send."""
        fault = self._take_fault(request)
        if fault is None:
            return self._work(request)
        if fault.after or 0 < fault.status < 400:
            response = self._work(request)
            if 0 < fault.status < 400:
                return _delayed(response, fault.delay_seconds)
        return self._play(fault)

    def _take_fault(self, request: Request) -> Fault | None:
        for fault in self.faults:
            if request.path.startswith(fault.path) and fault.method in (None, request.method):
                fault.times -= 1
                if fault.times <= 0:
                    self.faults.remove(fault)
                return fault
        return None

    def _play(self, fault: Fault) -> Response:
        if fault.status == 0:
            return Response(status=0, headers={}, body=b"", delay_seconds=fault.delay_seconds)
        error = ApiError(fault.status, fault.message or _FAULT_MESSAGES.get(fault.status, "A fault was asked for"))
        if fault.status == 429 and fault.message is None:
            error = secondary_limit(1, status=429)
        error.headers.update(fault.headers)
        response = self._respond(_error(error, None), Caller())
        return _delayed(response, fault.delay_seconds)

    def _work(self, request: Request) -> Response:
        caller, route = Caller(), None
        try:
            authorization = request.header("authorization")
            caller = identify(authorization, tokens=self.tokens, app=self.app, public_key=self.public_key, now=self.now())
            path = self._canonical(request.path)
            if path != "/rate_limit":
                self.rate_limits.count_request(caller.limit_key, self.exact_now())
            route, parameters = _find(request.method, path)
            call = Call(github=self, caller=caller, request=request, parameters=dict(parameters))
            if route.is_content and caller.token is not None:
                self.rate_limits.count_content(caller.limit_key, self.exact_now())
            answer = route.endpoint(call)
        except ApiError as exc:
            answer = _error(exc, route)
        except ControlError as exc:
            answer = _error(_as_api_error(exc), route)
        return self._respond(answer, caller, if_none_match=request.header("if-none-match"))

    def _canonical(self, path: str) -> str:
        """Return the path by name for one by number: `/repositories/{id}/…` is `/repos/{owner}/{repo}/…`."""
        if not path.startswith("/repositories/") or (match := re.fullmatch(r"/repositories/(\d+)(/.*)?", path)) is None:
            return path.rstrip("/") or "/"
        wanted = int(match[1])
        for repository in self.repositories.values():
            if repository.id == wanted:
                return f"/repos/{repository.full_name}{match[2] or ''}".rstrip("/")
        raise ApiError(404, "Not Found")

    def _respond(self, answer: Answer, caller: Caller, *, if_none_match: str | None = None) -> Response:
        self.requests_answered += 1
        body = b"" if answer.body is None else msgspec.json.encode(answer.body)
        headers = {
            "server": "github.com",
            "x-github-request-id": f"LOCAL:{self.requests_answered:08X}",
            "x-github-media-type": "github.v3; format=json",
            **self.rate_limits.headers(caller.limit_key, self.exact_now()),
            **answer.headers,
        }
        status = answer.status
        if status == 200:
            headers["etag"] = f'W/"{zlib.crc32(body):08x}{len(body):x}"'
            if if_none_match == headers["etag"]:
                return Response(status=304, headers=headers, body=b"")
        if body:
            headers["content-type"] = "application/json; charset=utf-8"
        return Response(status=status, headers=headers, body=body)


def _delayed(response: Response, delay_seconds: float) -> Response:
    return Response(status=response.status, headers=response.headers, body=response.body, delay_seconds=delay_seconds)


@lru_cache(maxsize=4_096)
def _find(method: str, path: str) -> tuple[Route, dict[str, str]]:
    for route, pattern in _ROUTES:
        if route.method == method and (match := pattern.fullmatch(path)):
            return route, {name: unquote(value) for name, value in match.groupdict().items()}
    raise ApiError(404, "Not Found")


def _as_api_error(error: ControlError) -> ApiError:
    """Return what GitHub says over REST to what the state refuses."""
    if error.status == 404:
        return ApiError(404, "Not Found")
    details = {"resource": "IssueComment", "code": "unprocessable", "field": "data", "message": str(error)}
    return ApiError(422, "Validation Failed", errors=[details])


def _error(error: ApiError, route: Route | None) -> Answer:
    page = _DOCUMENTATION if route is None else f"{_DOCUMENTATION}/{route.page}"
    body: dict[str, Any] = {"message": error.message}
    if error.errors is not None:
        body["errors"] = error.errors
    body["documentation_url"] = error.documentation_url or page
    body["status"] = str(error.status)
    return Answer(body=body, status=error.status, headers=error.headers)
