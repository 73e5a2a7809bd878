"""Rows and verdict: means, standard errors, the fixed rules."""

import pytest

from fastast.bench.statistics import make_rows, mean_and_error
from fastast.bench.verdict import compare, judge
from tests.bench.fake_runs import fake_summary

EPOCHS = 4.0


def run(role, of, gate, seed, top1, **changes):
    return {
        "role": role,
        "for": of,
        "seed": seed,
        "summary": fake_summary(gate, EPOCHS, seed=seed, top1=top1, **changes),
    }


def bench(top1s, *, j=None, num_seeds=3):
    """Runs of one gate and its baselines with these top-1, and 1 % to either side with the other seeds."""
    runs = []
    for seed in range(num_seeds):
        for (role, of, gate), top1 in top1s.items():
            runs.append(run(role, of, gate, seed, top1 + 0.01 * (seed - 1), j=j))
    return make_rows(runs)


PLACES = {
    "dense": ("dense", None, "dense"),
    "gate": ("gate", None, "memory"),
    "share": ("random_equal_share", "memory", "random"),
    "units": ("dense_equal_units", "memory", "dense"),
    "time": ("dense_equal_time", "memory", "dense"),
    "joules": ("dense_equal_joules", "memory", "dense"),
}


def rows_of(num_seeds=3, j=None, **top1s):
    return bench({PLACES[name]: top1 for name, top1 in top1s.items()}, num_seeds=num_seeds, j=j)


def test_means_and_standard_errors():
    assert mean_and_error([1.0, 2.0, 3.0]) == {"mean": 2.0, "se": pytest.approx(3**-0.5)}
    assert mean_and_error([5.0]) == {"mean": 5.0, "se": None}
    assert mean_and_error([5.0, None]) == {"mean": None, "se": None}


def test_row_compares_with_dense_of_the_seed():
    runs = [
        run("dense", None, "dense", 0, 0.6),
        run("gate", None, "forward", 0, 0.5, overhead=2.0),
        run("dense", None, "dense", 1, 0.6, overhead=3.0),
        run("gate", None, "forward", 1, 0.5, overhead=3.0),
    ]
    dense, forward = make_rows(runs)
    assert (dense["role"], dense["gate"], dense["n"]) == ("dense", "dense", 2)
    assert dense["speedup"] == dense["run_speedup"] == {"mean": 1.0, "se": 0.0}
    units = 3 * (960 + 864) + 2880  # one dense epoch, 30 % of three more, and their scoring
    assert forward["forward_units"]["mean"] == units
    speedup = 3 * 3840 / units
    assert forward["run_speedup"]["mean"] == pytest.approx((speedup / 2 + speedup) / 2)
    assert forward["share_of_ceiling"]["mean"] == pytest.approx(
        forward["speedup"]["mean"] / forward["speedup_ceiling"]["mean"]
    )
    assert forward["speedup_ceiling"]["mean"] == pytest.approx(3 / 1.9)
    assert forward["activation"]["mean"] == 0.3
    assert forward["run_activation"]["mean"] == pytest.approx((960 + 864) / 3840)
    assert forward["data_wait"]["mean"] == pytest.approx(0.1)
    assert forward["gpu_j"] == {"mean": None, "se": None}
    assert forward["savings_estimated"]["mean"] == 0.693


def test_baseline_reports_its_match():
    rows = make_rows(
        [
            run("gate", None, "memory", 0, 0.5, overhead=2.0),
            run("dense_equal_time", "memory", "dense", 0, 0.5),
            run("random_equal_share", "memory", "random", 0, 0.5, share=0.33),
        ]
    )
    units = 3 * (960 + 864)
    assert "match" not in rows[0]
    assert rows[1]["match"]["mean"] == pytest.approx(3 * 3840 / units / 2)
    assert rows[2]["match"]["mean"] == pytest.approx(1.1)
    assert rows[2]["speedup"]["mean"] is None  # dense failed
    assert ", matched at 1.10" in judge(rows)["text"]


def test_two_standard_errors_of_the_difference_decide():
    def row(mean, se):
        return {"val_top1": {"mean": mean, "se": se}}

    assert compare(row(0.72, 0.003), row(0.711, 0.003)) == "better"
    assert compare(row(0.70, 0.003), row(0.708, 0.003)) == "no difference shown"
    assert compare(row(0.70, 0.003), row(0.709, 0.003)) == "worse"
    assert compare(row(0.70, None), row(0.99, None)) == "not compared"
    assert compare(row(0.70, 0.003), None) == "not compared"


def test_gate_wins_only_against_all_baselines():
    verdict = judge(rows_of(dense=0.7, gate=0.7, share=0.6, units=0.6, time=0.6))
    assert verdict["winners"] == ["memory"]
    first = "memory beats dense at equal budget and random at equal share (joules not measured)."
    assert verdict["text"].startswith(first + "\n")
    verdict = judge(rows_of(j=2.0, dense=0.7, gate=0.7, share=0.6, units=0.6, time=0.6, joules=0.69))
    assert verdict["winners"] == []
    assert verdict["gates"][0]["against"]["dense_equal_joules"] == "no difference shown"
    assert verdict["gates"][0]["beats_dense"] is False
    assert verdict["text"].splitlines()[:2] == [
        "memory beats random at equal share (12,038 J).",
        "No gate beats dense at equal budget here.",
    ]


def test_no_gate_beats_random_is_a_verdict():
    verdict = judge(rows_of(dense=0.7, gate=0.6, share=0.6, units=0.65, time=0.55))
    assert verdict["text"].splitlines()[:2] == [
        "No gate beats dense at equal budget here.",
        "No gate beats random here.",
    ]
    assert "dense at equal forward units (65.00 +- 0.58 %, matched at 2.11)" in verdict["text"]
    assert ": worse" in verdict["text"]


def test_one_seed_is_no_verdict():
    verdict = judge(rows_of(num_seeds=1, dense=0.7, gate=0.9, share=0.1, units=0.1, time=0.1))
    assert verdict["winners"] == []
    assert verdict["gates"][0]["beats_random"] is None
    assert verdict["text"].startswith("No verdict:")


def test_missing_baseline_is_no_win():
    assert judge(rows_of(dense=0.5, gate=0.9))["winners"] == []
    assert judge(rows_of(dense=0.5, gate=0.9, units=0.1, time=0.1))["winners"] == []
