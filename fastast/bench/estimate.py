"""How long a bench takes: by its finished runs, and before there are any by a short dense run."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastast.bench.arms import Budget
from fastast.bench.matrix import Job
from fastast.errors import InputError
from fastast.plan.schedule import EVAL_SHARE, MIN_EVALUATIONS

# A gate takes longer than its counted work: pictures are still decoded, steps are smaller. A guess, until a run is
# finished.
GATE_OVERHEAD = 1.1
# Seconds that a process takes to start and to end, where this was not measured.
START_S = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    summary: dict[str, Any] | None  # its `summary.json`, or None for a run that failed
    reason: str | None = None  # why it failed
    seconds: float = 0.0  # how long its process took
    before: bool = False  # it was finished before this bench was started; `seconds` is then partly a guess


@dataclass(frozen=True, slots=True)
class Pace:
    """The pace of dense training here."""

    epoch_s: float  # seconds that the work of a dense epoch takes
    eval_s: float  # of one evaluation
    start_s: float  # that a process takes to start and to end
    watts: float | None = None  # joules of the GPUs for each second of training, or None where they were not measured

    def seconds(self, budget: Budget, gate: str) -> float:
        """Seconds of a run's process, by this estimate.

        Raises:
            InputError: the budget is of joules, which were not measured.
        """
        if budget.kind == "time":
            return self.start_s + budget.amount
        if budget.kind == "joules":
            if not self.watts:
                raise InputError(
                    f"--budgets {budget.name}: no joules were measured here (`fastast doctor` says why); give epochs "
                    "(2ep) or times (10m)"
                )
            return self.start_s + budget.amount / self.watts
        train_s = budget.amount * self.epoch_s * (1.0 if gate == "dense" else GATE_OVERHEAD)
        return self.start_s + train_s + max(MIN_EVALUATIONS * self.eval_s, EVAL_SHARE * train_s)


def pace_of(outcome: Outcome) -> Pace | None:
    """The pace of a dense run; None if it trained nothing."""
    summary = outcome.summary
    if summary is None or not summary["samples"]["steps"]:
        return None
    time_s, energy = summary["time_s"], summary["energy"]
    s_per_sample = time_s["train"] / summary["samples"]["backward"]
    # A run cut off by its time limit has not evaluated: an evaluation is one forward of three for each picture.
    eval_s = time_s["eval"] or summary["data"]["val"] * s_per_sample / 3
    return Pace(
        epoch_s=s_per_sample * summary["data"]["train"],
        eval_s=eval_s,
        start_s=max(0.0, outcome.seconds - time_s["total"]),
        watts=energy["train_gpu_j"] / time_s["train"] if energy["train_gpu_j"] is not None else None,
    )


def estimate(jobs: Iterable[Job], known: Mapping[str, Outcome], pace: Pace | None) -> dict[str, float]:
    """Expected seconds of each run that is not finished, by name.

    A run is expected to take as long as with other seeds, where one is finished; else in proportion to its arm's runs
    with other budgets, or any arm's; else by the pace.

    Args:
        jobs: all runs of the bench.
        known: outcomes of finished runs, by name.
        pace: None where there is none; then unknown runs are left out if no run is finished.
    """
    jobs = list(jobs)
    done = [(job, known[job.name].seconds) for job in jobs if job.name in known and known[job.name].summary]
    expected = {}
    for job in jobs:
        if job.name in known:
            continue
        seconds = _as_finished(job, done)
        if seconds is None and pace is not None:
            seconds = pace.seconds(job.budget, job.arm.gate)
        if seconds is not None:
            expected[job.name] = seconds
    return expected


def _as_finished(job: Job, done: Sequence[tuple[Job, float]]) -> float | None:
    same = [seconds for other, seconds in done if (other.arm, other.budget) == (job.arm, job.budget)]
    if same:
        return statistics.fmean(same)
    for others in ([d for d in done if d[0].arm == job.arm], done):
        rates = [max(0.0, seconds - START_S) / other.budget.amount for other, seconds in others]
        if rates:
            return START_S + statistics.fmean(rates) * job.budget.amount
    return None


def fit_scale(jobs: Sequence[Job], pace: Pace, limit_s: float, flag: str) -> float:
    """The factor, 1 at most, by which the budgets shrink so that all runs are expected to take `limit_s` together.

    Raises:
        InputError: starting the processes takes as long already; `flag` is the option to name.
    """

    def seconds(factor: float) -> float:
        return sum(pace.seconds(job.budget.scaled(factor), job.arm.gate) for job in jobs)

    if seconds(1.0) <= limit_s:
        return 1.0
    if seconds(0.001) > limit_s:
        raise InputError(
            f"{flag}: starting and evaluating the {len(jobs)} runs takes about {seconds(0.001) / 60:.1f} minutes by an "
            "estimate; allow more, or name fewer --arms, --budgets or --seeds"
        )
    low, high = 0.001, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if seconds(middle) <= limit_s else (low, middle)
    return float(f"{low:.3g}") if seconds(float(f"{low:.3g}")) <= limit_s else low
