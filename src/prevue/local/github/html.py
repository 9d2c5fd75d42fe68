"""HTML of the local GitHub's pages, built from the state; every text goes through `_text` or `markdown.render`.

Functions of the state and nothing else. A page links only its own style sheet and script, so it works without a
network. Each changing part carries a `data-version`, by which the script leaves alone what is as it was.
"""

from __future__ import annotations

import hashlib
from html import escape as _text
from itertools import groupby
from urllib.parse import quote

from prevue.local.github import markdown
from prevue.testing.github import Comment, FakeGitHub, Issue, Repository, User
from prevue.testing.github.records import Happening, Pull
from prevue.testing.github.render import timestamp

_EMOJI = {
    "+1": "👍",
    "-1": "👎",
    "laugh": "😄",
    "confused": "😕",
    "heart": "❤️",
    "hooray": "🎉",
    "rocket": "🚀",
    "eyes": "👀",
}
_LEFT = "M5 3.2a1.8 1.8 0 1 0 0 3.6 1.8 1.8 0 0 0 0-3.6M5 7v6m0 .2a1.8 1.8 0 1 0 0 3.6 1.8 1.8 0 0 0 0-3.6"
_RIGHT = "M15 13.2a1.8 1.8 0 1 0 0 3.6 1.8 1.8 0 0 0 0-3.6"
_ICONS = {
    "pull": f"{_LEFT}{_RIGHT}M15 13V8.5A2.5 2.5 0 0 0 12.5 6H9.5m0 0 2-2m-2 2 2 2",
    "closed": f"{_LEFT}{_RIGHT}M15 13v-2.5M12.5 3.5l5 5m0-5-5 5",
    "commit": "M10 6.8a3.2 3.2 0 1 0 0 6.4 3.2 3.2 0 0 0 0-6.4M2 10h4.8m6.4 0H18",
    "repository": "M4.5 15.2V4.8A1.8 1.8 0 0 1 6.3 3h9.2v11H6a1.5 1.5 0 0 0 0 3h9.5v-3",
    "issue": "M10 3a7 7 0 1 0 0 14 7 7 0 0 0 0-14m0 6a1 1 0 1 0 0 2 1 1 0 0 0 0-2",
}
_VERBS = {"closed": "closed this", "reopened": "reopened this", "force-pushed": "force-pushed back to"}


def _icon(name: str) -> str:
    return f'<svg class="icon" viewBox="0 0 20 20" aria-hidden="true"><path d="{_ICONS[name]}"/></svg>'


