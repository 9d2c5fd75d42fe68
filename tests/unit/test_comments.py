"""The texts on a pull request: each state has words, a marker, and a next step where one is needed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prevue.github import comments
from prevue.lifecycle import Reason
from prevue.model import Action, Notice, PreviewKey, RequestState, Source, comment_marker

KEY = PreviewKey("github.com", 42, 7)
AT = datetime(2026, 2, 12, 10, 0, tzinfo=UTC)
SHA = "0123456789abcdef0123456789abcdef01234567"


def notice(**changes: object) -> Notice:
    base = Notice(
        request_id=1,
        key=KEY,
        repo="acme/hello",
        installation_id=1,
        source=Source.COMMENT,
        source_id="99",
        action=Action.DEPLOY,
        comment_id=99,
        commit_sha=SHA,
        requested_by="writer",
        state=RequestState.WAITING,
        attempts=1,
        reason="",
        error="",
        url="",
        registered_at=AT,
        finished_at=None,
    )
    return msgspec.structs.replace(base, **changes)


def test_app_and_outbox_write_the_same_acknowledgement() -> None:
    ours = comments.acknowledgement(
        marker=comment_marker(KEY, Source.COMMENT, "99"), commit_sha=SHA, requested_by="writer", repo="acme/hello"
    )
    assert comments.status(notice()) == ours
    assert "Deployment requested! Setting up preview environment..." in ours
    assert SHA[:12] in ours


def test_result_has_url_commit_and_time_taken() -> None:
    text = comments.status(
        notice(state=RequestState.DEPLOYED, reason=Reason.READY, url="http://127.0.0.1:31000/", finished_at=AT + timedelta(seconds=12))
    )
    assert "http://127.0.0.1:31000/" in text
    assert SHA[:12] in text
    assert "12 s" in text


def test_second_command_on_the_live_commit_is_told_that_it_exists() -> None:
    text = comments.status(notice(state=RequestState.DEPLOYED, reason=Reason.ALREADY_LIVE, url="http://127.0.0.1:31000/"))
    assert "Preview already exists:** http://127.0.0.1:31000/" in text


@pytest.mark.parametrize("state", list(RequestState))
def test_every_state_has_words_and_begins_with_the_marker(state: RequestState) -> None:
    text = comments.status(notice(state=state, reason=Reason.OTHER, error="it broke"))
    assert text.startswith("<!-- prevue:github.com/42/7/comment/99 -->\n\n")
    assert len(text.splitlines()) >= 3


@pytest.mark.parametrize("reason", list(Reason))
def test_every_failure_names_its_reason_and_a_next_step(reason: Reason) -> None:
    text = comments.status(notice(state=RequestState.FAILED, reason=reason, error="pod web crashed\nline 1\nline 2"))
    assert "pod web crashed" in text
    assert "line 2" in text
    assert "\n> " in text


@pytest.mark.parametrize("reason", list(comments.RefusalReason))
def test_every_refusal_says_why_and_what_to_do(reason: comments.RefusalReason) -> None:
    text = comments.refusal(marker="<!-- m -->", requested_by="reader", reason=reason, detail="read")
    assert text.startswith("<!-- m -->")
    assert "@reader" in text
    assert "\n> " in text


@given(st.text(max_size=20_000))
def test_foreign_text_is_cut_and_cannot_leave_its_code_block_or_mention_anybody(text: str) -> None:
    body = comments.status(notice(state=RequestState.FAILED, reason=Reason.NOT_READY, error=f"@everyone <!-- prevue:x -->\n{text}"))
    assert len(body) < 10_000
    assert "@everyone" not in body.partition("\n\n")[2].split("<details")[0]
    assert body.count("<!-- prevue:") - text.count("<!-- prevue:") <= 1
