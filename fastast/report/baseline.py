"""A run beside another that it is measured by, such as a dense one on the same pictures."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastast.errors import InputError
from fastast.number_text import duration
from fastast.phases import DENSE
from fastast.plots import svg
from fastast.plots.comparison_plots import accuracy_curves
from fastast.record.run_record import RunRecord, clean
from fastast.report.answers import Answer, accuracy_text, gate_of, last_top1, num_evaluated, standard_error

BEYOND_CHANCE = 1.96  # standard errors: 95 %
# Options by which two runs differ without a reader's interest.
OF_THE_RUN = {"out", "seed", "resume", "threads", "log_every", "checkpoint_every", "max_time"}


# What a run costs: name, how a smaller amount is told, and its place in the summary.
COSTS = (
    ("time", ("faster", "slower", "as fast"), "time_s", "total"),
    ("work, forward units", ("less work", "more work", "as much work"), "compute", "forward_units"),
    ("GPU joules", ("fewer GPU joules", "more GPU joules", "as many GPU joules"), "energy", "gpu_j"),
)


class Difference(NamedTuple):
    """Top-1 of a run less that of its baseline, shares in [0, 1]."""

    value: float
    error: float  # standard error
    is_paired: bool  # on the same pictures, of which each prediction is known

    @property
    def is_shown(self) -> bool:
        """Whether chance among pictures hardly makes such a difference."""
        return abs(self.value) > BEYOND_CHANCE * self.error


class Beside(NamedTuple):
    """What the page says of the two runs."""

    answer: Answer
    name: str  # of the baseline
    rows: list[tuple[str, str, str, str]]  # what, this run, the baseline, the difference
    options: list[tuple[str, str, str]]  # that differ: name, this run, the baseline
    note: str
    figures: list[svg.Figure]


def put_beside(record: RunRecord, baseline: RunRecord) -> Beside:
    """Compares two finished runs.

    Raises:
        InputError: one is not finished, or they are of different pictures.
    """
    _require_comparable(record, baseline)
    difference = accuracy_difference(record, baseline)
    kind = "dense training" if gate_of(baseline) == DENSE else f"the {gate_of(baseline)} gate"
    costs = [(what, record.number(group, key), baseline.number(group, key)) for what, _, group, key in COSTS]
    known = {what: theirs / ours for what, ours, theirs in costs if ours and theirs}
    words = [_told(known[what], adverb) for what, adverb, *_ in COSTS if what in known]
    sentence = f"Beside {kind} ({baseline_name(baseline)}): {_accuracy_told(difference)}; {', '.join(words)}."
    rows = [("top-1", accuracy_text(record), accuracy_text(baseline), _points(difference))]
    for (what, _, group, _), (_, ours, theirs) in zip(COSTS, costs, strict=True):
        if ours is not None and theirs is not None:
            ratio = f"{ours / theirs:.2f}x" if theirs else "-"
            rows.append((what, _amount(group, ours), _amount(group, theirs), ratio))
    names = ("this run", "baseline") if gate_of(record) == gate_of(baseline) else (gate_of(record), gate_of(baseline))
    named = list(zip(names, (record, baseline), strict=True))
    joules = accuracy_curves(named, "gpu_j")
    curves = [accuracy_curves(named, "seconds"), joules or accuracy_curves(named, "forward_units")]
    how = "on the same pictures, paired" if difference.is_paired else "as if of different pictures"
    return Beside(
        answer=Answer(sentence),
        name=baseline_name(baseline),
        rows=rows,
        options=_different_options(record, baseline),
        note=f"The standard error of the difference is {how}; it says nothing of how runs scatter from seed to seed, "
        "which fastast bench measures. Time and energy are of the whole run, evaluation included.",
        figures=[figure for figure in curves if figure is not None],
    )


def baseline_name(baseline: RunRecord) -> str:
    """The name of its folder."""
    return clean(baseline.path.resolve().name)


def accuracy_difference(record: RunRecord, baseline: RunRecord) -> Difference:
    """The difference in top-1 with its standard error, paired where all predictions of both runs are known."""
    mine, theirs = record.predictions, baseline.predictions
    if mine is not None and theirs is not None and np.array_equal(mine.label, theirs.label):
        both = mine.known & theirs.known
        if both.sum() > 1:
            gained = mine.right[both].astype(np.float64) - theirs.right[both]
            return Difference(float(gained.mean()), float(gained.std(ddof=1) / np.sqrt(len(gained))), is_paired=True)
    (ours, our_error), (other, other_error) = _accuracy(record), _accuracy(baseline)
    return Difference(ours - other, float(np.hypot(our_error, other_error)), is_paired=False)


def _accuracy(run: RunRecord) -> tuple[float, float]:
    """Last top-1 and its standard error."""
    top1, num = last_top1(run), num_evaluated(run)
    if top1 is None or not num:
        raise InputError(f"{run.path}: was never evaluated; continue it with fastast train --out {run.path} --resume")
    return top1, standard_error(top1, num)


def _require_comparable(record: RunRecord, baseline: RunRecord) -> None:
    for run in (record, baseline):
        if not run.summary:
            raise InputError(f"{run.path}: has not finished; continue it with fastast train --out {run.path} --resume")
    ours, theirs = (run.text("data", "fingerprint") for run in (record, baseline))
    if ours != theirs:
        raise InputError(
            f"--baseline {baseline.path}: has other training or validation pictures than {record.path}, so their "
            "accuracies do not compare; train both on the same data with the same --val-split and --seed"
        )


def _amount(group: str, value: float) -> str:
    return duration(value) if group == "time_s" else f"{value:,.0f}"


def _told(ratio: float, words: tuple[str, str, str]) -> str:
    """`ratio` is what the baseline took over what the run took."""
    size, word = max(ratio, 1 / ratio), words[ratio < 1]
    if size < 1.005:
        return words[2]
    return f"{size:.{2 if size < 1.5 else 1}f}x {word}"


def _points(difference: Difference) -> str:
    text = f"{100 * difference.value:+.2f} ± {100 * difference.error:.2f} points"
    return text.replace("-", "\N{MINUS SIGN}")


def _accuracy_told(difference: Difference) -> str:
    if not difference.is_shown:
        return f"no difference in accuracy is shown ({_points(difference)} of top-1)"
    size = f"{100 * abs(difference.value):.2f} ± {100 * difference.error:.2f} points"
    return f"top-1 is {size} {'higher' if difference.value > 0 else 'lower'}"


def _different_options(record: RunRecord, baseline: RunRecord) -> list[tuple[str, str, str]]:
    names = [name for name in {**record.config, **baseline.config} if name not in OF_THE_RUN]
    pairs: list[tuple[str, Any, Any]] = [(name, record.config.get(name), baseline.config.get(name)) for name in names]
    return [
        (clean(name), *(clean("-" if value is None else str(value)) for value in values))  # type: ignore[misc]
        for name, *values in pairs
        if values[0] != values[1]
    ]
