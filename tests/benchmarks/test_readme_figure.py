"""README's table and picture say what the result files say."""

from __future__ import annotations

import json
import xml.dom.minidom

import pytest

from benchmarks.common import RESULTS
from benchmarks.readme_figure import README, benches, data_of, fill, headline, picture


def test_readme_is_up_to_date():
    text = README.read_text()
    assert fill(text, RESULTS) == text, "run `python -m benchmarks.readme_figure`"


def test_picture_has_a_panel_for_each_bench_of_several_budgets():
    drawn = picture(RESULTS)
    xml.dom.minidom.parseString(drawn)
    for _, result in benches(RESULTS):
        title, has_lines = data_of(result), len(result["budgets"]) > 1
        assert (f">{title}</text>" in drawn) == has_lines
        assert not has_lines or len(title) <= 46, "runs into the panel beside it"


@pytest.fixture
def folder(tmp_path):
    """A bench of three seeds, a later one with a peer, one of two seeds, and a result that is no bench."""
    arms = [
        {"name": "dense", "options": {"gate": "dense"}},
        {"name": "memory:target=auto", "options": {"gate": "memory", "target": "auto"}},
        {"name": "random:target=0.3", "options": {"gate": "random", "target": 0.3}},
        {"name": "memory:target=0.1", "options": {"gate": "memory", "target": 0.1}},
        {"name": "timm", "options": {"lr": 0.1}, "peer": True},
    ]
    ratios = {"memory:target=auto": 0.5, "memory:target=0.1": 0.25, "timm": 1.25}
    bench = {
        "title": "Digits: a test",
        "hardware": {"device": "cpu", "name": "a machine", "threads": 2},
        "command": "fastast bench",
        "measured_at": "2026-11-01T10:00:00",
        "seeds": [0, 1, 2],
        "budgets": [{"name": "1ep", "kind": "ep"}, {"name": "2ep", "kind": "ep"}],
        "arms": arms[:4],
        "points": [
            {"arm": "dense", "budget": budget, "top1": {"mean": top1, "se": 0.01}, "units": 10, "n": 3}
            for budget, top1 in (("1ep", 0.4), ("2ep", 0.5))
        ],
        "paired": [
            {
                "arm": "memory:target=auto",
                "against": "dense",
                "budget": "2ep",
                "difference": 0.02,
                "interval": [0, 0.04],
                "outcome": "better",
            },
            *(
                {
                    **{"arm": arm, "against": "dense", "budget": "2ep", "outcome": "no difference shown"},
                    **{"difference": -0.01, "interval": [-0.03, 0.01]},
                }
                for arm in ("random:target=0.3", "timm")
            ),
        ],
        "cost_at_equal_accuracy": [
            {
                **{"arm": arm, "against": "dense", "budget": budget, "unit": "units", "reached": True},
                **{"ratio": ratio * (2 if budget == "1ep" else 1), "interval": [0.1, None]},
            }
            for arm, ratio in ratios.items()
            for budget in ("1ep", "2ep")
        ],
    }
    with_peers = {**bench, "arms": arms, "title": "Digits: others", "measured_at": "2026-11-02T09:00:00"}
    others = {
        "bench_few": {**bench, "seeds": [0, 1]},
        "bench_seconds": {**bench, "budgets": [{"name": "60s", "kind": "time"}]},
        "bench_dense": {**bench, "arms": arms[:1]},
        "feed": {"title": "no bench"},
    }
    results = {"bench_digits": with_peers, "z_digits": bench, **others}
    for name, result in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    return tmp_path


def test_each_bench_has_a_row_at_the_largest_budget(folder):
    head, _, row, *rest = headline(folder).splitlines()
    cells = dict(zip(head.split("|"), row.split("|"), strict=True))
    assert cells[" data "] == " [Digits](benchmarks/results/bench_digits.md), n = 3 "
    assert cells[" dense fastast "] == " 50.00 ± 1.00 %, 2ep "
    # The adaptive share, not the cheapest arm.
    assert cells[" `memory` "] == " **+2.00** (+0.00 to +4.00)<br>work: 0.50 (at least 0.10) "
    assert cells[" timm "] == " -1.00 (-3.00 to +1.00)<br>work: 1.25 (at least 0.10) "
    assert cells[" `random` "] == " 30 % of the pictures:<br>-1.00 (-3.00 to +1.00) "
    assert cells[" torchvision "] == cells[" small pictures first "] == " - "
    measured = "Measured on a machine, 2 threads. Joules were not measured: none of these benches ran on a GPU."
    assert rest == ["", measured]
