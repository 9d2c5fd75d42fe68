"""The claim's world: one pull request, its commands in GitHub's order, an at-least-once queue that reorders and redelivers, two workers,
their Helm children (processes of their own, that outlive a crashed or stopped worker), one preview row, the cluster, the outbox, the
sweeper.

Time is abstract: a lease or a Helm deadline may pass whenever its holder is stopped or dead, and never while it runs (it heartbeats).
Faults (crash, stop, graceful stop, duplicate, lost webhook, Helm killed) are drawn from small budgets at any step; the steps are `protocol.md`'s.
"""
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from explore import World, quick_replace

MAX_TOKEN = 9
NEVER = 0.25              # `-infinity`: the order of a sweep where the row is lost and the pull request open; below every command's
TERMINAL = {"deployed", "superseded", "failed", "dead", "destroyed"}


class Request(NamedTuple):
    name: str
    action: str           # deploy | destroy
    sha: str = ""
    bad: str = ""         # "": works; "unready": never ready; "poison": kills the worker that carries it out
    reopens: bool = True  # a deploy after a destroy: the pull request was reopened first (False: a command on a closed one)
    kind: str = ""        # "": GitHub's; replay, sweep, expiry: made by the operator or the sweeper, perhaps never
    of: int = -1          # a replay: of which request


A, B, C = Request("A", "deploy", "a"), Request("B", "deploy", "b"), Request("C", "deploy", "a")
X, LATE = Request("X", "destroy"), Request("L", "deploy", "a", reopens=False)


@dataclass(frozen=True)
class Config:
    requests: tuple       # in the order in which GitHub saw them: index + 1 is the generation; then the places for those made here
    workers: int = 2
    crashes: int = 1      # worker crashes, Helm killed, drainer crashes
    stops: int = 1        # a worker stopped (SIGSTOP, long pause) for as long as one likes
    dups: int = 1         # extra deliveries of a message or webhook
    losses: int = 0       # webhooks that never come
    gives: int = 0        # graceful stops and outages: the claim is given back
    attempts: int = 9     # N: dead letter after this many
    fence: str = "identity"   # identity: every write of Helm is checked; label: only release Secrets; none
    machine: bool = True  # a stop freezes the Helm child too, and its own deadline cannot fire meanwhile (a paused machine)
    lag: bool = True      # the API server reads the annotation from a cache that lags
    stale_read: bool = False  # GitHub may still say "open" of a closed pull request
    sweeper: bool = True  # re-enqueues what nobody carries out
    janitor: bool = True  # the sweeper's other half: a namespace that should not stand (one step, or single steps where a `sweep` has a place)
    restores: int = 0     # the database is put back to a dump; what has happened since is lost there, and nowhere else
    dump_any: bool = False    # the dump may be of any moment without a claim; else of the begin: all rows are lost
    terminating: bool = False # a deleted namespace stands for a while
    forced: bool = False  # the namespace is deleted although the uninstall failed; else that is a transient failure
    rollback: bool = False    # a pending revision above 1 is recovered by rollback; else by uninstall and install
    comments: bool = False    # model posting in detail: the App's acknowledgement, two drainers, POST without idempotency
    bugs: frozenset = frozenset()

    @cached_property
    def n(self):
        return sum(not q.kind for q in self.requests)

    @cached_property
    def places(self):
        """For what is made here, by kind: the indices of `requests` that are kept for it."""
        return {kind: [r for r in range(self.n, len(self.requests)) if self.requests[r].kind == kind] for kind in ("replay", "sweep", "expiry")}

    @cached_property
    def opened(self):
        """Whether the pull request is open, by how much of it has happened."""
        out = [True]
        for q in self.requests:
            out.append(q.action == "deploy" and (out[-1] or q.reopens))
        return out


class Worker(NamedTuple):
    pc: str = "idle"
    r: int = -1
    token: int = 0
    stopped: bool = False
    flight: bool = False  # holds the message (not yet redelivered by the queue)
    act: str = ""         # what it does: deploy, or destroy (also for a deploy that finds the pull request closed)
    op: str = ""          # the last Helm operation
    out: str = ""         # the outcome to record


class Helm(NamedTuple):
    token: int
    op: str               # up: install or upgrade; un: uninstall
    r: int
    pc: int
    host: int


