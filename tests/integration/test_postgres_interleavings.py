"""The claim's SQL under two hands: for each pair of the statestore's transactions that meet on one preview, every interleaving of their
statements on real PostgreSQL ends as one of the two serial orders does, and these as the fake says.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import combinations_with_replacement
from typing import Any

import asyncpg
import msgspec
import pytest
from sqlalchemy import update

from prevue import lifecycle
from prevue.errors import StaleClaim
from prevue.model import Claim, Message, PreviewState, Source, destroy_request, replay_of
from prevue.statestore.port import ClaimLimits, OutboxItem
from prevue.statestore.postgres import PostgresStateStore, claims
from prevue.statestore.postgres.tables import preview, request
from prevue.testing.contracts.statestore_harness import Store, claim_of, close, command, due_items, live_of
from prevue.testing.contracts.statestore_view import seen
from prevue.testing.interleaving import Interleaver, Operation, Ran, answer
from prevue.testing.statestore import FakeStateStore

LONG = 3600.0
"""Every span, so that none ends while the interleavings run."""
LIMITS = ClaimLimits(lease_seconds=LONG, attempts_max=2, acknowledge_after_seconds=0, verify_after_seconds=LONG)
PREEMPTIONS_MAX = None if os.environ.get("INTERLEAVINGS") == "all" else 1
"""By default one that could go on is made to stop once, at each of its boundaries; `make interleavings` runs every one."""
KEY = command(1).key
REPO = command(1).repo
TABLES = ("request", "preview", "outbox", "ledger", "lease")


class Stage(msgspec.Struct, kw_only=True):
    """What a world's transactions are about."""

    claim: Claim | None = None
    item: OutboxItem | None = None
    dead: int = 0

    @property
    def held(self) -> Claim:
        assert self.claim is not None
        return self.claim

    @property
    def told(self) -> OutboxItem:
        assert self.item is not None
        return self.item


Pass = Callable[[float], Awaitable[None]]
Build = Callable[[Store, Pass], Awaitable[Stage]]
Step = Callable[[Store, Stage, str], Awaitable[object]]
"""A transaction: on whose store, about what, as which holder."""


def names(messages: Iterable[Message]) -> list[str]:
    return [message.effective_source_id for message in messages]


def t1(message: Message) -> Step:
    return lambda store, _stage, me: store.register_and_claim(message, holder=me)


async def replay(store: Store, stage: Stage, me: str) -> object:
    message = await store.dead_message(stage.dead)
    return message and await store.register_and_claim(replay_of(stage.dead, message), holder=me)


async def unheld(store: Store, _stage: Stage, _me: str) -> object:
    return sorted(names(await store.unheld(quiet_seconds=0, limit=10)))


async def waiting(store: Store, _stage: Stage, _me: str) -> object:
    return names(await store.waiting(KEY))


async def audit(store: Store, _stage: Stage, _me: str) -> object:
    case = await store.audit(KEY)
    assert case is not None
    return (case.preview.state, case.preview.token, case.preview.order, [(one.state, one.token, one.told_version) for one in case.requests])


async def due(store: Store, _stage: Stage, _me: str) -> object:
    return [(item.version, item.is_verify, item.notice.state) for item in await due_items(store)]


def finish(finish_of: Callable[[Claim], lifecycle.Finish]) -> Step:
    return lambda store, stage, _me: store.finish(stage.held, finish_of(stage.held))


def give_back(*, counted: bool) -> Step:
    return lambda store, stage, _me: store.give_back(stage.held, delay=LONG if counted else 0, counted=counted, error="an outage")


DEPLOYED = finish(lambda claim: lifecycle.deployed(live_of(claim), "https://pr-1.example"))
SUPERSEDED = finish(lambda _claim: lifecycle.superseded())
HEARTBEAT: Step = lambda store, stage, _me: store.heartbeat(stage.held)  # noqa: E731
BEGIN: Step = lambda store, stage, _me: store.begin(  # noqa: E731
    stage.held, preview_state=PreviewState.DEPLOYING, deadline_seconds=LONG, values_digest="digest"
)
SENT: Step = lambda store, stage, _me: store.sent(stage.told, comment_id=99)  # noqa: E731
POSTPONE: Step = lambda store, stage, _me: store.postpone(stage.told, delay=LONG, error="a rate limit")  # noqa: E731
TOKENS: Step = lambda store, _stage, _me: store.raise_tokens(above=1000)  # noqa: E731
SETTLE: Step = lambda store, stage, _me: store.settle_dead_letter(stage.dead, "replayed")  # noqa: E731
EXPIRY = destroy_request(KEY, repo=REPO, installation_id=7, source=Source.EXPIRY, source_id="1", order=command(1).order)


async def empty(_store: Store, _let_pass: Pass) -> Stage:
    """Nobody has asked yet."""
    return Stage()


