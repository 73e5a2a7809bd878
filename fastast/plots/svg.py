"""Small figures as inline SVG: colours are the page's CSS variables, text stays text, lines are labelled directly."""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib.figure
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Placeholders of the page's CSS variables; no drawing uses these values otherwise.
COLOURS = {f"#fa57{index:02x}": f"var(--{name})" for index, name in enumerate(("ink", "muted", "rule", "shade"))}
INK, MUTED, RULE, SHADE = COLOURS
SERIES = tuple(f"#fa58{index:02x}" for index in range(1, 8))
COLOURS |= {colour: f"var(--series-{index})" for index, colour in enumerate(SERIES, 1)}

FONT_PX = 11.0
# Size of a figure, and width of the wide kind, in CSS pixels at its natural size.
WIDTH_PX, HEIGHT_PX, WIDE_PX = 350, 210, 1100
MAX_POINTS = 600
FEW_POINTS = 12
# A generous mean; the page's font is not known here.
PX_PER_LETTER = 0.6 * FONT_PX

# Begins the gid of an artist whose remaining gid is the text that shows while the pointer rests on it.
TIP = "tip:"

_numbers = itertools.count()
_RC: dict[Any, Any] = {
    **dict.fromkeys(("font.size", "xtick.labelsize", "ytick.labelsize", "axes.labelsize"), FONT_PX),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), RULE),
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), MUTED),
    **dict.fromkeys(("axes.spines.right", "axes.spines.top", "axes.spines.left", "text.parse_math"), False),
    **{"svg.fonttype": "none", "text.color": INK, "axes.linewidth": 1, "axes.axisbelow": True},
    **{"ytick.major.size": 0, "xtick.major.size": 3, "axes.grid": True, "axes.grid.axis": "y", "grid.linewidth": 0.7},
    **{"lines.linewidth": 1.8, "lines.solid_capstyle": "round", "lines.solid_joinstyle": "round"},
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawn figure of the page."""

    title: str  # what it shows and in which unit
    svg: Markup  # an `<svg>` element that says the same in words
    narrow: Markup | None = None  # another for small screens, where one figure cannot serve both
    caption: str = ""  # how to read it


def draw(
    paint: Callable[[Axes], None],
    label: str,
    *,
    width: float = WIDTH_PX,
    height: float = HEIGHT_PX,
    top: float = 10,
    names: Iterable[str] = (),
) -> Markup:
    """Lets `paint` draw into one pair of axes and gives the figure as an `<svg>` element.

    Args:
        paint: draws in the colours of this module.
        label: the text for readers who cannot see the figure.
        width, height: natural size, CSS pixels; the page scales it down.
        top: room above the axes, CSS pixels.
        names: labels at the ends of lines, to the right of the axes.
    """
    right = 12 + max((len(name) for name in names), default=0) * PX_PER_LETTER
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page's fonts have it
        figure = matplotlib.figure.Figure(figsize=(width / 72, height / 72), frameon=False)
        # Fixed margins: neighbours on the page line up, and a layout engine takes as long as all the drawing.
        figure.subplots_adjust(left=46 / width, right=1 - right / width, bottom=40 / height, top=1 - top / height)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        paint(axes)
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text)

    # The element alone, for use beside others in one page.
    body = text.getvalue().partition("<svg")[2]
    # A style element would hold for the whole page; the page's own says the same of figures.
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)
    view_box = re.search(r'viewBox="([^"]*)"', body)
    assert view_box is not None, "matplotlib wrote no viewBox"
    body = re.sub(rf'<g id="{TIP}([^"]*)">', r"<g><title>\1</title>", body)
    # Ids are matplotlib's own names, the same in every figure.
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>f{next(_numbers)}-", body.partition(">")[2])
    body = re.sub("|".join(COLOURS), lambda m: COLOURS[m[0]], body)
    return Markup(f'<svg viewBox="{view_box[1]}" role="img" aria-label="{escape(label)}">{body}')


def line(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str, marker: str | None = None, **style: Any) -> None:
    """Draws a line, by default with its points where they are few."""
    if marker is None:
        marker = "o" if len(x) <= FEW_POINTS else ""
    axes.plot(*thin(x, y), color=colour, marker=marker, markersize=4, **style)


class Curve(NamedTuple):
    """A line that is named at its end."""

    x: np.ndarray
    y: np.ndarray
    name: str
    colour: str


def curves_figure(
    title: str,
    label: str,
    curves: Sequence[Curve],
    axis: Callable[[Axes], None],
    caption: str = "",
    *,
    height: float = HEIGHT_PX,
    marker: str | None = None,
) -> Figure:
    """Lines with their names at the ends; `axis` sets up the axes of the drawn lines, the rest is as of `draw`."""

    def paint(axes: Axes) -> None:
        for curve in curves:
            line(axes, curve.x, curve.y, curve.colour, marker)
        axis(axes)
        label_ends(axes, curves)

    names = [curve.name for curve in curves]
    return Figure(title, draw(paint, label, height=height, names=names), caption=caption)


def described(curves: Sequence[Curve], form: str) -> str:
    """The first and the last value of each line in words."""
    return "; ".join(f"{curve.name} {first_to_last(curve.y, form)}".strip() for curve in curves)


def first_to_last(values: np.ndarray, form: str) -> str:
    """Text of the first and the last known value, such as `form="{:.1%}"` makes it."""
    known = [form.format(value).replace("%", " %") for value in values[np.isfinite(values)]]
    if not known:
        return "not recorded"
    return f"from {known[0]} to {known[-1]}" if len(known) > 1 else known[0]


def label_ends(axes: Axes, curves: Sequence[Curve]) -> None:
    """Names lines at their last points, apart from one another; call it when the limits are final."""
    low, high = axes.get_ylim()
    per_px = (high - low) / (axes.get_window_extent().height * 72 / axes.figure.dpi)
    gap = 1.25 * FONT_PX * per_px
    ends = []
    for x, y, name, colour in curves:
        known = np.flatnonzero(np.isfinite(y))
        if len(known):
            ends.append((y[known[-1]], x[known[-1]], name, colour))
    ends.sort(key=lambda end: end[0])
    style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
    for height, (y, x, name, colour) in zip(spread([y for y, *_ in ends], gap, low, high), ends, strict=True):
        axes.annotate(name, (x, y), xytext=(6, (height - y) / per_px), color=colour, **style)


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending heights, moved as little as can be to be at least `gap` apart, between `low` and `high` if they fit."""
    groups: list[list[float]] = []  # neighbours that touch: their heights, each less its place in the whole stack
    for i, height in enumerate(heights):
        groups.append([height - i * gap])
        while len(groups) > 1 and np.mean(groups[-2]) >= np.mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    least, most = low, high - (len(heights) - 1) * gap
    bases = [max(min(float(np.mean(group)), most), min(least, most)) for group in groups for _ in group]
    return [base + i * gap for i, base in enumerate(bases)]


