"""GitHub's state and what people do to it: accounts, repositories, pull requests, comments, and the webhooks they cause.

This is the part that a control path, a test or the simulation drives directly; what programs ask over REST is
`rest.py`. Invariant: a change and its delivery are one step, so there is no change that nobody is told about and no
delivery of something that did not happen.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from random import Random

from prevue.testing.github.limits import RateLimits
from prevue.testing.github.records import (
    COMMENT_CHARACTERS_MAX,
    PERMISSIONS,
    REACTIONS,
    App,
    Comment,
    Commit,
    Fault,
    Happening,
    Installation,
    Issue,
    Limits,
    Pull,
    Reaction,
    Repository,
    Token,
    User,
    UserType,
)
from prevue.testing.github.render import Json, Renderer
from prevue.testing.github.webhooks import Webhooks

APP_PERMISSIONS = {
    "checks": "write",
    "contents": "read",
    "deployments": "write",
    "issues": "write",
    "metadata": "read",
    "pull_requests": "write",
    "statuses": "write",
}
APP_EVENTS = ("issue_comment", "pull_request")

TOKEN_LIFETIME = timedelta(hours=1)
"""An installation token's (https://docs.github.com/apps/creating-github-apps/authenticating-with-a-github-app)."""

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_LOGIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,37}[A-Za-z0-9])?(?:\[bot\])?")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
_SHA = re.compile(r"[0-9a-f]{40}")