def _page(title: str, body: str, *, crumbs: str = "", attributes: str = "") -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_text(title)}</title>
<link rel="icon" href="/_local/static/icon.svg">
<link rel="stylesheet" href="/_local/static/page.css">
<script src="/_local/static/page.js" defer></script>
</head>
<body {attributes}>
<header class="top"><div class="wide">
<a class="brand" href="/"><span class="mark" aria-hidden="true"></span>Local GitHub</a>{crumbs}
<span class="hint">on this machine</span>
</div></header>
<main class="wide">
{body}
</main>
</body>
</html>
"""


def _crumbs(repository: Repository) -> str:
    owner, name = _text(repository.owner.login), _text(repository.name)
    return f'<nav class="crumbs"><span>{owner}</span><i>/</i><a href="/{owner}/{name}">{name}</a></nav>'


def _time(moment: str) -> str:
    return f'<time datetime="{moment}" title="{moment}">{moment.replace("T", " ").replace("Z", " UTC")}</time>'


def _avatar(user: User, size: str = "") -> str:
    kind = "avatar bot" if user.type == "Bot" else "avatar"
    return f'<img class="{kind} {size}" src="/_local/avatars/{quote(user.login)}" alt="" width="40" height="40">'


def problem(message: str) -> str:
    """Return the page that says what went wrong."""
    body = f'<section class="problem"><h1>That did not work</h1><p>{_text(message)}</p><a href="/">All repositories</a></section>'
    return _page("That did not work", body)


# -- repositories -------------------------------------------------------------------------------------------------------


def index(github: FakeGitHub) -> str:
    """Return the start page: the repositories with their open pull requests."""
    cards = []
    for repository in github.repositories.values():
        if repository.parent is not None:
            continue  # a fork's pull requests stand with the repository they are made to
        pulls = [issue for issue in repository.issues.values() if issue.pull is not None]
        opened = sum(issue.state == "open" for issue in pulls)
        path = f"/{_text(repository.full_name)}"
        recent = sorted(pulls, key=lambda issue: (issue.updated_at, issue.number), reverse=True)[:3]
        lines = "".join(_pull_line(repository, issue) for issue in recent)
        cards.append(
            f'<section class="card"><h2>{_icon("repository")}<a href="{path}">{_text(repository.full_name)}</a>'
            f'<span class="count">{opened} open</span></h2>'
            f'<ul class="lines">{lines or _empty("No pull requests yet")}</ul></section>'
        )
    return _page("Local GitHub", f'<h1 class="lead">Repositories</h1><div class="cards">{"".join(cards)}</div>')


def _empty(text: str) -> str:
    return f'<li class="empty">{text}</li>'


def _pull_line(repository: Repository, issue: Issue) -> str:
    icon = "pull" if issue.state == "open" else "closed"
    path = f"/{_text(repository.full_name)}/pull/{issue.number}"
    count = len(issue.comments)
    comments = f'<span class="quiet">{count} comment{"" if count == 1 else "s"}</span>' if count else ""
    return (
        f'<li class="line {issue.state}">{_icon(icon)}<div><a href="{path}">{_text(issue.title)}</a>'
        f"<small>#{issue.number} by {_text(issue.author.login)} · {_time(timestamp(issue.updated_at))}</small></div>"
        f"{comments}</li>"
    )


def repository(github: FakeGitHub, repository: Repository, *, state: str) -> str:
    """Return a repository's page: its pull requests of one state, and the form that opens another."""
    pulls = [issue for issue in repository.issues.values() if issue.pull is not None]
    counts = {name: sum(issue.state == name for issue in pulls) for name in ("open", "closed")}
    path = f"/{_text(repository.full_name)}"
    tabs = "".join(
        f'<a class="tab{" on" if name == state else ""}" href="{path}?state={name}">{counts[name]} {name}</a>'
        for name in ("open", "closed")
    )
    shown = sorted((issue for issue in pulls if issue.state == state), key=lambda issue: -issue.number)
    lines = "".join(_pull_line(repository, issue) for issue in shown)
    form = f"""<form class="card compose" method="post" action="{path}/pulls">
<h2>Open a pull request</h2>
<label>Title<input name="title" placeholder="Say hello in colour" maxlength="200"></label>
<label>Description<textarea name="body" rows="3" placeholder="Markdown"></textarea></label>
<fieldset><legend>As</legend>{_people(github, repository)}</fieldset>
<label class="check"><input type="checkbox" name="fork"> from a fork</label>
<label class="check"><input type="checkbox" name="image" checked> the CI makes an image of its commit</label>
<button class="primary">Open pull request</button>
</form>"""
    body = (
        f'<h1 class="lead">{_icon("repository")}{_text(repository.full_name)}</h1><div class="columns"><section>'
        f'<nav class="tabs">{tabs}</nav><ul class="lines boxed">'
        f"{lines or _empty(f'No {state} pull requests')}</ul></section><aside>{form}</aside></div>"
    )
    return _page(repository.full_name, body, crumbs=_crumbs(repository))


def _people(github: FakeGitHub, repository: Repository) -> str:
    """Return the choice of who acts: those with a role in the repository, the most powerful first."""
    people = [github.users[login] for login in repository.collaborators if login in github.users]
    order = ("admin", "maintain", "write", "triage", "read", "none")
    people.sort(key=lambda user: order.index(github.role(repository, user)))
    return "".join(
        f'<label class="who"><input type="radio" name="user" value="{_text(user.login)}"{" checked" if not at else ""}>'
        f"<span>{_avatar(user, 'tiny')}{_text(user.login)}<em>{github.role(repository, user)}</em></span></label>"
        for at, user in enumerate(people)
    )


# -- conversation -------------------------------------------------------------------------------------------------------


