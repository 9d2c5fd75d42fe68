"""Where each endpoint is: method, path, and the page of GitHub's reference that an error points to.

The list is what the local GitHub can do; a path that is not in it is answered 404, as GitHub answers an unknown one.
`tests/contract/` checks that every entry stands in GitHub's published description.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from prevue.testing.github import endpoints


@dataclass(frozen=True, kw_only=True)
class Route:
    """One operation: where it is, what does it, its page under https://docs.github.com/rest, and whether it is content."""

    method: str
    path: str
    endpoint: Callable[[endpoints.Call], endpoints.Answer]
    page: str
    is_content: bool = False

    def pattern(self) -> re.Pattern[str]:
        """Return the expression that finds the path and its parameters, still percent-encoded."""
        return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.path))


_COMMENT = "/repos/{owner}/{repo}/issues/comments/{comment_id}"
_COMMENTS = "/repos/{owner}/{repo}/issues/{issue_number}/comments"

ROUTES = (
    Route(method="GET", path="/app", endpoint=endpoints.get_app, page="apps/apps"),
    Route(method="GET", path="/app/installations", endpoint=endpoints.list_installations, page="apps/apps"),
    Route(method="GET", path="/app/installations/{installation_id}", endpoint=endpoints.get_installation, page="apps/apps"),
    Route(
        method="POST",
        path="/app/installations/{installation_id}/access_tokens",
        endpoint=endpoints.create_token,
        page="apps/apps",
    ),
    Route(method="GET", path="/app/hook/deliveries", endpoint=endpoints.list_hook_deliveries, page="apps/webhooks"),
    Route(method="GET", path="/app/hook/deliveries/{delivery_id}", endpoint=endpoints.get_hook_delivery, page="apps/webhooks"),
    Route(
        method="POST",
        path="/app/hook/deliveries/{delivery_id}/attempts",
        endpoint=endpoints.redeliver,
        page="apps/webhooks",
    ),
    Route(method="GET", path="/installation/repositories", endpoint=endpoints.list_token_repositories, page="apps/installations"),
    Route(method="GET", path="/rate_limit", endpoint=endpoints.get_rate_limit, page="rate-limit/rate-limit"),
    Route(method="GET", path="/users/{username}", endpoint=endpoints.get_user, page="users/users"),
    Route(method="GET", path="/repos/{owner}/{repo}", endpoint=endpoints.get_repository, page="repos/repos"),
    Route(method="GET", path="/repos/{owner}/{repo}/installation", endpoint=endpoints.get_repository_installation, page="apps/apps"),
    Route(
        method="GET",
        path="/repos/{owner}/{repo}/collaborators/{username}/permission",
        endpoint=endpoints.get_permission,
        page="collaborators/collaborators",
    ),
    Route(method="GET", path="/repos/{owner}/{repo}/pulls", endpoint=endpoints.list_pulls, page="pulls/pulls"),
    Route(method="GET", path="/repos/{owner}/{repo}/pulls/{pull_number}", endpoint=endpoints.get_pull, page="pulls/pulls"),
    Route(
        method="GET",
        path="/repos/{owner}/{repo}/pulls/{pull_number}/commits",
        endpoint=endpoints.list_pull_commits,
        page="pulls/pulls",
    ),
    Route(
        method="GET",
        path="/repos/{owner}/{repo}/issues/comments",
        endpoint=endpoints.list_repository_comments,
        page="issues/comments",
    ),
    Route(method="GET", path="/repos/{owner}/{repo}/issues/{issue_number}", endpoint=endpoints.get_issue, page="issues/issues"),
    Route(method="GET", path=_COMMENTS, endpoint=endpoints.list_comments, page="issues/comments"),
    Route(method="POST", path=_COMMENTS, endpoint=endpoints.create_comment, page="issues/comments", is_content=True),
    Route(method="GET", path=_COMMENT, endpoint=endpoints.get_comment, page="issues/comments"),
    Route(method="PATCH", path=_COMMENT, endpoint=endpoints.update_comment, page="issues/comments", is_content=True),
    Route(method="DELETE", path=_COMMENT, endpoint=endpoints.delete_comment, page="issues/comments"),
    Route(method="GET", path=f"{_COMMENT}/reactions", endpoint=endpoints.list_reactions, page="reactions/reactions"),
    Route(
        method="POST",
        path=f"{_COMMENT}/reactions",
        endpoint=endpoints.create_reaction,
        page="reactions/reactions",
        is_content=True,
    ),
    Route(
        method="DELETE",
        path=f"{_COMMENT}/reactions/{{reaction_id}}",
        endpoint=endpoints.delete_reaction,
        page="reactions/reactions",
    ),
)
