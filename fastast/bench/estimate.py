"""How long a matrix takes: by the pace of a dense run, the cost model of the gates, and the runs that are finished."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from fastast.bench.matrix import GATE, Entry, Job, Work, walk
from fastast.config import TrainConfig
from fastast.cost_model import DENSE_COST
from fastast.errors import InputError
from fastast.gates.registry import make_gate

# A gate takes longer than its counted work: pictures are still decoded, steps are smaller. This is a guess; it also
# keeps an estimate from sharing one run between equal work and equal time.
GATE_OVERHEAD = 1.1
# Fewer gated epochs say nothing about a gate.
MIN_GATED_EPOCHS = 1.0
# Seconds that a process takes to start and to end, where this was not measured.
START_S = 10.0


@dataclass(frozen=True, slots=True)
class Pace:
    """The pace of dense training here."""

    num_train: float  # pictures offered in an epoch
    batch: float  # samples of a step
    s_per_unit: float  # seconds for each forward unit
    eval_s: float  # of one evaluation
    start_s: float  # that a process takes to start and to end


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    summary: dict[str, Any] | None  # its `summary.json`, or None for a run that failed
    reason: str | None = None  # why it failed
    seconds: float = 0.0  # how long its process took
    before: bool = False  # it was finished before this bench was started; `seconds` is then partly a guess

    @property
    def work(self) -> Work | None:
        """Cost of the run."""
        summary = self.summary
        if summary is None:
            return None
        samples = {name: summary["samples"][name] for name in ("offered", "backward", "steps")}
        return Work(
            **samples,
            forward_units=summary["compute"]["forward_units"],
            share=summary["gate"]["activation_rate"],
            train_s=summary["time_s"]["train"],
            train_j=summary["energy"]["train_gpu_j"],
        )


def pace_of(outcome: Outcome, epochs: float) -> Pace | None:
    """The pace of a dense run of `epochs`; None if it trained nothing."""
    summary, work = outcome.summary, outcome.work
    if summary is None or work is None or not (work.steps and work.train_s):
        return None
    time_s = summary["time_s"]
    s_per_unit = work.train_s / work.forward_units
    # A run cut off by its time limit has not evaluated: an evaluation is one forward for each picture.
    eval_s = time_s["eval"] / math.ceil(epochs) or summary["data"]["val"] * s_per_unit
    return Pace(
        num_train=summary["data"]["train"],
        batch=work.backward / work.steps,
        s_per_unit=s_per_unit,
        eval_s=eval_s,
        start_s=max(0.0, outcome.seconds - time_s["total"]),
    )


def predict(config: TrainConfig, pace: Pace, job: Job) -> tuple[Work, float]:
    """Expected cost of a run, and seconds of its process, by the cost model of its gate."""
    offered = job.epochs * pace.num_train
    gated, share, cost = 0.0, 1.0, DENSE_COST
    if job.gate != "dense":
        gated = max(0.0, job.epochs - config.warmup_epochs - config.anneal) * pace.num_train
        policy = make_gate(job.gate, dataclasses.asdict(config))
        share = policy.planned_share(job.changes.get("target", config.target))
        cost = policy.cost(share)
    units = DENSE_COST * (offered - gated) + cost * gated
    backward = offered - gated + share * gated
    train_s = units * pace.s_per_unit * (GATE_OVERHEAD if job.role == GATE else 1.0)
    steps = backward / pace.batch
    work = Work(offered=offered, backward=backward, steps=steps, forward_units=units, share=share, train_s=train_s)
    return work, pace.start_s + train_s + math.ceil(job.epochs) * pace.eval_s


class Estimate(NamedTuple):
    """Expected runs and times of a matrix."""

    entries: list[Entry]  # its places
    seconds: dict[str, float]  # expected, of each run that is not finished, by name
    num_runs: int  # in all, finished ones included

    @property
    def left_s(self) -> float:
        """Expected seconds until the end."""
        return sum(self.seconds.values())


def estimate(
    config: TrainConfig,
    gates: Sequence[str],
    seeds: Sequence[int],
    epochs: float,
    pace: Pace,
    known: Mapping[str, Outcome] = MappingProxyType({}),
) -> Estimate:
    """Walks the matrix with the known outcomes, by name, and predicts the rest.

    A run is expected to take as long as with another seed, where one is finished.
    """
    places: dict[str, Outcome] = {}
    for name, outcome in known.items():
        if outcome.summary is not None:
            places.setdefault(name.split("-", 1)[1], outcome)
    seconds: dict[str, float] = {}
    names = set()

    def run(job: Job) -> Work | None:
        names.add(job.name)
        if job.name in known:
            return known[job.name].work
        if job.place in places:
            seconds[job.name] = places[job.place].seconds
            return places[job.place].work
        work, seconds[job.name] = predict(config, pace, job)
        return work

    entries = walk(gates, seeds, epochs, run)
    return Estimate(entries, seconds, len(names))


def fit_epochs(
    config: TrainConfig, gates: Sequence[str], seeds: Sequence[int], pace: Pace, budget_s: float, flag: str
) -> float:
    """The most epochs, `config.epochs` at most, with which the matrix is expected to take `budget_s` at most.

    Raises:
        InputError: not even the shortest useful runs fit; `flag` is the option to name.
    """

    def seconds(epochs: float) -> float:
        return estimate(config, gates, seeds, epochs, pace).left_s

    assert config.epochs is not None, "a bench has no --budget for its runs"
    least = min(config.epochs, config.warmup_epochs + config.anneal + MIN_GATED_EPOCHS)
    if seconds(least) > budget_s:
        raise InputError(
            f"{flag}: {least:g} epochs for each run would take about {seconds(least) / 60:.1f} minutes by an estimate; "
            "allow more, or name fewer --gates, --seeds or --warmup-epochs"
        )
    low, high = least, config.epochs
    if seconds(high) <= budget_s:
        return high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if seconds(middle) <= budget_s else (low, middle)
    return max(least, math.floor(low * 10) / 10)
