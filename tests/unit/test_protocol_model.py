"""The protocol's model still runs: a few quick rows, correct and planted. All of it: `python docs/protocol/protocol_model.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MODEL = Path(__file__).parents[2] / "docs" / "protocol" / "protocol_model.py"


def test_quick_rows_of_the_model_are_as_expected() -> None:
    rows = ["replay of a replay", "never ready", "arrival_order", "tries_at_failure", "outcome_kept_out"]
    result = subprocess.run([sys.executable, MODEL, *rows], capture_output=True, text=True, check=False, timeout=100)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(rows)} of {len(rows)} rows as expected" in result.stdout
