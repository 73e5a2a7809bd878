"""No input crashes the process: neither what passes the scan in the decoder, nor any file in the packer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "seconds", [10, pytest.param(600, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])], ids=["short", "long"]
)
def test_no_input_crashes_the_process(seconds: int, tmp_path: Path) -> None:
    current = tmp_path / "current.bin"
    command = [sys.executable, "-W", "ignore", "-m", "tests.feed.fuzz_decoders"]
    command += [str(seconds), str(current), str(seconds)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    assert result.returncode == 0, (result.returncode, current.read_bytes().hex(), result.stderr[-2000:])
    outcomes = json.loads(result.stdout.splitlines()[-1])
    print(outcomes)
    # Each kind must have all outcomes, or the test shows nothing.
    for kind, ends in outcomes.items():
        assert ends["tried"] >= 60, outcomes
        reached = {"packed", "left out of a pack", "refused by the scan"}
        if kind == "mutated JPEG":
            reached |= {"mended"}
        if kind != "other formats":
            reached |= {"decoded", "error raised"}
        assert reached <= ends.keys(), outcomes