class State(NamedTuple):
    events: int           # how many of the commands have happened on GitHub
    queue: tuple          # messages ready, by request
    # statestore
    status: tuple
    order: tuple          # generation as stored at registration; 0: not registered
    tries: tuple
    box: tuple            # outbox row: 0 none, 1 to send, 2 sent; with comments: (version, sent_version), 1 acknowledgement, 2 outcome
    token: int
    holder: int
    lease: bool           # lease_until > now()
    deadline: bool        # helm_deadline > now()
    desired: int          # newest registered generation (the tombstone is: it is a destroy)
    wanted: int           # desired_request
    live: str             # commit that is known to be live; "": nothing; "?": unknown, a change has begun
    live_request: int
    due: bool             # expires_at has passed
    failed: bool          # state = 'failed' although something is known to be live: verdict 6 came before a begin
    # cluster
    ns: int               # 0: no namespace, else the annotation prevue.dev/fence
    seen: int             # the annotation as admission sees it
    secret: tuple         # () or (status, sha, token) of the newest release revision
    prev: str             # commit of the deployed revision below it, with rollback
    obj: str              # commit of the workload
    dying: bool           # the namespace has a deletionTimestamp
    top: int              # history: highest token of a write that landed
    applied: int          # history: highest generation applied
    workers: tuple
    helms: tuple
    # GitHub comments, by request
    said: tuple
    acks: tuple           # the App's acknowledgement: 0 to do, 1 listed and found nothing, 2 done or given up
    drainers: tuple
    verified: tuple
    janitor: tuple        # a sweeper between its readings (planted: one that has decided to delete)
    swept: int            # order of the sweep requested for the namespace that stands; 0: none
    ended: tuple          # identities of the expiries
    dump: tuple           # of the statestore; () is none
    lost: int             # history: the token above which generations count, since lost commands may be carried out again after a restore
    restores: int
    crashes: int
    stops: int
    dups: int
    losses: int
    gives: int


for one in (Worker, Helm, State):
    quick_replace(one)


def put(t, i, v):
    return t[:i] + (v,) + t[i + 1:]


def initial(c):
    n = len(c.requests)
    z = (0,) * n
    return State(
        events=0, queue=z, status=("new",) * n, order=z, tries=z, box=((0, 0),) * n if c.comments else z, token=0, holder=-1, lease=False,
        deadline=False, desired=0, wanted=-1, live="", live_request=-1, due=False, failed=False, ns=0, seen=0, secret=(), prev="", obj="",
        dying=False, top=0, applied=0, workers=(Worker(),) * c.workers, helms=(), said=((),) * n, acks=(0 if c.comments else 2,) * n,
        drainers=((),) * (2 if c.comments else 1), verified=z, janitor=(), swept=0, ended=(), dump=(), lost=0, restores=c.restores,
        crashes=c.crashes, stops=c.stops, dups=c.dups, losses=c.losses, gives=c.gives)


def is_open(s, c):
    return c.opened[s.events]


# ---------------------------------------------------------------------------------------------------------------- statestore
def generation(s, r, c):
    return s.order[r] if c.requests[r].kind else r + 1


def applied(s, r, token, c):
    return s.applied if token <= s.lost else max(s.applied, generation(s, r, c))


def finish(s, r, outcome, c):
    """Outcome and outbox row, one transaction."""
    s = s._replace(status=put(s.status, r, outcome))
    if c.requests[r].kind == "sweep":                                           # tells nobody
        return s._replace(box=put(s.box, r, 2), said=put(s.said, r, (outcome,)))
    if c.comments:                                                              # ON CONFLICT DO UPDATE: a higher version
        v, sent = s.box[r]
        return s if v and "outcome_kept_out" in c.bugs else s._replace(box=put(s.box, r, (2, sent)))
    return s if "outbox_apart" in c.bugs else s._replace(box=put(s.box, r, 1))


def outdated(s, r, c):
    """Step 5 and the heartbeat: is something newer than r desired?"""
    return s.wanted != r if "begin_by_id" in c.bugs else s.order[r] < s.desired and "no_generation" not in c.bugs


def ready(s, r, c):
    return s.obj == c.requests[r].sha and s.secret[:2] == ("deployed", s.obj)


