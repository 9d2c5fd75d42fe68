"""The table of planted bugs in `docs/simulation.md`, between two marks."""

from __future__ import annotations

from pathlib import Path

from tests.simulation.bugs import BUGS

PAGE = Path(__file__).parents[2] / "docs" / "simulation.md"
BEGIN, END = "<!-- bugs -->", "<!-- /bugs -->"


def write_bugs_table(found: list[tuple[str, str, int, str]]) -> None:
    """Replace what stands between the marks."""
    lines = ["| planted bug | invariant that it broke | seeds |", "|---|---|---:|"]
    for name, invariant, seeds, _ in found:
        what = f"**not found**, {seeds:,} seeds tried" if not invariant else f"`{invariant}`"
        lines.append(f"| `{name}`: {BUGS[name].what} | {what} | {seeds if invariant else ''} |")
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{tail}", encoding="utf-8")