async def held(store: Store, _let_pass: Pass) -> Stage:
    """One holder before its begin; its acknowledgement is due."""
    claim = await claim_of(store, command(1))
    return Stage(claim=claim, item=(await due_items(store))[0])


async def overtaken(store: Store, _let_pass: Pass) -> Stage:
    """One holder in its Helm, and a newer command that waits."""
    claim = await claim_of(store, command(1))
    await store.begin(claim, preview_state=PreviewState.DEPLOYING, deadline_seconds=LONG)
    await store.register_and_claim(command(2), holder="other")
    return Stage(claim=claim)


async def lapsed(store: Store, let_pass: Pass) -> Stage:
    """A holder that slept past lease and deadline."""
    claim = await claim_of(store, command(1))
    await store.begin(claim, preview_state=PreviewState.DEPLOYING, deadline_seconds=LONG)
    await let_pass(2 * LONG)
    return Stage(claim=claim)


async def spent(store: Store, _let_pass: Pass) -> Stage:
    """Attempts are spent: the next T1 makes a dead letter."""
    for _ in range(LIMITS.attempts_max):
        await store.give_back(await claim_of(store, command(1)), delay=0, counted=True, error="broken")
    return Stage(item=(await due_items(store))[0])


async def dead(store: Store, let_pass: Pass) -> Stage:
    """A dead letter whose announcement is due."""
    await spent(store, let_pass)
    await store.register_and_claim(command(1), holder="other")
    return Stage(dead=(await store.dead_letters())[0].id, item=(await due_items(store))[0])


async def expired(store: Store, let_pass: Pass) -> Stage:
    """A preview that was ready, its time to live over, its comment to be verified."""
    claim = await claim_of(store, command(1))
    await store.begin(claim, preview_state=PreviewState.DEPLOYING, deadline_seconds=LONG)
    await store.finish(claim, lifecycle.deployed(live_of(claim), "https://pr-1.example", ttl_seconds=LONG))
    await store.sent((await due_items(store))[0], comment_id=98)
    await let_pass(2 * LONG)
    return Stage(item=(await due_items(store))[0])


WORLDS: dict[str, tuple[Build, dict[str, Step]]] = {
    "empty": (empty, {"first": t1(command(1)), "newer": t1(command(2)), "close": t1(close(3)), "unheld": unheld}),
    "held": (
        held,
        {
            "repeat": t1(command(1)),
            "newer": t1(command(2)),
            "older": t1(command(0)),
            "heartbeat": HEARTBEAT,
            "begin": BEGIN,
            "finish": DEPLOYED,
            "give back": give_back(counted=False),
            "transient": give_back(counted=True),
            "unheld": unheld,
            "sent": SENT,
            "postpone": POSTPONE,
            "audit": audit,
            "tokens": TOKENS,
        },
    ),
    "overtaken": (
        overtaken,
        {
            "waiting one": t1(command(2)),
            "close": t1(close(3)),
            "heartbeat": HEARTBEAT,
            "begin": BEGIN,
            "superseded": SUPERSEDED,
            "give back": give_back(counted=False),
            "unheld": unheld,
            "waiting": waiting,
        },
    ),
    "lapsed": (
        lapsed,
        {
            "takeover": t1(command(1)),
            "newer": t1(command(2)),
            "heartbeat": HEARTBEAT,
            "begin": BEGIN,
            "finish": DEPLOYED,
            "transient": give_back(counted=True),
            "unheld": unheld,
            "audit": audit,
        },
    ),
    "spent": (spent, {"dead": t1(command(1)), "newer": t1(command(2)), "unheld": unheld, "sent": SENT, "due": due}),
    "dead": (
        dead,
        {"replay": replay, "newer": t1(command(2)), "repeat": t1(command(1)), "settle": SETTLE, "sent": SENT, "postpone": POSTPONE},
    ),
    "expired": (expired, {"expiry": t1(EXPIRY), "newer": t1(command(2)), "verified": SENT, "audit": audit, "tokens": TOKENS}),
}


