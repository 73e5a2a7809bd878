"""The data of the figures, against plain reference code."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from fastast.energy.power_log import PowerRow
from fastast.plots import power_plot, svg
from fastast.plots import run_plots as plots
from fastast.plots.comparison_plots import _costs, accuracy_curves
from fastast.plots.svg import label_ends, short, thin
from fastast.record.picture_tables import Samples
from fastast.record.run_record import read_record
from fastast.report.gallery import choose, suspects
from fastast.report.run_page import write_report
from tests.report.fake_run import NUM_TRAIN, write_run


def test_trailing_mean_equals_a_loop() -> None:
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.integers(1, 50, 200)).astype(float)
    y, weight = rng.uniform(0, 1, 200), rng.uniform(1, 9, 200)
    y[rng.random(200) < 0.1] = np.nan
    y[:3] = np.nan
    got = plots.trailing_mean(x, y, weight, 300)
    for i in range(200):
        near = [j for j in range(i + 1) if x[j] > x[i] - 300 and np.isfinite(y[j])]
        expected = np.average(y[near], weights=weight[near]) if near else np.nan
        assert got[i] == pytest.approx(expected, nan_ok=True)


def test_thin_keeps_means_ends_and_gaps() -> None:
    x = np.arange(8193) / 64
    y = np.where((x > 40) & (x < 60), np.nan, np.sin(x))
    few_x, few_y = thin(x, y, max_points=64)
    assert len(few_x) == 64
    for index in range(64):
        inside = ((x >= 2 * index) & (x < 2 * index + 2)) | ((x == 128) & (index == 63))
        known = y[inside & np.isfinite(y)]
        assert few_x[index] == pytest.approx(x[inside].mean())
        assert few_y[index] == pytest.approx(known.mean() if len(known) else np.nan, nan_ok=True)
    assert thin(x[:50], y[:50], max_points=50)[1] is not None
    same = np.full(700, 3.0)
    assert [len(column) for column in thin(same, same)] == [1, 1]


def test_step_line_samples_restart_each_epoch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", gpus=0, epochs=3)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # A log interval that does not divide the epoch: its last line is missing.
    kept = [line for line in lines if line["kind"] == "epoch" or line["offered"] % NUM_TRAIN]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    assert set(plots.line_samples(read_record(run))) == {320.0}


def test_activation_figure_has_mean_and_target(tmp_path: Path) -> None:
    record = read_record(write_run(tmp_path / "run", gpus=0))
    figure = plots.activation(record)
    assert isinstance(figure, svg.Figure)
    gated = record.steps["activation"][record.steps["phase"] == "gated"][-20:]  # 6,400 samples
    assert f"last mean {100 * gated.mean():.1f} %, target 20.0 %" in figure.svg


def test_run_without_target_has_no_band(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", gpus=0, epochs=2)
    summary = json.loads((run / "summary.json").read_text())
    summary["gate"]["target"] = None
    (run / "summary.json").write_text(json.dumps(summary))
    figure = plots.activation(read_record(run))
    assert isinstance(figure, svg.Figure)
    assert "Band" not in figure.caption
    assert "target 20" not in figure.svg
    assert "series-2" not in figure.svg


def test_share_that_the_gate_found(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", gpus=0, epochs=3)
    assert "Share that the gate trains" not in write_report(run).read_text()
    options = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**options, "target": "auto"}))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "epoch":
            line["target"] = [1.0, 0.4, 0.07][line["epoch"] - 1]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figure = plots.share(read_record(run))
    assert isinstance(figure, svg.Figure)
    assert "fell from 100 % to 7 % as the network learned" in figure.caption
    assert "100.0 % to 7.0 %" in figure.svg
    assert "Share that the gate trains" in write_report(run).read_text()


def test_suspected_labels_are_the_least_probable(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", gpus=0, epochs=2)
    record = read_record(run)
    assert record.samples is not None
    losses = np.full(len(record.samples.id), 0.1)
    losses[:5], losses[7] = [4.0, np.nan, 9.0, 2.9, 3.1], 3.0
    record = dataclasses.replace(record, samples=record.samples._replace(last_loss=losses))
    found = suspects(record, max_pictures=3)
    assert (found["num"], found["num_known"]) == (4, len(losses) - 1)  # 2.9 and less are probable enough
    names = [Path(record.samples.path(row)).name for row in (2, 4, 7)]  # 0 is unreadable
    assert [picture["name"] for picture in found["pictures"]] == names
    assert "probability of the label 0.00012" in found["pictures"][0]["tip"]


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run", gpus=0, name="random", epochs=1)).read_text()
    assert "not measured" not in page.replace("Joules were not measured", "").replace("savings not measured:", "")
    assert "Joules were not measured: the dense part trained for 24 s" in page
    assert "<h3>joules</h3>" not in page
    assert page.count('class="fill"') == 6 + 3  # three savings, three classes
    for title in ("Share that is trained", "Threshold", "Loss of selected", "Power, watts"):  # one epoch of warm-up
        assert title not in page.replace("Loss of selected and skipped", "") or title == "Loss of selected"


def test_dense_run_saves_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", gpus=0, name="dense", epochs=1)
    summary = json.loads((run / "summary.json").read_text())
    summary["gate"] |= {"target": None, "activation_rate": None}
    (run / "summary.json").write_text(json.dumps(summary))
    page = write_report(run).read_text()
    assert "Dense training: 40.00 ± 10.22 % top-1" in page.replace("\u00a0", " ")
    for title in ("What the gate saved", "What the gate chose", "gated part", "a gate may", "units if dense"):
        assert title not in page


def test_negative_savings_are_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", gpus=1, epochs=1)
    summary = json.loads((run / "summary.json").read_text())
    summary["energy"] |= {"savings_measured": -0.08, "savings_estimated": 0.0}
    (run / "summary.json").write_text(json.dumps(summary))
    page = write_report(run).read_text()
    assert (
        '<div class="bar loss"><span>gated part</span><span class="track"><span class="fill" style="width:8.00%">'
        in page
    )
    assert "\N{MINUS SIGN}8.0 %" in page
    assert 'style="width:0.00%"></span></span><b>0.0 %</b>' in page  # a measured nothing is no "not measured"


def test_phase_bounds() -> None:
    phases = [(1.0, ""), (2.0, "warmup"), (3.0, "warmup"), (4.0, "eval"), (5.0, "gated")]
    rows = [PowerRow(t_s, "GPU", 1.0, None, phase) for t_s, phase in phases]
    assert power_plot._phases(rows) == [("", 0.0, 1.0), ("warmup", 1.0, 3.0), ("eval", 3.0, 4.0), ("gated", 4.0, 5.0)]


def test_power_line_breaks_at_gaps() -> None:
    x = np.array([0, 0.1, 0.2, 5.0, 5.1])
    broken_x, broken_y = power_plot._broken(x, np.ones(5))
    assert broken_x.tolist() == [0, 0.1, 0.2, 5.0, 5.0, 5.1]
    assert np.isnan(broken_y).tolist() == [False, False, False, True, False, False]


def test_short_numbers() -> None:
    assert [short(value) for value in (0, 0.5, 950, 1200, 3e6, 4.25e9)] == ["0", "0.5", "950", "1.2k", "3M", "4.25G"]


@pytest.mark.parametrize("heights", [(0.5, 0.5, 0.51, 0.99, 1.0), (0.0, 0.0, 0.01)])
def test_end_labels_do_not_overlap(heights: tuple[float, ...]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3))
    axes = figure.subplots()
    axes.set_ylim(0, 1)
    x = np.arange(3.0)
    label_ends(axes, [(x, np.full(3, height), str(i), "black") for i, height in enumerate(heights)])
    label_ends(axes, [(x, np.full(3, np.nan), "nothing", "black")])
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == len(heights)
    for below, above in itertools.pairwise(boxes):
        assert above.y0 >= below.y1 - 1
    frame = axes.get_window_extent()
    assert frame.y0 - 12 < boxes[0].y0 < boxes[-1].y1 < frame.y1 + 12


def test_forward_units_by_epoch_add_up(tmp_path: Path) -> None:
    record = read_record(write_run(tmp_path / "run", gpus=0))
    units = _costs(record, "forward_units")
    assert units[0] == 3 * NUM_TRAIN  # warm-up
    assert units[1:].tolist() == pytest.approx([3 * 0.2 * NUM_TRAIN + NUM_TRAIN] * 3)
    assert units.sum() == pytest.approx(record.number("compute", "forward_units"))
    figure = accuracy_curves([("run", record)], "forward_units")
    assert figure is not None
    assert f"run 40.0 % to 70.0 % in {short(units.sum())} forward units".replace("run", "run from", 1) in figure.svg
    unmeasured = accuracy_curves([("run", record)], "gpu_j")
    assert unmeasured is None


def test_forward_units_of_growing_pictures_are_those_that_were_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", gpus=0)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "train_size": "16:32"}))
    assert accuracy_curves([("older", read_record(run))], "forward_units") is None  # by size they are not known
    for line in lines:
        line |= {"forward_units": 100.0 * line["epoch"]} if line["kind"] == "epoch" else {}
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert _costs(read_record(run), "forward_units").tolist() == [100, 200, 300, 400]


def samples(selected: list[int], labels: list[int], losses: list[float]) -> Samples:
    num = len(selected)
    return Samples(
        id=np.arange(num),
        label=np.array(labels),
        path_bytes=np.full(num, ord("x"), np.uint8),
        path_starts=np.arange(num + 1),
        offered=np.where(np.array(selected) < 0, 0, 10),
        selected=np.maximum(selected, 0),
        last_loss=np.array(losses),
    )


def test_extreme_pictures_with_ties_by_loss() -> None:
    chosen = choose(samples([5, 9, 5, 1, 5, -1], [0] * 6, [0.1, 1.0, 3.0, 1.0, np.nan, 9.0]))
    most, least = chosen[0]
    assert most.tolist() == [1, 2]  # 9 of 10, then 5 of 10 with the highest loss
    assert least.tolist() == [3, 0]  # and with the lowest


def test_gallery_is_small_without_repeats() -> None:
    rng = np.random.default_rng(0)
    for num_classes in (1, 3, 12, 100, 1000):
        labels = np.repeat(np.arange(num_classes), 7).tolist()
        many = samples(rng.integers(0, 11, len(labels)).tolist(), labels, rng.uniform(size=len(labels)).tolist())
        chosen = choose(many)
        rows = np.concatenate([np.concatenate(sides) for sides in chosen.values()])
        assert len(set(rows.tolist())) == len(rows) <= 48
        assert all((many.label[np.concatenate(sides)] == label).all() for label, sides in chosen.items())
        assert len(chosen) == min(num_classes, 12)
    # Of many classes those that were selected most and least are shown.
    rate = np.array([many.selected[many.label == label].mean() for label in range(1000)])
    assert rate.argmax() in chosen
    assert rate.argmin() in chosen


def test_class_of_one_picture() -> None:
    ((most, least),) = choose(samples([3], [7], [np.nan])).values()
    assert (most.tolist(), least.tolist()) == ([0], [])