def claim(s, r, c):
    """The claim transaction → (verdict, state, violation)."""
    q, bugs = c.requests[r], c.bugs
    if s.status[r] == "new":
        g = s.order[r] or (max(s.order) + 1 if "arrival_order" in bugs else r + 1)
        s = s._replace(order=put(s.order, r, g), status=put(s.status, r, "waiting"))
        if c.comments and "ack_row_apart" not in bugs:                          # the acknowledgement's row
            s = s._replace(box=put(s.box, r, (1, 0)))
    if "desired_at_grant" not in bugs and (s.desired < s.order[r] or ("take_equal" in bugs and q.kind and s.desired == s.order[r])):
        s = s._replace(desired=s.order[r], wanted=r)
    again = s.status[r] in TERMINAL
    if again and "no_dedupe" not in bugs:
        return "Done", s, None
    again = "redelivery_changes_nothing" if again else None
    busy = s.lease or (s.deadline and "no_helm_deadline" not in bugs)
    if "claim_per_key" in bugs and busy and s.holder >= 0 and c.requests[s.holder].sha != q.sha:
        busy = False
    if busy and s.holder == r:
        return "InProgress", s, None
    if s.order[r] < s.desired and "no_generation" not in bugs:
        return "Superseded", finish(s, r, "superseded", c), again
    if busy:
        return "InProgress", s, None
    if s.tries[r] >= c.attempts and (q.action == "deploy" or "destroy_dies" in bugs):    # a destroy never gives up
        return "Dead", finish(s._replace(holder=-1, failed=s.live not in ("", "?")), r, "dead", c), again
    by_key = "done_by_key" in bugs and any(o.sha == q.sha and s.status[i] == "deployed" for i, o in enumerate(c.requests))
    if q.action == "deploy" and (by_key or (s.live == q.sha and "already_at_claim" in bugs)):
        return "AlreadyDeployed", finish(s, r, "deployed", c), again if ready(s, r, c) else "ready_means_ready_at_that_commit"
    s = s._replace(token=s.token + 1, holder=r, lease=True, deadline=False, status=put(s.status, r, "claimed"),
                   tries=put(s.tries, r, s.tries[r] + ("tries_at_failure" not in bugs)), desired=max(s.desired, s.order[r]))
    return "Granted", s, again


def holds(s, w, c):
    """WHERE preview.token = :t AND request.state = 'claimed'"""
    return "no_token" in c.bugs or (s.token == w.token and (s.status[w.r] == "claimed" or "finish_by_token_only" in c.bugs))


def record(s, w, outcome, c):
    q = c.requests[w.r]
    bad = None
    if "claim_per_key" not in c.bugs and (s.token != w.token or s.status[w.r] in TERMINAL):
        bad = "no_write_after_lost_claim" if s.token != w.token else "one_outcome_per_request"
    elif outcome == "deployed" and not ready(s, w.r, c):
        bad = "ready_means_ready_at_that_commit"
    live = q.sha if outcome == "deployed" else "" if w.pc == "record" else s.live
    first = w.r if s.live == "?" or s.live_request < 0 else s.live_request      # already live: live_request stays
    s = s._replace(live_request=-1 if live in ("", "?") else first if outcome == "deployed" else s.live_request, due=s.due and outcome != "deployed")
    s = finish(s._replace(holder=-1, lease=False, deadline=False, live=live), w.r, outcome, c)
    if outcome == "destroyed":
        s = s._replace(desired=0 if "no_tombstone" in c.bugs else s.desired, token=0 if "token_reset" in c.bugs else s.token)
    return s, bad


