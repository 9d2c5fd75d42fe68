"""The chaos run's judge can see: each mistake is planted in made-up evidence of a good run, and is found under its own name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from tests.chaos.check import interrupted, judge
from tests.chaos.records import (
    Act,
    Deed,
    Evidence,
    Held,
    Hit,
    LeaseSeen,
    LedgerRow,
    PullKey,
    ReadySeen,
    Remark,
    RequestRow,
    Revision,
)

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
FIRST, SECOND = PullKey(1, 1), PullKey(1, 2)
OLD, NEW = "a" * 40, "b" * 40
URL, NAMESPACE = "http://127.0.0.1:30001/", "pv-acme-hello-1-1"


def at(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


def row(request_id: int, token: int, event: str, seconds: float, outcome: str = "") -> LedgerRow:
    return LedgerRow(request_id=request_id, token=token, event=event, at=at(seconds), outcome=outcome)


def request(number: int, pull: PullKey, source_id: str, *, state: str, registered: float, finished: float | None) -> RequestRow:
    return RequestRow(
        id=number,
        pull=pull,
        source="comment",
        source_id=source_id,
        action="deploy",
        sha=NEW,
        state=state,
        attempts=1,
        registered_at=at(registered),
        finished_at=None if finished is None else at(finished),
    )


def revision(number: int, request_id: int, token: int, sha: str, status: str) -> Revision:
    return Revision(uid=f"{number}-{token}", namespace=NAMESPACE, number=number, status=status, request_id=request_id, token=token, sha=sha)


def good() -> Evidence:
    """Two pull requests: on the first a command, a push and another one, whose holder is killed once; the second is closed again."""
    return Evidence(
        lease_seconds=30,
        acts=[
            Act(pull=FIRST, deed=Deed.COMMAND, at=at(0), sha=OLD, comment_id=11),
            Act(pull=SECOND, deed=Deed.COMMAND, at=at(1), sha=OLD, comment_id=21),
            Act(pull=FIRST, deed=Deed.PUSH, at=at(8), sha=NEW),
            Act(pull=FIRST, deed=Deed.COMMAND, at=at(9), sha=NEW, comment_id=12),
            Act(pull=SECOND, deed=Deed.CLOSE, at=at(10), sha=OLD),
        ],
        requests=[
            request(1, FIRST, "11", state="deployed", registered=0, finished=5),
            request(2, SECOND, "21", state="superseded", registered=1, finished=12),
            request(3, FIRST, "12", state="deployed", registered=9, finished=70),
        ],
        ledger=[
            row(1, 1, "granted", 0),
            row(1, 1, "began", 1),
            row(2, 2, "granted", 1),
            row(1, 1, "finished", 5, "deployed"),
            row(3, 3, "granted", 9),
            row(3, 3, "began", 10),
            row(2, 2, "finished", 12, "superseded"),
            row(3, 4, "granted", 62),
            row(3, 4, "began", 63),
            row(3, 4, "finished", 70, "deployed"),
        ],
        namespaces={FIRST: NAMESPACE},
        revisions=[revision(1, 1, 1, OLD, "superseded"), revision(3, 3, 4, NEW, "deployed")],
        revisions_seen=[
            revision(1, 1, 1, OLD, "superseded"),
            replace(revision(2, 3, 3, NEW, "pending-upgrade"), uid="interrupted"),
            replace(revision(3, 1, 1, OLD, "superseded"), uid="back", is_rollback=True),
            revision(3, 3, 4, NEW, "deployed"),
        ],
        remarks=[
            Remark(id=101, pull=FIRST, answers=11, text=f"**Preview ready** {URL}", url=URL),
            Remark(id=102, pull=SECOND, answers=21, text="**Superseded**", url=""),
            Remark(id=103, pull=FIRST, answers=12, text=f"**Preview ready** {URL}", url=URL),
            Remark(id=104, pull=SECOND, answers=0, text="**Preview removed**", url=""),
        ],
        served={URL: NEW},
        ready_seen=[
            ReadySeen(pull=FIRST, answers=11, url=URL, served=OLD, acts=2),
            ReadySeen(pull=FIRST, answers=12, url=URL, served=NEW, acts=5),
        ],
        leases_seen=[LeaseSeen(pull=FIRST, token=3, until=at(60))],
        hits=[Hit(at=at(11), kind="SIGKILL deployer", held=(Held(FIRST, 3, "Helm runs"),)), Hit(at=at(2), kind="SIGKILL deployer")],
    )


def no_answer(evidence: Evidence) -> None:
    evidence.remarks = [one for one in evidence.remarks if one.answers != 12]


def only_acknowledged(evidence: Evidence) -> None:
    evidence.remarks[2] = replace(evidence.remarks[2], text="Deployment requested! Setting up preview environment...")


def refused_while_open(evidence: Evidence) -> None:
    evidence.remarks[2] = replace(evidence.remarks[2], text="**Preview not started**: the pull request is closed")


def still_claimed(evidence: Evidence) -> None:
    evidence.requests[2] = replace(evidence.requests[2], state="claimed", finished_at=None)


def two_comments(evidence: Evidence) -> None:
    evidence.remarks.append(replace(evidence.remarks[2], id=105))


def two_requests(evidence: Evidence) -> None:
    evidence.requests.append(replace(evidence.requests[2], id=4))


def two_outcomes(evidence: Evidence) -> None:
    evidence.ledger.append(row(3, 4, "finished", 71, "deployed"))


def taken_up_again(evidence: Evidence) -> None:
    evidence.ledger.append(row(3, 5, "granted", 80))


def begun_twice(evidence: Evidence) -> None:
    evidence.ledger.insert(9, row(3, 4, "began", 64))


def revision_of_nobody(evidence: Evidence) -> None:
    evidence.revisions_seen.append(revision(4, 3, 9, NEW, "deployed"))


def carried_out_after_its_end(evidence: Evidence) -> None:
    evidence.ledger.append(row(3, 5, "granted", 80))
    evidence.revisions_seen.append(revision(4, 3, 5, NEW, "deployed"))


def two_revisions_of_a_claim(evidence: Evidence) -> None:
    evidence.revisions_seen.append(replace(revision(4, 3, 4, NEW, "deployed"), uid="another"))


def pending(evidence: Evidence) -> None:
    evidence.revisions.append(revision(4, 3, 4, NEW, "pending-upgrade"))


def ready_at_another_commit(evidence: Evidence) -> None:
    evidence.ready_seen[1] = replace(evidence.ready_seen[1], served=OLD)


def ready_without_an_answer(evidence: Evidence) -> None:
    evidence.ready_seen[0] = replace(evidence.ready_seen[0], served="")


def serves_the_old_commit(evidence: Evidence) -> None:
    evidence.served[URL] = OLD


def the_old_release_stands(evidence: Evidence) -> None:
    evidence.revisions[1] = replace(evidence.revisions[1], sha=OLD)


def two_deployed_revisions(evidence: Evidence) -> None:
    evidence.revisions[0] = replace(evidence.revisions[0], status="deployed")


def the_newest_superseded(evidence: Evidence) -> None:
    evidence.remarks[2] = replace(evidence.remarks[2], text="**Superseded**")


def closed_and_left(evidence: Evidence) -> None:
    evidence.namespaces[SECOND] = "pv-acme-hello-1-2"


def granted_too_early(evidence: Evidence) -> None:
    evidence.ledger[7] = row(3, 4, "granted", 40)


def granted_too_early_after_a_newer_command(evidence: Evidence) -> None:
    """The newer command ends the killed holder's request at once; the claim protects its Helm all the same."""
    evidence.ledger.insert(7, row(3, 3, "finished", 20, "superseded"))
    evidence.ledger[8] = row(4, 4, "granted", 40)
    evidence.requests.append(replace(evidence.requests[2], id=4, source_id="13"))


