"""Power over the time of a run, with its epochs and phases."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory

from fastast.energy.power_log import PowerRow
from fastast.phases import EVAL
from fastast.plots import svg
from fastast.record.run_record import RunRecord

# Room that the number of an epoch needs.
PX_PER_EPOCH = 55


def power(record: RunRecord) -> svg.Figure | None:
    """Power over time, with epochs and phases; None where no GPU power was recorded."""
    rows = [row for row in record.power if row.w is not None]
    if not rows:
        return None
    by_gpu = {uuid: [row for row in rows if row.uuid == uuid] for uuid in sorted({row.uuid for row in rows})}
    first = next(iter(by_gpu))
    phases = _phases([row for row in record.power if row.uuid == first])
    peak = max(row.w or 0.0 for row in rows)

    def paint(axes: Axes, width: float) -> None:
        curves = []
        for index, (uuid, mine) in enumerate(by_gpu.items()):
            x, y = svg.thin(np.array([row.t_s for row in mine]), np.array([row.w for row in mine], dtype=np.float64))
            x, y = _broken(x, y)
            colour = svg.SERIES[index % len(svg.SERIES)]
            axes.plot(x, y, color=colour, linewidth=1.2)
            curves.append(svg.Curve(x, y, uuid[:12], colour))
        svg.from_zero(axes, 1.05 * peak)
        axes.set_xlim(0, max(row.t_s for row in rows) or 1.0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("seconds")
        _annotate_phases(axes, phases, width)
        if len(by_gpu) > 1:
            svg.label_ends(axes, curves)

    label = (
        f"Power of {len(by_gpu)} GPU{'s' if len(by_gpu) > 1 else ''} over {max(row.t_s for row in rows):,.0f} s: "
        f"mean {np.mean([row.w for row in rows]):,.0f} W, at most {peak:,.0f} W; "
        f"{sum(phase == EVAL for phase, *_ in phases)} evaluations."
    )
    caption = "Shaded: evaluation, which ends an epoch; numbers on top are epochs."
    names = [uuid[:12] for uuid in by_gpu] if len(by_gpu) > 1 else []
    wide, narrow = (
        svg.draw(partial(paint, width=width), label, width=width, height=250, top=50, names=names)
        for width in (svg.WIDE_PX, svg.WIDTH_PX)
    )
    return svg.Figure("Power, watts", wide, narrow=narrow, caption=caption)


def _phases(rows: Sequence[PowerRow]) -> list[tuple[str, float, float]]:
    """Phase, first and last second of each uninterrupted phase."""
    ends = [(phase, list(group)[-1].t_s) for phase, group in itertools.groupby(rows, key=lambda row: row.phase)]
    starts_s = [0.0, *(end_s for _, end_s in ends)]
    return [(phase, start_s, end_s) for (phase, end_s), start_s in zip(ends, starts_s, strict=False)]


def _annotate_phases(axes: Axes, phases: Sequence[tuple[str, float, float]], width: float) -> None:
    """Shades evaluations, numbers the epochs that they end, and names the phases between."""
    place = blended_transform_factory(axes.transData, axes.transAxes)
    evaluations = [(start_s, end_s) for phase, start_s, end_s in phases if phase == EVAL]
    work = [span for span in phases if span[0] not in ("", EVAL)]
    every = -(-len(evaluations) // int(width // PX_PER_EPOCH))
    begin_s = work[0][1] if work else 0.0
    for number, (start_s, end_s) in enumerate(evaluations, 1):
        axes.axvspan(start_s, end_s, color=svg.SHADE, linewidth=0, zorder=0)
        if (number - 1) % every == 0:
            axes.text((begin_s + start_s) / 2, 1.02, str(number), color=svg.MUTED, ha="center", transform=place)
        begin_s = end_s
    low, high = axes.get_xlim()
    per_letter = svg.PX_PER_LETTER * (high - low) / width
    taken = [-1.0, -1.0]  # ends of the last names in two rows
    for phase, group in itertools.groupby(work, key=lambda span: span[0]):
        start_s = next(group)[1]
        row = 0 if start_s >= taken[0] else 1
        axes.axvline(start_s, ymax=1.18 + 0.09 * row, color=svg.MUTED, linewidth=0.8, clip_on=False)
        if start_s >= taken[row]:
            axes.text(start_s, 1.12 + 0.09 * row, f" {phase[:16]}", color=svg.INK, transform=place)
            taken[row] = start_s + (len(phase[:16]) + 2) * per_letter


def _broken(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The line with a break wherever readings are far apart."""
    steps = np.diff(x)
    at = np.flatnonzero(steps > max(1.0, 4 * np.median(steps)) if len(steps) else []) + 1
    return np.insert(x, at, x[at]), np.insert(y, at, np.nan)
