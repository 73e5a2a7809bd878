"""The figures of a run's page. Each is a `Figure`, or None where the run recorded nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from fastast.loggers.console import share_told
from fastast.number_text import percent
from fastast.phases import DENSE, GATED
from fastast.plots import svg
from fastast.record.run_record import RunRecord

WITHOUT_TARGET = ("dense", "infobatch")
# The controller keeps the activation within 5 % of target on average over so many batches.
BAND = 0.05
BAND_BATCHES = 200
# A smaller share of the time explains nothing.
NOTABLE_WAIT = 0.05


def accuracy(record: RunRecord) -> svg.Figure | None:
    """Validation top-1 and top-5 by epoch."""
    lines = [("top-1", "val_top1", svg.SERIES[0]), ("top-5", "val_top5", svg.MUTED)]
    return _by_epoch(record, "Validation accuracy", lines, svg.percent_axis, "{:.1%}")


def loss(record: RunRecord) -> svg.Figure | None:
    """Training and validation loss by epoch."""
    lines = [("training", "train_loss", svg.MUTED), ("validation", "val_loss", svg.SERIES[0])]
    caption = "Both before label smoothing."
    if record.config.get("gate") != DENSE:
        caption += " Training: trained samples only, and a gate may pick the hard ones."
    return _by_epoch(record, "Loss, nats", lines, svg.few_ticks, "{:.3g}", caption)


def _by_epoch(
    record: RunRecord,
    title: str,
    lines: Sequence[tuple[str, str, str]],
    percent_or_few_ticks: Callable[[Axes], None],
    form: str,
    caption: str = "",
) -> svg.Figure | None:
    epochs = record.column("epoch")
    columns = [(name, record.column(key), colour) for name, key, colour in lines]
    # Of epochs without an evaluation nothing is known: lines go on to the next one.
    curves = [
        svg.Curve(epochs[known], values[known], name, colour)
        for name, values, colour in columns
        if (known := np.isfinite(values)).any()
    ]
    if not curves:
        return None

    def axis(axes: Axes) -> None:
        svg.epoch_axis(axes)
        if np.ptp(epochs) < 2:
            axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
        percent_or_few_ticks(axes)

    label = f"{title} over {len(epochs)} epochs: {svg.described(curves, form)}."
    return svg.curves_figure(title, label, curves, axis, caption)


def share(record: RunRecord) -> svg.Figure | None:
    """The share that a gate with target auto aimed at, by epoch."""
    told = share_told({"target": None, "shares": [line["target"] for line in record.epochs]})
    caption = f"{(told or 'it did not move').capitalize()}: it follows the effective sample size of its scores."
    lines = [("share", "target", svg.SERIES[0])]
    return _by_epoch(record, "Share that the gate trains", lines, _percent_from_zero, "{:.1%}", caption)


def _percent_from_zero(axes: Axes) -> None:
    svg.from_zero(axes, 1.05)
    svg.percent_axis(axes)


def activation(record: RunRecord) -> svg.Figure | None:
    """Share of offered samples that reached backward in the gated part, with its target."""
    gated = record.steps["phase"] == GATED
    if not gated.any():
        return None
    target = _target(record)
    x, y, smooth, span = mean_activation(record, target)

    def paint(axes: Axes) -> None:
        if target:
            axes.axhspan(target * (1 - BAND), target * (1 + BAND), color=svg.SERIES[1], alpha=0.18, linewidth=0)
            axes.axhline(target, color=svg.SERIES[1], linewidth=1)
        svg.line(axes, x, y, svg.MUTED, linewidth=0.8, alpha=0.6, marker="")
        svg.line(axes, x, smooth, svg.SERIES[0])
        values = y[np.isfinite(y)]
        top = min(np.percentile(values, 99) * 1.1 if len(values) else 1, 1)
        svg.from_zero(axes, max(top, 1.3 * (target or 0)))
        svg.percent_axis(axes)
        svg.number_axis(axes, "offered samples")
        ends = [svg.Curve(x, smooth, "mean", svg.SERIES[0])]
        if target:
            ends.append(svg.Curve(x, np.full(len(x), target), "target", svg.SERIES[1]))
        svg.label_ends(axes, ends)

    mean = smooth[np.isfinite(smooth)]
    label = "Share of the gated part over offered samples" + (
        f": last mean {percent(mean[-1], 1)}" if len(mean) else ""
    )
    label += f", target {percent(target, 1)}." if target else "."
    caption = f"Thin: single log lines. Bold: mean of the last {span:,} gated samples (of fewer at first). "
    if target:
        caption += f"Band: target ± {percent(BAND, 0)} of it."
    drawn = svg.draw(paint, label, names=["target" if target else "mean"])
    return svg.Figure("Share that is trained", drawn, caption=caption)


def mean_activation(record: RunRecord, target: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Offered samples, activation and its mean at each line of the gated part, and samples that the mean is over.

    The controller keeps its target on average over so many offered samples.
    """
    steps, gated = record.steps, record.steps["phase"] == GATED
    x, y, weight = steps["offered"][gated], steps["activation"][gated], line_samples(record)[gated]
    span = int(max(BAND_BATCHES * (_option(record, "batch_size") or 1), BAND_BATCHES / (target or 1)))
    return x, y, trailing_mean(x, y, weight, span), span


