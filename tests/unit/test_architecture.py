"""The architecture as tests: import contracts, and the sizes past which a module or function is redesigned."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70


def sources() -> list[Path]:
    return sorted((ROOT / "src").rglob("*.py"))


def test_the_import_contracts_are_kept() -> None:
    """As `make check`; here too, so that whoever runs only pytest sees it."""
    lint = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("source", sources(), ids=lambda path: str(path.relative_to(ROOT / "src" / "prevue")))
def test_modules_and_functions_stay_small_and_say_what_they_are_for(source: Path) -> None:
    text = source.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= MODULE_LINES_MAX
    assert ast.get_docstring(tree) or not text.strip(), "a module says what it is for"
    too_long = [f"{one.name}: {lines}" for one, lines in functions(tree) if lines > FUNCTION_LINES_MAX]
    assert not too_long


def functions(tree: ast.AST) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            yield node, node.end_lineno - node.lineno + 1