# ------------------------------------------------------------------------------------------------------------------- workers
def worker_steps(s, i, c):
    w = s.workers[i]
    if w.stopped:
        return
    q, bugs = c.requests[w.r], c.bugs

    def to(s, bad=None, **kw):
        return s._replace(workers=put(s.workers, i, w._replace(**kw))), bad

    def give_back(s):
        """Stop without a word; the message becomes visible again."""
        n = min(2, s.queue[w.r] + w.flight)
        return s._replace(queue=put(s.queue, w.r, n), workers=put(s.workers, i, Worker())), None

    def under_token(s, outcome):
        if not holds(s, w, c):
            return give_back(s)
        return to(*record(s, w, outcome, c), pc="box" if "outbox_apart" in bugs else "ack")

    if w.pc == "idle":
        for r, n in enumerate(s.queue):
            if n:
                yield f"receives {c.requests[r].name}", *to(s._replace(queue=put(s.queue, r, n - 1)), pc="claim", r=r,
                                                            flight="ack_early" not in bugs)
    elif w.pc == "claim":
        verdict, s2, bad = claim(s, w.r, c)
        if verdict == "Granted":
            yield f"claims {q.name}: Granted, token {s2.token}", *to(s2, bad, pc="read", token=s2.token)
        elif verdict == "InProgress" and not c.sweeper:
            yield f"claims {q.name}: InProgress, gives the message back", *give_back(s2)
        else:
            after = "box" if "outbox_apart" in bugs and verdict not in ("InProgress", "Done") else "ack"
            yield f"claims {q.name}: {verdict}", *to(s2, bad, pc=after)
    elif w.pc == "read":                                                        # GitHub, after the claim
        again = {"sweep": s.live == "" or not is_open(s, c), "expiry": s.due and s.live not in ("", "?")}.get(q.kind, True)
        if not again and s.live != "?" and "no_second_look" not in bugs:
            yield "looks again: no reason any more", *under_token(s, "superseded")
        elif q.action == "destroy":
            yield "goes on", *to(s, pc="raise", act="destroy", out="destroyed")
        elif is_open(s, c) or c.stale_read:                                     # live at that commit already: no Helm, read back and probe
            live = s.live == q.sha and not s.failed and ready(s, w.r, c)
            yield "reads the pull request: open" + ", already live" * live, *to(s, pc="record" if live else "raise", act="deploy", out="deployed")
        if q.action == "deploy" and not is_open(s, c):
            yield "reads the pull request: closed", *(under_token(s, "superseded") if "closed_only_rejects" in bugs else
                                                      to(s, pc="raise", act="destroy", out="superseded"))
    elif w.pc == "raise":                                                       # compare-and-swap of the annotation
        if w.act == "destroy" and not s.ns:
            yield "finds no namespace", *to(s, pc="record")
        elif s.ns > w.token:
            yield "finds a higher fence: stops", *give_back(s)
        elif s.dying and "terminating_counts" not in bugs:
            return                                                              # waits for its end, under the heartbeat
        elif s.dying:
            yield "finds the namespace terminating", *to(s, pc="fail")
        else:
            seen = s.seen if s.ns and c.lag else w.token
            yield f"raises the fence to {w.token}", *to(s._replace(ns=w.token, seen=seen, swept=s.swept if s.ns else 0), pc="begin")
    elif w.pc == "begin":                                                       # the fence bites (dry run) + helm_deadline under the token
        if c.fence != "none" and s.seen < s.ns and "no_confirm" not in bugs:
            return
        if not holds(s, w, c) or not s.lease:
            yield "finds its claim lost: stops", *give_back(s)
        elif outdated(s, w.r, c):
            newer = s.order[w.r] < s.desired
            yield "finds itself superseded" if newer else "begins: 0 rows", *(under_token(s, "superseded") if newer else give_back(s))
        else:
            bad = "newest_wins" if q.kind == "expiry" and s.live != "?" and not s.due else None
            yield "stores the Helm deadline", *to(s._replace(deadline=True, live="?", failed=False), bad, pc="exec")
    elif w.pc == "exec":
        if q.bad == "poison":
            yield "is killed by what it carries out", *give_back(s)
        elif not c.machine and not (s.deadline and s.token == w.token) and not bugs & {"relative_deadline", "no_token"}:
            yield "finds the absolute deadline passed: stops", *give_back(s)
        elif "exists_is_success" in bugs and s.secret and w.act == "deploy":
            yield "sees that the release exists", *to(s, pc="record")
        elif w.act == "destroy" and not s.secret and not s.obj:
            yield "finds no release", *to(s, pc="nsdel")
        else:
            pending = s.secret[:1] == ("pending",)
            op = "un" if w.act == "destroy" or (pending and not s.prev) else "back" if pending else "up"
            h = Helm(w.token, op, w.r, 0, i)
            yield f"starts helm {op} with token {w.token}", *to(s._replace(helms=tuple(sorted(s.helms + (h,)))), pc="helm", op=op)
    elif w.pc == "helm":
        if any(h.token == w.token for h in s.helms):
            if "release_running" in bugs and s.crashes:
                yield "gives up waiting and releases the claim", *under_release(s._replace(crashes=s.crashes - 1), w, give_back, c)
            return
        good = "nsdel" if w.act == "destroy" else "exec" if w.op in ("un", "back") else "ready"
        if good == "ready":
            clean = s.secret == ("deployed", q.sha, w.token) or ("status_alone" in bugs and s.secret[:1] == ("deployed",))
        else:
            clean = s.secret[:1] == ("deployed",) if w.op == "back" else not s.secret and not (good == "nsdel" and s.obj)
            clean = clean or (c.forced and good == "nsdel")
        yield f"reads back: {good if clean else 'failed'}", *to(s, pc=good if clean else "fail")
    elif w.pc == "ready":
        if outdated(s, w.r, c):
            yield "finds itself superseded while it waits", *under_token(s, "superseded")
        if q.bad == "unready":
            yield "is never ready", *under_token(s, "failed")
        else:
            yield "probes", *to(s, pc="record" if s.obj == q.sha or "status_alone" in bugs else "fail")
    elif w.pc == "nsdel":                                                       # DELETE with the resourceVersion of its own raise
        if s.ns and s.ns != w.token and "no_precondition" not in bugs:
            yield "finds the namespace changed since (409): stops", *give_back(s)
        else:
            bad = "one_mutating_worker_per_release" if w.token < s.top and s.ns else None
            s2 = s._replace(top=max(s.top, w.token), applied=applied(s, w.r, w.token, c))
            s2 = s2._replace(dying=bool(s.ns)) if c.terminating else no_namespace(s2)
            yield "deletes the namespace", *to(s2, bad, pc="gone" if c.terminating else "record")
    elif w.pc == "gone":                                                        # waits for 404, or for another uid
        if not s.dying:
            yield "sees the namespace gone", *to(s, pc="record")
    elif w.pc == "record":
        yield f"records {w.out} under token {w.token}" + ("" if holds(s, w, c) else ": 0 rows"), *under_token(s, w.out)
    elif w.pc == "box":
        yield "writes the outbox row", *to(s._replace(box=put(s.box, w.r, 1) if s.status[w.r] in TERMINAL else s.box), pc="ack")
    elif w.pc == "fail":
        yield "releases after a transient failure", *under_release(s, w, give_back, c)
    elif w.pc == "back":
        lost = "give_back_unguarded" in bugs and s.token != w.token
        s2, _ = under_release(s, w, give_back, c, attempts=-1)
        yield "gives its claim back", s2, "no_write_after_lost_claim" if lost else None
    elif w.pc == "ack":
        yield "acknowledges the message", s._replace(workers=put(s.workers, i, Worker())), None


