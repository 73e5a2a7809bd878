"""`fastast bench --nproc`: every run of the bench has its ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_fastast


@pytest.mark.slow
def test_bench_runs_have_nproc_ranks(pictures: Path, tmp_path: Path) -> None:
    words = ["bench", "--nproc", 2, "--gates", "dense", "--seeds", 1, "--data", pictures, "--out", tmp_path / "b"]
    words += ["--arch", "tests.nets:tiny", "--image-size", 32, "--batch-size", 16, "--epochs", 1, "--device", "cpu"]
    done = run_fastast(*words, "--threads", 1, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = json.loads((tmp_path / "b" / "bench.json").read_text())["runs"]
    assert run["summary"]["hardware"]["world_size"] == 2
    assert run["summary"]["samples"]["offered"] == 240
    again = run_fastast(*words, "--threads", 1, cwd=ROOT)  # what is finished is not repeated
    assert again.returncode == 0
    assert len(list((tmp_path / "b" / "runs").iterdir())) == 1
