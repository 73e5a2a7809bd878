"""Evaluations follow the work: few in a run that trains little, always one at the end."""

import itertools
import json

import pytest

from fastast.cli import main
from fastast.config import TrainConfig
from fastast.errors import InputError
from fastast.plan.epoch_plan import EpochPlanner
from fastast.report.run_page import write_report


def evaluated(num_train=20_000, num_val=10_000, **options):
    config = TrainConfig(**{"gate": "memory", "target": 0.1, "epochs": 10, "batch_size": 64, **options})
    schedule = EpochPlanner(config, num_train, num_val, 10).schedule
    return schedule, [segment.epoch + 1 for segment in schedule.segments() if segment.evaluates]


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_short_runs_are_evaluated_after_every_epoch(epochs):
    assert evaluated(epochs=epochs)[1] == list(range(1, epochs + 1))


def test_gated_run_is_evaluated_three_times_by_default():
    assert evaluated()[1] == [4, 7, 10]


def test_evaluations_take_five_percent_of_long_runs():
    schedule, epochs = evaluated(epochs=200, num_val=1000, anneal=3)
    assert len(epochs) * 1000 == pytest.approx(0.05 * schedule.units(schedule.num_offered), rel=0.05)
    assert epochs[-1] == 200
    gaps = {b - a for a, b in itertools.pairwise(epochs)}
    assert max(gaps) - min(gaps) <= 1


def test_last_evaluation_of_averaged_weights_counts_twice():
    plain, averaged = (len(evaluated(epochs=200, num_val=1000, ema=ema)[1]) for ema in ("off", "auto"))
    assert averaged == plain - 1


@pytest.mark.parametrize(("ema", "num"), [("off", 10), ("auto", 9)])
def test_evaluations_in_a_budget(ema, num):
    planner = EpochPlanner(TrainConfig(gate="dense", budget="20ep", batch_size=100, ema=ema), 1000, 300, 10)
    schedule, found = planner.schedule, []
    for epoch in range(20):
        segment, units = schedule.segment_at(1000 * epoch), 3000.0 * (epoch + 1)
        planner.budget.count(units)
        found.append(schedule.end(segment, 1000, units).evaluates)
    assert sum(found) == num
    assert found[-1]


def test_every_counts_dense_work():
    assert evaluated(eval_every="1")[1] == [1, 10]  # nine gated epochs at 10 % are 0.9 of a dense one
    assert evaluated(eval_every="1", gate="dense")[1] == list(range(1, 11))
    assert evaluated(eval_every="2.5", gate="dense")[1] == [3, 5, 8, 10]


@pytest.mark.parametrize("value", ["0", "-1", "often", "nan", "inf"])
def test_wrong_values_are_refused(value):
    with pytest.raises(InputError, match=f"--eval-every {value}"):
        TrainConfig(eval_every=value)


def test_epochs_without_evaluation_have_null_figures_and_the_end_has_some(pictures, tmp_path):
    options = ["--arch", "tests.nets:tiny", "--image-size", "32", "--batch-size", "32", "--epochs", "5"]
    options += ["--gate", "memory", "--target", "0.3", "--device", "cpu", "--lr", "0.05"]
    assert main(["train", "--data", str(pictures), "--out", str(tmp_path / "o"), *options]) == 0
    lines = [json.loads(line) for line in (tmp_path / "o" / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [line["epoch"] for line in epochs if line["val_top1"] is not None] == [2, 4, 5]
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["accuracy"]["val_top1"] == epochs[-1]["val_top1"]
    assert summary["accuracy"]["best_val_top1"] == max(line["val_top1"] or 0 for line in epochs)
    assert write_report(tmp_path / "o").exists()  # draws the epochs that have figures


def test_a_billion_epochs_are_computed_not_listed():
    schedule = EpochPlanner(TrainConfig(epochs=1e9, batch_size=64), 1000, 100, 10).schedule
    assert schedule.segment_at(999_999_999_000).evaluates
    assert schedule.num_epochs == 10**9