def older_token_granted(evidence: Evidence) -> None:
    evidence.ledger.append(row(3, 2, "granted", 80))


def written_by_a_stale_holder(evidence: Evidence) -> None:
    evidence.ledger.insert(8, row(3, 3, "given_back", 62.5))


PLANTED: list[tuple[str, Callable[[Evidence], None]]] = [
    ("lost", no_answer),
    ("lost", only_acknowledged),
    ("lost", refused_while_open),
    ("lost", still_claimed),
    ("doubled", two_comments),
    ("doubled", two_requests),
    ("doubled", two_outcomes),
    ("doubled", taken_up_again),
    ("doubled", begun_twice),
    ("doubled", revision_of_nobody),
    ("doubled", carried_out_after_its_end),
    ("doubled", two_revisions_of_a_claim),
    ("stuck", pending),
    ("wrong", ready_at_another_commit),
    ("wrong", ready_without_an_answer),
    ("wrong", serves_the_old_commit),
    ("wrong", the_old_release_stands),
    ("wrong", two_deployed_revisions),
    ("wrong", the_newest_superseded),
    ("wrong", closed_and_left),
    ("overlapping", granted_too_early),
    ("overlapping", granted_too_early_after_a_newer_command),
    ("overlapping", older_token_granted),
    ("overlapping", written_by_a_stale_holder),
]


