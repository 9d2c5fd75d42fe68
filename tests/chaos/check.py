"""The judge: what people did and what stands at the end are compared, by rules written down here once more.

It imports nothing of Prevue. Each rule returns sentences; a rule that returns none found nothing. `tests/unit/test_chaos_check.py` plants
every mistake in made-up evidence and sees it found.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from tests.chaos.records import Act, Deed, Evidence, LedgerRow, PullKey, Remark, RequestRow, Revision

OPEN_STATES = ("waiting", "claimed")
READY = ("Preview ready", "Preview already exists")
REFUSED = "Preview not started"
GIVEN_UP = "Preview given up"
ENDED = (*READY, REFUSED, "Superseded", "Preview failed", GIVEN_UP)
HELD_SHARE_MIN = 0.6
RECOVERY_LEASES_MAX = 2


def has_ended(text: str) -> bool:
    """Whether a comment tells how a command ended."""
    return any(words in text for words in ENDED)


def is_ready(text: str) -> bool:
    """Whether a comment says that the preview stands."""
    return any(words in text for words in READY)


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """From the kill of a claim's holder to the next grant on that preview, in seconds."""

    samples: tuple[float, ...]
    not_counted: int
    """Kills after which the preview had nothing open before anybody was granted it."""

    def quantile(self, share: float) -> float:
        """The smallest sample that is not exceeded by that share of them; 0 where there is none."""
        ordered = sorted(self.samples)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0

    @property
    def median(self) -> float:
        return median(self.samples) if self.samples else 0.0


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What was found, in sentences, by kind."""

    accepted: int
    lost: list[str]
    doubled: list[str]
    stuck: list[str]
    wrong: list[str]
    overlapping: list[str]
    recovery: Recovery
    hits: int
    hits_on_claims: int
    lease_seconds: float

    @property
    def held_share(self) -> float:
        """Of the kills, those that hit the holder of a claim."""
        return self.hits_on_claims / self.hits if self.hits else 0.0

    @property
    def failures(self) -> list[str]:
        """Why the run has failed; empty: it has not."""
        found = [f"{len(items)} {name}" for name, items in self.findings.items() if items]
        slowest = self.recovery.quantile(0.99)
        if slowest > RECOVERY_LEASES_MAX * self.lease_seconds:
            found.append(f"recovery p99 {slowest:.1f} s is above {RECOVERY_LEASES_MAX} leases of {self.lease_seconds:g} s")
        if self.held_share < HELD_SHARE_MIN:
            found.append(f"{self.held_share:.0%} of the kills hit a claim's holder, {HELD_SHARE_MIN:.0%} are wanted")
        return found

    @property
    def findings(self) -> dict[str, list[str]]:
        """All sentences by kind."""
        return {
            "lost": self.lost,
            "doubled": self.doubled,
            "stuck": self.stuck,
            "wrong": self.wrong,
            "overlapping": self.overlapping,
        }


def judge(evidence: Evidence) -> Judgement:
    """Apply every rule."""
    return Judgement(
        accepted=sum(act.deed is Deed.COMMAND for act in evidence.acts),
        lost=list(lost(evidence)),
        doubled=list(doubled(evidence)),
        stuck=list(stuck(evidence)),
        wrong=[*wrong_ready(evidence), *wrong_end(evidence)],
        overlapping=list(overlapping(evidence)),
        recovery=recovery(evidence),
        hits=len(evidence.hits),
        hits_on_claims=sum(bool(hit.held) for hit in evidence.hits),
        lease_seconds=evidence.lease_seconds,
    )


def lost(evidence: Evidence) -> Iterator[str]:
    """A command without an end that its author can see, or a request that stays open."""
    answers = _answers(evidence)
    for act in _commands(evidence):
        texts = [remark.text for remark in answers[act.comment_id]]
        if not any(has_ended(text) for text in texts):
            yield f"{act.pull}: command {act.comment_id} has no end: {texts[-1][:80] if texts else 'no answer at all'}"
        if any(REFUSED in text for text in texts) and not any(
            later.deed is Deed.CLOSE and later.pull == act.pull for later in _after(evidence, act)
        ):
            yield f"{act.pull}: command {act.comment_id} was refused, and nobody closed the pull request after it"
    for request in evidence.requests:
        if request.state in OPEN_STATES:
            yield f"{request.pull}: request {request.id} is {request.state}"


def doubled(evidence: Evidence) -> Iterator[str]:
    """A command that was carried out or answered twice, or a revision that nobody was granted."""
    answers = _answers(evidence)
    for act in _commands(evidence):
        if len(answers[act.comment_id]) > 1:
            yield f"{act.pull}: command {act.comment_id} has {len(answers[act.comment_id])} comments"
    of_command = Counter((one.pull, one.source_id) for one in evidence.requests if one.source == "comment")
    yield from (f"{pull}: command {comment} has {count} requests" for (pull, comment), count in of_command.items() if count > 1)
    for request_id, rows in _by_request(evidence.ledger).items():
        ends = [index for index, row in enumerate(rows) if row.event == "finished"]
        if len(ends) > 1:
            yield f"request {request_id} has {len(ends)} outcomes: {', '.join(rows[index].outcome for index in ends)}"
        if ends and any(row.event in ("granted", "began") for row in rows[ends[0] :]):
            yield f"request {request_id} was taken up again after its end"
        granted = {row.token for row in rows if row.event == "granted"}
        begun = Counter(row.token for row in rows if row.event == "began")
        for token, count in begun.items():
            if token not in granted or count > 1:
                yield f"request {request_id} began {count} times with the token {token}, granted: {sorted(map(str, granted))}"
    yield from _doubled_revisions(evidence)


def _doubled_revisions(evidence: Evidence) -> Iterator[str]:
    granted = {(row.request_id, row.token) for row in evidence.ledger if row.event == "granted"}
    ended_by = {row.request_id: row.token for row in evidence.ledger if row.event == "finished" and row.token is not None}
    made: Counter[tuple[int, int]] = Counter()
    for one in evidence.revisions_seen:
        if (one.request_id, one.token) not in granted:
            yield f"{one.namespace}: nobody was granted revision {one.number}'s request {one.request_id} with the token {one.token}"
        elif one.token > (ended_by.get(one.request_id) or one.token):
            yield f"{one.namespace}: revision {one.number} carries request {one.request_id} out again after its end"
        made[one.request_id, one.token] += not one.is_rollback
    for (request_id, token), count in made.items():
        if count > 1:
            yield f"request {request_id} made {count} revisions under one claim ({token})"


def stuck(evidence: Evidence) -> Iterator[str]:
    """A release that an interrupted Helm left: its newest revision says what it is; older ones are history, and hinder nobody."""
    newest = {one.namespace: one for one in sorted(evidence.revisions, key=lambda one: one.number)}
    for one in newest.values():
        if _is_interrupted(one):
            yield f"{one.namespace}: revision {one.number} is {one.status}"


def interrupted(evidence: Evidence) -> int:
    """How many revisions Helm did not finish, in the whole run: what was recovered, if nothing is stuck."""
    return sum(one.status.startswith("pending-") for one in evidence.revisions_seen)


def given_up(remarks: Iterable[Remark]) -> set[int]:
    """Commands whose attempts were spent."""
    return {remark.answers for remark in remarks if GIVEN_UP in remark.text}


def _is_interrupted(revision: Revision) -> bool:
    return revision.status.startswith("pending-") or revision.status == "uninstalling"


def wrong_ready(evidence: Evidence) -> Iterator[str]:
    """A "ready" that was read while its URL did not serve its commit, although nothing newer had been asked for."""
    place = {act.comment_id: index for index, act in enumerate(evidence.acts) if act.deed is Deed.COMMAND}
    for seen in evidence.ready_seen:
        index = place.get(seen.answers)
        if index is None:
            yield f"{seen.pull}: a comment says ready, and answers no command ({seen.answers})"
            continue
        wanted = evidence.acts[index].sha
        later = evidence.acts[index + 1 : seen.acts]
        if seen.served != wanted and not any(act.pull == seen.pull and act.deed in (Deed.COMMAND, Deed.CLOSE) for act in later):
            yield f"{seen.pull}: {seen.url} was said to be ready at {wanted[:12]} and served {seen.served[:12] or 'nothing'}"


def wrong_end(evidence: Evidence) -> Iterator[str]:
    """What stands at the end is not what was asked for last."""
    answers = _answers(evidence)
    for pull, acts in _by_pull(evidence.acts).items():
        closed_at = max((index for index, act in enumerate(acts) if act.deed is Deed.CLOSE), default=-1)
        wanted = [act for act in acts[closed_at + 1 :] if act.deed is Deed.COMMAND]
        namespace = evidence.namespaces.get(pull)
        if not wanted:
            if namespace is not None and closed_at >= 0:
                yield f"{pull}: {namespace} is left of a closed pull request"
            continue
        newest = wanted[-1]
        texts = [remark for remark in answers[newest.comment_id] if has_ended(remark.text)]
        if any("Superseded" in remark.text for remark in texts):
            yield f"{pull}: the newest command {newest.comment_id} ended as superseded"
        if any(is_ready(remark.text) for remark in texts):
            yield from _not_standing(evidence, newest, texts[0], namespace)


def _not_standing(evidence: Evidence, newest: Act, remark: Remark, namespace: str | None) -> Iterator[str]:
    if evidence.served.get(remark.url, "") != newest.sha:
        served = evidence.served.get(remark.url, "")
        yield f"{newest.pull}: {remark.url} is said to be ready at {newest.sha[:12]} and serves {served[:12] or 'nothing'}"
    standing = [one for one in evidence.revisions if one.namespace == namespace and one.status == "deployed"]
    if [one.sha for one in standing] != [newest.sha]:
        yield f"{newest.pull}: deployed revisions {[(one.number, one.sha[:12]) for one in standing]}, {newest.sha[:12]} is wanted"


def overlapping(evidence: Evidence) -> Iterator[str]:
    """Two holders of one preview at a time: by the ledger's order, and by how long each claim was seen to be protected."""
    pulls = {request.id: request.pull for request in evidence.requests}
    protected: dict[tuple[PullKey, int], datetime] = {}
    for seen in evidence.leases_seen:
        place = (seen.pull, seen.token)
        protected[place] = max(seen.until, protected.get(place, seen.until))
    newest: dict[PullKey, int] = {}
    freed: set[int] = set()
    killed = {held.token: hit.at for hit in evidence.hits for held in hit.held}
    for row in evidence.ledger:
        pull = pulls.get(row.request_id)
        if pull is None or row.token is None:
            continue
        last = newest.get(pull, 0)
        if row.event == "granted":
            if row.token <= last:
                yield f"{pull}: the token {row.token} was granted after {last}"
            until = protected.get((pull, last))
            if until is not None and last not in freed and row.at < until:
                early = (until - row.at).total_seconds()
                yield f"{pull}: the token {row.token} was granted {early:.1f} s before the claim {last} had run out"
            newest[pull] = max(last, row.token)
        elif row.event in ("began", "finished", "given_back"):
            if row.token < last and not (row.event == "finished" and row.outcome in ("superseded", "dead")):
                yield f"{pull}: {row.event} was written with the token {row.token} after {last} had been granted"
            # Whoever was killed frees nothing any more: another has registered a newer command, which ended this one.
            if row.event != "began" and not (row.token in killed and row.at > killed[row.token]):
                freed.add(row.token)