def no_namespace(s):
    return s._replace(ns=0, seen=0, secret=(), prev="", obj="", dying=False, swept=0)


def under_release(s, w, give_back, c, attempts=0):
    if holds(s, w, c) or (attempts and "give_back_unguarded" in c.bugs):
        attempts = 0 if "give_back_counts" in c.bugs else attempts
        s = s._replace(holder=-1, lease=False, deadline=False, status=put(s.status, w.r, "waiting"),
                       tries=put(s.tries, w.r, s.tries[w.r] + attempts + ("tries_at_failure" in c.bugs)))
    return give_back(s)


# ---------------------------------------------------------------------------------------------------------- Helm, API server
def helm_steps(s, c):
    for k, h in enumerate(s.helms):
        if c.machine and s.workers[h.host].stopped:
            continue                                                            # frozen with its machine
        q, who = c.requests[h.r], f"helm {h.op}/{h.token}"
        gone = s._replace(helms=s.helms[:k] + s.helms[k + 1:])
        nxt = s._replace(helms=tuple(sorted(s.helms[:k] + s.helms[k + 1:] + (h._replace(pc=h.pc + 1),))))
        checked = c.fence == "identity" or (c.fence == "label" and h.op == "up" and h.pc != 1)
        if not s.ns or (s.dying and h.op != "un" and h.pc == 0) or (checked and h.token < s.seen):
            yield f"{who} is refused", gone, None
            continue
        bad = "one_mutating_worker_per_release" if h.token < s.top else None
        if h.op == "up" and h.pc == 0:
            if s.secret[:1] == ("pending",):
                yield f"{who}: another operation is in progress", gone, None
            else:
                prev = s.secret[1] if c.rollback and s.secret else s.prev
                yield f"{who} creates its pending Secret", nxt._replace(
                    secret=("pending", q.sha, h.token), prev=prev, top=max(s.top, h.token)), bad
        elif h.op == "up" and h.pc == 1:
            old = generation(s, h.r, c) < s.applied and h.token > s.lost
            bad = bad or ("generation_never_decreases" if old else None)
            yield f"{who} applies {q.sha}", nxt._replace(obj=q.sha, top=max(s.top, h.token), applied=applied(s, h.r, h.token, c)), bad
        elif h.op == "up":
            own = s.secret and s.secret[2] == h.token                           # each revision is a Secret of its own
            yield f"{who} marks deployed", gone._replace(secret=("deployed", q.sha, h.token) if own else s.secret), None
        elif h.op == "back" and h.pc < 2:                                       # it bears the old revision's labels: nobody's token
            s2 = nxt._replace(secret=("pending", s.prev, -h.token)) if h.pc == 0 else nxt._replace(obj=s.prev)
            yield f"{who} " + ("applies " + s.prev if h.pc else "creates its pending Secret"), s2._replace(top=max(s.top, h.token)), bad
        elif h.op == "back":
            yield f"{who} marks deployed", gone._replace(
                secret=("deployed", s.prev, -h.token) if s.secret[2:] == (-h.token,) else s.secret), None
        elif h.pc == 0:
            yield f"{who} deletes the objects", nxt._replace(obj="", top=max(s.top, h.token)), bad
        else:
            yield f"{who} deletes its Secret", gone._replace(secret=(), prev="", top=max(s.top, h.token)), bad


