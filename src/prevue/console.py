"""What the commands print: results on standard output, everything else on standard error; JSON exactly as promised.

A name, a branch or an error text may hold anything: it is never read as rich's markup, and control characters do not reach a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from prevue.statestore.port import RequestView
    from prevue.verify.run import Report

LEDGER_COLUMNS = ("at", "request_id", "token", "event")
JsonValue = str | int | float | bool | None


def print_json(value: Any) -> None:
    """`value` as JSON, indented, one document."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_text(text: str) -> None:
    """`text` as it is."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def print_error(text: str) -> None:
    """`prevue: text` on standard error."""
    sys.stderr.write(f"prevue: {printable(text, newlines=True)}\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[JsonValue | datetime]], *, empty: str) -> None:
    """A table as wide as the terminal; through a pipe, as wide as its content."""
    if not rows:
        print_text(empty)
        return
    # Imported here: `prevue --help` and --json need none of it.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
    with console.capture() as captured:
        console.print(table)
    print_text("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_facts(facts: Sequence[tuple[str, JsonValue | datetime]]) -> None:
    """`name  value` a line; what is empty is left out."""
    shown = [(name, cell(value)) for name, value in facts]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        if value:
            print_text(f"{name:<{width}}  {value}")


def print_ledger(requests: Sequence[RequestView], events: Sequence[Mapping[str, JsonValue]]) -> None:
    """Each request, oldest first, with one line a step: seconds since it was registered, the claim's token, what happened."""
    of: dict[JsonValue, list[Mapping[str, JsonValue]]] = {}
    for event in events:
        of.setdefault(event["request_id"], []).append(event)
    for request in sorted(requests, key=lambda one: one.id):
        steps = of.get(request.id, [])
        begin = datetime.fromisoformat(str(steps[0]["at"])) if steps else request.registered_at
        who = f" by {request.requested_by}" if request.requested_by else ""
        who += f", delivery {request.delivery_id}" if request.delivery_id else ""
        commit = f" {request.commit_sha[:12]}" if request.commit_sha else ""
        why = f" ({request.reason})" if request.reason else ""
        print_text(printable(f"request {request.id}: {request.action}{commit}, {request.source}{who}: {request.state}{why}"))
        print_text(f"  {cell(begin)}")
        for step in steps:
            after = (datetime.fromisoformat(str(step["at"])) - begin).total_seconds()
            token = "" if step["token"] is None else f"token {step['token']}"
            details = " ".join(f"{name}={step[name]}" for name in sorted(step) if name not in LEDGER_COLUMNS)
            print_text(printable(f"  {after:>+10.3f} s  {token:<12}  {step['event']:<16}  {details}".rstrip()))


def print_report(report: Report) -> None:
    """Each invariant with ok or the rows that break it; what could not be looked at last."""
    for one in report.invariants:
        mark = "FAIL" if not one.ok else "-" if one.scope.startswith("not checked") else "ok"
        print_text(f"{mark:<4}  {one.invariant.value:<44}  {one.scope}")
        for violation in one.violations:
            print_text(f"      {printable(violation.where)}: {printable(violation.text)}")
    for place in report.unreadable:
        print_text(f"?     {printable(place)}")
    broken = sum(len(one.violations) for one in report.invariants)
    counts = (_counted(report.previews, "preview"), _counted(report.requests, "request"), _counted(report.namespaces, "namespace"))
    print_text(f"{', '.join(counts)}: {'all hold' if report.ok else _counted(broken, 'violation')}")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def cell(value: JsonValue | datetime) -> str:
    """`value` for a person."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%SZ")
    return printable(str(value))


def printable(text: str, *, newlines: bool = False) -> str:
    """`text` without control characters: an error from outside must not steer the terminal."""
    return "".join(char if char.isprintable() or (newlines and char == "\n") else " " for char in text)
