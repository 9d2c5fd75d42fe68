"""The status comment's world: one command, its acknowledgement and its outcome, the App, two drainers, the verify pass, the comment scan.

GitHub has no idempotent write and knows no token: whoever was stopped before a PATCH or POST carries it out when it goes on, however late,
and may crash before it can tell. The outbox's row is `(version, sent, armed)`; `armed` is `verify_at`: 0 is none, each arming a new value.
Time is abstract: `verify_at` lies later than any writer that runs may end, so a verify pass starts when every other writer is stopped or gone.
"""
from dataclasses import dataclass
from typing import NamedTuple

from explore import World, quick_replace

ACK, OUTCOME = 1, 2             # versions of the row, and their texts
ARMED_MAX = 9


@dataclass(frozen=True)
class Outbox:
    crashes: int = 1
    stops: int = 1              # a writer stopped (SIGSTOP, long pause) for as long as one likes
    app: bool = True            # the App's acknowledgement: a writer that sees no row
    verify: bool = True         # marking a version as sent arms the verify pass
    scan: bool = True           # rule 2's scan sees what was written on GitHub (by `updated_at`), and arms the verify where it is wrong
    late: bool = False          # a drainer that has written, and whose mark hits 0 rows, arms it again
    before: bool = False        # a drainer arms it before it writes
    bugs: frozenset = frozenset()


class Writer(NamedTuple):
    pc: str = "idle"            # write → tidy → mark; same (nothing to write) → idle
    version: int = 0
    verify: bool = False
    armed: int = 0              # as read with the row
    found: bool = False
    stopped: bool = False


class State(NamedTuple):
    version: int
    sent: int
    armed: int
    arming: int                 # the last value that `armed` was given
    comments: tuple             # texts, oldest first
    fresh: bool                 # something was written that the scan has not read
    scan: tuple                 # () or (what it read is wrong,): between its reading and its arming
    app: Writer
    drainers: tuple
    crashes: int
    stops: int


for one in (Writer, State):
    quick_replace(one)


def initial(c):
    app = Writer() if c.app else Writer("done")
    return State(ACK, 0, 0, 0, (), False, (), app, (Writer(), Writer()), c.crashes, c.stops)


def arm(s):
    return s._replace(armed=s.arming + 1, arming=s.arming + 1)


def is_right(s):
    return s.comments == (s.version,)


def runs(w):
    return w.pc not in ("idle", "done") and not w.stopped


def app_steps(s, c):
    w = s.app
    if w.stopped or w.pc == "done":
        return
    if w.pc == "idle":
        yield "App lists", s._replace(app=w._replace(pc="done" if s.comments else "write"))
    else:
        yield "App posts the acknowledgement", s._replace(app=w._replace(pc="done"), comments=(*s.comments, ACK), fresh=True)


def drainer_steps(s, k, c):
    w = s.drainers[k]
    if w.stopped:
        return

    def to(s, **kw):
        return s._replace(drainers=s.drainers[:k] + (w._replace(**kw),) + s.drainers[k + 1:])

    who = f"drainer {k + 1}"
    if w.pc == "idle":
        others = runs(s.app) or any(runs(d) for d in s.drainers)
        verify = s.sent == s.version and bool(s.armed) and not others
        if s.sent < s.version or verify:
            begun = to(s, pc="same" if is_right(s) else "write", version=s.version, verify=verify, armed=s.armed, found=bool(s.comments))
            if c.before and begun.drainers[k].pc == "write":
                begun = arm(begun)
                begun = begun._replace(drainers=begun.drainers[:k] + (begun.drainers[k]._replace(armed=begun.armed),) + begun.drainers[k + 1:])
            yield f"{who} reads the row{' to verify' * verify} and lists", begun
    elif w.pc == "write" and w.found:
        yield f"{who} patches the oldest to text {w.version}", to(s._replace(comments=(w.version,) + s.comments[1:], fresh=True), pc="tidy")
    elif w.pc == "write":
        yield f"{who} posts text {w.version}", to(s._replace(comments=(*s.comments, w.version), fresh=True), pc="tidy")
    elif w.pc == "tidy":
        yield f"{who} lists again, deletes all but the oldest", to(s._replace(comments=s.comments[:1]), pc="mark")
    else:
        verified = w.verify and s.version == w.version and (s.armed == w.armed or "clears_any" in c.bugs)
        sent = not w.verify and s.sent < w.version
        s2 = s._replace(armed=0) if verified else s._replace(sent=w.version) if sent else s
        if (sent and c.verify) or (c.late and w.pc == "mark" and not verified and not sent):
            s2 = arm(s2)
        what = "it verified" if w.verify else f"version {w.version} sent"
        yield f"{who} marks {what}" + ("" if verified or sent else ": 0 rows"), s2._replace(
            drainers=s.drainers[:k] + (Writer(),) + s.drainers[k + 1:])


