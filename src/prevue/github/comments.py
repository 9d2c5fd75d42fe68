"""What Prevue says on a pull request: pure texts, one function for each kind of comment.

Every body begins with the hidden marker by which it is found again. State is said in words, an emoji never stands alone; nobody but the
asker is mentioned, and text from outside stands in code blocks, cut well below GitHub's 65,536 characters.
"""

from __future__ import annotations

import re
from datetime import timedelta
from enum import StrEnum

from prevue.lifecycle import Reason
from prevue.model import Notice, RequestState, Source

DETAILS_CHARACTERS_MAX = 6_000
"""Log lines and error text in a comment; more belongs into the logs."""


_REFUSED = "**Preview not started**"


class RefusalReason(StrEnum):
    """Why the App refused a command at receipt."""

    PERMISSION = "permission"
    CLOSED = "closed"
    FORK = "fork"


def acknowledgement(*, marker: str, commit_sha: str, requested_by: str, repo: str) -> str:
    """The first answer to a command; the result replaces it later, in the same comment."""
    return _body(
        marker,
        "Deployment requested! Setting up preview environment...",
        f"Commit {_commit(commit_sha)}, requested by {_login(requested_by)} in {_code(repo)}. This comment becomes the result.",
    )


def refusal(*, marker: str, requested_by: str, reason: RefusalReason, detail: str) -> str:
    """Why nothing happens, and what to do instead. `detail`: the permission that the asker has, or empty."""
    who = _login(requested_by)
    match reason:
        case RefusalReason.PERMISSION:
            have = f" Your permission here is {_code(detail)}." if detail else ""
            text = f"{who}, `/preview` needs write access to this repository.{have}"
            step = "Ask somebody with write access to comment `/preview`."
        case RefusalReason.CLOSED:
            text = f"{who}, this pull request is closed, so it gets no preview."
            step = "Reopen the pull request, then comment `/preview` again."
        case RefusalReason.FORK:
            text = f"{who}, this pull request comes from a fork. Previews of forks are off."
            step = "Push the branch to this repository, then comment `/preview` on its pull request."
    return _body(marker, _REFUSED, text, f"> {step}")


def refused_marker(body: str) -> str:
    """The marker of a comment that says why a command was refused; empty: it is another one."""
    marker, _, rest = body.partition("\n\n")
    return marker if rest.startswith(_REFUSED) else ""


def status(notice: Notice) -> str:
    """The status comment of a request as it stands now; the acknowledgement while it is open."""
    match notice.state:
        case RequestState.WAITING | RequestState.CLAIMED:
            return acknowledgement(marker=notice.marker, commit_sha=notice.commit_sha, requested_by=notice.requested_by, repo=notice.repo)
        case RequestState.DEPLOYED:
            return _deployed(notice)
        case RequestState.DESTROYED:
            return _destroyed(notice)
        case RequestState.SUPERSEDED:
            return _superseded(notice)
        case RequestState.REJECTED:
            return _body(
                notice.marker, "**Preview not started**", _sentence(notice.error) or "The request was refused.", f"> {_next_step(notice)}"
            )
        case RequestState.FAILED:
            return _failed(notice, "**Preview failed** ❌")
        case RequestState.DEAD:
            return _failed(notice, f"**Preview given up** ❌ after {notice.attempts} attempts")


def _deployed(notice: Notice) -> str:
    if notice.reason == Reason.ALREADY_LIVE:
        return _body(
            notice.marker,
            f"**Preview already exists:** {notice.url}",
            f"It serves {_commit(notice.commit_sha)} already, so nothing was deployed again.",
        )
    return _body(
        notice.marker,
        f"**Preview ready** ✅ {notice.url}",
        f"| | |\n|---|---|\n| **URL** | {notice.url} |\n| **Commit** | {_commit(notice.commit_sha)} |\n| **Took** | {_took(notice)} |",
    )


def _destroyed(notice: Notice) -> str:
    if notice.source is Source.EXPIRY:
        return _body(
            notice.marker,
            "**Preview removed** 🧹",
            f"It had reached its time to live: release, namespace and URL are gone. It took {_took(notice)}.",
            "> Comment `/preview` to get it back.",
        )
    return _body(
        notice.marker,
        "**Preview removed** 🧹",
        f"The pull request was closed: release, namespace and URL are gone. It took {_took(notice)}.",
        "> Reopen the pull request and comment `/preview` to get it back.",
    )


def _superseded(notice: Notice) -> str:
    if notice.reason == Reason.PULL_REQUEST_CLOSED:
        return _body(
            notice.marker,
            "**Preview not started**: the pull request was closed meanwhile.",
            "> Reopen it, then comment `/preview` again.",
        )
    newer = f" of {_commit(notice.superseded_by_sha)}" if notice.superseded_by_sha else ""
    return _body(
        notice.marker,
        "**Superseded**",
        f"A newer request{newer} has taken over; {_commit(notice.commit_sha)} is not deployed for this command.",
    )


def _failed(notice: Notice, heading: str) -> str:
    summary, _, details = notice.error.partition("\n")
    parts = [f"{heading}: {_sentence(summary)}" if summary else f"{heading}."]
    if notice.commit_sha:
        parts.append(f"Commit {_commit(notice.commit_sha)}, after {_took(notice)}.")
    if details.strip():
        parts.append(_details("Details", details))
    parts.append(f"> {_next_step(notice)}")
    return _body(notice.marker, *parts)


def _next_step(notice: Notice) -> str:
    match notice.reason:
        case Reason.CHART_INVALID:
            return "The chart does not render with these values. Correct the chart or the configuration, then comment `/preview` again."
        case Reason.RELEASE_FAILED:
            return "The cluster refused an object, or a hook of the chart failed. Correct it, then comment `/preview` again."
        case Reason.NOT_READY:
            return "Correct what the details name and push, or comment `/preview` to try this commit again."
        case Reason.NOT_CONFIGURED:
            return "An operator has to list this repository in Prevue's configuration."
        case Reason.NAMESPACE_FOREIGN:
            return "An operator has to look: the namespace or release is not this preview's, and nothing in it was changed."
        case Reason.PERMISSION_LOST:
            return "Ask somebody with write access to comment `/preview`."
        case Reason.ATTEMPTS_SPENT:
            return "Comment `/preview` to try again; an operator finds the cause with `prevue dead-letters show`."
        case _:
            return "Comment `/preview` to try again."


def _body(marker: str, *paragraphs: str) -> str:
    return "\n\n".join([marker, *(part for part in paragraphs if part)])


def _commit(sha: str) -> str:
    # GitHub links a full SHA by itself; the code span keeps it short and plain where it does not.
    return _code(sha[:12]) if sha else "the commit"


def _code(text: str) -> str:
    return "`" + text.replace("`", "'").replace("\n", " ") + "`"


def _login(login: str) -> str:
    return f"@{login}" if login else "somebody"


def _sentence(text: str) -> str:
    flat = " ".join(text.split())[:500].replace("@", "@\u200b").replace("<!--", "<!\u200b--")
    return flat if not flat or flat.endswith((".", "!", "?")) else flat + "."


def _details(title: str, text: str) -> str:
    cut = text.strip()[-DETAILS_CHARACTERS_MAX:]
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", cut)), default=0))
    return f"<details open><summary>{title}</summary>\n\n{fence}text\n{cut}\n{fence}\n</details>"


def _took(notice: Notice) -> str:
    if notice.finished_at is None:
        return "a moment"
    seconds = max(0.0, (notice.finished_at - notice.registered_at).total_seconds())
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return str(timedelta(seconds=round(seconds))).removeprefix("0:")
