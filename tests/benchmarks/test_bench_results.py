"""The folder of a finished bench becomes a result to commit."""

from __future__ import annotations

import json

import pytest

from benchmarks import bench_results
from fastast.bench.statistics import summarise
from fastast.errors import InputError
from tests.bench.fake_runs import fake_summary


@pytest.fixture
def folder(tmp_path):
    """A bench of three seeds with one gate, as its command leaves it."""
    arms = [{"name": name, "options": {"gate": name}} for name in ("dense", "memory")]
    budgets = [{"name": f"{amount:g}ep", "kind": "ep", "amount": amount} for amount in (1.0, 2.0)]
    runs = [
        {
            **{"arm": arm, "budget": budget["name"], "seed": seed, "folder": "x"},
            "summary": fake_summary(
                arm, budget["amount"], seed=seed, top1=top1 + 0.1 * budget["amount"] + 0.001 * seed
            ),
        }
        for seed in range(3)
        for budget in budgets
        for arm, top1 in (("dense", 0.5), ("memory", 0.45))
    ]
    bench = {
        **{
            "schema": 2,
            "finished": True,
            "version": "0.1.0",
            "commit": "abc",
            "hardware": runs[0]["summary"]["hardware"],
        },
        "argv": ["bench", "--data", "/somewhere/pictures", "--out", "/somewhere/out"],
        "options": {"data": "/somewhere/pictures", "arch": "a:b", "image_size": 64},
        **{"arms": arms, "budgets": budgets, "seeds": [0, 1, 2], "runs": runs},
        "failures": [{"arm": "memory", "budget": "4ep", "seed": 2, "folder": "x", "reason": "/somewhere"}],
        **summarise(arms, budgets, runs),
        "notes": ["a note"],
    }
    (tmp_path / "R").mkdir()
    (tmp_path / "R" / "bench.json").write_text(json.dumps(bench))
    return tmp_path / "R"


def test_bench_becomes_json_and_markdown_without_paths(folder, tmp_path, capsys):
    bench_results.main([str(folder), "--name", "it", "--title", "A title", "--out", str(tmp_path)])
    text = (tmp_path / "it.json").read_text()
    result, shown = json.loads(text), (tmp_path / "it.md").read_text()
    source = json.loads((folder / "bench.json").read_text())
    assert "/somewhere" not in text + shown
    assert result["command"] == "fastast bench --data pictures --out out"
    assert result["points"] == source["points"]
    assert len(result["runs"]) == 12
    assert result["runs"][1] == {
        **{"arm": "memory", "budget": "1ep", "seed": 0, "share": 0.3, "gpu_j": None},
        **{
            key: result["runs"][1][key]
            for key in ("val_top1", "offered", "backward", "forward_units", "train_s", "total_s")
        },
    }
    assert "**A title**: 960 pictures for training" in shown
    assert " ".join(source["verdict"]["sentences"]) in shown
    assert "| memory | 55.10 +- 0.06 % | 65.10 +- 0.06 % |" in shown
    assert "| memory | -5.00 (" in shown
    assert "| memory | 1.41 (" in shown
    assert "- a note" in shown
    assert "- failed: memory, 4ep, seed 2" in shown
    assert set(result["versions"]) >= {"python", "torch", "dali", "commit"}  # for the index of results
    assert "threads" in result["hardware"]


def test_unfinished_bench_is_refused(folder, tmp_path):
    bench = json.loads((folder / "bench.json").read_text())
    for changes, words in (
        ({"finished": False}, "not finished"),
        ({"runs": []}, "all runs failed"),
        ({"schema": 1}, "of another version"),
    ):
        with pytest.raises(InputError, match=words):
            bench_results.condense({**bench, **changes}, "A title", "now")
    (folder / "bench.json").unlink()
    with pytest.raises(InputError, match="no such file"):
        bench_results.main([str(folder), "--name", "it", "--title", "A title", "--out", str(tmp_path)])
