"""The tables of a bench's page: rows, outcomes against the baselines, parts of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastast.report.run_tables import NOT_MEASURED

Row = Mapping[str, Any]
OUTCOME_CLASSES = {"better": "good", "worse": "bad"}  # CSS classes

ROLE_NAMES = {
    "random_equal_share": "random, equal share",
    "dense_equal_units": "dense, equal units",
    "dense_equal_time": "dense, equal time",
    "dense_equal_joules": "dense, equal joules",
}


def place_name(role: str, of: str | None, gate: str) -> str:
    """A place in the comparison, in words."""
    return gate if of is None else f"{of}: {ROLE_NAMES[role]}"


def _cell(row: Row, name: str, unit: str = "") -> str:
    """Mean and standard error of a figure of a row."""
    if name == "n":
        return str(row["n"])
    figure = row.get(name) or {"mean": None, "se": None}
    mean, error = figure["mean"], figure["se"]
    if mean is None:
        return NOT_MEASURED
    scale, digits = 1, 0 if mean >= 100 else 1 if mean >= 10 else 2
    if unit in (" %", "x"):
        scale, digits = 100 if unit == " %" else 1, 2
    return " ± ".join(f"{scale * value:,.{digits}f}" for value in (mean, error) if value is not None) + unit


# Title, note, and the columns: title, name of the figure, and unit.
TABLES: tuple[tuple[str, str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "Accuracy and cost",
        "Mean ± standard error over n seeds, of the network after the last epoch. Trained: share of what the gated "
        "part offered. Forward units: counted work, forward 1, backward 2.",
        (
            ("n", "n", ""),
            ("top-1", "val_top1", " %"),
            ("top-5", "val_top5", " %"),
            ("trained", "activation", " %"),
            ("forward units", "forward_units", ""),
            ("training time", "train_s", " s"),
            ("GPU energy", "gpu_j", " J"),
            ("data wait", "data_wait", " %"),
        ),
    ),
    (
        "Speed",
        "Against dense training with the same seed, by the clock. Ceiling: by arithmetic in forward units. Machine's "
        "ceiling: by the times of decode, scoring and training here, each timed alone. A speed-up above a ceiling is "
        "timing noise. All but “whole run” are of the gated part.",
        (
            ("offered per second", "offered_per_s", ""),
            ("speed-up", "speedup", "x"),
            ("speed-up, whole run", "run_speedup", "x"),
            ("ceiling", "speedup_ceiling", "x"),
            ("share of it", "share_of_ceiling", " %"),
            ("machine's ceiling", "machine_ceiling", "x"),
            ("share of that", "share_of_machine_ceiling", " %"),
        ),
    ),
    (
        "Savings, by three definitions",
        "Estimated: as AST counts, an active sample costs 1 and a skipped one 0.01. Arithmetic: counted forward units. "
        "Measured: GPU joules per offered sample. The three are never mixed; the whole run counts warm-up and anneal.",
        tuple(
            (f"{kind}, {scope}", f"{prefix}savings_{kind}", " %")
            for kind in ("estimated", "arithmetic", "measured")
            for scope, prefix in (("gated part", ""), ("whole run", "run_"))
        ),
    ),
)


def tables(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows in three tables; gates and dense first, their matched baselines separately."""
    shown = []
    for name, note, columns in TABLES:
        lines = [
            (
                row["for"] is not None,
                (place_name(row["role"], row["for"], row["gate"]), [_cell(row, key, unit) for _, key, unit in columns]),
            )
            for row in rows
        ]
        shown.append(
            {
                **{"name": name, "note": note, "columns": [title for title, *_ in columns]},
                **{"rows": [line for is_more, line in lines if not is_more]},
                **{"more": [line for is_more, line in lines if is_more]},
            }
        )
    return shown


def against(rows: Sequence[Row], gates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Outcome of every gate against each of its baselines, its CSS class, and the baseline's top-1."""
    found = {(row["role"], row["for"] or row["gate"]): row for row in rows}
    roles = [role for role in ROLE_NAMES if any(role in gate["against"] for gate in gates)]
    lines = []
    for gate in gates:
        name = gate["gate"]
        cells = [(_cell(found["gate", name], "val_top1", " %"), "", "")]
        for role in roles:
            outcome, row = gate["against"].get(role), found.get((role, name), {})
            match = (row.get("match") or {}).get("mean")
            beside = _cell(row, "val_top1", " %") if outcome else ""
            if outcome and match is not None and abs(match - 1) > 0.02:
                beside += f", matched at {match:.2f}"
            cells.append((outcome or "-", OUTCOME_CLASSES.get(outcome, ""), beside))
        lines.append((name, cells))
    return {"columns": ["top-1", *(ROLE_NAMES[role] for role in roles)], "rows": lines}


PARTS = (
    ("train_s", "train a sample"),
    ("decode_s", "decode it"),
    ("score_s", "score it"),
    ("decode_all_s", "decode, every offered"),
    ("decode_selected_s", "decode, selected only"),
)


def parts_table(parts: Mapping[str, Mapping[str, float]] | None) -> dict[str, Any] | None:
    """The times behind the machine's ceiling, in milliseconds a sample."""
    if not parts:
        return None
    rows = [(gate, [f"{1000 * times[name]:.3g} ms" for name, _ in PARTS]) for gate, times in parts.items()]
    return {"columns": [name for _, name in PARTS], "rows": rows}