def world_steps(s, c):
    if s.version == ACK:
        yield "the request ends: the outcome is a higher version", s._replace(version=OUTCOME)
    if c.scan and not s.scan and s.fresh:
        yield "the scan reads the comments that changed", s._replace(fresh=False, scan=(not is_right(s),))
    if s.scan:
        yield "the scan " + ("arms the verify" if s.scan[0] else "finds the newest text"), (arm(s) if s.scan[0] else s)._replace(scan=())
    if s.app.stopped:
        yield "App goes on", s._replace(app=s.app._replace(stopped=False))
    for k, w in enumerate(s.drainers):
        if w.stopped:
            yield f"drainer {k + 1} goes on", s._replace(drainers=s.drainers[:k] + (w._replace(stopped=False),) + s.drainers[k + 1:])


def fault_steps(s, c):
    for k, w in enumerate(s.drainers):
        def changed(w, k=k, **kw):
            return s._replace(drainers=s.drainers[:k] + (w,) + s.drainers[k + 1:], **kw)
        if w.pc != "idle" and s.crashes:
            yield f"CRASH of drainer {k + 1} at {w.pc}", changed(Writer(), crashes=s.crashes - 1)
        if runs(w) and s.stops:
            yield f"STOP of drainer {k + 1} at {w.pc}", changed(w._replace(stopped=True), stops=s.stops - 1)
    if s.app.pc != "done" and s.crashes:
        yield "CRASH of the App", s._replace(app=Writer("done"), crashes=s.crashes - 1)
    if runs(s.app) and s.stops:
        yield "STOP of the App before its POST", s._replace(app=s.app._replace(stopped=True), stops=s.stops - 1)
    if s.scan and s.crashes:                    # its cursor was not moved
        yield "CRASH of the scan", s._replace(scan=(), fresh=True, crashes=s.crashes - 1)


def successors(s, c):
    """→ (label, fault?, state, violation)"""
    for steps in (app_steps(s, c), drainer_steps(s, 0, c), drainer_steps(s, 1, c), world_steps(s, c)):
        for label, s2 in steps:
            yield label, False, s2, None
    for label, s2 in fault_steps(s, c):
        yield label, True, s2, None


def canonical(s):
    """Drainers are alike, and of the armings only what is newer than what matters: the values that are still known, renumbered."""
    drainers = tuple(sorted(s.drainers))
    known = sorted({0, s.armed, *(d.armed for d in drainers)})
    number = {value: k for k, value in enumerate(known)}
    return s._replace(drainers=tuple(d._replace(armed=number[d.armed]) for d in drainers), armed=number[s.armed], arming=known.index(known[-1]))


def quiet_violation(s, c):
    if s.comments and s.comments[0] != s.version or not s.comments:
        return "the_newest_text_stands"
    return None if len(s.comments) == 1 else "one_status_comment_per_command"


def describe(s):
    return f"version={s.version} sent={s.sent} comments={s.comments}"


WORLD = World(initial, successors, canonical, quiet_violation, describe, is_cut=lambda s: s.arming > ARMED_MAX)
