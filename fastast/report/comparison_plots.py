"""Figures of accuracy against cost, of one run or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from fastast.cost_model import DENSE_COST
from fastast.phases import GATED
from fastast.report import svg
from fastast.report.run_record import RunRecord

# Longer names of runs would take the figure's space.
MAX_NAME = 18
TALL_PX = 260


def final_accuracy(records: Sequence[tuple[str, RunRecord]]) -> svg.Figure | str:
    """Final accuracy of several runs, by name, against their counted work."""
    points = []
    for name, record in records:
        units, top1 = record.number("compute", "forward_units"), record.number("accuracy", "val_top1")
        if units is not None and top1 is not None:
            points.append((name[:MAX_NAME], units, top1))
    if not points:
        return "Final top-1 against work: no finished run among these."

    def paint(axes: Axes) -> None:
        for index, (name, units, top1) in enumerate(points):
            colour = svg.SERIES[index % len(svg.SERIES)]
            axes.plot([units], [top1], "o", color=colour, markersize=7)
            axes.annotate(name, (units, top1), xytext=(8, 0), textcoords="offset points", color=colour, va="center")
        axes.margins(0.15)
        axes.set_xlim(left=0)
        svg.cost_axes(axes, "forward units")

    described = "; ".join(f"{name} {top1:.1%} at {svg.short(units)} forward units" for name, units, top1 in points)
    drawn = svg.draw(paint, f"Final top-1: {described}.", height=TALL_PX, names=[name for name, *_ in points])
    caption = "Forwards of the full-size network, counted: forward 1, backward 2."
    return svg.Figure("Final top-1 against work", drawn, caption=caption)


CURVES = {
    "seconds": ("seconds", "Evaluation included."),
    "gpu_j": ("GPU joules", "Evaluation included."),
    "forward_units": (
        "forward units",
        "Counted work: forward 1, backward 2; scoring spread evenly over the gated epochs. Joules were not measured.",
    ),
}


def accuracy_for_energy(record: RunRecord) -> svg.Figure | str:
    """Accuracy of one run against joules, or against counted forward units where joules were not measured."""
    measured = record.epochs and all(line["gpu_j"] is not None for line in record.epochs)
    return accuracy_curves([("", record)], "gpu_j" if measured else "forward_units")


def _costs(record: RunRecord, key: str) -> np.ndarray:
    """float64[E]: cost of each epoch; NaN where it is not recorded."""
    if key != "forward_units":
        return record.column(key)
    total = record.number("compute", "forward_units")
    units = DENSE_COST * record.column("backward")
    beyond = (np.nan if total is None else total) - units.sum()
    gated = np.where([line["phase"] == GATED for line in record.epochs], record.column("offered"), 0.0)
    return units + (beyond * gated / gated.sum() if gated.sum() > 0 else 0.0 * beyond)


def accuracy_curves(records: Sequence[tuple[str, RunRecord]], key: str) -> svg.Figure | str:
    """Accuracy of runs, by name, against the cumulative cost of their epochs, one of `CURVES`."""
    unit, caption = CURVES[key]
    curves = []
    for index, (name, record) in enumerate(records):
        costs = _costs(record, key)
        if len(costs) and np.isfinite(costs).all():
            colour = svg.SERIES[index % len(svg.SERIES)]
            curves.append(svg.Curve(np.cumsum(costs), record.column("val_top1"), name[:MAX_NAME], colour))
    title = f"Top-1 against {unit}"
    if len(curves) < len(records):
        return f"{title}: not recorded{' for every run' if len(records) > 1 else ''}."

    def axis(axes: Axes) -> None:
        axes.margins(y=0.12)
        axes.set_xlim(left=0)
        svg.cost_axes(axes, unit)

    described = "; ".join(
        f"{curve.name} {svg.first_to_last(curve.y, '{:.1%}')} in {svg.short(curve.x[-1])} {unit}".strip()
        for curve in curves
    )
    height = TALL_PX if len(records) > 1 else svg.HEIGHT_PX
    return svg.curves_figure(title, f"{title}: {described}.", curves, axis, caption, height=height)