class ControlError(ValueError):
    """A control operation that cannot be done; `status` is the HTTP status that says so (404 or 422)."""

    def __init__(self, message: str, *, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


class GitHubState:
    """Accounts, repositories, conversations and deliveries of one GitHub, with one App.

    `now` is the only clock. Ids count up from `id_start`, repositories' from `repository_id_start` (two GitHubs whose
    previews share a cluster need ranges of their own); SHAs, tokens and delivery guids come from `seed`.
    """

    def __init__(
        self,
        *,
        now: Callable[[], datetime],
        public_key: bytes = b"",
        app_id: int = 1,
        app_slug: str = "prevue-local",
        client_id: str = "Iv23liprevuelocal000",
        webhook_secret: str = "",
        api_url: str = "https://api.github.com",
        html_url: str = "https://github.com",
        id_start: int = 1_000_001,
        repository_id_start: int = 1_001,
        seed: int = 0,
        limits: Limits | None = None,
    ) -> None:
        self._clock = now
        self.behind = timedelta()
        """How far the dates that it writes lie in the past: what happens meanwhile happened so long ago, once this is zero again."""
        self._next_id = id_start
        self._next_repository_id = repository_id_start
        self.random = Random(seed)  # noqa: S311 -- deterministic by design: nothing here guards anything real
        self.public_key = public_key
        self.rate_limits = RateLimits(limits=limits or Limits())
        self.faults: list[Fault] = []
        self.tokens: dict[str, Token] = {}
        self.requests_answered = 0
        self.render = Renderer(api_url=api_url.rstrip("/"), html_url=html_url.rstrip("/"))
        self.users: dict[str, User] = {}
        self.repositories: dict[str, Repository] = {}
        self.installations: dict[int, Installation] = {}
        self.app = App(
            id=app_id,
            client_id=client_id,
            slug=app_slug,
            owner=self.add_user("prevue", type="Organization"),
            bot=self.add_user(f"{app_slug}[bot]", type="Bot"),
            created_at=self.now(),
            permissions=APP_PERMISSIONS,
            events=APP_EVENTS,
        )
        self.webhooks = Webhooks(
            secret=webhook_secret,
            hook_id=self._id(),
            app_id=app_id,
            random=self.random,
            new_id=self._id,
            now=self.now,
        )

    def now(self) -> datetime:
        """Return the time, cut to the whole second, in UTC."""
        return (self._clock() - self.behind).astimezone(UTC).replace(microsecond=0)

    def exact_now(self) -> datetime:
        """Return the time uncut, for what GitHub measures but never shows (limits)."""
        return self._clock().astimezone(UTC)

    def _id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def new_sha(self) -> str:
        """Return a fresh commit SHA, 40 hex digits."""
        return f"{self.random.getrandbits(160):040x}"

    # -- accounts and repositories ----------------------------------------------------------------------------------

    def add_user(self, login: str, *, type: UserType | None = None) -> User:  # noqa: A002 -- GitHub's own word
        """Return the account of that login, made now unless it exists; `name[bot]` is a bot.

        Raises:
            ControlError: no account can have such a login.
        """
        if (user := self.users.get(login.lower())) is not None:
            return user
        if not _LOGIN.fullmatch(login):
            raise ControlError(f"{login!r} cannot be a login: letters, digits and single hyphens, at most 39, then perhaps [bot]")
        kind = type or ("Bot" if login.endswith("[bot]") else "User")
        user = User(id=self._id(), login=login, type=kind, created_at=self.now())
        self.users[login.lower()] = user
        return user

    def add_repository(self, full_name: str, *, installed: bool = True, parent: Repository | None = None) -> Repository:
        """Make a public repository; `installed`: the App is installed on it. Its owner becomes an organisation if new.

        Raises:
            ControlError: the name is taken, or is not `owner/name`.
        """
        owner_login, _, name = full_name.partition("/")
        if not _NAME.fullmatch(name):
            raise ControlError(f"{full_name!r} is not owner/name")
        if full_name.lower() in self.repositories:
            raise ControlError(f"the repository {full_name} exists already")
        owner = self.add_user(owner_login, type=None if parent else "Organization")
        now = self.now()
        repository = Repository(
            id=self._next_repository_id,
            owner=owner,
            name=name,
            created_at=now,
            pushed_at=now,
            parent=parent,
            installed=installed,
        )
        self._next_repository_id += 1
        self.repositories[full_name.lower()] = repository
        if installed and self.installation_of(repository) is None:
            installation = Installation(id=self._id(), account=owner, created_at=now)
            self.installations[installation.id] = installation
        return repository

    def repository(self, full_name: str) -> Repository:
        """Return the repository of that name, case-insensitive as on GitHub.

        Raises:
            ControlError: there is none (404).
        """
        if (repository := self.repositories.get(full_name.lower())) is None:
            raise ControlError(f"no repository {full_name}", status=404)
        return repository

    def installation_of(self, repository: Repository) -> Installation | None:
        """Return the App's installation that covers a repository, if there is one."""
        if not repository.installed:
            return None
        return next((i for i in self.installations.values() if i.account is repository.owner), None)

    def new_token(
        self,
        installation: Installation,
        *,
        permissions: Mapping[str, str] | None = None,
        repository_ids: frozenset[int] | None = None,
    ) -> Token:
        """Give out an installation token of one hour; without arguments it reaches as far as the installation."""
        token = Token(
            value="ghs_" + "".join(self.random.choices(_LETTERS, k=36)),
            installation=installation,
            permissions=self.app.permissions if permissions is None else permissions,
            expires_at=self.now() + TOKEN_LIFETIME,
            repository_ids=repository_ids,
        )
        self.tokens[token.value] = token
        return token

    def set_permission(self, full_name: str, login: str, permission: str) -> None:
        """Give a user a role in a repository: admin, maintain, write, triage, read or none.

        Raises:
            ControlError: no such repository, role or possible login.
        """
        repository = self.repository(full_name)
        if permission not in PERMISSIONS:
            raise ControlError(f"permission {permission!r} is not one of {', '.join(PERMISSIONS)}")
        user = self.add_user(login)
        repository.collaborators[user.login.lower()] = permission

    def role(self, repository: Repository, user: User) -> str:
        """Return a user's role; whoever was given none reads, because the repository is public."""
        if user is repository.owner:
            return "admin"
        return repository.collaborators.get(user.login.lower(), "read")

    # -- pull requests and issues -----------------------------------------------------------------------------------

    def issue(self, full_name: str, number: int) -> Issue:
        """Return an issue or pull request.

        Raises:
            ControlError: there is none of that number (404).
        """
        repository = self.repository(full_name)
        if (issue := repository.issues.get(number)) is None:
            raise ControlError(f"no issue or pull request {full_name}#{number}", status=404)
        return issue

    def pull(self, full_name: str, number: int) -> tuple[Repository, Issue, Pull]:
        """Return a pull request with its repository.

        Raises:
            ControlError: there is no pull request of that number (404).
        """
        repository, issue = self.repository(full_name), self.issue(full_name, number)
        if issue.pull is None:
            raise ControlError(f"{full_name}#{number} is an issue, not a pull request", status=404)
        return repository, issue, issue.pull

    def _new_issue(self, repository: Repository, author: User, title: str, body: str) -> Issue:
        now = self.now()
        number, repository.next_number = repository.next_number, repository.next_number + 1
        issue = Issue(id=self._id(), number=number, title=title, body=body, author=author, created_at=now, updated_at=now)
        repository.issues[number] = issue
        return issue

    def open_issue(self, full_name: str, user: str, *, title: str = "A plain issue", body: str = "") -> Issue:
        """Open a plain issue, which is not a pull request. No webhook: the App does not subscribe to `issues`."""
        return self._new_issue(self.repository(full_name), self.add_user(user), title, body)

    def open_pull_request(
        self,
        full_name: str,
        user: str,
        *,
        head_sha: str | None = None,
        fork: bool = False,
        title: str | None = None,
        body: str = "",
        head_ref: str | None = None,
    ) -> Issue:
        """Open a pull request with one commit, from a branch of the repository or of the user's `fork`.

        Raises:
            ControlError: no such repository, or the SHA is not 40 hex digits.
        """
        repository, author, sha = self.repository(full_name), self.add_user(user), self._sha(head_sha)
        head = self._fork(repository, author) if fork else repository
        number = repository.next_number
        issue = self._new_issue(repository, author, title or f"Change number {number}", body)
        commit = Commit(sha=sha, message=issue.title, author=author, created_at=issue.created_at)
        base_sha = hashlib.sha1(f"{repository.full_name} main".encode(), usedforsecurity=False).hexdigest()
        issue.pull = Pull(
            id=self._id(),
            head_repository=head,
            head_ref=head_ref or f"change-{number}",
            base_sha=base_sha,
            commits=[commit],
        )
        head.pushed_at = issue.created_at
        self._happened("opened", issue, issue.pull, author)
        self._pull_event("opened", repository, issue, issue.pull, author)
        return issue

    def _sha(self, sha: str | None) -> str:
        if sha is None:
            return self.new_sha()
        if not _SHA.fullmatch(sha.lower()):
            raise ControlError(f"{sha!r} is not a commit SHA: 40 hex digits")
        return sha.lower()

    def _fork(self, repository: Repository, owner: User) -> Repository:
        full_name = f"{owner.login}/{repository.name}"
        if (fork := self.repositories.get(full_name.lower())) is not None:
            return fork
        return self.add_repository(full_name, installed=False, parent=repository)

    def push(self, full_name: str, number: int, *, sha: str | None = None, message: str | None = None) -> Issue:
        """Push to an open pull request's branch. An earlier commit's SHA is a force-push back to that commit.

        Raises:
            ControlError: no such pull request, it is closed, or the SHA is already its head or is not one.
        """
        repository, issue, pull = self.pull(full_name, number)
        if issue.state != "open":
            raise ControlError(f"{full_name}#{number} is closed; reopen it before pushing")
        before, new = pull.head_sha, self._sha(sha)
        if new == before:
            raise ControlError(f"{full_name}#{number} already has the head {new}")
        now = self.now()
        known = [commit.sha for commit in pull.commits]
        forced = new in known
        if forced:
            del pull.commits[known.index(new) + 1 :]
        else:
            text = message or f"Improve change number {number} ({len(known)})"
            pull.commits.append(Commit(sha=new, message=text, author=issue.author, created_at=now))
        issue.updated_at = pull.head_repository.pushed_at = now
        self._happened("force-pushed" if forced else "pushed", issue, pull, issue.author)
        self._pull_event("synchronize", repository, issue, pull, issue.author, before=before, after=new)
        return issue

    def close_pull_request(self, full_name: str, number: int, *, user: str | None = None) -> Issue:
        """Close an open pull request, unmerged, as its author or as `user`.

        Raises:
            ControlError: no such pull request, or it is closed already.
        """
        return self._set_state(full_name, number, "closed", user)

    def reopen_pull_request(self, full_name: str, number: int, *, user: str | None = None) -> Issue:
        """Reopen a closed pull request, as its author or as `user`.

        Raises:
            ControlError: no such pull request, or it is open already.
        """
        return self._set_state(full_name, number, "reopened", user)

    def _set_state(self, full_name: str, number: int, action: str, user: str | None) -> Issue:
        repository, issue, pull = self.pull(full_name, number)
        sender = issue.author if user is None else self.add_user(user)
        wanted = "closed" if action == "closed" else "open"
        if issue.state == wanted:
            raise ControlError(f"{full_name}#{number} is {wanted} already")
        issue.updated_at = self.now()
        issue.state = "closed" if wanted == "closed" else "open"
        issue.closed_at = issue.updated_at if wanted == "closed" else None
        self._happened(action, issue, pull, sender)
        self._pull_event(action, repository, issue, pull, sender)
        return issue

    def _happened(self, kind: str, issue: Issue, pull: Pull, user: User) -> None:
        happening = Happening(id=self._id(), kind=kind, user=user, at=issue.updated_at, sha=pull.head_sha)
        issue.history.append(happening)

    # -- conversation -----------------------------------------------------------------------------------------------

    def comment(self, full_name: str, number: int, user: str, body: str) -> Comment:
        """Comment as a person (or as a bot, `name[bot]`).

        Raises:
            ControlError: no such issue, or a body that GitHub would refuse.
        """
        repository, issue = self.repository(full_name), self.issue(full_name, number)
        return self.write_comment(repository, issue, self.add_user(user), body)

    def write_comment(self, repository: Repository, issue: Issue, author: User, body: str, *, via_app: bool = False) -> Comment:
        """Add a comment and tell the App.

        Raises:
            ControlError: the body is blank or longer than GitHub takes.
        """
        self.check_body(body)
        now = self.now()
        comment = Comment(id=self._id(), author=author, body=body, created_at=now, updated_at=now, via_app=via_app)
        issue.comments[comment.id] = comment
        repository.comments[comment.id] = (issue, comment)
        issue.updated_at = now
        self._comment_event("created", repository, issue, comment, author)
        return comment

    @staticmethod
    def check_body(body: str) -> None:
        """Refuse a comment body that GitHub would refuse.

        Raises:
            ControlError: it is blank, or longer than 65,536 characters.
        """
        if not body.strip():
            raise ControlError("Body cannot be blank")
        if len(body) > COMMENT_CHARACTERS_MAX:
            raise ControlError(f"Body is too long (maximum is {COMMENT_CHARACTERS_MAX} characters)")

    def find_comment(self, full_name: str, comment_id: int) -> tuple[Repository, Issue, Comment]:
        """Return a comment with its conversation.

        Raises:
            ControlError: there is no such comment in that repository (404).
        """
        repository = self.repository(full_name)
        if (found := repository.comments.get(comment_id)) is None:
            raise ControlError(f"no comment {comment_id} in {full_name}", status=404)
        return repository, *found

    def edit_comment(self, full_name: str, comment_id: int, body: str, *, editor: User | None = None) -> Comment:
        """Replace a comment's body, as its author or as `editor`, and tell the App.

        Raises:
            ControlError: no such comment, or a body that GitHub would refuse.
        """
        repository, issue, comment = self.find_comment(full_name, comment_id)
        self.check_body(body)
        before, comment.body, comment.updated_at = comment.body, body, self.now()
        changes = {"changes": {"body": {"from": before}}}
        self._comment_event("edited", repository, issue, comment, editor or comment.author, **changes)
        return comment

    def delete_comment(self, full_name: str, comment_id: int, *, editor: User | None = None) -> None:
        """Delete a comment, as its author or as `editor`, and tell the App.

        Raises:
            ControlError: no such comment.
        """
        repository, issue, comment = self.find_comment(full_name, comment_id)
        del issue.comments[comment_id], repository.comments[comment_id]
        self._comment_event("deleted", repository, issue, comment, editor or comment.author)

    def react(self, full_name: str, comment_id: int, user: User, content: str) -> tuple[Reaction, bool]:
        """Return a user's reaction to a comment, and whether it was made now: the same one twice is one.

        Raises:
            ControlError: no such comment or reaction.
        """
        _, _, comment = self.find_comment(full_name, comment_id)
        if content not in REACTIONS:
            raise ControlError(f"reaction {content!r} is not one of {', '.join(REACTIONS)}")
        for reaction in comment.reactions:
            if reaction.user is user and reaction.content == content:
                return reaction, False
        reaction = Reaction(id=self._id(), user=user, content=content, created_at=self.now())
        comment.reactions.append(reaction)
        return reaction, True

    # -- webhooks ---------------------------------------------------------------------------------------------------

    def _pull_event(self, action: str, repository: Repository, issue: Issue, pull: Pull, sender: User, **extra: str) -> None:
        body: Json = {"action": action, "number": issue.number, **extra}
        body["pull_request"] = self.render.pull(repository, issue, pull)
        self._deliver("pull_request", body, repository, sender)

    def _comment_event(self, action: str, repository: Repository, issue: Issue, comment: Comment, sender: User, **extra: Json) -> None:
        body: Json = {"action": action, **extra, "issue": self.render.issue(repository, issue)}
        body["comment"] = self.render.comment(self.app, repository, issue, comment)
        self._deliver("issue_comment", body, repository, sender)

    def _deliver(self, event: str, body: Json, repository: Repository, sender: User) -> None:
        installation = self.installation_of(repository)
        if installation is None or installation.suspended_at is not None:
            return
        body["repository"] = self.render.repository(repository)
        if repository.owner.type == "Organization":
            body["organization"] = self.render.organization(repository.owner)
        body["sender"] = self.render.user(sender)
        body["installation"] = {
            "id": installation.id,
            "node_id": f"MDIzOkludGVncmF0aW9uSW5zdGFsbGF0aW9u{installation.id}",
        }
        self.webhooks.deliver(event, body, installation_id=installation.id, repository_id=repository.id)
