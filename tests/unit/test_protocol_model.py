"""The protocol's model: quick rows, all rows with the page's numbers at the end of the run (`conftest.py`); step names in the code."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTOCOL = ROOT / "docs" / "protocol"
MODEL = PROTOCOL / "protocol_model.py"
WORDS = ("T1", "transient failure", "give back", "outbox drain", "outbox verify")
"""What the page names without a number."""
REFERENCE = re.compile(
    r"(?P<where>\w+[ ]|'s[ ])?\b(?P<what>[Ss]tep|[Rr]ule|[Vv]erdict|[Ss]ection)s?[ ](?P<numbers>\d+(?:(?:, | and | to |, and )\d+)*)"
)


def test_quick_rows_of_the_model_are_as_expected() -> None:
    rows = ["replay of a replay", "never ready", "arrival_order", "tries_at_failure", "outcome_kept_out", "no scan", "status_alone"]
    result = subprocess.run([sys.executable, MODEL, *rows], capture_output=True, text=True, check=False, timeout=100)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "10 of 10 rows as expected" in result.stdout


@pytest.mark.model
@pytest.mark.timeout(3600)
def test_all_rows_of_the_model_are_as_expected_and_the_page_has_their_numbers(full_model: Callable[[], tuple[int, str]]) -> None:
    code, printed = full_model()
    assert code == 0, printed


def test_every_step_of_the_protocol_is_named_in_the_code_and_no_other() -> None:
    """In one form, which can be searched for: `protocol step 5`, `protocol rule 3`, `protocol section 7`."""
    page = (PROTOCOL / "protocol.md").read_text()
    sections = {int(text.split(".")[0]): text for text in re.split(r"^## ", page, flags=re.MULTILINE)[1:] if text[0].isdigit()}
    known = {
        "section": set(sections),
        "step": {int(number) for number in re.findall(r"^(\d+)\. \*\*", sections[2], re.MULTILINE)},
        "rule": {int(number) for number in re.findall(r"(?:^|\. )(\d)\. ", sections[6], re.MULTILINE)},
        "verdict": {int(number) for number in re.findall(r"^\| (\d) \|", sections[2], re.MULTILINE)},
    }
    assert known["step"] == set(range(1, 12))
    assert known["rule"] == set(range(1, 7))
    assert known["verdict"] == set(range(1, 8))
    named: dict[str, set[int]] = {what: set() for what in known}
    text = ""
    for source in sorted((ROOT / "src" / "prevue").rglob("*")):
        if source.suffix in (".py", ".sql", ".yaml") and "testing" not in source.parts:
            code = source.read_text()
            text += code.lower()
            for found in REFERENCE.finditer(code):
                what = found["what"].lower()
                assert (found["where"] or "").strip().lower() == "protocol", f"{source}: say `protocol {found['what']} {found['numbers']}`"
                assert numbers(found["numbers"]) <= known[what], f"{source}: {found[0]}"
                named[what] |= numbers(found["numbers"])
    assert {what: known[what] - named[what] for what in ("step", "rule", "verdict")} == {"step": set(), "rule": set(), "verdict": set()}
    assert [word for word in WORDS if f"protocol {word.lower()}" not in text] == []


def numbers(text: str) -> set[int]:
    """`2 to 4`, `3, 4 and 9`."""
    found: set[int] = set()
    for part in re.split(r", and | and |, ", text):
        first, _, last = part.partition(" to ")
        found |= set(range(int(first), int(last or first) + 1))
    return found
