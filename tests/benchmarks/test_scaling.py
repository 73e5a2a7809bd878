"""The scaling benchmark at its smallest: real ranks, and the table."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks import scaling
from fastast.errors import InputError
from tests.conftest import ROOT


def test_efficiency_is_taken_within_a_round():
    rates = {("dense", 1): [10.0, 20.0, 30.0], ("dense", 2): [15.0, 36.0, 60.0]}
    alone, both = scaling.figures(rates, ["dense"], [1, 2])
    assert alone["efficiency"] == 1
    assert both["offered_per_s"] == 36
    assert both["efficiency"] == pytest.approx(0.9)
    assert both["efficiency_range"] == pytest.approx([0.75, 1.0])


@pytest.mark.parametrize("ranks", [["2"], ["1", "4096"]])
def test_ranks_start_with_one_and_have_a_core_each(ranks, tmp_path):
    with pytest.raises(InputError, match="--ranks"):
        scaling.main(["--data", str(tmp_path), "--ranks", *ranks])


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_one_rank_and_two(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "scaling.json"
    words = "--arch tests.nets:tiny --image-size 32 --batch-size 8 --count 160 --rounds 1 --gates dense memory"
    scaling.main(["--data", str(pictures), "--out", str(out), *words.split()])
    result = json.loads(out.read_text())
    assert [(row["gate"], row["ranks"]) for row in result["rows"]] == [
        *(("dense", 1), ("dense", 2)),
        *(("memory", 1), ("memory", 2)),
    ]
    assert all(row["offered_per_s"] > 0 for row in result["rows"])
    table = out.with_suffix(".md").read_text()
    assert table.count("\n| `") == 4
    assert result["command"] in table
