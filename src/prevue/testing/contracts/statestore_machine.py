"""Any commands in any order on two statestores at once: the same answers, and the same to be seen afterwards.

Hypothesis chooses the commands and shrinks what fails. One of the two is the fake, which the simulation trusts. Every span is so long, and
time passes in such steps, that nothing ends within a minute after any step: how long the machine takes makes no difference.
"""
# ruff: noqa: S101 (these are tests: they assert)

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, multiple, rule

from prevue import lifecycle
from prevue.errors import ImpossibleEvent, StaleClaim
from prevue.lifecycle import Finish, Reason
from prevue.model import Action, Claim, Message, PreviewState, RequestState, Source, destroy_request, replay_of
from prevue.statestore.port import ClaimLimits, Granted
from prevue.testing.contracts.statestore_harness import (
    INSTALLATION,
    OpenHarness,
    Store,
    close,
    command,
    due_items,
    live_of,
    push,
)
from prevue.testing.contracts.statestore_view import name_of, names_of, seen, told

SPAN, STEP = 1000.0, 101.0
"""Everything lasts a multiple of the one; time passes by a multiple of it and the other."""
LIMITS = ClaimLimits(lease_seconds=3 * SPAN, attempts_max=3, acknowledge_after_seconds=SPAN, verify_after_seconds=6 * SPAN)
PULL_REQUESTS = (1, 2)
KEYS = [command(1, pr_number=number).key for number in PULL_REQUESTS]
REPO = command(1).repo
BOUNDED = settings(
    max_examples=25,
    stateful_step_count=25,
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
"""Some twenty seconds. No chance in it, but Hypothesis also tries constants of the loaded modules: the commands change with the code."""
LOOK_EVERY = 3
"""Commands: answers are compared each time, what can be seen after every third and at the end."""

_NUMBERS = st.integers(1, 9)
_PRS = st.sampled_from(PULL_REQUESTS)
MESSAGES = st.one_of(
    # Two commands a second: equal times are decided by rank and tie.
    st.builds(lambda number, pr: command(number, pr_number=pr, at=number // 2), _NUMBERS, _PRS),
    st.builds(lambda number, pr: command(number, pr_number=pr, at=number, action=Action.DESTROY, commit_sha=""), st.integers(10, 11), _PRS),
    st.builds(lambda at, pr: close(at, pr_number=pr), st.integers(0, 4), _PRS),
    st.builds(push, st.integers(0, 3), st.sampled_from(["one", "two"])),
)
FINISHES: dict[str, Callable[[Claim], Finish]] = {
    "deployed": lambda claim: lifecycle.deployed(live_of(claim), "https://pr.example", ttl_seconds=10 * SPAN),
    "already live": lambda _: lifecycle.already_live("https://pr.example", ttl_seconds=0),
    "failed": lambda _: lifecycle.failed(Reason.NOT_READY, "never\x00 ready", began=True, ttl_seconds=4 * SPAN),
    "refused": lambda _: lifecycle.rejected(Reason.PERMISSION_LOST, "no"),
    "superseded": lambda _: lifecycle.superseded(),
    "superseded, untold": lambda _: lifecycle.superseded(tell=False),
    "torn down": lambda _: lifecycle.torn_down(RequestState.DESTROYED, Reason.TORN_DOWN, tell=True),
}
Pair = tuple[Claim, Claim]
"""The same claim in the one store and in the other."""


class StateStoreMachine(RuleBasedStateMachine):
    """`one` and `other` are asked alike."""

    claims = Bundle("claims")

    def __init__(self, one: OpenHarness, other: OpenHarness) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._harnesses = (one, other)
        self._stack = AsyncExitStack()
        self._commands, self._newest = 0, 100
        self._stores: list[Store] = self._runner.run(self._open())

    async def _open(self) -> list[Store]:
        return [await self._stack.enter_async_context(harness.open()) for harness in self._harnesses]

    def teardown(self) -> None:
        """A last look; then close both."""
        try:
            self._runner.run(self._look())
        finally:
            self._runner.run(self._stack.aclose())
            self._runner.close()

    async def _look(self) -> None:
        one, other = [await seen(store, KEYS, REPO) for store in self._stores]
        differing = {name: (one.get(name), shown) for name, shown in other.items() if one.get(name) != shown}
        assert not differing, f"what is seen differs: {differing}"

    def both(self, call: Callable[[Store, int], Awaitable[object]]) -> list[Any]:
        """What the two answer to `call(store, which)`, compared."""

        async def one(which: int) -> object:
            try:
                return await call(self._stores[which], which)
            except (StaleClaim, ImpossibleEvent) as exc:
                return type(exc).__name__

        async def run() -> list[object]:
            results = [await one(which) for which in (0, 1)]
            assert told(results[0]) == told(results[1]), "the answers differ"
            self._commands += 1
            if self._commands % LOOK_EVERY == 0:
                await self._look()
            return results

        return self._runner.run(run())

    # -- claims ----------------------------------------------------------------------------------------------------------------------

    @rule(target=claims, message=MESSAGES, holder=st.sampled_from(["me", "you"]))
    def register(self, message: Message, holder: str) -> MultipleResults[Pair]:
        """T1."""
        return self._granted(self.both(lambda store, _: store.register_and_claim(message, holder=holder)))

    @rule(target=claims, number=st.integers(1, 3))
    def register_newer(self, number: int) -> MultipleResults[Pair]:
        """T1 of a command that is newer than all before."""
        self._newest += number
        message = command(self._newest, pr_number=1)
        return self._granted(self.both(lambda store, _: store.register_and_claim(message, holder="me")))

    @rule(target=claims, pr=_PRS, source=st.sampled_from([Source.EXPIRY, Source.SWEEP]))
    def ours(self, pr: int, source: Source) -> MultipleResults[Pair]:
        """A destroy of our own, with the order that it repeats."""

        async def request(store: Store, _which: int) -> object:
            found = await store.find(KEYS[pr - 1])
            if found is None:
                return None
            message = destroy_request(
                found.key, repo=REPO, installation_id=INSTALLATION, source=source, source_id=found.order.text, order=found.order
            )
            return await store.register_and_claim(message, holder="me")

        return self._granted(self.both(request))

    @rule(target=claims)
    def replay(self) -> MultipleResults[Pair]:
        """The newest dead letter once more."""

        async def request(store: Store, _which: int) -> object:
            letters = await store.dead_letters(limit=1)
            message = await store.dead_message(letters[0].id) if letters else None
            return message and await store.register_and_claim(replay_of(letters[0].id, message), holder="me")

        return self._granted(self.both(request))

    @rule(claim=claims)
    def heartbeat(self, claim: Pair) -> None:
        """Extend."""
        self.both(lambda store, which: store.heartbeat(claim[which]))

    @rule(claim=claims, state=st.sampled_from([PreviewState.DEPLOYING, PreviewState.DESTROYING]))
    def begin(self, claim: Pair, state: PreviewState) -> None:
        """Step 5."""
        self.both(lambda store, which: store.begin(claim[which], preview_state=state, deadline_seconds=5 * SPAN, values_digest="digest"))

    @rule(claim=claims, how=st.sampled_from(sorted(FINISHES)))
    def finish(self, claim: Pair, how: str) -> None:
        """Step 10."""
        self.both(lambda store, which: store.finish(claim[which], FINISHES[how](claim[which])))

    @rule(claim=claims)
    def deploy(self, claim: Pair) -> None:
        """Steps 5 and 10 in a row: what is ready only so is soon there to be changed."""
        self.begin(claim, PreviewState.DEPLOYING)
        self.finish(claim, "deployed")

    @rule(claim=claims, delay=st.sampled_from([0, 4 * SPAN]), counted=st.booleans())
    def give_back(self, claim: Pair, delay: float, counted: bool) -> None:
        """Transient failure or give-back."""
        self.both(lambda store, which: store.give_back(claim[which], delay=delay, counted=counted, error="an outage"))

    # -- outbox and sweeper ----------------------------------------------------------------------------------------------------------

    @rule(place=st.integers(0, 3), is_sent=st.booleans())
    def drain(self, place: int, is_sent: bool) -> None:
        """One due item is sent or verified, or postponed."""

        async def one(store: Store, _which: int) -> None:
            items = await due_items(store)
            if place < len(items):
                await (
                    store.sent(items[place], comment_id=place + 10)
                    if is_sent
                    else store.postpone(items[place], delay=2 * SPAN, error="later")
                )

        self.both(one)

    @rule(
        claim=claims,
        what=st.sampled_from(["unheld", "overdue", "note", "is_expired", "lane", "reserve", "tokens", "drop"]),
        small=st.integers(0, 3),
    )
    def aside(self, claim: Pair, what: str, small: int) -> None:
        """What is asked less often; one rule, so that most commands are about claims."""
        holder = "me" if small % 2 else "you"
        calls: dict[str, Callable[[Store, Claim], Awaitable[object]]] = {
            "unheld": lambda store, _: self._unheld(store, quiet_seconds=small // 2 * 3 * SPAN, limit=small + 1),
            "overdue": lambda store, _: self._overdue(store, older_than_seconds=small * 2 * SPAN),
            "note": lambda store, mine: store.note(mine, "probed", {"status": 200, "text": "a\x00b"}),
            "is_expired": self._is_expired,
            "lane": lambda store, _: store.acquire_lane(INSTALLATION, holder=holder, seconds=2 * SPAN),
            "reserve": lambda store, _: self._has_room(store, per_minute=small, per_hour=small + 1),
            "tokens": lambda store, mine: store.raise_tokens(above=mine.token + small),
            "drop": lambda store, _: self._drop(store),
        }
        self.both(lambda store, which: calls[what](store, claim[which]))
        if what == "lane" and small > 1:
            self.both(lambda store, _: store.release_lane(INSTALLATION, holder="me"))

    @rule(spans=st.integers(1, 7))
    def let_time_pass(self, spans: int) -> None:
        """Leases, deadlines, delays end."""
        for harness in self._harnesses:
            self._runner.run(harness.let_time_pass(spans * SPAN + STEP))
        self.both(self._nothing)

    # -- small things ----------------------------------------------------------------------------------------------------------------

    @staticmethod
    async def _nothing(_store: Store, _which: int) -> None:
        """Only look."""

    @staticmethod
    async def _is_expired(store: Store, claim: Claim) -> object:
        """Asked under the claim alone."""
        found = await store.find(claim.key)
        return await store.is_expired(claim) if found is not None and found.token == claim.token else None

    async def _unheld(self, store: Store, *, quiet_seconds: float, limit: int) -> object:
        return await self._named(store, await store.unheld(quiet_seconds=quiet_seconds, limit=limit))

    @staticmethod
    async def _overdue(store: Store, *, older_than_seconds: float) -> object:
        found = await store.overdue(older_than_seconds=older_than_seconds, limit=3)
        return [(each.state, each.source, each.pr_number) for each in found]

    @staticmethod
    async def _has_room(store: Store, *, per_minute: int, per_hour: int) -> bool:
        return await store.reserve_write(INSTALLATION, per_minute=per_minute, per_hour=per_hour) == 0

    @staticmethod
    async def _drop(store: Store) -> None:
        for letter in await store.dead_letters(limit=1):
            await store.settle_dead_letter(letter.id, "dropped")

    @staticmethod
    async def _named(store: Store, messages: Iterable[Message]) -> list[str]:
        names = names_of([case for key in KEYS if (case := await store.audit(key)) is not None])
        return [f"{message.pr_number}/{name_of(message, names)}" for message in messages]

    @staticmethod
    def _granted(results: list[Any]) -> MultipleResults[Pair]:
        one, other = results
        return multiple((one.claim, other.claim)) if isinstance(one, Granted) and isinstance(other, Granted) else multiple()
