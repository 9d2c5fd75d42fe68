"""Records → the JSON that GitHub's REST API and its webhooks carry.

Pure functions of a record and of the two base URLs. What they produce is checked against GitHub's published
description (`tests/contract/test_local_github.py`); a field that GitHub does not have fails there as much as a missing one.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from prevue.testing.github.records import (
    PERMISSIONS,
    REACTIONS,
    App,
    Comment,
    Commit,
    Installation,
    Issue,
    Pull,
    Reaction,
    Repository,
    Token,
    User,
)

Json = dict[str, Any]

_REPOSITORY_PATHS: Mapping[str, str] = {
    "archive_url": "/{archive_format}{/ref}",
    "assignees_url": "/assignees{/user}",
    "blobs_url": "/git/blobs{/sha}",
    "branches_url": "/branches{/branch}",
    "collaborators_url": "/collaborators{/collaborator}",
    "comments_url": "/comments{/number}",
    "commits_url": "/commits{/sha}",
    "compare_url": "/compare/{base}...{head}",
    "contents_url": "/contents/{+path}",
    "contributors_url": "/contributors",
    "deployments_url": "/deployments",
    "downloads_url": "/downloads",
    "events_url": "/events",
    "forks_url": "/forks",
    "git_commits_url": "/git/commits{/sha}",
    "git_refs_url": "/git/refs{/sha}",
    "git_tags_url": "/git/tags{/sha}",
    "hooks_url": "/hooks",
    "issue_comment_url": "/issues/comments{/number}",
    "issue_events_url": "/issues/events{/number}",
    "issues_url": "/issues{/number}",
    "keys_url": "/keys{/key_id}",
    "labels_url": "/labels{/name}",
    "languages_url": "/languages",
    "merges_url": "/merges",
    "milestones_url": "/milestones{/number}",
    "notifications_url": "/notifications{?since,all,participating}",
    "pulls_url": "/pulls{/number}",
    "releases_url": "/releases{/id}",
    "stargazers_url": "/stargazers",
    "statuses_url": "/statuses/{sha}",
    "subscribers_url": "/subscribers",
    "subscription_url": "/subscription",
    "tags_url": "/tags",
    "teams_url": "/teams",
    "trees_url": "/git/trees{/sha}",
}

_USER_PATHS: Mapping[str, str] = {
    "followers_url": "/followers",
    "following_url": "/following{/other_user}",
    "gists_url": "/gists{/gist_id}",
    "starred_url": "/starred{/owner}{/repo}",
    "subscriptions_url": "/subscriptions",
    "organizations_url": "/orgs",
    "repos_url": "/repos",
    "events_url": "/events{/privacy}",
    "received_events_url": "/received_events",
}


@lru_cache(maxsize=4_096)  # the simulation renders the same times, ids and accounts by the hundred thousand
def timestamp(moment: datetime) -> str:
    """Return a time as GitHub writes it: UTC, whole seconds, `Z`."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@lru_cache(maxsize=4_096)
def node_id(kind: str, number: int) -> str:
    """Return a GraphQL-style node id; opaque, unique per kind and number."""
    return f"{kind}_" + base64.urlsafe_b64encode(f"{kind}{number}".encode()).decode().rstrip("=")


@lru_cache(maxsize=1_024)
def _user(api_url: str, html_url: str, user_id: int, login: str, kind: str) -> Json:
    """An account; nothing of it ever changes."""
    url = f"{api_url}/users/{quote(login)}"
    page = f"apps/{login.removesuffix('[bot]')}" if kind == "Bot" else login
    return {
        "login": login,
        "id": user_id,
        "node_id": node_id({"User": "U", "Bot": "BOT", "Organization": "O"}[kind], user_id),
        "avatar_url": f"{html_url}/_local/avatars/{quote(login)}",
        "gravatar_id": "",
        "url": url,
        "html_url": f"{html_url}/{page}",
        **{name: url + path for name, path in _USER_PATHS.items()},
        "type": kind,
        "site_admin": False,
    }


