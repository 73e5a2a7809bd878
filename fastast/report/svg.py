"""Small figures as inline SVG: colours are the page's CSS variables, text stays text, lines are labelled directly."""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Placeholders of the page's CSS variables; no drawing uses these values otherwise.
COLOURS = {f"#fa57{index:02x}": f"var(--{name})" for index, name in enumerate(("ink", "muted", "rule", "shade"))}
INK, MUTED, RULE, SHADE = COLOURS
SERIES = tuple(f"#fa58{index:02x}" for index in range(1, 7))
COLOURS |= {colour: f"var(--series-{index})" for index, colour in enumerate(SERIES, 1)}

FONT_PX = 11.0
# Width of a figure, and of the wide kind, in CSS pixels at its natural size.
WIDTH_PX, WIDE_PX = 350, 1100
MAX_POINTS = 600
FEW_POINTS = 12
# A generous mean; the page's font is not known here.
PX_PER_LETTER = 0.6 * FONT_PX

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


def draw(
    paint: Callable[[Axes], None],
    label: str,
    *,
    width: float = WIDTH_PX,
    height: float = 210,
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
        figure = Figure(figsize=(width / 72, height / 72), frameon=False)
        # Fixed margins: neighbours on the page line up, and a layout engine takes as long as all the drawing.
        figure.subplots_adjust(left=46 / width, right=1 - right / width, bottom=40 / height, top=1 - top / height)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        paint(axes)
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text)
    return _inline(text.getvalue(), label)


def _inline(document: str, label: str) -> Markup:
    """The `<svg>` element of a document, for use beside others in one page."""
    body = document[document.index("<svg") :]
    # A style element would hold for the whole page; the page's own says the same of figures.
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)
    view_box = re.search(r'viewBox="([^"]*)"', body)
    assert view_box is not None, "matplotlib wrote no viewBox"
    body = body[body.index(">") + 1 :]
    # Ids are matplotlib's own names, the same in every figure.
    prefix = f"f{next(_numbers)}-"
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}", body)
    body = re.sub("|".join(COLOURS), lambda m: COLOURS[m[0]], body)
    return Markup(f'<svg viewBox="{view_box[1]}" role="img" aria-label="{escape(label)}">{body}')


def line(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str, **style: Any) -> None:
    """Draws a line, with its points where they are few."""
    style.setdefault("marker", "o" if len(x) <= FEW_POINTS else "")
    axes.plot(*thin(x, y), color=colour, markersize=4, **style)


def from_zero(axes: Axes, top: float) -> None:
    """Sets the vertical axis from 0 to `top`, with few grid lines."""
    axes.set_ylim(0, top if top > 0 else 1)
    few_ticks(axes)


def label_ends(axes: Axes, ends: Sequence[tuple[np.ndarray, np.ndarray, str, str]]) -> None:
    """Names lines at their last points, apart from one another; call it when the limits are final.

    Args:
        axes: where the lines are.
        ends: x, y, name and colour of each line.
    """
    low, high = axes.get_ylim()
    per_px = (high - low) / (axes.get_window_extent().height * 72 / axes.figure.dpi)
    gap = 1.25 * FONT_PX * per_px
    places = []
    for x, y, name, colour in ends:
        known = np.flatnonzero(np.isfinite(y))
        if len(known):
            places.append([y[known[-1]], x[known[-1]], y[known[-1]], name, colour])
    places.sort(key=lambda place: place[0])
    for below, place in itertools.pairwise(places):
        place[0] = max(place[0], below[0] + gap)
    # What was pushed beyond the top comes back down with its neighbours.
    ceiling = high
    for place in reversed(places):
        place[0] = min(place[0], ceiling)
        ceiling = place[0] - gap
    for height, x, y, name, colour in places:
        axes.annotate(
            name,
            (x, y),
            xytext=(6, (height - y) / per_px),
            textcoords="offset points",
            color=colour,
            va="center",
            annotation_clip=False,
        )


def label_points(
    axes: Axes, points: Sequence[tuple[float, float, str, str]], bars: Sequence[tuple[float, float, float, float]] = ()
) -> None:
    """Names points beside them, without covering names or points; call it when the limits are final.

    Args:
        axes: where the points are.
        points: x, y, name and colour of each; one without a name only keeps its place clear.
        bars: least x and y, largest x and y of what names should not cover either.
    """
    axes.autoscale_view()
    scale = 72 / axes.figure.dpi
    frame = axes.get_window_extent()
    places = [axes.transData.transform((x, y)) * scale for x, y, _, _ in points]
    taken = [(px - 5, py - 5, px + 5, py + 5) for px, py in places]
    for x0, y0, x1, y1 in bars:
        corners = axes.transData.transform([(x0, y0), (x1, y1)]) * scale
        taken.append((corners[0, 0] - 2, corners[0, 1] - 2, corners[1, 0] + 2, corners[1, 1] + 2))
    room = (frame.x0 * scale - 4, frame.y0 * scale, frame.x1 * scale + 8, frame.y1 * scale + 8)
    for (px, py), (x, y, name, colour) in zip(places, points, strict=True):
        if not name:
            continue
        width, height = len(name) * PX_PER_LETTER, 1.2 * FONT_PX
        boxes = []
        for away in (8, 16, 28, 42):
            for side, up in ((1, 0), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 1), (-1, -1), (-1, 0)):
                left = px + side * away - (width if side < 0 else width / 2 if side == 0 else 0)
                bottom = py + up * (away + (4 if side == 0 else 0)) - height / 2
                boxes.append((left, bottom, left + width, bottom + height))
        box = min(boxes, key=lambda box: sum(_overlap(box, other) for other in taken) + 9 * _outside(box, room))
        taken.append(box)
        offset = (box[0] - px, (box[1] + box[3]) / 2 - py)
        axes.annotate(
            name, (x, y), xytext=offset, textcoords="offset points", color=colour, va="center", annotation_clip=False
        )


def _overlap(one: Sequence[float], two: Sequence[float]) -> float:
    """Area that two boxes (left, bottom, right, top) share."""
    return max(0.0, min(one[2], two[2]) - max(one[0], two[0])) * max(0.0, min(one[3], two[3]) - max(one[1], two[1]))


def _outside(box: Sequence[float], room: Sequence[float]) -> float:
    """Area of a box that lies beyond another."""
    return (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, room)


def short(value: float, _position: object = None) -> str:
    """A number for an axis: 950, 1.2k, 3M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def percent_axis(axes: Axes) -> None:
    """Shares on the vertical axis as whole percent."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:.3g} %"))


def offered_axis(axes: Axes) -> None:
    """Offered samples on the horizontal axis."""
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(short))
    axes.set_xlabel("offered samples")


def cost_axes(axes: Axes, unit: str, num_ticks: int) -> None:
    """Costs on the horizontal axis, accuracy on the vertical one."""
    axes.xaxis.set_major_locator(MaxNLocator(num_ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(short))
    axes.set_xlabel(unit)
    few_ticks(axes)
    percent_axis(axes)


def few_ticks(axes: Axes) -> None:
    """At most five grid lines."""
    axes.yaxis.set_major_locator(MaxNLocator(5))


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
