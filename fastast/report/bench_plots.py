"""The figures of a bench's page: accuracy against cost of each gate and baseline, and curves over the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fastast.phases import DENSE
from fastast.report import svg
from fastast.report.bench_tables import place_name
from fastast.report.run_plots import mean_activation
from fastast.report.run_record import RunRecord

ERRORS = 2.0  # standard errors that a bar shows to each side
HEIGHT_PX, NARROW_HEIGHT_PX = 340, 300
COSTS = {  # unit, name in a row, caption
    "time": ("seconds of training", "train_s", "Evaluation left out."),
    "joules": ("GPU joules", "gpu_j", "Of the whole run, evaluation included."),
    "units": ("forward units", "forward_units", "Counted work: forward 1, backward 2. Joules were not measured."),
}
IN_SUMMARY = {
    "train_s": ("time_s", "train"),
    "gpu_j": ("energy", "gpu_j"),
    "forward_units": ("compute", "forward_units"),
}
Runs = Sequence[tuple["Place", Sequence[RunRecord]]]
Line = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class Place:
    """One place of the comparison."""

    role: str  # this and the next two as in `bench.json`
    of: str | None
    gate: str
    colour: str
    row: Mapping[str, Any]  # mean and standard error of each figure
    folders: dict[int, str] = field(default_factory=dict)  # of its runs, by seed
    summaries: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the place."""
        return place_name(self.role, self.of, self.gate)

    @property
    def top1(self) -> dict[int, float | None]:
        """Final top-1 by seed."""
        return {seed: summary["accuracy"]["val_top1"] for seed, summary in self.summaries.items()}


