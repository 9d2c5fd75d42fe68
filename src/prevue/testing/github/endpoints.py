"""The endpoints of GitHub's REST API that Prevue calls, each a function of a call; `routes.py` says where each is.

What surrounds a call (who it is, limits, faults, headers) is `rest.py`. Invariant: an endpoint either answers or
raises, and has changed nothing when it raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec

from prevue.testing.github.auth import ApiError, Caller
from prevue.testing.github.delivery_log import full_delivery, short_delivery
from prevue.testing.github.records import Comment, Delivery, Issue, Repository, Request, Token
from prevue.testing.github.render import Json
from prevue.testing.github.state import ControlError, GitHubState

PER_PAGE_MAX = 100


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A status and a body that is still an object; None: no body."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = {}


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A request together with who makes it, the path's parameters and what it is made to."""

    github: GitHubState
    caller: Caller
    request: Request
    parameters: dict[str, str]

    @property
    def full_name(self) -> str:
        """The repository that the path names, `owner/name`."""
        return f"{self.parameters['owner']}/{self.parameters['repo']}"

    def repository(self) -> Repository:
        """Return the repository that the path names."""
        return self.github.repository(self.full_name)

    def number(self, name: str) -> int:
        """Return a numeric path parameter.

        Raises:
            ApiError: 404, it is not a number.
        """
        text = self.parameters[name]
        if not (text.isascii() and text.isdigit()):
            raise ApiError(404, "Not Found")
        return int(text)

    def query(self) -> dict[str, str]:
        """Return the query's parameters, the last one of each name."""
        return dict(parse_qsl(self.request.query, keep_blank_values=True))

    def need_app(self) -> None:
        """Refuse whoever is not the App itself.

        Raises:
            ApiError: 401.
        """
        if not self.caller.is_app:
            raise ApiError(401, "A JSON web token could not be decoded")

    def need_token(self, repository: Repository | None, *any_of: str) -> Token:
        """Return the caller's token, which must cover the repository and may write one of `any_of`.

        Raises:
            ApiError: 401 without a token, 403 when it does not reach that far.
        """
        token = self.caller.token
        if token is None:
            raise ApiError(401, "Requires authentication")
        if repository is not None:
            installation = self.github.installation_of(repository)
            covered = token.repository_ids is None or repository.id in token.repository_ids
            allowed = not any_of or any(token.permissions.get(name) == "write" for name in any_of)
            if installation is not token.installation or not covered or not allowed:
                raise ApiError(403, "Resource not accessible by integration")
        return token

    def json(self) -> Json:
        """Return the request's body, which must be a JSON object; nothing at all counts as an empty one.

        Raises:
            ApiError: 400, GitHub's answers to what is not JSON or not an object.
        """
        if not self.request.body.strip():
            return {}
        try:
            body = msgspec.json.decode(self.request.body)
        except msgspec.DecodeError as exc:
            raise ApiError(400, "Problems parsing JSON") from exc
        if not isinstance(body, dict):
            raise ApiError(400, "Body should be a JSON object")
        return body

    def text(self, name: str) -> str:
        """Return a required string of the request's body.

        Raises:
            ApiError: 422, absent or of another type.
        """
        value = self.json().get(name)
        if value is None:
            raise ApiError(422, f'Invalid request.\n\n"{name}" wasn\'t supplied.')
        if not isinstance(value, str):
            raise ApiError(422, f"Invalid request.\n\nFor 'properties/{name}', {value!r} is not a string.")
        return value

    def page(self, items: Sequence[Any], render: Callable[[Any], Json | msgspec.Raw]) -> Answer:
        """Return one page of a list, with GitHub's Link header where there are more."""
        query = self.query()
        per_page = min(_positive(query.get("per_page"), 30), PER_PAGE_MAX)
        page, last = _positive(query.get("page"), 1), max(1, -(-len(items) // per_page))
        wanted = {"prev": page - 1, "next": page + 1, "last": last, "first": 1}
        names = ("prev", "next", "last", "first") if 1 < page < last else ("next", "last") if page < last else ()
        if page >= last > 1:
            names = ("prev", "first")
        # GitHub's links name a repository by its number, whatever the request named it by.
        path = self.request.path
        if path.startswith("/repos/"):
            path = f"/repositories/{self.repository().id}/{path.split('/', 4)[4]}"
        base = f"{self.github.render.api_url}{path}"
        links = [f'<{base}?{urlencode({**query, "page": min(wanted[name], last)})}>; rel="{name}"' for name in names]
        shown = items[(page - 1) * per_page : page * per_page]
        return Answer(body=[render(item) for item in shown], headers={"link": ", ".join(links)} if links else {})

    def render_comment(self, repository: Repository, issue: Issue, comment: Comment) -> Json:
        """Render a comment."""
        return self.github.render.comment(self.github.app, repository, issue, comment)

    def listed_comment(self, repository: Repository, issue: Issue, comment: Comment) -> msgspec.Raw:
        """Render a comment for a list: once while it stays as it is, since conversations are read over and over."""
        association = self.github.render.association(repository, comment.author)
        state = (repository.full_name, comment.body, comment.updated_at, association, len(comment.reactions))
        if comment.listed is None or comment.listed[0] != state:
            comment.listed = state, msgspec.Raw(msgspec.json.encode(self.render_comment(repository, issue, comment)))
        return comment.listed[1]

    def since(self) -> datetime | None:
        """Return the query's `since`.

        Raises:
            ApiError: 422, it is not a time.
        """
        if (text := self.query().get("since")) is None:
            return None
        try:
            moment = datetime.fromisoformat(text.replace(" ", "+"))
        except ValueError as exc:
            raise ApiError(422, f"Invalid request.\n\n{text!r} is not a valid date-time.") from exc
        return moment if moment.tzinfo else moment.replace(tzinfo=self.github.now().tzinfo)


def _positive(text: str | None, default: int) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and int(text) > 0 else default


# -- the App ------------------------------------------------------------------------------------------------------------


def get_app(call: Call) -> Answer:
    """`GET /app`."""
    call.need_app()
    return Answer(body=call.github.render.app(call.github.app, len(call.github.installations)))


def list_installations(call: Call) -> Answer:
    """`GET /app/installations`."""
    call.need_app()
    github = call.github
    return call.page(list(github.installations.values()), lambda i: github.render.installation(github.app, i))


def get_installation(call: Call) -> Answer:
    """`GET /app/installations/{installation_id}`."""
    call.need_app()
    installation = call.github.installations.get(call.number("installation_id"))
    if installation is None:
        raise ApiError(404, "Not Found")
    return Answer(body=call.github.render.installation(call.github.app, installation))


def get_repository_installation(call: Call) -> Answer:
    """`GET /repos/{owner}/{repo}/installation`."""
    call.need_app()
    installation = call.github.installation_of(call.repository())
    if installation is None:
        raise ApiError(404, "Not Found")
    return Answer(body=call.github.render.installation(call.github.app, installation))


def create_token(call: Call) -> Answer:
    """`POST /app/installations/{installation_id}/access_tokens`: a token of one hour, perhaps narrower than the App."""
    call.need_app()
    github = call.github
    installation = github.installations.get(call.number("installation_id"))
    if installation is None:
        raise ApiError(404, "Not Found")
    if installation.suspended_at is not None:
        raise ApiError(403, "This installation has been suspended")
    body = call.json()
    permissions = body.get("permissions", dict(github.app.permissions))
    ranks = {"read": 1, "write": 2, "admin": 3}
    if not isinstance(permissions, dict) or any(
        ranks.get(str(level), 9) > ranks.get(github.app.permissions.get(name, ""), 0) for name, level in permissions.items()
    ):
        raise ApiError(422, "The permissions requested are not granted to this installation.")
    repositories = _token_repositories(call, installation.account.login, body)
    ids = None if repositories is None else frozenset(repository.id for repository in repositories)
    token = github.new_token(installation, permissions=permissions, repository_ids=ids)
    return Answer(body=github.render.token(token, repositories), status=201)


def _token_repositories(call: Call, account: str, body: Json) -> list[Repository] | None:
    names, ids = body.get("repositories"), body.get("repository_ids")
    if names is None and ids is None:
        return None
    installed = {r.id: r for r in call.github.repositories.values() if r.installed and r.owner.login == account}
    wanted = [r for r in installed.values() if r.name in (names or []) or r.id in (ids or [])]
    if len(wanted) < len(set(names or [])) or len(wanted) < len(set(ids or [])):
        message = "There is at least one repository that does not exist or is not accessible to the parent installation."
        raise ApiError(422, message)
    return wanted


def list_token_repositories(call: Call) -> Answer:
    """`GET /installation/repositories`."""
    token, github = call.need_token(None), call.github
    reachable = [
        repository
        for repository in github.repositories.values()
        if github.installation_of(repository) is token.installation
        and (token.repository_ids is None or repository.id in token.repository_ids)
    ]
    page = call.page(reachable, github.render.repository)
    body = {"total_count": len(reachable), "repository_selection": "selected", "repositories": page.body}
    return Answer(body=body, headers=page.headers)


def list_hook_deliveries(call: Call) -> Answer:
    """`GET /app/hook/deliveries`: newest first, paged by a cursor, for at most as long as the log remembers."""
    call.need_app()
    query = call.query()
    per_page = min(_positive(query.get("per_page"), 30), PER_PAGE_MAX)
    before = _positive(query.get("cursor", "").removeprefix("v1_"), 2**63)
    found = [delivery for delivery in call.github.webhooks.log() if delivery.id < before]
    headers = {}
    if len(found) > per_page:
        cursor = urlencode({**query, "cursor": f"v1_{found[per_page - 1].id}"})
        headers["link"] = f'<{call.github.render.api_url}{call.request.path}?{cursor}>; rel="next"'
    return Answer(body=[short_delivery(delivery) for delivery in found[:per_page]], headers=headers)


def get_hook_delivery(call: Call) -> Answer:
    """`GET /app/hook/deliveries/{delivery_id}`: with the payload that was sent and what came back."""
    return Answer(body=full_delivery(_delivery(call)))


def redeliver(call: Call) -> Answer:
    """`POST /app/hook/deliveries/{delivery_id}/attempts`: the same guid and bytes go out again."""
    call.github.webhooks.redeliver(_delivery(call).guid)
    return Answer(body={}, status=202)


def _delivery(call: Call) -> Delivery:
    call.need_app()
    wanted = call.number("delivery_id")
    found = next((delivery for delivery in call.github.webhooks.log() if delivery.id == wanted), None)
    if found is None:
        raise ApiError(404, "Not Found")
    return found


# -- users and repositories ---------------------------------------------------------------------------------------------


def get_user(call: Call) -> Answer:
    """`GET /users/{username}`."""
    if (user := call.github.users.get(call.parameters["username"].lower())) is None:
        raise ApiError(404, "Not Found")
    return Answer(body=call.github.render.full_user(user))


def get_repository(call: Call) -> Answer:
    """`GET /repos/{owner}/{repo}`; `/repositories/{id}` leads here too."""
    return Answer(body=call.github.render.full_repository(call.repository()))


def get_permission(call: Call) -> Answer:
    """`GET /repos/{owner}/{repo}/collaborators/{username}/permission`: needs a token, even on a public repository."""
    repository = call.repository()
    call.need_token(repository)
    if (user := call.github.users.get(call.parameters["username"].lower())) is None:
        raise ApiError(404, f"{call.parameters['username']} is not a user")
    return Answer(body=call.github.render.permission(user, call.github.role(repository, user)))


def get_rate_limit(call: Call) -> Answer:
    """`GET /rate_limit`: asking does not count."""
    status = call.github.rate_limits.status(call.caller.limit_key, call.github.exact_now())
    other = {"limit": 30, "remaining": 30, "reset": status["reset"], "used": 0}
    return Answer(body={"resources": {"core": status, "search": other}, "rate": status})


# -- pull requests and issues -------------------------------------------------------------------------------------------


def list_pulls(call: Call) -> Answer:
    """`GET /repos/{owner}/{repo}/pulls`: by default the open ones, newest first."""
    repository, query = call.repository(), call.query()
    state, head = query.get("state", "open"), query.get("head")
    found = [
        issue
        for issue in repository.issues.values()
        if issue.pull is not None
        and state in ("all", issue.state)
        and head in (None, f"{issue.pull.head_repository.owner.login}:{issue.pull.head_ref}")
        and query.get("base", "main") == "main"
    ]
    updated = query.get("sort") == "updated"
    found.sort(key=lambda issue: (issue.updated_at if updated else issue.created_at, issue.number))
    if query.get("direction", "desc") == "desc":
        found.reverse()
    render = call.github.render
    return call.page(found, lambda issue: render.pull_simple(repository, issue, issue.pull))


def get_pull(call: Call) -> Answer:
    """`GET /repos/{owner}/{repo}/pulls/{pull_number}`."""
    return Answer(body=call.github.render.pull(*call.github.pull(call.full_name, call.number("pull_number"))))


def list_pull_commits(call: Call) -> Answer:
    """`GET /repos/{owner}/{repo}/pulls/{pull_number}/commits`: oldest first."""
    repository, _, pull = call.github.pull(call.full_name, call.number("pull_number"))
    parents = [pull.base_sha, *(commit.sha for commit in pull.commits)]
    pairs = list(zip(pull.commits, parents, strict=False))
    return call.page(pairs, lambda pair: call.github.render.commit(repository, *pair))


def get_issue(call: Call) -> Answer:
    """`GET /repos/{owner}/{repo}/issues/{issue_number}`, of a pull request too."""
    issue = call.github.issue(call.full_name, call.number("issue_number"))
    return Answer(body=call.github.render.issue(call.repository(), issue))


# -- comments and reactions ---------------------------------------------------------------------------------------------


def list_comments(call: Call) -> Answer:
    """`GET /repos/{owner}/{repo}/issues/{issue_number}/comments`: oldest first, perhaps only those updated `since`."""
    repository, issue = call.repository(), call.github.issue(call.full_name, call.number("issue_number"))
    since = call.since()
    found = [comment for comment in issue.comments.values() if since is None or comment.updated_at >= since]
    return call.page(found, lambda comment: call.listed_comment(repository, issue, comment))


def list_repository_comments(call: Call) -> Answer:
    """`GET /repos/{owner}/{repo}/issues/comments`: every conversation's, by creation or update."""
    repository, query, since = call.repository(), call.query(), call.since()
    found = [pair for pair in repository.comments.values() if since is None or pair[1].updated_at >= since]
    updated = query.get("sort") == "updated"
    found.sort(key=lambda pair: (pair[1].updated_at if updated else pair[1].created_at, pair[1].id))
    if query.get("direction") == "desc":
        found.reverse()
    return call.page(found, lambda pair: call.listed_comment(repository, *pair))


def get_comment(call: Call) -> Answer:
    """`GET /repos/{owner}/{repo}/issues/comments/{comment_id}`."""
    return Answer(body=call.render_comment(*call.github.find_comment(call.full_name, call.number("comment_id"))))


def create_comment(call: Call) -> Answer:
    """`POST /repos/{owner}/{repo}/issues/{issue_number}/comments`, as the App's bot."""
    github, repository = call.github, call.repository()
    call.need_token(repository, "issues", "pull_requests")
    issue, body = github.issue(call.full_name, call.number("issue_number")), call.text("body")
    comment = github.write_comment(repository, issue, github.app.bot, body, via_app=True)
    rendered = call.render_comment(repository, issue, comment)
    return Answer(body=rendered, status=201, headers={"location": rendered["url"]})


def update_comment(call: Call) -> Answer:
    """`PATCH /repos/{owner}/{repo}/issues/comments/{comment_id}`."""
    github, number = call.github, call.number("comment_id")
    repository, issue, comment = github.find_comment(call.full_name, number)
    call.need_token(repository, "issues", "pull_requests")
    github.edit_comment(call.full_name, number, call.text("body"), editor=github.app.bot)
    return Answer(body=call.render_comment(repository, issue, comment))


def delete_comment(call: Call) -> Answer:
    """`DELETE /repos/{owner}/{repo}/issues/comments/{comment_id}`."""
    call.need_token(call.repository(), "issues", "pull_requests")
    call.github.delete_comment(call.full_name, call.number("comment_id"), editor=call.github.app.bot)
    return Answer(status=204)


def list_reactions(call: Call) -> Answer:
    """`GET /repos/{owner}/{repo}/issues/comments/{comment_id}/reactions`."""
    _, _, comment = call.github.find_comment(call.full_name, call.number("comment_id"))
    content = call.query().get("content")
    found = [reaction for reaction in comment.reactions if content in (None, reaction.content)]
    return call.page(found, call.github.render.reaction)


def create_reaction(call: Call) -> Answer:
    """`POST /repos/{owner}/{repo}/issues/comments/{comment_id}/reactions`: 200 instead of 201 when it exists."""
    repository, _, _ = call.github.find_comment(call.full_name, call.number("comment_id"))
    call.need_token(repository, "issues", "pull_requests")
    content = call.text("content")
    reaction, new = call.github.react(call.full_name, call.number("comment_id"), call.github.app.bot, content)
    return Answer(body=call.github.render.reaction(reaction), status=201 if new else 200)


def delete_reaction(call: Call) -> Answer:
    """`DELETE /repos/{owner}/{repo}/issues/comments/{comment_id}/reactions/{reaction_id}`."""
    repository, _, comment = call.github.find_comment(call.full_name, call.number("comment_id"))
    call.need_token(repository, "issues", "pull_requests")
    wanted = call.number("reaction_id")
    found = next((reaction for reaction in comment.reactions if reaction.id == wanted), None)
    if found is None:
        raise ControlError(f"no reaction {wanted}", status=404)
    comment.reactions.remove(found)
    return Answer(status=204)