class World:
    """A database with boundaries in it, brought back to the same rows before each interleaving."""

    def __init__(self, connection: Any, observer: PostgresStateStore, interleaver: Interleaver) -> None:
        self.connection = connection
        self.observer = observer
        self.interleaver = interleaver
        self.stage = Stage()

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, build: Build, kind: type[PostgresStateStore] = PostgresStateStore) -> AsyncIterator[World]:
        connection = await asyncpg.connect(url)
        try:
            async with PostgresStateStore.open(url, LIMITS) as observer:
                stage = await build(observer, lambda seconds: let_pass(connection, seconds))
                await keep(connection)
                async with Interleaver.open(url, LIMITS, kind) as interleaver:
                    world = cls(connection, observer, interleaver)
                    world.stage = stage
                    yield world
        finally:
            await connection.close()

    async def restore(self) -> None:
        await self.connection.execute("SELECT restore()")

    def ready(self, step: Step, me: str) -> Operation:
        return lambda store: step(store, self.stage, me)

    async def rows(self) -> dict[str, list[Any]]:
        """All rows, numbers of requests replaced by their identity, times by how they lie to now."""
        now = datetime.now(UTC)
        tables = {table: await self.connection.fetch(f"SELECT * FROM {table}") for table in TABLES}
        ids = {row["id"]: f"{row['source']}/{row['source_id']}" for row in tables["request"]}

        def shown(column: str, value: Any) -> Any:
            if isinstance(value, datetime):
                if value.year == 1:
                    return "never"
                return value if column in ("at", "desired_at") else value > now  # the order's times are GitHub's
            if column in ("request_id", "desired_request", "live_request", "holder_request"):
                return ids.get(value)
            return value

        left_out = {(table, "id") for table in TABLES} | {("ledger", "at")}
        return {
            table: sorted(
                [{name: shown(name, value) for name, value in row.items() if (table, name) not in left_out} for row in found], key=str
            )
            for table, found in tables.items()
        }


async def let_pass(connection: Any, seconds: float) -> None:
    times = {
        "preview": ("lease_until", "helm_deadline", "expires_at"),
        "request": ("not_before", "sent_at"),
        "outbox": ("due_at", "verify_at"),
    }
    for table, columns in times.items():
        moves = ", ".join(f"{column} = {column} - make_interval(secs => {seconds})" for column in columns)
        await connection.execute(f"UPDATE {table} SET {moves}")


async def keep(connection: Any) -> None:
    """Make `restore()`, which brings back what stands in the tables now."""
    await connection.execute("CREATE SCHEMA kept")
    await connection.execute("ALTER TABLE ledger DISABLE TRIGGER USER")  # append-only, but for this
    token, is_called = await connection.fetchrow("SELECT last_value, is_called FROM claim_token")
    steps = [f"DELETE FROM {table}" for table in reversed(TABLES)]
    for table in TABLES:
        await connection.execute(f"CREATE TABLE kept.{table} AS TABLE {table}")
        steps.append(f"INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM kept.{table}")
    body = "; ".join([*steps, f"PERFORM setval('claim_token', {token}, {is_called})"])
    await connection.execute(f"CREATE FUNCTION restore() RETURNS void LANGUAGE plpgsql AS $$ BEGIN {body}; END $$")


def check_invariants(rows: dict[str, list[Any]]) -> None:
    """One holder, tokens unique and growing, one outcome, attempts as claimed, an outcome with its outbox row."""
    granted = [row["token"] for row in rows["ledger"] if row["event"] == "granted"]
    assert len(granted) == len(set(granted)), "a token was given out twice"
    for row in rows["preview"]:
        assert (row["token"] or 0) == max(granted, default=0), "the preview's token is the last one"
    current = [row for row in rows["request"] if row["state"] == "claimed" and row["token"] == max(granted, default=0)]
    assert len(current) <= 1, "two requests hold one preview"
    for row in rows["request"]:
        me = f"{row['source']}/{row['source_id']}"
        events = [event for event in rows["ledger"] if event["request_id"] == me]
        kinds = Counter(event["event"] for event in events)
        assert kinds["finished"] == (0 if row["state"] in ("waiting", "claimed") else 1), f"{me}: one outcome"
        uncounted = sum('"counted": false' in event["details"] for event in events if event["event"] == "given_back")
        assert row["attempts"] == kinds["granted"] - uncounted, f"{me}: attempts"
        told = [item["version"] for item in rows["outbox"] if item["request_id"] == me]
        if row["source"] == "comment":  # a command that ends where it is registered has but one text
            is_at_once = kinds["granted"] == 0 and row["state"] == "superseded"
            assert told == [1 + kinds["finished"]] or (is_at_once and told == [1]), f"{me}: told {told}"


async def as_the_fake_says(build: Build, steps: list[tuple[Step, str]]) -> tuple[list[object], Any]:
    """What the fake answers to one after the other, and shows afterwards."""
    fake = FakeStateStore(limits=LIMITS)

    async def passing(seconds: float) -> None:
        fake.advance(seconds)

    stage = await build(fake, passing)
    answers = [await answer(step(fake, stage, me)) for step, me in steps]
    return answers, await seen(fake, [KEY], REPO)


IS_SERIAL = re.compile(r"a+b+|b+a+")