def places_of(runs: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[Place]:
    """The places of a bench in the order of its rows."""
    gates = [row["gate"] for row in rows if row["role"] == "gate"]
    colours = {gate: svg.SERIES[index % len(svg.SERIES)] for index, gate in enumerate(gates)}
    places = {}
    for row in rows:
        key = row["role"], row["for"], row["gate"]
        places[key] = Place(*key, colours.get(row["gate"], svg.MUTED), row)
    for run in runs:
        place = places[run["role"], run["for"], run["summary"]["gate"]["name"]]
        place.folders[run["seed"]] = run["folder"]
        place.summaries[run["seed"]] = run["summary"]
    return list(places.values())


def accuracy_for(places: Sequence[Place], cost: str) -> svg.Figure | str:
    """Final top-1 of every place against its "time", or "energy": joules if every row has them, else forward units."""
    measured = all(place.row["gpu_j"]["mean"] is not None for place in places)
    unit, name, caption = COSTS["time" if cost == "time" else "joules" if measured else "units"]
    heading = f"Top-1 against {unit}"
    points = _points(places, name)
    if not points:
        return f"{heading}: no run has come out yet."

    def paint(axes: Axes) -> None:
        curve = sorted((x, y) for place, x, y in points if place.gate == DENSE)
        if len(curve) > 1:
            axes.plot(*zip(*curve, strict=True), color=svg.MUTED, linewidth=1.2, zorder=1)
        bars = [bar for place, x, y in points for bar in _draw_place(axes, place, x, y, name)]
        axes.set_xlim(0, 1.08 * max(bar[2] for bar in bars))
        axes.margins(y=0.12)
        svg.cost_axes(axes, unit, num_ticks=6)
        svg.label_points(axes, [(x, y, _label(place, points), place.colour) for place, x, y in points], bars)

    words = "; ".join(f"{place.name} {y:.2%} at {svg.short(x)}" for place, x, y in points)
    wide, narrow = (
        svg.draw(paint, f"{heading}: {words}.", width=width, height=height)
        for width, height in ((svg.WIDE_PX, HEIGHT_PX), (svg.WIDTH_PX, NARROW_HEIGHT_PX))
    )
    return svg.Figure(heading, wide, narrow=narrow, caption=caption)


def _points(places: Sequence[Place], name: str) -> list[tuple[Place, float, float]]:
    """Places with their means; only the first of places that share all their runs."""
    found: dict[Any, tuple[Place, float, float]] = {}
    for place in places:
        x, y = place.row[name]["mean"], place.row["val_top1"]["mean"]
        if x is not None and y is not None:
            found.setdefault(frozenset(place.folders.values()), (place, x, y))
    return list(found.values())


def _draw_place(axes: Axes, place: Place, x: float, y: float, name: str) -> list[tuple[float, float, float, float]]:
    """Draws a place and its seeds; returns the bounds of its error bars."""
    group, key = IN_SUMMARY[name]
    for summary in place.summaries.values():
        cost, accuracy = summary[group][key], summary["accuracy"]["val_top1"]
        if cost is not None and accuracy is not None:
            axes.plot([cost], [accuracy], "o", color=place.colour, markersize=3, alpha=0.55, markeredgewidth=0)
    wide, high = (ERRORS * (place.row[column]["se"] or 0.0) for column in (name, "val_top1"))
    marker = "s" if place.gate == DENSE else "D" if place.gate == "random" else "o"
    size = 5 if place.of is not None else 8 if marker == "o" else 6.5
    axes.errorbar([x], [y], high, wide, marker, color=place.colour, markersize=size, elinewidth=1.2, zorder=3)
    return [(x - wide, y, x + wide, y), (x, y - high, x, y + high)]


def _label(place: Place, points: Sequence[tuple[Place, float, float]]) -> str:
    """Names of gates; a baseline only has one if it is random training."""
    if place.of is None:
        return place.gate
    if place.role == "random_equal_share":
        several = sum(other.gate == "random" for other, _, _ in points) > 1
        return f"random for {place.of}" if several else "random"
    return ""


def accuracy_by_epoch(runs: Runs) -> svg.Figure | str:
    """Validation top-1 by epoch: every seed faint, their mean bold."""
    heading = "Validation top-1"
    curves = []
    for place, seeds in _lines(runs, lambda record: (record.column("epoch"), record.column("val_top1"))):
        # The mean over the epochs that all of them have.
        length = min(len(x) for x, _ in seeds)
        mean = np.mean([y[:length] for _, y in seeds], axis=0)
        curves.append(svg.Curve(seeds[0][0][:length], mean, place.gate, place.colour, seeds))
    if not curves:
        return f"{heading}: no epoch is recorded."

    def axis(axes: Axes) -> None:
        svg.epoch_axis(axes)
        svg.percent_axis(axes)

    label = f"{heading} by epoch: {svg.described(curves, '{:.1%}')}."
    return svg.curves_figure(heading, label, curves, axis, "Bold: mean of the seeds. Faint: each seed.")


def activations(runs: Runs) -> svg.Figure | str:
    """Share of offered samples that each gate let through, over offered samples."""

    def smooth(record: RunRecord) -> Line:
        target = record.config.get("target")
        x, _, mean, _ = mean_activation(record, target if isinstance(target, float) else None)
        return x, mean

    lines = [entry for entry in _lines(runs, smooth) if entry[0].gate != DENSE]
    caption = "Mean of the last 200 batches at least, gated part. Bold: the first seed. Faint: the others."
    return _over_offered("Activation, share of offered", lines, "{:.1%}", caption, svg.percent_axis)


def thresholds(runs: Runs) -> svg.Figure | str:
    """The threshold of each gate that has one, over offered samples."""

    def known(record: RunRecord) -> Line:
        mine = np.isfinite(record.steps["threshold"])
        return record.steps["offered"][mine], record.steps["threshold"][mine]

    caption = "Of gates that score while training. Bold: the first seed. Faint: the others."
    return _over_offered("Threshold", _lines(runs, known), "{:.3g}", caption, svg.few_ticks)


def _lines(runs: Runs, take: Callable[[RunRecord], Line]) -> list[tuple[Place, list[Line]]]:
    """`take` of each run, without places for which it has no values."""
    found = [(place, [take(record) for record in records]) for place, records in runs]
    known = [(place, [(x, y) for x, y in seeds if np.isfinite(y).any()]) for place, seeds in found]
    return [(place, seeds) for place, seeds in known if seeds]


def _over_offered(
    heading: str,
    lines: Sequence[tuple[Place, Sequence[Line]]],
    form: str,
    caption: str,
    vertical_axis: Callable[[Axes], None],
) -> svg.Figure | str:
    if not lines:
        return f"{heading}: no run recorded one."
    curves = [svg.Curve(*seeds[0], place.gate, place.colour, seeds[1:]) for place, seeds in lines]
    top = max(float(np.nanmax(y)) for _, seeds in lines for _, y in seeds)

    def axis(axes: Axes) -> None:
        svg.from_zero(axes, 1.15 * top)
        vertical_axis(axes)
        svg.number_axis(axes, "offered samples")

    label = f"{heading} over offered samples: {svg.described(curves, form)}."
    return svg.curves_figure(heading, label, curves, axis, caption, marker="")