# -------------------------------------------------------------------------------- GitHub, time, sweeper, outbox, then the faults
def world_steps(s, c):
    if s.events < c.n:
        q = c.requests[s.events]
        yield f"GitHub: {q.name} ({q.action} {q.sha}), enqueued", s._replace(events=s.events + 1, queue=put(s.queue, s.events, 1)), None
    running = any(w.pc not in ("idle", "claim") and w.token == s.token and not w.stopped for w in s.workers)
    if s.lease and not running:
        yield "the lease ends", s._replace(lease=False), None
    if s.deadline and not running:      # the child's own deadline fires first, unless its machine is paused as well
        left = tuple(h for h in s.helms if h.token != s.token or (c.machine and s.workers[h.host].stopped) or "no_helm_deadline" in c.bugs)
        yield "the Helm deadline passes", s._replace(deadline=False, helms=left), None
    if s.dying:
        yield "the namespace is gone", no_namespace(s), None
    if s.seen < s.ns:
        yield "the API server's cache catches up", s._replace(seen=s.ns), None
    for i, w in enumerate(s.workers):
        if w.stopped:
            yield f"worker {i + 1} goes on", s._replace(workers=put(s.workers, i, w._replace(stopped=False))), None
        if w.stopped and w.flight and s.queue[w.r] < 2:
            s2 = s._replace(queue=put(s.queue, w.r, s.queue[w.r] + 1), workers=put(s.workers, i, w._replace(flight=False)))
            yield f"the queue redelivers {c.requests[w.r].name}", s2, None
    yield from sweeper_steps(s, c)
    yield from comment_steps(s, c)


def make(s, r, order):
    return s._replace(order=put(s.order, r, order), queue=put(s.queue, r, 1))


def sweeper_steps(s, c):
    idle, closed = not s.lease and not s.deadline, not is_open(s, c)
    for r in range(len(c.requests) if c.sweeper else 0):                        # rules 1 and 2
        if idle and not s.queue[r] and s.status[r] not in TERMINAL and (r < s.events or (s.order[r] and r >= c.n)) and not any(
                w.r == r and w.flight for w in s.workers):
            yield f"sweeper re-enqueues {c.requests[r].name}", s._replace(queue=put(s.queue, r, 1)), None
    if len(c.requests) > c.n:
        yield from made_steps(s, c, idle, closed)
    if c.janitor and s.ns and not s.dying and idle and closed and not c.places["sweep"] and all(t in TERMINAL for t in s.status[:s.events]):
        t = s.token + 1                                                         # rule 3 in one step
        yield f"sweeper claims the orphan (token {t}) and deletes it", no_namespace(s)._replace(token=t, live="", top=max(s.top, t)), None
    if "janitor_without_claim" in c.bugs and not s.janitor and s.ns and closed:
        yield "sweeper decides to delete the namespace", s._replace(janitor=(1,)), None
    if s.janitor and "janitor_without_claim" in c.bugs:
        bad = "one_mutating_worker_per_release" if s.ns and is_open(s, c) and s.top else None
        yield "sweeper deletes the namespace", s._replace(janitor=(), ns=0, seen=0, secret=(), obj=""), bad


def never_began(s, c):
    """The row is no tombstone, and nothing was ever written; GitHub's closes are over."""
    over = all(s.status[r] in TERMINAL for r in range(s.events) if c.requests[r].action == "destroy")
    return over and not s.top and s.live == "" and "destroyed" not in s.status


def made_steps(s, c, idle, closed):
    """Requests that GitHub doesn't know: they take the order of what they repeat or end."""
    bugs, lost = c.bugs, s.wanted < 0                                           # no row: nobody's work
    idle = idle and (lost or s.status[s.wanted] in TERMINAL or "sweeps_unfinished" in bugs)
    replay, sweep, expiry = (next((r for r in places if not s.order[r]), None) for places in c.places.values())
    r = replay
    if r is not None and s.status[c.requests[r].of] == "dead":
        order = s.order[c.requests[r].of] - ("lower_order" in bugs) / 2
        yield f"operator replays {c.requests[c.requests[r].of].name} as {c.requests[r].name}", make(s, r, order), None
    # rule 5: every preview expires, whenever it likes; what a failed one left is known by its token
    r, identity = expiry, (s.live_request if s.live != "?" else -1 - s.token, s.desired)
    known = any(e[0] == s.live_request for e in s.ended) if "expiry_by_live" in bugs else identity in s.ended
    left = s.live == "?" and s.status[s.wanted] == "failed"
    if r is not None and idle and (left or s.live not in ("", "?")) and not known:
        s2 = make(s, r, s.events + 0.5 if "expiry_by_time" in bugs else s.desired)
        yield f"sweeper expires {s.live}", s2._replace(due=True, ended=s.ended + (identity,)), None
    r, gone, late = sweep, s.live == "", "order_read_late" in bugs    # rule 3: the row (destroyed), then GitHub
    known = bool(s.swept) if "sweep_by_uid" in bugs or lost else s.swept == s.desired
    there = s.ns or ("sweeps_rows" in bugs and closed and never_began(s, c))     # rule 2: its close is over
    if r is not None and not s.janitor and there and not s.dying and idle and not known and (closed or (gone and not late)):
        yield "sweeper reads " + ("GitHub: closed" if late else "the row of a namespace"), s._replace(janitor=(s.desired, gone)), None
    if r is not None and s.janitor:
        order = s.desired if late else s.janitor[0]
        if not order:                                                           # closed_at, or -infinity where it is open
            closes = [r + 1 for r in range(s.events) if c.requests[r].action == "destroy"]
            order = closes[-1] if closed else s.events + 0.5 if "lost_by_time" in bugs else NEVER
        go = there and (closed or late or s.janitor[1])
        s2 = make(s, r, order - ("lower_order" in bugs) / 2)._replace(swept=order) if go else s
        yield "sweeper " + (f"requests {c.requests[r].name}" if go else "finds it rightful"), s2._replace(janitor=()), None


