"""The picture of a bench: accuracy against cost, one curve for each arm."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from fastast.number_text import duration
from fastast.plots import svg

MAX_NAME = 36
WIDE_HEIGHT_PX, NARROW_HEIGHT_PX = 400, 330
LABEL_PX = 26  # from the axes to the names beside them
TIP_PX = 13  # size of what the pointer has to hit
DODGE_PX = 3.5
MARKERS = ("o", "^", "D", "v", "P", "X", "*", "<")  # one more than colours, so that few looks come twice


class Unit(NamedTuple):
    """What a cost is counted in."""

    name: str
    title: str
    meaning: str


UNITS = {
    "units": Unit("Work", "work", "Forward units: the forward of a picture counts 1, its backward 2."),
    "seconds": Unit("Time", "time", "Time of the whole run, evaluation included, on this machine."),
    "joules": Unit("GPU energy", "GPU energy", "GPU joules of the whole run, evaluation included."),
}


def cost_text(unit: str, value: float) -> str:
    """A cost in words."""
    return duration(value) if unit == "seconds" else f"{value:,.0f} {'J' if unit == 'joules' else 'units'}"


@dataclass(frozen=True, slots=True)
class Look:
    """How an arm is drawn."""

    name: str
    colour: str
    marker: str
    is_peer: bool
    is_reference: bool  # the arm that all others are compared with

    @property
    def dashes(self) -> Any:
        """The line style of matplotlib."""
        return (0, (5, 2.5)) if self.is_peer else "-"

    @property
    def swatch(self) -> Markup:
        """Line and marker for a legend."""
        style = MarkerStyle(self.marker)
        corners = np.asarray(style.get_path().transformed(style.get_transform()).to_polygons()[0], np.float64)
        points = " ".join(f"{16 + 8 * x:.1f},{7 - 8 * y:.1f}" for x, y in corners)
        colour = svg.COLOURS[self.colour]
        dashes = ' stroke-dasharray="5 2.5"' if self.is_peer else ""
        return Markup(
            f'<svg class="swatch" viewBox="0 0 32 14" aria-hidden="true"><path d="M0 7H32" stroke="{colour}" '
            f'stroke-width="{_width(self)}"{dashes}/><polygon points="{points}" fill="{colour}"/></svg>'
        )


def looks_of(arms: Sequence[Mapping[str, Any]], reference: str) -> list[Look]:
    """The reference in ink, every other arm in a colour and with a marker of its own."""
    looks, number = [], itertools.count()
    for arm in arms:
        if arm["name"] == reference:
            looks.append(Look(reference, svg.INK, "s", is_peer=False, is_reference=True))
        else:
            index = next(number)
            colour, marker = svg.SERIES[index % len(svg.SERIES)], MARKERS[index % len(MARKERS)]
            looks.append(Look(arm["name"], colour, marker, bool(arm.get("peer")), is_reference=False))
    return looks


class Point(NamedTuple):
    """Mean cost and accuracy of an arm at a budget."""

    cost: float
    top1: float
    se: float | None
    tip: str


Curves = Sequence[tuple[Look, Sequence[Point]]]


def curves_of(looks: Sequence[Look], points: Sequence[Mapping[str, Any]], unit: str) -> list[tuple[Look, list[Point]]]:
    """The arms whose cost is known in that unit, each with its points by cost."""
    curves: list[tuple[Look, list[Point]]] = []
    for look in looks:
        mine = []
        for point in points:
            cost, top1 = point[unit], point["top1"]["mean"]
            if point["arm"] == look.name and cost is not None and cost > 0 and top1 is not None:
                tip = f"{look.name}, {point['budget']}: {accuracy_text(point['top1'])} at {cost_text(unit, cost)}"
                mine.append(Point(cost, top1, point["top1"]["se"], f"{tip}, n = {point['n']}"))
        if mine:
            curves.append((look, sorted(mine)))
    return curves


def accuracy_text(top1: Mapping[str, float | None]) -> str:
    """Mean and standard error in percent."""
    known = [f"{100 * value:.2f}" for value in (top1["mean"], top1["se"]) if value is not None]
    return " ± ".join(known) + " %" if known else "-"


def accuracy_against_cost(curves: Curves, unit: str) -> svg.Figure:
    """Top-1 of every arm against its cost, with a bar of one standard error to each side."""
    divisor, axis = _scale(unit, [point.cost for _, points in curves for point in points])

    def paint(axes: Axes, is_wide: bool) -> None:
        _logarithmic(axes, [point.cost / divisor for _, points in curves for point in points])
        axes.set_xlabel(axis)
        dodge = DODGE_PX if _coincide(curves) else 0.0
        for index, (look, points) in enumerate(curves):
            shift = dodge * (index - (len(curves) - 1) / 2) / (1 if is_wide else 2)
            _draw(axes, look, points, divisor, shift)
        axes.margins(y=0.08)
        axes.autoscale_view(scalex=False)
        svg.percent_axis(axes)
        if is_wide:
            _name(axes, curves, divisor)

    title = f"Accuracy (top-1) against {UNITS[unit].title}"
    label = f"{title}: {'; '.join(point.tip for _, points in curves for point in points)}."
    names = [_short(look.name) + "----" for look, _ in curves]  # room for LABEL_PX
    wide = svg.draw(partial(paint, is_wide=True), label, width=svg.WIDE_PX, height=WIDE_HEIGHT_PX, names=names)
    narrow = svg.draw(partial(paint, is_wide=False), label, height=NARROW_HEIGHT_PX)
    return svg.Figure(title, wide, narrow=narrow)


def how_to_read(curves: Curves, unit: str) -> str:
    """The caption of the picture, which stands below its legend."""
    points = [point for _, mine in curves for point in mine]
    parts = [
        UNITS[unit].meaning,
        "Bars: one standard error over the seeds to each side." if any(point.se for point in points) else "",
        "Arms of equal cost are drawn a little apart." if _coincide(curves) else "",
        "Dashed: other trainers." if any(look.is_peer for look, _ in curves) else "",
        "Cheaper is further left, on a logarithmic axis.",
    ]
    return " ".join(filter(None, parts))


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"


def _width(look: Look) -> float:
    return 2.6 if look.is_reference else 1.7


def _scale(unit: str, costs: Sequence[float]) -> tuple[float, str]:
    """What a cost is divided by on the axis, and the axis' label."""
    if unit == "seconds":
        most = max(costs)
        divisor, name = (3600, "hours") if most > 7200 else (60, "minutes") if most > 180 else (1, "seconds")
        return divisor, f"{name} of a run"
    return 1, "GPU joules of a run" if unit == "joules" else "forward units of a run"


