"""What every statestore backend decides alike and without I/O: who hears of an outcome (protocol section 5), what text is stored."""

from __future__ import annotations

from prevue.model import Action, Message, PreviewState, RequestState, Source

STATUS = "status"
"""The outbox row's kind: the one status comment of a request."""

VERIFIED = "comment_verified"
"""The event in a request's ledger of a verify pass that is over."""

REPLAYED, DROPPED = "replayed", "dropped"
SETTLED = (REPLAYED, DROPPED)
"""Events in a dead letter's ledger after which it is not listed any more."""


def is_told(message: Message, outcome: RequestState, preview_state: PreviewState) -> bool:
    """Whether the end of a request writes an outbox row; `preview_state` is the preview's before the end.

    Silent are: the sweeper's own teardown; a close or an expiry that a newer request superseded; and a destroy of a preview that never
    began, since a pull request that never had a preview hears nothing. Somebody who *asked* by a comment always gets an answer: their
    acknowledgement's row would else stand there for ever.
    """
    source = message.effective_source
    if source is Source.COMMENT:
        return True
    if source is Source.SWEEP:
        return False
    if source in (Source.CLOSE, Source.EXPIRY) and outcome is RequestState.SUPERSEDED:
        return False
    return not (message.action is Action.DESTROY and preview_state is PreviewState.REQUESTED)


def storable(text: str) -> str:
    """`text` without what a database's text cannot hold: a pod's last log lines may have NULs, and half characters at their cut.

    Refused there, they would keep the request from ever ending.
    """
    return text.replace("\x00", "").encode("utf-8", "replace").decode()