def comment_steps(s, c):
    """GitHub has no idempotent POST: list by marker, then PATCH or POST, then mark the row; each its own step."""
    for r in range(len(c.requests)):
        name, text = c.requests[r].name, s.status[r]
        if not c.comments:
            if s.box[r] == 1:
                yield f"outbox: {name} is {text}", s._replace(box=put(s.box, r, 2), said=put(s.said, r, (text,))), None
            continue
        if r >= s.events:
            continue
        version, sent = s.box[r]
        if s.acks[r] == 0:
            yield f"App lists the comments of {name}", s._replace(acks=put(s.acks, r, 2 if s.said[r] else 1)), None
        elif s.acks[r] == 1:
            yield f"App posts 'requested' for {name}", s._replace(acks=put(s.acks, r, 2), said=put(s.said, r, s.said[r] + ("requested",))), None
        elif s.acks[r] == 2 and s.said[r] and "ack_row_apart" in c.bugs:
            yield "the acknowledgement's own row is verified", s._replace(acks=put(s.acks, r, 3), said=put(s.said, r, ("requested",))), None
        writing = s.acks[r] == 1 or any(d and d[0] == r for d in s.drainers)    # verify_at: later than any writer
        if sent == 2 and not s.verified[r] and not writing and "no_heal" not in c.bugs:
            yield f"outbox verifies {name}", s._replace(said=put(s.said, r, (text,)), verified=put(s.verified, r, 1)), None
        for k, d in enumerate(s.drainers):
            if not d and version > sent:
                yield f"drainer {k + 1} lists", s._replace(drainers=put(s.drainers, k, (r, version, bool(s.said[r]), 0))), None
            elif d and d[0] == r and d[3] == 0:
                done, said = s._replace(drainers=put(s.drainers, k, d[:3] + (1,))), s.said[r]
                if d[1] == 1 and d[2]:
                    yield f"drainer {k + 1} finds the App's acknowledgement", done, None
                    continue
                new = "requested" if d[1] == 1 else text
                yield f"drainer {k + 1} writes {new}", done._replace(said=put(s.said, r, (new,) + said[1:] if d[2] else said + (new,))), None
            elif d and d[0] == r:
                s2 = s._replace(box=put(s.box, r, (version, max(sent, d[1]))), drainers=put(s.drainers, k, ()))
                yield f"drainer {k + 1} marks version {d[1]}", s2, None


def fault_steps(s, c):
    for i, w in enumerate(s.workers):
        if w.pc != "idle" and s.crashes:
            q = put(s.queue, w.r, min(2, s.queue[w.r] + 1)) if w.flight else s.queue
            yield f"CRASH of worker {i + 1} at {w.pc}", s._replace(crashes=s.crashes - 1, queue=q, workers=put(s.workers, i, Worker())), None
        if w.pc not in ("idle", "ack") and not w.stopped and s.stops:
            s2 = s._replace(stops=s.stops - 1, workers=put(s.workers, i, w._replace(stopped=True)))
            yield f"STOP of worker {i + 1} at {w.pc}", s2, None
        if s.gives and not w.stopped and w.pc in ("read", "raise", "begin", "exec", "helm", "ready", "nsdel", "gone"):
            left = tuple(h for h in s.helms if h.host != i or h.token != w.token or "give_back_running" in c.bugs)
            s2 = s._replace(gives=s.gives - 1, helms=left, workers=put(s.workers, i, w._replace(pc="back")))
            yield f"GRACEFUL STOP or outage of worker {i + 1} at {w.pc}", s2, None
    if s.crashes:
        for k, h in enumerate(s.helms):
            yield f"KILL of helm {h.op}/{h.token}", s._replace(crashes=s.crashes - 1, helms=s.helms[:k] + s.helms[k + 1:]), None
        for k, d in enumerate(s.drainers):
            if d:
                yield f"CRASH of drainer {k + 1}", s._replace(crashes=s.crashes - 1, drainers=put(s.drainers, k, ())), None
    yield from restore_steps(s, c)
    for r in range(len(c.requests)):
        if r >= (s.events if r < c.n else c.n) and not s.order[r]:
            continue                                                            # has not happened, is not made
        if s.dups and s.queue[r] < 2:
            yield f"DUPLICATE of {c.requests[r].name}", s._replace(dups=s.dups - 1, queue=put(s.queue, r, s.queue[r] + 1)), None
        if c.comments and s.acks[r] < 2 and s.crashes:
            yield "CRASH of the App before its acknowledgement", s._replace(crashes=s.crashes - 1, acks=put(s.acks, r, 2)), None
    if s.events < c.n and s.losses:
        yield f"GitHub: {c.requests[s.events].name}, webhook LOST", s._replace(events=s.events + 1, losses=s.losses - 1), None