def conversation(github: FakeGitHub, repository: Repository, issue: Issue) -> str:
    """Return the page of a pull request or an issue."""
    parts = live_parts(github, repository, issue)
    page = f"/{_text(repository.full_name)}/{'pull' if issue.pull else 'issues'}/{issue.number}"
    body = f"""<div data-live="heading">{parts["heading"]}</div>
<div class="columns">
<div>
<div class="timeline" data-live="timeline">{parts["timeline"]}</div>
<form class="card compose" method="post" action="{page}/comment" data-quiet>
<fieldset class="as"><legend>Comment as</legend>{_people(github, repository)}</fieldset>
<textarea name="body" rows="4" required placeholder="Leave a comment, for example /preview" aria-label="Comment"></textarea>
<div class="row"><button type="button" class="chip" data-insert="/preview">/preview</button>
<span class="quiet keys">Ctrl + Enter sends</span><button class="primary">Comment</button></div>
<p class="wrong" role="alert" hidden></p>
</form>
</div>
<aside data-live="side">{parts["side"]}</aside>
</div>"""
    title = f"{issue.title} · #{issue.number} · {repository.full_name}"
    return _page(title, body, crumbs=_crumbs(repository), attributes=f'data-live-url="{page}/live"')


def live_parts(github: FakeGitHub, repository: Repository, issue: Issue) -> dict[str, str]:
    """Return the parts of a conversation's page that change by themselves: heading, timeline and side column."""
    return {
        "heading": _heading(issue),
        "timeline": _timeline(github, repository, issue),
        "side": _side(github, repository, issue),
    }


def _version(fragment: str) -> str:
    return hashlib.sha256(fragment.encode()).hexdigest()[:12]


def _heading(issue: Issue) -> str:
    what = "pull" if issue.pull else "issue"
    icon = what if issue.state == "open" else "closed"
    author = f"<strong>{_text(issue.author.login)}</strong>"
    meta = f"{author} opened this issue {_time(timestamp(issue.created_at))}"
    if issue.pull is not None:
        count = len(issue.pull.commits)
        source = _text(f"{issue.pull.head_repository.owner.login}:{issue.pull.head_ref}")
        plural = "" if count == 1 else "s"
        meta = f"{author} wants to merge {count} commit{plural} into <code>main</code> from <code>{source}</code>"
    return (
        f'<h1 class="title">{_text(issue.title)} <span>#{issue.number}</span></h1>'
        f'<p class="meta"><span class="state {issue.state}">{_icon(icon)}{issue.state.title()}</span>{meta}</p>'
    )


def _timeline(github: FakeGitHub, repository: Repository, issue: Issue) -> str:
    first = _bubble(github, repository, issue.author, timestamp(issue.created_at), issue.body, element_id="description")
    entries: list[Comment | Happening] = sorted([*issue.comments.values(), *issue.history], key=lambda e: e.id)
    shown = [first]
    for is_push, group in groupby(entries, key=lambda e: isinstance(e, Happening) and e.kind in ("opened", "pushed")):
        happenings = list(group)
        if is_push:
            shown.append(_commits(issue, [entry for entry in happenings if isinstance(entry, Happening)]))
            continue
        for entry in happenings:
            if isinstance(entry, Comment):
                shown.append(_comment(github, repository, entry))
            else:
                shown.append(_happening(entry))
    return "".join(shown)


def _comment(github: FakeGitHub, repository: Repository, comment: Comment) -> str:
    edited = comment.updated_at != comment.created_at
    return _bubble(
        github,
        repository,
        comment.author,
        timestamp(comment.created_at),
        comment.body,
        element_id=f"issuecomment-{comment.id}",
        edited=timestamp(comment.updated_at) if edited else None,
        reactions=_reactions(comment),
    )


def _bubble(
    github: FakeGitHub,
    repository: Repository,
    author: User,
    created: str,
    body: str,
    *,
    element_id: str,
    edited: str | None = None,
    reactions: str = "",
) -> str:
    role = "bot" if author.type == "Bot" else github.role(repository, author)
    note = f'<span class="quiet" title="edited {edited}"> · edited</span>' if edited else ""
    text = markdown.render(body) or '<p class="quiet">No description.</p>'
    inner = (
        f'{_avatar(author)}<div class="bubble"><header><strong>{_text(author.login.removesuffix("[bot]"))}</strong>'
        f'<a class="when" href="#{element_id}">{_time(created)}</a>{note}<span class="badge {role}">{role}</span></header>'
        f'<div class="markdown">{text}</div>{reactions}</div>'
    )
    kind = "comment bot" if author.type == "Bot" else "comment"
    return f'<article class="{kind}" id="{element_id}" data-version="{_version(inner)}">{inner}</article>'