def short(value: float, _position: object = None) -> str:
    """A number for an axis: 950, 1.2k, 3M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def percent_axis(axes: Axes) -> None:
    """Shares on the vertical axis as percent."""
    few_ticks(axes)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:.4g} %"))


def number_axis(axes: Axes, label: str) -> None:
    """Numbers from small to very large on the horizontal axis."""
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(short))
    axes.set_xlabel(label)


def cost_axes(axes: Axes, unit: str) -> None:
    """Costs on the horizontal axis, accuracy on the vertical one."""
    number_axis(axes, unit)
    percent_axis(axes)


def epoch_axis(axes: Axes) -> None:
    """Epochs on the horizontal axis, and room above and below the lines."""
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("epoch")


def few_ticks(axes: Axes) -> None:
    """At most five grid lines."""
    axes.yaxis.set_major_locator(MaxNLocator(5))


def from_zero(axes: Axes, top: float) -> None:
    """Sets the vertical axis from 0 to `top`, with few grid lines."""
    axes.set_ylim(0, top if top > 0 else 1)
    few_ticks(axes)


def thin(x: np.ndarray, y: np.ndarray, *, max_points: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Means over equal bins of x, so that a long run draws as fast as a short one; NaN where no value is known."""
    if len(x) <= max_points:
        return x, y
    span = np.ptp(x)
    bins = np.minimum(((x - x[0]) / span * max_points).astype(int), max_points - 1) if span else np.zeros(len(x), int)
    known = np.isfinite(y)
    count = np.bincount(bins[known], minlength=max_points)
    seen = np.bincount(bins, minlength=max_points)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_y = np.bincount(bins[known], y[known], minlength=max_points) / count
        mean_x = np.bincount(bins, x, minlength=max_points) / seen
    kept = seen > 0
    return mean_x[kept], mean_y[kept]
