"""The lifecycle's tables: complete, closed, and drawn as they are in docs/state-machine.md."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path

import pytest

from prevue import lifecycle
from prevue.errors import ImpossibleEvent
from prevue.lifecycle import PREVIEW, REQUEST, PreviewEvent, PreviewStep, Reason, RequestEvent, RequestStep, preview_step, request_step
from prevue.model import Live, PreviewState, RequestState

PAGE = Path(__file__).parents[2] / "docs" / "state-machine.md"
LIVE = Live(sha="a" * 40, digest="d", request_id=1, token=1)

Arrows = dict[tuple[str, str], set[str]]


def section(title: str) -> str:
    """One machine's part of the page."""
    (found,) = [part for part in PAGE.read_text().split("\n## ")[1:] if part.startswith(title)]
    return found


def drawn(title: str) -> Arrows:
    """The arrows of its diagram: from, to → the events on it."""
    (diagram,) = re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", section(title), flags=re.DOTALL)
    arrows: Arrows = {}
    for line in diagram.splitlines():
        found = re.fullmatch(r" {4}(\[\*\]|\w+) --> (\w+): ([\w, ]+)", line)
        assert found is not None, f"not an arrow: {line!r}"
        assert (found[1], found[2]) not in arrows, f"twice: {line!r}"
        arrows[found[1], found[2]] = set(found[3].split(", "))
    return arrows


def in_table(steps: Iterable[tuple[StrEnum | None, StrEnum, StrEnum]]) -> Arrows:
    """The same of a table; an event that leaves the state as it is has no arrow."""
    arrows: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for state, event, to in steps:
        if state != to:
            arrows[state.value if state else "[*]", to.value].add(event.value)
    return dict(arrows)


def rows_of(title: str, head: str) -> dict[str, list[str]]:
    """A table of the page, by the words in backticks of its first column → the other columns."""
    (table,) = re.findall(rf"\| {head} \|.*?\n\|[-|]+\n((?:\|.*\n)+)", section(title))
    found: dict[str, list[str]] = {}
    for line in table.splitlines():
        first, *others = [cell.strip() for cell in line.strip("|").split(" | ")]
        found |= dict.fromkeys(re.findall(r"`(\w+)`", first), others)
    return found


def test_page_draws_exactly_the_tables_arrows() -> None:
    assert drawn("Request") == in_table((state, event, step.to) for (state, event), step in REQUEST.items())
    assert drawn("Preview") == in_table((state, event, step.to) for (state, event), step in PREVIEW.items())


@pytest.mark.parametrize(("title", "states", "events"), [("Request", RequestState, RequestEvent), ("Preview", PreviewState, PreviewEvent)])
def test_page_says_who_moves_each_state_on_and_when_each_event_happens(title: str, states: type[StrEnum], events: type[StrEnum]) -> None:
    for head, wanted in (("state", states), ("event", events)):
        rows = rows_of(title, head)
        assert rows.keys() == {one.value for one in wanted}
        assert all(len(others) == 2 and all(others) for others in rows.values())


@pytest.mark.parametrize("table", [REQUEST, PREVIEW], ids=["request", "preview"])
def test_every_state_is_reached_and_every_event_happens_somewhere(
    table: Mapping[tuple[StrEnum | None, StrEnum], RequestStep | PreviewStep],
) -> None:
    states, events = type(next(iter(table.values())).to), type(next(iter(table))[1])
    assert {step.to for step in table.values()} == set(states)
    assert {event for _, event in table} == set(events)


def test_terminal_requests_never_change_and_the_others_can_end() -> None:
    leaving = {state for state, _ in REQUEST if state is not None}
    assert leaving == {state for state in RequestState if not state.is_terminal}
    for event in RequestEvent:
        with pytest.raises(ImpossibleEvent):
            request_step(RequestState.DEPLOYED, event)


def test_whatever_ends_is_told_and_nothing_else() -> None:
    assert all(step.is_told is step.to.is_terminal for step in REQUEST.values())


def test_attempts_are_counted_when_granted_and_only_given_back_there() -> None:
    assert {event: step.attempts for (_, event), step in REQUEST.items() if step.attempts} == {
        RequestEvent.GRANTED: 1,
        RequestEvent.GIVEN_BACK: -1,
    }


def test_nothing_is_ready_that_has_not_begun() -> None:
    for state in PreviewState:
        if state is not PreviewState.DEPLOYING:
            for event in (PreviewEvent.FOUND_READY, PreviewEvent.FAILED):
                with pytest.raises(ImpossibleEvent):
                    preview_step(state, event)


@pytest.mark.parametrize(
    ("finish", "request_event", "preview_event"),
    [
        (lifecycle.deployed(LIVE, "http://x/"), RequestEvent.DEPLOYED, PreviewEvent.FOUND_READY),
        (lifecycle.already_live("http://x/"), RequestEvent.DEPLOYED, PreviewEvent.KEPT),
        (lifecycle.failed(Reason.NOT_READY, "", began=True), RequestEvent.FAILED, PreviewEvent.FAILED),
        (lifecycle.failed(Reason.OTHER, "", began=False), RequestEvent.FAILED, PreviewEvent.KEPT),
        (lifecycle.rejected(Reason.FORK, ""), RequestEvent.REJECTED, PreviewEvent.KEPT),
        (lifecycle.superseded(), RequestEvent.SUPERSEDED, PreviewEvent.KEPT),
        (lifecycle.torn_down(RequestState.DESTROYED, Reason.TORN_DOWN, tell=True), RequestEvent.DESTROYED, PreviewEvent.GONE),
        (lifecycle.torn_down(RequestState.SUPERSEDED, Reason.PULL_REQUEST_CLOSED, tell=True), RequestEvent.SUPERSEDED, PreviewEvent.GONE),
    ],
)
def test_every_way_to_finish_is_an_event_of_both(
    finish: lifecycle.Finish, request_event: RequestEvent, preview_event: PreviewEvent
) -> None:
    assert (finish.request_event, finish.preview_event) == (request_event, preview_event)