def _reactions(comment: Comment) -> str:
    pills = []
    for content, emoji in _EMOJI.items():
        who = [reaction.user.login for reaction in comment.reactions if reaction.content == content]
        if who:
            names = _text(", ".join(who))
            pills.append(f'<span class="pill" title="{names} reacted with {content}">{emoji} {len(who)}</span>')
    return f'<footer class="reactions">{"".join(pills)}</footer>' if pills else ""


def _commits(issue: Issue, happenings: list[Happening]) -> str:
    messages = {commit.sha: commit.message for commit in issue.pull.commits} if issue.pull else {}
    rows = "".join(
        f"<li>{_icon('commit')}<span>{_text(messages.get(entry.sha, '(replaced by a force-push)'))}</span>"
        f'<code title="{entry.sha}">{entry.sha[:7]}</code></li>'
        for entry in happenings
    )
    who, count = happenings[-1].user, len(happenings)
    inner = (
        f"<p>{_avatar(who, 'tiny')}<strong>{_text(who.login)}</strong> pushed {count} commit{'' if count == 1 else 's'} "
        f"{_time(timestamp(happenings[-1].at))}</p><ul>{rows}</ul>"
    )
    name = f"push-{happenings[0].id}"
    return f'<div class="event pushed" id="{name}" data-version="{_version(inner)}">{inner}</div>'


def _happening(entry: Happening) -> str:
    sha = f' <code title="{entry.sha}">{entry.sha[:7]}</code>' if entry.kind == "force-pushed" else ""
    inner = (
        f"<p>{_avatar(entry.user, 'tiny')}<strong>{_text(entry.user.login)}</strong> {_VERBS[entry.kind]}{sha} "
        f"{_time(timestamp(entry.at))}</p>"
    )
    name = f"event-{entry.id}"
    return f'<div class="event {entry.kind}" id="{name}" data-version="{_version(inner)}">{inner}</div>'


def _side(github: FakeGitHub, repository: Repository, issue: Issue) -> str:
    sections = []
    if issue.pull is not None:
        sections.append(_head_commit(repository, issue, issue.pull))
    people = {issue.author.login: issue.author}
    for comment in issue.comments.values():
        people.setdefault(comment.author.login, comment.author)
    faces = "".join(
        f"<li>{_avatar(user, 'tiny')}{_text(user.login.removesuffix('[bot]'))}"
        f"<em>{'bot' if user.type == 'Bot' else github.role(repository, user)}</em></li>"
        for user in people.values()
    )
    sections.append(f'<section class="card side" id="people"><h3>Participants</h3><ul class="people">{faces}</ul></section>')
    return "".join(f.replace("<section", f'<section data-version="{_version(f)}"', 1) for f in sections)


def _head_commit(repository: Repository, issue: Issue, pull: Pull) -> str:
    page = f"/{_text(repository.full_name)}/pull/{issue.number}"
    head = pull.commits[-1]
    if issue.state == "open":
        actions = f"""<form method="post" action="{page}/push" data-quiet><label class="check"><input type="checkbox"
 name="image" checked> make an image</label><button>Push a commit</button><p class="wrong" role="alert" hidden></p></form>
<form method="post" action="{page}/close" data-quiet><button class="danger">Close pull request</button>
<p class="wrong" role="alert" hidden></p></form>"""
    else:
        actions = f"""<form method="post" action="{page}/reopen" data-quiet><button>Reopen pull request</button>
<p class="wrong" role="alert" hidden></p></form>"""
    fork = '<p class="quiet">from a fork</p>' if pull.head_repository is not repository else ""
    return f"""<section class="card side" id="head"><h3>Head commit</h3>
<p class="head">{_icon("commit")}<code>{head.sha[:12]}</code></p>
<p class="full"><code>{head.sha}</code></p><p class="quiet">{_text(head.message)}</p>{fork}
{actions}</section>"""