STORE = ("status", "order", "tries", "box", "token", "desired", "wanted", "live", "live_request", "due", "failed", "swept", "ended")


def restore_steps(s, c):
    """The statestore goes back and the queue is empty; cluster and GitHub stay. Deployers start anew, but for one that is stopped."""
    if not s.restores:
        return
    if c.dump_any and not s.dump and s.holder < 0 and s.events:
        yield "a DUMP is taken", s._replace(dump=tuple(getattr(s, name) for name in STORE)), None
    if s.events and (s.dump or not c.dump_any):
        old = dict(zip(STORE, s.dump or (getattr(initial(c), name) for name in STORE), strict=True))
        # Above the highest annotation, and as far as covers the claims that have left none.
        token = old["token"] if "tokens_not_raised" in c.bugs else max(old["token"], s.ns) if "tokens_no_margin" in c.bugs else s.token
        helms = tuple(h for h in s.helms if s.workers[h.host].stopped)
        workers = tuple(w._replace(flight=False) if w.stopped else Worker() for w in s.workers)
        yield "the database is RESTORED", s._replace(
            **{**old, "token": token}, holder=-1, lease=False, deadline=False, queue=(0,) * len(s.queue), workers=workers, helms=helms,
            applied=0, lost=token, janitor=(), dump=(), restores=s.restores - 1), None


def successors(s, c):
    """→ (label, fault?, state, violation)"""
    for i in range(len(s.workers)):
        for label, s2, bad in worker_steps(s, i, c):
            yield f"worker {i + 1} {label}", False, s2, bad
    for steps, fault in ((helm_steps, False), (world_steps, False), (fault_steps, True)):
        for label, s2, bad in steps(s, c):
            yield label, fault, s2, bad


# ------------------------------------------------------------------------------------------------------------------------------ quiet
def canonical(s):
    """Workers are alike: of the two namings, keep the smaller."""
    if len(s.workers) == 2 and s.workers[0] > s.workers[1]:
        return s._replace(workers=s.workers[::-1], helms=tuple(sorted(h._replace(host=1 - h.host) for h in s.helms)))
    return s


def quiet_violation(s, c):
    """What is wrong with a state in which nothing more would happen by itself."""
    for r, q in enumerate(c.requests):
        if q.kind and not s.order[r]:
            continue                                                            # never made
        if s.status[r] not in TERMINAL:
            return "accepted_reaches_terminal_state"
        if s.status[r] == "dead" and not q.bad and not c.crashes + c.stops:
            return "outages_end_nothing"
        if s.box[r] not in (2, (2, 2)) or s.status[r] not in s.said[r]:
            return "dead_letter_is_announced" if s.status[r] == "dead" else "nothing_ends_without_a_word"
        if s.said[r] != (s.status[r],):
            return "one_status_comment_per_command"
    if not is_open(s, c):
        return "closed_pull_request_leaves_nothing" if s.ns or s.obj or s.secret else None
    last = max(r for r, q in enumerate(c.requests) if r == c.n - 1 or (q.kind == "replay" and s.order[r] > c.n - 1))
    q, told = c.requests[last], s.status[last]
    if c.places["expiry"]:
        return "newest_wins" if told != "deployed" and not q.bad else "expired_preview_leaves_nothing" if s.ns or s.obj or s.secret else None
    wrong = told != "deployed" or s.live != q.sha or not ready(s, last, c)
    return "newest_wins" if wrong and not q.bad and told != "dead" else None


def describe(s):
    return f"status={s.status} live={s.live!r} cluster={s.obj!r}/{s.secret} namespace={bool(s.ns)} said={s.said}"


WORLD = World(initial, successors, canonical, quiet_violation, describe, is_cut=lambda s: s.token > MAX_TOKEN)
