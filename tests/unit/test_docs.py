"""The documentation is true: generated parts are current, links lead somewhere, every command is named."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def test_generated_parts_are_current() -> None:
    """If this fails: `make docs`."""
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / "write_docs.py", "--check"], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            headings = [re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in found.read_text().splitlines()]
            assert anchor in headings, target


def test_make_prints_its_targets() -> None:
    result = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)[0].split())
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    shown = set(re.findall(r"^  make ([a-z-]+) ", result.stdout, flags=re.MULTILINE))
    assert targets == phony
    assert {"demo", "test", "check", "fmt", "clean", "bench-burst", "bench-webhook"} <= shown <= targets