def test_a_good_run_has_no_finding() -> None:
    evidence = good()
    evidence.hits = evidence.hits[:1]
    judgement = judge(evidence)
    assert judgement.findings == {"lost": [], "doubled": [], "stuck": [], "wrong": [], "overlapping": []}
    assert judgement.failures == []
    assert (judgement.accepted, judgement.recovery.samples, judgement.recovery.not_counted) == (3, (51.0,), 0)


@pytest.mark.parametrize(("kind", "plant"), PLANTED, ids=[plant.__name__ for _, plant in PLANTED])
def test_a_planted_mistake_is_found(kind: str, plant: Callable[[Evidence], None]) -> None:
    evidence = good()
    plant(evidence)
    judgement = judge(evidence)
    assert judgement.findings[kind]
    assert any(failure.endswith(kind) for failure in judgement.failures)


def test_a_newer_command_excuses_another_commit_and_a_close_excuses_a_refusal() -> None:
    evidence = good()
    evidence.ready_seen[0] = replace(evidence.ready_seen[0], served=NEW, acts=4)
    evidence.remarks[1] = replace(evidence.remarks[1], text="**Preview not started**: the pull request was closed meanwhile.")
    assert not any(judge(evidence).findings.values())


def test_an_interrupted_revision_that_was_recovered_is_history() -> None:
    evidence = good()
    evidence.revisions.append(replace(evidence.revisions_seen[1]))
    assert judge(evidence).stuck == []
    assert interrupted(evidence) == 1


def test_a_slow_recovery_fails_the_run() -> None:
    evidence = good()
    evidence.leases_seen = []
    evidence.ledger[7:] = [row(3, 4, "granted", 72), row(3, 4, "began", 73), row(3, 4, "finished", 75, "deployed")]
    evidence.requests[2] = replace(evidence.requests[2], finished_at=at(75))
    evidence.hits = evidence.hits[:1]
    assert judge(evidence).failures == ["recovery p99 61.0 s is above 2 leases of 30 s"]


def test_a_kill_after_which_nothing_was_open_is_not_counted() -> None:
    """The request ended without another claim; whoever asks a minute later has waited for nothing."""
    evidence = good()
    evidence.ledger[7:] = [row(3, 3, "finished", 60, "dead"), row(4, 4, "granted", 100)]
    evidence.requests[2] = replace(evidence.requests[2], state="dead", finished_at=at(60))
    evidence.requests.append(request(4, FIRST, "13", state="waiting", registered=100, finished=None))
    recovery = judge(evidence).recovery
    assert (recovery.samples, recovery.not_counted) == ((), 1)


def test_too_few_kills_of_holders_fail_the_run() -> None:
    assert judge(good()).failures == ["50% of the kills hit a claim's holder, 60% are wanted"]
