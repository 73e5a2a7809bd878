"""Whatever passes the scan may fail to decode, but never ends the process."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("seed", "count"), [(1, 3000), pytest.param(2, 400_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_the_decoder_survives_what_the_scan_accepts(seed: int, count: int, tmp_path: Path) -> None:
    current = tmp_path / "current.bin"
    command = [sys.executable, "-m", "tests.data.fuzz", str(seed), str(count), str(current)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    assert result.returncode == 0, (result.returncode, current.read_bytes().hex(), result.stderr[-2000:])
    outcomes = ast.literal_eval(result.stdout.strip().splitlines()[-1])
    assert outcomes["tried"] == count
    # The mutations reach all three ends, or the test says nothing.
    assert min(outcomes["refused"], outcomes["decoded"], outcomes["error raised"]) > count / 50, outcomes