def threshold(record: RunRecord) -> svg.Figure | None:
    """The threshold of the controller."""
    x, y = record.steps["offered"], record.steps["threshold"]
    if not np.isfinite(y).any():
        return None
    first = int(np.flatnonzero(np.isfinite(y))[0])
    x, y = x[first:], y[first:]
    label = f"Threshold over offered samples: {svg.first_to_last(y, '{:.3g}')}."
    caption = "In units of the score, whose running mean is 1 for the default significance."
    return _over_offered("Threshold", x, y, 1.15 * np.nanmax(y), label, caption)


def throughput(record: RunRecord) -> svg.Figure | None:
    """Offered samples per second."""
    y = record.steps["offered_per_s"]
    if not np.isfinite(y).any():
        return None

    def axis(axes: Axes) -> None:
        axes.yaxis.set_major_formatter(FuncFormatter(svg.short))
        _annotate_gated(axes, record)

    label = f"Offered samples per second: {svg.first_to_last(y, '{:,.0f}')}."
    title = "Throughput, offered per second"
    return _over_offered(title, record.steps["offered"], y, 1.12 * np.nanmax(y), label, "Evaluation left out.", axis)


def data_wait(record: RunRecord) -> svg.Figure | None:
    """Share of the loop's time that it waited for pictures."""
    steps = record.steps
    with np.errstate(invalid="ignore", divide="ignore"):
        y = steps["data_wait_s"] * steps["offered_per_s"] / line_samples(record)
    y = np.where(np.isfinite(y), np.clip(y, 0, 1), np.nan)
    if not (y >= NOTABLE_WAIT).any():
        return None

    def axis(axes: Axes) -> None:
        svg.percent_axis(axes)
        _annotate_gated(axes, record)

    top = max(0.05, min(1.0, 1.2 * np.nanmax(y)))
    mean, most = percent(float(np.nanmean(y)), 1), percent(float(np.nanmax(y)), 1)
    label = f"Share of time spent waiting for data: mean {mean}, at most {most}."
    caption = "A gate that decides after decoding saves nothing where this is high."
    return _over_offered("Data wait, share of time", steps["offered"], y, top, label, caption, axis)


def _over_offered(
    title: str,
    x: np.ndarray,
    y: np.ndarray,
    top: float,
    label: str,
    caption: str,
    axis: Callable[[Axes], None] = lambda axes: None,
) -> svg.Figure:
    def axes_from_zero(axes: Axes) -> None:
        svg.from_zero(axes, top)
        svg.number_axis(axes, "offered samples")
        axis(axes)

    return svg.curves_figure(title, label, [svg.Curve(x, y, "", svg.SERIES[0])], axes_from_zero, caption)


