"""The folder of a finished bench becomes a result to commit."""

from __future__ import annotations

import json

import pytest

from benchmarks import bench_results
from fastast.bench.statistics import make_rows
from fastast.bench.verdict import judge
from fastast.errors import InputError
from tests.bench.fake_runs import fake_summary


@pytest.fixture
def folder(tmp_path):
    """A bench of three seeds with one gate, as its command leaves it."""
    runs = []
    for seed in range(3):
        for role, of, gate, top1 in (
            ("dense", None, "dense", 0.6),
            ("gate", None, "memory", 0.5),
            ("random_equal_share", "memory", "random", 0.4),
        ):
            summary = fake_summary(gate, 4.0, seed=seed, top1=top1 + 0.001 * seed)
            summary["hardware"].update(torch="2.15.0", dali="2.4.0")
            summary["model"] = {"params": 174274}
            runs.append({"role": role, "for": of, "seed": seed, "folder": "x", "epochs": 4.0, "summary": summary})
    rows = make_rows(runs)
    bench = {
        "finished": True,
        "parts": None,
        "version": "0.1.0",
        "commit": "abc",
        "argv": ["bench", "--data", "/somewhere/pictures", "--out", "/somewhere/out"],
        "options": {"data": "/somewhere/pictures", "arch": "a:b", "image_size": 64, "target": 0.3},
        "epochs": 4.0,
        "seeds": [0, 1, 2],
        "runs": runs,
        "failures": [{"role": "gate", "for": None, "seed": 2, "gate": "forward", "reason": "/somewhere"}],
        "rows": rows,
        "verdict": judge(rows),
        "notes": [],
    }
    (tmp_path / "R").mkdir()
    (tmp_path / "R" / "bench.json").write_text(json.dumps(bench))
    return tmp_path / "R"


def test_bench_becomes_json_and_markdown_without_paths(folder, tmp_path, capsys):
    bench_results.main([str(folder), "--name", "it", "--title", "A title", "--out", str(tmp_path)])
    text = (tmp_path / "it.json").read_text()
    result, shown = json.loads(text), (tmp_path / "it.md").read_text()
    assert "/somewhere" not in text + shown
    assert result["command"] == "fastast bench --data pictures --out out"
    assert result["rows"] == json.loads((folder / "bench.json").read_text())["rows"]
    assert len(result["runs"]) == 9
    assert result["runs"][1]["val_top1"] == 0.5
    assert "**A title**: 960 pictures for training" in shown
    assert "| memory | 3 | 50.10% +- 0.06% | 30.0%" in shown
    assert "| memory: random, equal share | 3 | 40.10% +- 0.06% | " in shown
    assert "- memory beats random at equal share" in shown
    assert "- failed: forward, seed 2" in shown
    assert set(result["versions"]) >= {"python", "torch", "dali", "commit"}  # for the index of results
    assert "threads" in result["hardware"]


def test_unfinished_bench_is_refused(folder, tmp_path):
    bench = json.loads((folder / "bench.json").read_text())
    with pytest.raises(InputError, match="not finished"):
        bench_results.condense({**bench, "finished": False}, "A title", "now")
    with pytest.raises(InputError, match="all runs failed"):
        bench_results.condense({**bench, "runs": []}, "A title", "now")
    (folder / "bench.json").unlink()
    with pytest.raises(InputError, match="no such file"):
        bench_results.main([str(folder), "--name", "it", "--title", "A title", "--out", str(tmp_path)])
