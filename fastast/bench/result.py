"""What `bench.json` says of the runs: themselves, their rows, and what follows from those."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastast.bench.estimate import Outcome
from fastast.bench.plan import Entry, Job
from fastast.bench.rows import caveats, make_rows
from fastast.bench.verdict import check_goals, judge
from fastast.config import GATES


def make_result(
    entries: Sequence[Entry],
    outcomes: Mapping[str, Outcome],
    folder_of: Callable[[Job], str],
    parts: Mapping[str, Mapping[str, float]] | None,
) -> dict[str, Any]:
    """The part of `bench.json` that the runs decide.

    Args:
        entries: the places of the comparison.
        outcomes: of the runs that have ended, by name; places of the others are left out.
        folder_of: the folder of a run, as it is to be named.
        parts: as of `make_rows`.
    """
    runs, failures = [], []
    for entry in entries:
        job, outcome = entry.job, outcomes.get(entry.job.name)
        if outcome is None:
            continue
        place = {"role": entry.role, "for": entry.of, "seed": job.seed}
        if outcome.summary is None:
            failures.append({**place, "gate": job.gate, "folder": folder_of(job), "reason": outcome.reason})
        else:
            runs.append({**place, "folder": folder_of(job), "epochs": job.epochs, "summary": outcome.summary})
    rows = make_rows(runs, parts)
    num_failed = {gate: sum(f["gate"] == gate and f["for"] is None for f in failures) for gate in GATES}
    return {
        "runs": runs,
        "failures": failures,
        "rows": rows,
        "verdict": judge(rows),
        "goals": check_goals(rows, num_failed),
        "notes": caveats(runs),
    }