async def explore(world: World, build: Build, a: Step, b: Step) -> int:
    """Run every interleaving of `a` and `b`, each checked; returns how many there were."""
    ran: list[tuple[Ran, Any]] = []
    async for one in world.interleaver.interleavings(
        world.ready(a, "a"), world.ready(b, "b"), world.restore, preemptions_max=PREEMPTIONS_MAX
    ):
        rows = await world.rows()
        check_invariants(rows)
        ran.append((one, rows))
        if IS_SERIAL.fullmatch(one.schedule):
            shown = await seen(world.observer, [KEY], REPO)
            is_a_first = one.schedule.startswith("a")
            answers, expected = await as_the_fake_says(build, [(a, "a"), (b, "b")] if is_a_first else [(b, "b"), (a, "a")])
            assert list(one.results) == (answers if is_a_first else answers[::-1]), f"{one.schedule}: the fake answers otherwise"
            assert shown == expected, f"{one.schedule}: the fake shows otherwise"
    serial = [(one.results, rows) for one, rows in ran if IS_SERIAL.fullmatch(one.schedule)]
    assert len(serial) == 2
    for one, rows in ran:
        assert (one.results, rows) in serial, f"{one.schedule}: neither serial order ends so, {one.results}"
    return len(ran)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", WORLDS)
async def test_every_interleaving_ends_as_a_serial_order(postgres_url: str, name: str) -> None:
    build, steps = WORLDS[name]
    counts: dict[str, int] = {}
    async with World.open(postgres_url, build) as world:
        assert world.interleaver.boundaries == {"prevue_register_and_claim": 10, "prevue_raise_tokens": 5}
        for first, second in combinations_with_replacement(steps, 2):
            try:
                counts[f"{first} x {second}"] = await explore(world, build, steps[first], steps[second])
            except AssertionError as exc:
                raise AssertionError(f"{name}: {first} x {second}: {exc}") from exc
    print(f"{name}: {sum(counts.values())} interleavings of {len(counts)} pairs: {counts}")
    assert all(count >= 2 for count in counts.values())


class FinishRequestFirst(PostgresStateStore):
    """Locks in the other order, and right otherwise."""

    async def finish(self, claim: Claim, finish: lifecycle.Finish) -> None:
        ended = update(request).values(state=finish.outcome.value, reason=finish.reason.value, finished_at=claims.NOW)
        async with self._database.transaction() as connection:
            if (await connection.execute(ended.where(claims._claimed(claim)))).rowcount != 1:
                raise StaleClaim
            await claims._free(connection, claim, {})
            await claims._tell(connection, claim)
            await claims._record(connection, claim, "finished", outcome=finish.outcome.value, reason=finish.reason.value)


class GiveBackWithoutToken(PostgresStateStore):
    """The preview is freed without a look at the token."""

    async def give_back(self, claim: Claim, *, delay: float, counted: bool, error: str) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(update(preview).values(holder=None, holder_request=None, lease_until=claims.NEVER))
            await connection.execute(update(request).values(state="waiting").where(request.c.id == claim.request_id))


async def rewritten(world: World, old: str, new: str) -> None:
    """T1 in this database with other words."""
    text = await world.connection.fetchval("SELECT pg_get_functiondef('prevue_register_and_claim'::regproc)")
    assert old in text
    await world.connection.execute(text.replace(old, new))


NO_LOCK = ("AND pr_number = a_pr_number FOR UPDATE", "AND pr_number = a_pr_number")


@pytest.mark.parametrize(
    ("name", "a", "b", "kind", "words", "found"),
    [
        ("held", t1(command(1)), SUPERSEDED, FinishRequestFirst, None, "deadlock detected"),
        ("lapsed", t1(command(1)), give_back(counted=True), GiveBackWithoutToken, None, "the fake answers otherwise"),
        ("lapsed", t1(command(1)), t1(command(2)), PostgresStateStore, NO_LOCK, "two requests|the last one|neither serial order"),
    ],
    ids=["finish updates the request first", "give back without the token", "T1 without its lock"],
)
async def test_planted_mistake_is_found(
    postgres_url: str, name: str, a: Step, b: Step, kind: type[PostgresStateStore], words: tuple[str, str] | None, found: str
) -> None:
    """The oracle is not blind."""
    build, _ = WORLDS[name]
    async with World.open(postgres_url, build, kind) as world:
        if words is not None:
            await rewritten(world, *words)
        with pytest.raises(AssertionError, match=found):
            await explore(world, build, a, b)


async def test_heartbeat_that_revives_a_lapsed_lease_is_found(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    condition = " AND lease_until > clock_timestamp()"
    assert condition in claims._HEARTBEAT
    monkeypatch.setattr(claims, "_HEARTBEAT", claims._HEARTBEAT.replace(condition, ""))
    build, steps = WORLDS["lapsed"]
    async with World.open(postgres_url, build) as world:
        with pytest.raises(AssertionError, match="the fake answers otherwise"):
            await explore(world, build, steps["takeover"], steps["heartbeat"])
