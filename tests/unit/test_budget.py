"""The budget of content writes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prevue.github_app.budget import HOUR, MINUTE, Budget
from prevue.testing.clock import FakeClock


def make(clock: FakeClock, *, per_minute: int = 30, per_hour: int = 100, replicas: int = 1) -> Budget:
    return Budget(per_minute=per_minute, per_hour=per_hour, replicas=replicas, now=clock.boottime)


def test_a_minute_is_bounded_and_slides() -> None:
    clock = FakeClock()
    budget = make(clock)
    assert sum(budget.take(1) for _ in range(50)) == 30
    assert not budget.may_write(1)
    clock.advance(MINUTE - 0.1)
    assert not budget.take(1)
    clock.advance(0.2)
    assert budget.take(1)


def test_an_hour_is_bounded() -> None:
    clock = FakeClock()
    budget = make(clock)
    taken = 0
    for _ in range(59):
        taken += sum(budget.take(1) for _ in range(50))
        clock.advance(60.5)
    assert taken == 100


def test_installations_are_apart() -> None:
    budget = make(FakeClock(), per_minute=1)
    assert budget.take(1)
    assert budget.take(2)
    assert not budget.take(1)


def test_reactions_stop_at_half_so_that_comments_go_on() -> None:
    budget = make(FakeClock(), per_minute=10)
    comments = reactions = 0
    for _ in range(10):
        if budget.take(1):
            comments += 1
            reactions += budget.take(1, keep=0.5)
    assert (comments, reactions) == (7, 3)


def test_processes_share_it() -> None:
    budget = make(FakeClock(), replicas=4)
    assert sum(budget.take(1) for _ in range(50)) == 7


def test_more_processes_than_writes_leave_all_to_the_outbox() -> None:
    assert not make(FakeClock(), replicas=31).may_write(1)


def test_githubs_own_limit_pauses_one_installation() -> None:
    clock = FakeClock()
    budget = make(clock)
    budget.pause(1, 90)
    budget.pause(1, 30)
    assert not budget.take(1)
    assert budget.take(2)
    clock.advance(91)
    assert budget.take(1)


@given(st.lists(st.floats(0, 500), max_size=300), st.integers(1, 10), st.integers(1, 30))
def test_no_window_ever_holds_more_than_its_limit(waits: list[float], per_minute: int, per_hour: int) -> None:
    clock = FakeClock()
    budget = make(clock, per_minute=per_minute, per_hour=per_hour)
    granted: list[float] = []
    for wait in waits:
        clock.advance(wait)
        if budget.take(1):
            granted.append(clock.boottime())
    for end in granted:
        assert sum(end - MINUTE < at <= end for at in granted) <= per_minute
        assert sum(end - HOUR < at <= end for at in granted) <= per_hour
