"""Accuracy of several runs against what it cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from fastast.cost_model import DENSE_COST
from fastast.phases import GATED
from fastast.plots import svg
from fastast.record.run_record import RunRecord

# Longer names of runs would take the figure's space.
MAX_NAME = 18
TALL_PX = 260
# Unit and caption by the name of an epoch's cost.
CURVES = {
    "seconds": ("seconds", "Evaluation included."),
    "gpu_j": ("GPU joules", "Evaluation included."),
    "forward_units": (
        "forward units",
        "Counted work: forward 1, backward 2.",
    ),
}


def _costs(record: RunRecord, key: str) -> np.ndarray:
    """float64[E]: cost of each epoch; NaN where it is not recorded."""
    if key != "forward_units":
        return record.column(key)
    counted = record.column(key)
    if np.isfinite(counted).all() or record.config.get("train_size"):
        return counted
    # Older runs have no counts by epoch.
    total = record.number("compute", "forward_units")
    units = (record.number("model", "train_cost") or DENSE_COST) * record.column("backward")
    units[:1] += record.number("probe", "forward_units") or 0.0  # like the seconds and the joules of the first epoch
    beyond = (np.nan if total is None else total) - units.sum()
    gated = np.where([line["phase"] == GATED for line in record.epochs], record.column("offered"), 0.0)
    return units + (beyond * gated / gated.sum() if gated.sum() > 0 else 0.0 * beyond)


def accuracy_curves(records: Sequence[tuple[str, RunRecord]], key: str) -> svg.Figure | None:
    """Accuracy of runs, by name, against the cumulative cost of their epochs, one of `CURVES`.

    Runs that have none of it on record are left out, and named; None if all are.
    """
    unit, caption = CURVES[key]
    curves, missing = [], []
    for index, (name, record) in enumerate(records):
        costs, top1 = _costs(record, key), record.column("val_top1")
        known = np.isfinite(top1)
        if not known.any() or not np.isfinite(costs).all():
            missing.append(name)
            continue
        colour = svg.SERIES[index % len(svg.SERIES)]
        curves.append(svg.Curve(np.cumsum(costs)[known], top1[known], name[:MAX_NAME], colour))

    if not curves:
        return None
    if missing:
        caption += f" Not recorded for {', '.join(missing)}."

    def axis(axes: Axes) -> None:
        axes.margins(y=0.12)
        axes.set_xlim(left=0)
        svg.cost_axes(axes, unit)

    title = f"Top-1 against {unit}"
    described = "; ".join(
        f"{curve.name} {svg.first_to_last(curve.y, '{:.1%}')} in {svg.short(curve.x[-1])} {unit}" for curve in curves
    )
    return svg.curves_figure(title, f"{title}: {described}.", curves, axis, caption, height=TALL_PX)
