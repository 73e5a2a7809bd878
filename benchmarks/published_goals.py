"""What the published runs of Adaptive Sparse Training claim, held against the whole of runs of ours.

    python -m benchmarks.published_goals RUN [RUN ...]

What was not measured is not filled in by arithmetic: both stand in the table, each in its own row.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import markdown_table
from fastast.number_text import percent
from fastast.run_folder import RunFolder, read_json

Summary = dict[str, Any]


class Goal(NamedTuple):
    """A claim, and where a summary has its figure."""

    claim: str
    origin: str  # of the figure
    value: Callable[[Summary], float | None]
    shown: Callable[[float | None], str]
    lowest: float
    highest: float = math.inf

    def judge(self, summary: Summary) -> str:
        """The figure of a run, and whether it meets the claim."""
        value = self.value(summary)
        met = "" if value is None else ": met" if self.lowest <= value <= self.highest else ": missed"
        return self.shown(value) + met


def _activation(summary: Summary) -> float | None:
    samples = summary["samples"]
    return samples["backward"] / samples["offered"] if samples["offered"] else None


def _speedup_of_work(summary: Summary) -> float | None:
    compute = summary["compute"]
    return compute["dense_forward_units"] / compute["forward_units"] if compute["forward_units"] else None


def _speedup_of_clock(summary: Summary) -> float | None:
    """Seconds that its samples would take at the speed of its dense part, over those of its probe and training."""
    speed, probe = summary["throughput"]["dense_offered_per_s"], summary["probe"]
    seconds = summary["time_s"]["train"] + (probe["seconds"] if probe else 0.0)
    return summary["samples"]["offered"] / speed / seconds if speed and seconds else None


def _times(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}x"


def _share(value: float | None) -> str:
    return percent(value, 1)


_SAVINGS, _SPEEDUP = "savings >= 88 %", "speed-up >= 8x"
GOALS = (
    Goal(
        "accuracy >= 75 %",
        "measured: top-1 on the validation pictures",
        lambda s: s["accuracy"]["val_top1"],
        percent,
        0.75,
    ),
    Goal(_SAVINGS, "measured: joules by NVML", lambda s: s["energy"]["run_savings_measured"], _share, 0.88),
    Goal(_SAVINGS, "arithmetic: counted forwards", lambda s: s["energy"]["run_savings_arithmetic"], _share, 0.88),
    Goal("activation 9 to 12 %", "counted: trained of offered samples", _activation, _share, 0.09, 0.12),
    Goal(_SPEEDUP, "measured: clock, against its own dense part", _speedup_of_clock, _times, 8.0),
    Goal(_SPEEDUP, "arithmetic: counted forwards", _speedup_of_work, _times, 8.0),
)


def table(runs: Sequence[Path]) -> str:
    """The goals as rows, the runs as columns, in Markdown; below it why joules were not measured.

    Args:
        runs: folders with a summary.

    Raises:
        InputError: one has none.
    """
    summaries = [read_json(RunFolder(run).summary) for run in runs]
    columns = ["goal, whole run", "origin of the figure", *map(_title, runs, summaries)]
    lines = [
        markdown_table(
            columns, [[goal.claim, goal.origin, *map(goal.judge, summaries)] for goal in GOALS], num_left=len(columns)
        )
    ]
    for run, summary in zip(runs, summaries, strict=True):
        if summary["energy"]["run_savings_measured"] is None:
            lines.append(f"- {run.name}, joules: {'; '.join(summary['energy']['notes'])}")
    return "\n".join(lines)


def _title(run: Path, summary: Summary) -> str:
    epochs = summary["samples"]["offered"] / summary["data"]["train"]
    return f"{run.name}: {epochs:.3g} epochs" + (" so far" if summary["stopped"] else "")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published_goals", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    print(table(parser.parse_args().runs))


if __name__ == "__main__":
    main()