@dataclass(frozen=True, kw_only=True)
class Renderer:
    """Renders records; `api_url` and `html_url` are the bases of the two kinds of link, without a final slash."""

    api_url: str
    html_url: str

    # -- accounts ---------------------------------------------------------------------------------------------------

    def user(self, user: User) -> Json:
        """Render an account as it stands inside other objects (`simple-user`)."""
        return dict(_user(self.api_url, self.html_url, user.id, user.login, user.type))

    def full_user(self, user: User) -> Json:
        """Render an account as its own endpoint shows it (`public-user`)."""
        nothing = ("company", "location", "email", "hireable", "bio", "twitter_username")
        return {
            **self.user(user),
            **dict.fromkeys(nothing),
            "user_view_type": "public",
            "name": user.login,
            "blog": "",
            **dict.fromkeys(("public_repos", "public_gists", "followers", "following"), 0),
            "created_at": timestamp(user.created_at),
            "updated_at": timestamp(user.created_at),
        }

    def organization(self, user: User) -> Json:
        """Render an organisation as webhooks carry it (`organization-simple`)."""
        url = f"{self.api_url}/orgs/{user.login}"
        plain = ("repos", "events", "hooks", "issues")
        return {
            "login": user.login,
            "id": user.id,
            "node_id": node_id("O", user.id),
            "url": url,
            **{f"{name}_url": f"{url}/{name}" for name in plain},
            "members_url": url + "/members{/member}",
            "public_members_url": url + "/public_members{/member}",
            "avatar_url": f"{self.html_url}/_local/avatars/{quote(user.login)}",
            "description": None,
        }

    def permission(self, user: User, role: str) -> Json:
        """Render what a user may do in a repository: the coarse `permission` and the exact `role_name`."""
        coarse = PERMISSIONS[role]
        ranks = ("pull", "triage", "push", "maintain", "admin")
        rank = {"none": 0, "read": 1, "triage": 2, "write": 3, "maintain": 4, "admin": 5}[role]
        flags = {name: index < rank for index, name in enumerate(ranks)}
        return {
            "permission": coarse,
            "role_name": role,
            "user": {**self.user(user), "permissions": flags, "role_name": role},
        }

    # -- the App ----------------------------------------------------------------------------------------------------

    def app(self, app: App, installations: int | None = None) -> Json:
        """Render the App (`integration`), with its number of installations where GitHub shows it (`GET /app`)."""
        body: Json = {
            "id": app.id,
            "client_id": app.client_id,
            "slug": app.slug,
            "node_id": node_id("A", app.id),
            "owner": self.user(app.owner),
            "name": app.slug,
            "description": "",
            "external_url": self.html_url,
            "html_url": f"{self.html_url}/apps/{app.slug}",
            "created_at": timestamp(app.created_at),
            "updated_at": timestamp(app.created_at),
            "permissions": dict(app.permissions),
            "events": list(app.events),
        }
        return body if installations is None else {**body, "installations_count": installations}

    def installation(self, app: App, installation: Installation) -> Json:
        """Render one installation of the App."""
        account, suspended = installation.account, installation.suspended_at
        organization = account.type == "Organization"
        settings = f"/organizations/{account.login}/settings" if organization else "/settings"
        return {
            "id": installation.id,
            "client_id": app.client_id,
            "account": self.user(account),
            "repository_selection": "selected",
            "access_tokens_url": f"{self.api_url}/app/installations/{installation.id}/access_tokens",
            "repositories_url": f"{self.api_url}/installation/repositories",
            "html_url": f"{self.html_url}{settings}/installations/{installation.id}",
            "app_id": app.id,
            "app_slug": app.slug,
            "target_id": account.id,
            "target_type": account.type,
            "permissions": dict(app.permissions),
            "events": list(app.events),
            "created_at": timestamp(installation.created_at),
            "updated_at": timestamp(suspended or installation.created_at),
            "single_file_name": None,
            "has_multiple_single_files": False,
            "single_file_paths": [],
            "suspended_by": None if suspended is None else self.user(account),
            "suspended_at": None if suspended is None else timestamp(suspended),
        }

    def token(self, token: Token, repositories: Sequence[Repository] | None) -> Json:
        """Render a fresh installation token; `repositories` where the caller asked for some only."""
        body: Json = {
            "token": token.value,
            "expires_at": timestamp(token.expires_at),
            "permissions": dict(token.permissions),
            "repository_selection": "selected",
        }
        return body if repositories is None else {**body, "repositories": [self.repository(r) for r in repositories]}

    # -- repositories -----------------------------------------------------------------------------------------------

    def repository(self, repository: Repository) -> Json:
        """Render a repository as it stands inside other objects and in webhooks (`repository`)."""
        url = f"{self.api_url}/repos/{repository.full_name}"
        page = f"{self.html_url}/{repository.full_name}"
        host = self.html_url.split("://", 1)[-1]
        open_issues = sum(issue.state == "open" for issue in repository.issues.values())
        return {
            "id": repository.id,
            "node_id": node_id("R", repository.id),
            "name": repository.name,
            "full_name": repository.full_name,
            "private": False,
            "owner": self.user(repository.owner),
            "html_url": page,
            "description": None,
            "fork": repository.parent is not None,
            "url": url,
            **{name: url + path for name, path in _REPOSITORY_PATHS.items()},
            "created_at": timestamp(repository.created_at),
            "updated_at": timestamp(repository.pushed_at),
            "pushed_at": timestamp(repository.pushed_at),
            "git_url": f"git://{host}/{repository.full_name}.git",
            "ssh_url": f"git@{host.split(':')[0]}:{repository.full_name}.git",
            "clone_url": f"{page}.git",
            "svn_url": page,
            **dict.fromkeys(("homepage", "language", "mirror_url", "license")),
            **dict.fromkeys(("size", "stargazers_count", "watchers_count", "forks_count", "forks", "watchers"), 0),
            "open_issues_count": open_issues,
            "open_issues": open_issues,
            **dict.fromkeys(("has_issues", "has_projects", "has_downloads", "has_wiki", "allow_forking"), True),
            **dict.fromkeys(("has_pages", "has_discussions", "archived", "disabled", "is_template"), False),
            "web_commit_signoff_required": False,
            "topics": [],
            "visibility": "public",
            "default_branch": "main",
        }

    def full_repository(self, repository: Repository) -> Json:
        """Render a repository as its own endpoint shows it (`full-repository`)."""
        body = {**self.repository(repository), "temp_clone_token": None, "network_count": 0, "subscribers_count": 0}
        if repository.parent is not None:
            body["parent"] = body["source"] = self.repository(repository.parent)
        if repository.owner.type == "Organization":
            body["organization"] = self.user(repository.owner)
        return body

    # -- conversations ----------------------------------------------------------------------------------------------

    def association(self, repository: Repository, user: User) -> str:
        """Return the author association: how the user stands to the repository."""
        role = repository.collaborators.get(user.login.lower(), "none")
        if user is repository.owner:
            return "OWNER"
        return "COLLABORATOR" if PERMISSIONS[role] in ("admin", "write", "read") else "NONE"

    def issue(self, repository: Repository, issue: Issue) -> Json:
        """Render an issue, or a pull request seen as one (then with the `pull_request` key)."""
        url = f"{self.api_url}/repos/{repository.full_name}/issues/{issue.number}"
        page = self.page(repository, issue)
        body: Json = {
            "url": url,
            "repository_url": f"{self.api_url}/repos/{repository.full_name}",
            "labels_url": url + "/labels{/name}",
            "comments_url": f"{url}/comments",
            "events_url": f"{url}/events",
            "html_url": page,
            "id": issue.id,
            "node_id": node_id("I", issue.id),
            "number": issue.number,
            "title": issue.title,
            "user": self.user(issue.author),
            "labels": [],
            "state": issue.state,
            "locked": False,
            "assignee": None,
            "assignees": [],
            "milestone": None,
            "comments": len(issue.comments),
            "created_at": timestamp(issue.created_at),
            "updated_at": timestamp(issue.updated_at),
            "closed_at": None if issue.closed_at is None else timestamp(issue.closed_at),
            "author_association": self.association(repository, issue.author),
            "active_lock_reason": None,
            "body": issue.body or None,
            "reactions": self.reactions(f"{url}/reactions", []),
            "timeline_url": f"{url}/timeline",
            "performed_via_github_app": None,
            "state_reason": None,
        }
        if issue.pull is not None:
            body["draft"] = False
            body["pull_request"] = {
                "url": f"{self.api_url}/repos/{repository.full_name}/pulls/{issue.number}",
                "html_url": page,
                "diff_url": f"{page}.diff",
                "patch_url": f"{page}.patch",
                "merged_at": None,
            }
        return body

    def page(self, repository: Repository, issue: Issue) -> str:
        """Return the URL of the conversation's page."""
        kind = "pull" if issue.pull is not None else "issues"
        return f"{self.html_url}/{repository.full_name}/{kind}/{issue.number}"

    def comment(self, app: App, repository: Repository, issue: Issue, comment: Comment) -> Json:
        """Render a comment (`issue-comment`)."""
        url = f"{self.api_url}/repos/{repository.full_name}/issues/comments/{comment.id}"
        return {
            "url": url,
            "html_url": f"{self.page(repository, issue)}#issuecomment-{comment.id}",
            "issue_url": f"{self.api_url}/repos/{repository.full_name}/issues/{issue.number}",
            "id": comment.id,
            "node_id": node_id("IC", comment.id),
            "user": self.user(comment.author),
            "created_at": timestamp(comment.created_at),
            "updated_at": timestamp(comment.updated_at),
            "author_association": self.association(repository, comment.author),
            "body": comment.body,
            "reactions": self.reactions(f"{url}/reactions", comment.reactions),
            "performed_via_github_app": self.app(app) if comment.via_app else None,
        }

    def reactions(self, url: str, reactions: Sequence[Reaction]) -> Json:
        """Render the roll-up of reactions that objects carry."""
        body: Json = {"url": url, "total_count": len(reactions), **dict.fromkeys(REACTIONS, 0)}
        for reaction in reactions:
            body[reaction.content] += 1
        return body

    def reaction(self, reaction: Reaction) -> Json:
        """Render one reaction."""
        return {
            "id": reaction.id,
            "node_id": node_id("REA", reaction.id),
            "user": self.user(reaction.user),
            "content": reaction.content,
            "created_at": timestamp(reaction.created_at),
        }

    # -- pull requests ----------------------------------------------------------------------------------------------

    def pull_simple(self, repository: Repository, issue: Issue, pull: Pull) -> Json:
        """Render a pull request as a list shows it (`pull-request-simple`)."""
        api = f"{self.api_url}/repos/{repository.full_name}"
        url, issue_url = f"{api}/pulls/{issue.number}", f"{api}/issues/{issue.number}"
        page = self.page(repository, issue)
        links = {
            "self": url,
            "html": page,
            "issue": issue_url,
            "comments": f"{issue_url}/comments",
            "review_comments": f"{url}/comments",
            "review_comment": f"{api}/pulls/comments{{/number}}",
            "commits": f"{url}/commits",
            "statuses": f"{api}/statuses/{pull.head_sha}",
        }
        return {
            "url": url,
            "id": pull.id,
            "node_id": node_id("PR", pull.id),
            "html_url": page,
            "diff_url": f"{page}.diff",
            "patch_url": f"{page}.patch",
            "issue_url": issue_url,
            "number": issue.number,
            "state": issue.state,
            "locked": False,
            "title": issue.title,
            "user": self.user(issue.author),
            "body": issue.body or None,
            "created_at": timestamp(issue.created_at),
            "updated_at": timestamp(issue.updated_at),
            "closed_at": None if issue.closed_at is None else timestamp(issue.closed_at),
            **dict.fromkeys(("merged_at", "merge_commit_sha", "assignee", "milestone", "auto_merge")),
            "active_lock_reason": None,
            **{name: [] for name in ("assignees", "requested_reviewers", "requested_teams", "labels")},
            "draft": False,
            "commits_url": links["commits"],
            "review_comments_url": links["review_comments"],
            "review_comment_url": links["review_comment"],
            "comments_url": links["comments"],
            "statuses_url": links["statuses"],
            "head": self._branch(pull.head_repository, pull.head_ref, pull.head_sha),
            "base": self._branch(repository, "main", pull.base_sha),
            "_links": {name: {"href": href} for name, href in links.items()},
            "author_association": self.association(repository, issue.author),
        }

    def _branch(self, repository: Repository, ref: str, sha: str) -> Json:
        return {
            "label": f"{repository.owner.login}:{ref}",
            "ref": ref,
            "sha": sha,
            "user": self.user(repository.owner),
            "repo": self.repository(repository),
        }

    def pull(self, repository: Repository, issue: Issue, pull: Pull) -> Json:
        """Render a pull request as its own endpoint and its webhooks show it (`pull-request`)."""
        opened = issue.state == "open"
        return {
            **self.pull_simple(repository, issue, pull),
            "merged": False,
            "mergeable": True if opened else None,
            "rebaseable": True if opened else None,
            "mergeable_state": "clean" if opened else "unknown",
            "merged_by": None,
            "comments": len(issue.comments),
            "review_comments": 0,
            "maintainer_can_modify": pull.head_repository is not repository,
            "commits": len(pull.commits),
            "additions": len(pull.commits),
            "deletions": 0,
            "changed_files": 1,
        }

    def commit(self, repository: Repository, commit: Commit, parent_sha: str) -> Json:
        """Render a commit as a pull request's list of commits shows it (`commit`)."""
        api = f"{self.api_url}/repos/{repository.full_name}"
        page = f"{self.html_url}/{repository.full_name}/commit"
        email = f"{commit.author.id}+{commit.author.login}@users.noreply.github.com"
        person = {"name": commit.author.login, "email": email, "date": timestamp(commit.created_at)}
        return {
            "sha": commit.sha,
            "node_id": node_id("C", int(commit.sha[:12], 16)),
            "commit": {
                "author": person,
                "committer": person,
                "message": commit.message,
                "tree": {"sha": commit.sha, "url": f"{api}/git/trees/{commit.sha}"},
                "url": f"{api}/git/commits/{commit.sha}",
                "comment_count": 0,
                "verification": {
                    "verified": False,
                    "reason": "unsigned",
                    **dict.fromkeys(("signature", "payload", "verified_at")),
                },
            },
            "url": f"{api}/commits/{commit.sha}",
            "html_url": f"{page}/{commit.sha}",
            "comments_url": f"{api}/commits/{commit.sha}/comments",
            "author": self.user(commit.author),
            "committer": self.user(commit.author),
            "parents": [
                {"sha": parent_sha, "url": f"{api}/commits/{parent_sha}", "html_url": f"{page}/{parent_sha}"},
            ],
        }