def _coincide(curves: Curves) -> bool:
    """Whether bars of different arms would cover one another: costs within 1 %."""
    costs = sorted((point.cost, index) for index, (_, points) in enumerate(curves) for point in points)
    return any(high < 1.01 * low and one != two for (low, one), (high, two) in itertools.pairwise(costs))


def _logarithmic(axes: Axes, costs: Sequence[float]) -> None:
    """A logarithmic horizontal axis around these costs, with round numbers on it."""
    room = max(1.06, (max(costs) / min(costs)) ** 0.04)
    low, high = min(costs) / room, max(costs) * room
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for digits in ((1, 2, 5), (1, 2, 3, 5, 7), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            break
    else:
        ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(svg.short))


def _draw(axes: Axes, look: Look, points: Sequence[Point], divisor: float, shift_px: float) -> None:
    """A curve, its markers and bars, and the texts that the pointer shows."""
    place = axes.transData + ScaledTranslation(shift_px / axes.figure.dpi, 0, axes.figure.dpi_scale_trans)
    x = [point.cost / divisor for point in points]
    y = [point.top1 for point in points]
    front = 2 if look.is_reference else 3
    style: dict[str, Any] = {"color": look.colour, "transform": place, "clip_on": False}
    axes.plot(x, y, linestyle=look.dashes, linewidth=_width(look), zorder=front, **style)
    size = 8 if look.marker in "PX*" else 6.5  # shapes with notches look smaller
    axes.plot(x, y, look.marker, markersize=size, markeredgewidth=0, zorder=front, **style)
    for left, point in zip(x, points, strict=True):
        gid = f"{svg.TIP}{point.tip}"
        ends = [point.top1 - (point.se or 0), point.top1 + (point.se or 0)]
        axes.update_datalim([(left, end) for end in ends])
        if point.se:
            axes.plot([left, left], ends, "_-", markersize=6, linewidth=1.2, zorder=front, gid=gid, **style)
        axes.plot([left], [point.top1], "o", markersize=TIP_PX, alpha=0, zorder=5, gid=gid, **style)


def _name(axes: Axes, curves: Curves, divisor: float) -> None:
    """Names in a column to the right of the axes, each with a thin line to the end of its curve."""
    low, high = axes.get_ylim()
    gap = 1.3 * svg.FONT_PX * (high - low) / (axes.get_window_extent().height * 72 / axes.figure.dpi)
    ends = [(points[-1].top1, points[-1].cost / divisor, look) for look, points in curves]
    ends.sort(key=lambda end: end[0])
    column = axes.get_yaxis_transform()
    beside = 1 + LABEL_PX * axes.figure.dpi / 72 / axes.get_window_extent().width
    for height, (top1, cost, look) in zip(svg.spread([end[0] for end in ends], gap, low, high), ends, strict=True):
        axes.annotate(
            _short(look.name),
            (cost, top1),
            (beside, height),
            textcoords=column,
            color=look.colour,
            va="center",
            annotation_clip=False,
            fontweight="bold" if look.is_reference else "normal",
            arrowprops={"arrowstyle": "-", "color": look.colour, "linewidth": 0.6, "shrinkA": 2, "relpos": (0, 0.5)},
        )
