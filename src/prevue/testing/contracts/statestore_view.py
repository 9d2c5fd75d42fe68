"""What the statestore's port shows of a preview, free of what differs from run to run: by it two backends are compared.

Numbers of requests are replaced by their identities (a repeated message may use a number up), times are left out.
"""

from __future__ import annotations

from typing import Any

from prevue.model import Message, PreviewKey, Source
from prevue.statestore.port import AuditCase, Began, Dead, Done, Granted, InProgress, Later, NewerDesired, RequestView, Superseded
from prevue.testing.contracts.statestore_harness import Store, due_items

Names = dict[int, str]
"""A request's number → its identity on its pull request."""
_TIMES = ("at", "delay", "deadline_seconds")


async def seen(store: Store, keys: list[PreviewKey], repo: str) -> dict[str, Any]:
    """All that the port's reading halves say of these previews of one repository."""
    cases = [case for key in keys if (case := await store.audit(key)) is not None]
    names = names_of(cases)
    found: dict[str, Any] = {}
    for case in cases:
        key = case.preview.key
        view = await store.preview(repo, key.pr_number)
        found[f"pull request {key.pr_number}"] = {
            **_case(case, names),
            "view": view and (view.state, view.commit_sha, view.url, view.token, view.attempts, view.error),
            "requests": [(_request(each, names), each.attempts, each.error, each.url) for each in (view.requests if view else [])],
            "ledger": [_entry(entry, names) for entry in await store.ledger(repo, key.pr_number)],
            "waiting": [name_of(message, names) for message in await store.waiting(key)],
        }
    found["dead letters"] = [_request(letter, names) for letter in await store.dead_letters()]
    found["due"] = [
        (names[item.notice.request_id], item.version, item.known_comment_id, item.is_verify, item.notice.superseded_by_sha)
        for item in await due_items(store)
    ]
    found["standing"] = [one.key.pr_number for one in await store.standing(limit=100)]
    found["expired"] = [one.key.pr_number for one in await store.expired(limit=100)]
    found["previews"] = [(one.pr_number, one.state) for one in await store.previews(repo=repo)]
    found["token"] = await store.last_token()
    return found


def names_of(cases: list[AuditCase]) -> Names:
    """Of all requests of these previews; a replay is named by what it repeats."""
    names: Names = {}
    for case in cases:
        for request in case.requests:
            names[request.id] = f"{request.message.pr_number}/{name_of(request.message, names)}"
    return names


def name_of(message: Message, names: Names) -> str:
    """The identity of `message` on its pull request."""
    source_id = message.effective_source_id
    if message.effective_source is Source.REPLAY:
        source_id = names[int(source_id)]
    return f"{message.effective_source}/{source_id}"


def told(result: object) -> object:
    """A method's answer, comparable."""
    match result:
        case Granted(claim):
            live = claim.live and (claim.live.sha, claim.live.token)
            return ("granted", claim.token, claim.attempt, claim.message, claim.order, claim.preview_state, live, claim.url)
        case Later():
            return "later"
        case Done(state):
            return ("done", state)
        case InProgress() | Superseded() | Dead() | Began() | NewerDesired():
            return type(result).__name__
    return result


def _case(case: AuditCase, names: Names) -> dict[str, Any]:
    preview, live = case.preview, case.live
    return {
        "preview": (preview.repo, preview.namespace, preview.state, preview.order, preview.token, preview.is_idle, case.url, case.release),
        "live": live and (live.sha, live.digest, names[live.request_id], live.token),
        "audit": [
            (names[each.id], each.state, each.reason, each.token, each.told_version, each.is_sent, each.is_verified)
            for each in case.requests
        ],
        "events": [(names[each.request_id], each.token, each.event, each.state) for each in case.events],
    }


def _request(view: RequestView, names: Names) -> tuple[object, ...]:
    return (names[view.id], view.action, view.state, view.commit_sha, view.requested_by, view.token, view.reason)


def _entry(entry: dict[str, Any], names: Names) -> dict[str, Any]:
    kept = {name: value for name, value in entry.items() if name not in _TIMES}
    return {**kept, "request_id": names[entry["request_id"]]}
