"""The figures of a bench's page: accuracy against cost of each gate and baseline, and curves over the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fastast.report.bench_tables import place_name
from fastast.report.run_plots import GATED, Figure, averaging_samples, first_to_last, line_samples, trailing_mean
from fastast.report.run_record import RunRecord
from fastast.report.svg import (
    MUTED,
    SERIES,
    WIDE_PX,
    WIDTH_PX,
    cost_axes,
    draw,
    few_ticks,
    from_zero,
    label_ends,
    label_points,
    line,
    offered_axis,
    percent_axis,
    short,
)

DENSE = "dense"
ERRORS = 2.0  # standard errors that a bar shows to each side
FAINT = 0.35
HEIGHT_PX, NARROW_HEIGHT_PX = 340, 300
TIME = ("seconds of training", "train_s", ("time_s", "train"))
JOULES = ("GPU joules", "gpu_j", ("energy", "gpu_j"))
UNITS = ("forward units", "forward_units", ("compute", "forward_units"))
Curves = Sequence[tuple["Place", Sequence[tuple[int, RunRecord]]]]


@dataclass(frozen=True, slots=True)
class Place:
    """One place of the comparison.

    Attributes:
        role, of, gate: as in `bench.json`.
        colour: of its gate.
        row: its row: mean and standard error of each figure.
        folders: (seed, folder) of its runs.
        summaries: of its runs, by seed.
    """

    role: str
    of: str | None
    gate: str
    colour: str
    row: Mapping[str, Any]
    folders: list[tuple[int, str]] = field(default_factory=list)
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
    colours = {gate: SERIES[index % len(SERIES)] for index, gate in enumerate(gates)}
    places = {}
    for row in rows:
        key = row["role"], row["for"], row["gate"]
        places[key] = Place(*key, colours.get(row["gate"], MUTED), row)
    for run in runs:
        place = places[run["role"], run["for"], run["summary"]["gate"]["name"]]
        place.folders.append((run["seed"], run["folder"]))
        place.summaries[run["seed"]] = run["summary"]
    return list(places.values())


def accuracy_for(places: Sequence[Place], cost: str) -> Figure | str:
    """Final top-1 of every place against what it cost.

    Args:
        places: of the bench.
        cost: "time", or "energy": joules where every row has them, else counted forward units.
    """
    measured = all(place.row["gpu_j"]["mean"] is not None for place in places)
    unit, name, entry = TIME if cost == "time" else JOULES if measured else UNITS
    heading = f"Top-1 against {unit}"
    points = _points(places, name)
    if not points:
        return f"{heading}: no run has come out yet."

    def paint(axes: Axes) -> None:
        curve = sorted((x, y) for place, x, y in points if place.gate == DENSE)
        if len(curve) > 1:
            axes.plot(*zip(*curve, strict=True), color=MUTED, linewidth=1.2, zorder=1)
        bars = [bar for place, x, y in points for bar in _draw_place(axes, place, x, y, name, entry)]
        axes.set_xlim(0, 1.08 * max(bar[2] for bar in bars))
        axes.margins(y=0.12)
        cost_axes(axes, unit, 6)
        label_points(axes, [(x, y, _label(place, points), place.colour) for place, x, y in points], bars)

    described = "; ".join(f"{place.name} {y:.2%} at {short(x)}" for place, x, y in points)
    label = f"{heading}: {described}."

    def at(width: float, height: float) -> Markup:
        return draw(paint, label, width=width, height=height)

    caption = "Evaluation left out." if cost == "time" else "Of the whole run, evaluation included." if measured else ""
    caption = caption or "Counted work: forward 1, backward 2. Joules were not measured."
    return Figure(heading, at(WIDE_PX, HEIGHT_PX), narrow=at(WIDTH_PX, NARROW_HEIGHT_PX), caption=caption)


def _points(places: Sequence[Place], name: str) -> list[tuple[Place, float, float]]:
    """Places with their means; only the first of places that share all their runs."""
    found: dict[tuple[tuple[int, str], ...], tuple[Place, float, float]] = {}
    for place in places:
        x, y = place.row[name]["mean"], place.row["val_top1"]["mean"]
        if x is not None and y is not None:
            found.setdefault(tuple(sorted(place.folders)), (place, x, y))
    return list(found.values())


def _draw_place(
    axes: Axes, place: Place, x: float, y: float, name: str, entry: tuple[str, str]
) -> list[tuple[float, float, float, float]]:
    """Draws a place and its seeds; returns the bounds of its error bars."""
    group, key = entry
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


def accuracy_by_epoch(curves: Curves) -> Figure | str:
    """Validation top-1 by epoch: every seed faint, their mean bold."""
    heading = "Validation top-1"
    lines = []
    for place, records in curves:
        seeds = [_columns(record, "epoch", "val_top1") for _, record in records]
        seeds = [(x, y) for x, y in seeds if np.isfinite(y).any()]
        if seeds:
            lines.append((place, seeds))
    if not lines:
        return f"{heading}: no epoch is recorded."

    def paint(axes: Axes) -> None:
        ends = []
        for place, seeds in lines:
            for x, y in seeds:
                line(axes, x, y, place.colour, alpha=FAINT, linewidth=0.9, marker="")
            x, y = _mean_line(seeds)
            line(axes, x, y, place.colour)
            ends.append((x, y, place.gate, place.colour))
        axes.margins(y=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("epoch")
        few_ticks(axes)
        percent_axis(axes)
        label_ends(axes, ends)

    described = "; ".join(
        f"{place.gate} {first_to_last(_mean_line(seeds)[1], '{:.1%}'.format)}" for place, seeds in lines
    )
    svg = draw(paint, f"{heading} by epoch: {described}.", names=[place.gate for place, _ in lines])
    return Figure(heading, svg, caption="Bold: mean of the seeds. Faint: each seed.")


def activations(curves: Curves) -> Figure | str:
    """Share of offered samples that each gate let through, over offered samples."""
    heading = "Activation, share of offered"

    def smooth(record: RunRecord) -> tuple[np.ndarray, np.ndarray]:
        steps, gated = record.steps, record.steps.phase == GATED
        x, y, weight = steps["offered"][gated], steps["activation"][gated], line_samples(record)[gated]
        target = record.config.get("target")
        return x, trailing_mean(x, y, weight, averaging_samples(record, target if isinstance(target, float) else None))

    lines = [entry for entry in _lines(curves, smooth) if entry[0].gate != DENSE]
    caption = "Mean of the last 200 batches at least, gated part. Bold: the first seed. Faint: the others."
    return _lines_over_offered(heading, lines, lambda value: f"{value:.1%}", caption, percent=True)


def thresholds(curves: Curves) -> Figure | str:
    """The threshold of each gate that has one, over offered samples."""

    def known(record: RunRecord) -> tuple[np.ndarray, np.ndarray]:
        mine = np.isfinite(record.steps["threshold"])
        return record.steps["offered"][mine], record.steps["threshold"][mine]

    caption = "Of gates that score while training. Bold: the first seed. Faint: the others."
    return _lines_over_offered("Threshold", _lines(curves, known), lambda value: f"{value:.3g}", caption)


Line = tuple[Place, list[tuple[np.ndarray, np.ndarray]]]


def _lines(curves: Curves, take: Callable[[RunRecord], tuple[np.ndarray, np.ndarray]]) -> list[Line]:
    """`take` of each run, without places for which it has no values."""
    found = [(place, [take(record) for _, record in records]) for place, records in curves]
    known = [(place, [(x, y) for x, y in seeds if np.isfinite(y).any()]) for place, seeds in found]
    return [(place, seeds) for place, seeds in known if seeds]


def _lines_over_offered(
    heading: str, lines: Sequence[Line], form: Callable[[float], str], caption: str, *, percent: bool = False
) -> Figure | str:
    if not lines:
        return f"{heading}: no run recorded one."
    top = max(float(np.nanmax(y)) for _, seeds in lines for _, y in seeds)

    def paint(axes: Axes) -> None:
        for place, seeds in lines:
            for number, (x, y) in enumerate(seeds):
                style: dict[str, Any] = {"alpha": FAINT, "linewidth": 0.9} if number else {}
                line(axes, x, y, place.colour, marker="", **style)
        from_zero(axes, 1.15 * top)
        if percent:
            percent_axis(axes)
        offered_axis(axes)
        label_ends(axes, [(*seeds[0], place.gate, place.colour) for place, seeds in lines])

    described = "; ".join(f"{place.gate} {first_to_last(seeds[0][1], form)}" for place, seeds in lines)
    svg = draw(paint, f"{heading} over offered samples: {described}.", names=[place.gate for place, _ in lines])
    return Figure(heading, svg, caption=caption)


def _columns(record: RunRecord, one: str, two: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.array([entry[name] for entry in record.epochs], dtype=np.float64) for name in (one, two))
    return x, y


def _mean_line(seeds: Sequence[Sequence[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of several lines over the points that all of them have."""
    length = min(len(x) for x, _ in seeds)
    return seeds[0][0][:length], np.mean([y[:length] for _, y in seeds], axis=0)