def recovery(evidence: Evidence) -> Recovery:
    """Each kill of a claim's holder → the next grant on that preview, where something was open on it all the time between."""
    pulls = {request.id: request.pull for request in evidence.requests}
    grants: dict[PullKey, list[LedgerRow]] = defaultdict(list)
    for row in evidence.ledger:
        if row.event == "granted" and row.request_id in pulls:
            grants[pulls[row.request_id]].append(row)
    samples, not_counted = [], 0
    for hit in evidence.hits:
        for held in hit.held:
            following = next((row.at for row in grants[held.pull] if row.token is not None and row.token > held.token), None)
            mine = [request for request in evidence.requests if request.pull == held.pull]
            if following is None or _idle_from(mine, hit.at) < following:
                not_counted += 1
            else:
                samples.append((following - hit.at).total_seconds())
    return Recovery(samples=tuple(samples), not_counted=not_counted)


def _idle_from(requests: Iterable[RequestRow], since: datetime) -> datetime:
    """When, from `since` on, none of them is open for the first time."""
    until = since
    for request in sorted(requests, key=lambda one: one.registered_at):
        end = request.finished_at or datetime.max.replace(tzinfo=since.tzinfo)
        if request.registered_at <= until < end:
            until = end
    return until


def _commands(evidence: Evidence) -> Iterator[Act]:
    return (act for act in evidence.acts if act.deed is Deed.COMMAND)


def _after(evidence: Evidence, act: Act) -> list[Act]:
    return evidence.acts[evidence.acts.index(act) + 1 :]


def _answers(evidence: Evidence) -> dict[int, list[Remark]]:
    found: dict[int, list[Remark]] = defaultdict(list)
    for remark in evidence.remarks:
        if remark.answers:
            found[remark.answers].append(remark)
    return found


def _by_pull(acts: Iterable[Act]) -> dict[PullKey, list[Act]]:
    found: dict[PullKey, list[Act]] = defaultdict(list)
    for act in acts:
        found[act.pull].append(act)
    return found


def _by_request(ledger: Iterable[LedgerRow]) -> dict[int, list[LedgerRow]]:
    found: dict[int, list[LedgerRow]] = defaultdict(list)
    for row in ledger:
        found[row.request_id].append(row)
    return found