def loss_histogram(record: RunRecord) -> svg.Figure | None:
    """Scoring loss of selected against skipped samples, over all gated epochs."""
    hists = [line["hist"] for line in record.epochs if line["hist"] is not None]
    hists = [hist for hist in hists if np.array_equal(hist[0], hists[0][0])]
    if not hists:
        return None
    edges, (selected, skipped) = hists[0][0], sum(hist[1:] for hist in hists)
    last = max(np.flatnonzero(selected + skipped), default=0)
    width = edges[1] - edges[0] if len(edges) > 1 else 1.0
    is_open = last == len(edges) - 1
    edges = np.append(edges[: last + 1], edges[last] + width)
    selected, skipped = selected[: last + 1], skipped[: last + 1]

    def paint(axes: Axes) -> None:
        for counts, colour in ((skipped, svg.MUTED), (selected, svg.SERIES[0])):
            share = counts / max(1.0, counts.sum())
            axes.stairs(share, edges, color=colour, fill=True, alpha=0.18, linewidth=0)
            axes.stairs(share, edges, color=colour, linewidth=1.8)
        svg.percent_axis(axes)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel("loss when scored, nats")
        for row, (name, colour) in enumerate((("selected", svg.SERIES[0]), ("skipped", svg.MUTED))):
            axes.text(0.99, 0.97 - 0.09 * row, name, color=colour, ha="right", va="top", transform=axes.transAxes)

    middle = (edges[1:] + edges[:-1]) / 2
    words = [
        f"{name} samples, " + (f"mean about {middle @ counts / counts.sum():.2g} nats" if counts.sum() else "none")
        for name, counts in (("selected", selected), ("skipped", skipped))
    ]
    caption = f"Share of each group by bin; {selected.sum():,.0f} selected, {skipped.sum():,.0f} skipped."
    caption += " The last bin is open." if is_open else ""
    return svg.Figure(
        "Loss of selected and skipped samples", svg.draw(paint, f"Histogram: {'; '.join(words)}."), caption=caption
    )


def _annotate_gated(axes: Axes, record: RunRecord) -> None:
    """Draws a line at the start of the gated part, unless the run starts with it."""
    gated = np.flatnonzero(record.steps["phase"] == GATED)
    if len(gated) and gated[0] > 0:
        x = record.steps["offered"][gated[0] - 1]
        axes.axvline(x, color=svg.RULE, linewidth=1)
        axes.text(x, 0.99, " gated", color=svg.MUTED, va="top", transform=axes.get_xaxis_transform())


def line_samples(record: RunRecord) -> np.ndarray:
    """float64[S]: offered samples of each step line; the count restarts with every epoch."""
    offered, epoch = record.steps["offered"], record.steps["epoch"]
    ends = {line["epoch"]: line["offered"] or 0.0 for line in record.epochs}
    before = [sum(count for number, count in ends.items() if number < e) for e in np.unique(epoch)]
    start = np.concatenate([[0.0], offered[:-1]])[: len(offered)]
    if len(epoch):
        start = np.maximum(start, np.array(before)[np.searchsorted(np.unique(epoch), epoch)])
    return np.maximum(offered - start, 1.0)


def trailing_mean(x: np.ndarray, y: np.ndarray, weight: np.ndarray, span: float) -> np.ndarray:
    """Weighted mean of `y` over the last `span` samples at each x."""
    known = np.isfinite(y)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, y * weight, 0.0))])
    weights = np.concatenate([[0.0], np.cumsum(np.where(known, weight, 0.0))])
    first = np.searchsorted(x, x - span, side="right")
    last = np.arange(1, len(x) + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums[last] - sums[first]) / (weights[last] - weights[first])


def _target(record: RunRecord) -> float | None:
    """The share that the gate should hold, if it has one."""
    if record.summary:
        return record.number("gate", "target")
    return None if record.config.get("gate") in WITHOUT_TARGET else _option(record, "target")


def _option(record: RunRecord, name: str) -> float | None:
    value = record.config.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None
