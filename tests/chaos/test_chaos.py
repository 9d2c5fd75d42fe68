"""Twenty kills of real processes, in a process of its own: the driver owns its event loop's signals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = 20


@pytest.mark.cluster
@pytest.mark.postgres
@pytest.mark.timeout(1200)
def test_twenty_kills_lose_nothing_and_do_nothing_twice(repository_root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos", "--kills", str(KILLS), "--json"]
    done = subprocess.run(command, cwd=repository_root, capture_output=True, text=True, check=False, timeout=1100)
    assert done.returncode == 0, f"{done.stderr}\n{done.stdout}"
    result = json.loads(done.stdout)
    assert (result["ok"], result["kills"]) == (True, KILLS)
    assert result["accepted"] >= 10
