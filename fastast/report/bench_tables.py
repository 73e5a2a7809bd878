"""The tables of a bench's page: rows, outcomes against the baselines, parts of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastast.report.run_tables import NOT_MEASURED

Cell = dict[str, Any]
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


def _cell(row: Row, name: str, form: Callable[[float], str], unit: str) -> Cell:
    """Mean and standard error of a figure of a row."""
    figure = row.get(name) or {"mean": None, "se": None}
    mean, error = figure["mean"], figure["se"]
    if mean is None:
        return {"text": NOT_MEASURED, "none": True}
    return {"text": form(mean) + ("" if error is None else f" ± {form(error)}") + unit, "none": False}


def _share_column(name: str) -> Callable[[Row], Cell]:
    return lambda row: _cell(row, name, lambda value: f"{100 * value:.2f}", " %")


def _times_column(name: str) -> Callable[[Row], Cell]:
    return lambda row: _cell(row, name, lambda value: f"{value:.2f}", "x")


def _count_column(name: str, unit: str = "") -> Callable[[Row], Cell]:
    def make(row: Row) -> Cell:
        mean = (row.get(name) or {}).get("mean") or 0.0
        digits = 0 if mean >= 100 else 1 if mean >= 10 else 2  # the error has as many
        return _cell(row, name, lambda value: f"{value:,.{digits}f}", unit)

    return make


TABLES: tuple[tuple[str, str, tuple[tuple[str, Callable[[Row], Cell]], ...]], ...] = (
    (
        "Accuracy and cost",
        "Mean ± standard error over n seeds, of the network after the last epoch. Trained: share of what the gated "
        "part offered. Forward units: counted work, forward 1, backward 2.",
        (
            ("n", lambda row: {"text": str(row["n"]), "none": False}),
            ("top-1", _share_column("val_top1")),
            ("top-5", _share_column("val_top5")),
            ("trained", _share_column("activation")),
            ("forward units", _count_column("forward_units")),
            ("training time", _count_column("train_s", " s")),
            ("GPU energy", _count_column("gpu_j", " J")),
            ("data wait", _share_column("data_wait")),
        ),
    ),
    (
        "Speed",
        "Against dense training with the same seed, by the clock. Ceiling: by arithmetic in forward units. Machine's "
        "ceiling: by the times of decode, scoring and training here, each timed alone. A speed-up above a ceiling is "
        "timing noise. All but “whole run” are of the gated part.",
        (
            ("offered per second", _count_column("offered_per_s")),
            ("speed-up", _times_column("speedup")),
            ("speed-up, whole run", _times_column("run_speedup")),
            ("ceiling", _times_column("speedup_ceiling")),
            ("share of it", _share_column("share_of_ceiling")),
            ("machine's ceiling", _times_column("machine_ceiling")),
            ("share of that", _share_column("share_of_machine_ceiling")),
        ),
    ),
    (
        "Savings, by three definitions",
        "Estimated: as AST counts, an active sample costs 1 and a skipped one 0.01. Arithmetic: counted forward units. "
        "Measured: GPU joules per offered sample. The three are never mixed; the whole run counts warm-up and anneal.",
        tuple(
            (f"{kind}, {scope}", _share_column(f"{prefix}savings_{kind}"))
            for kind in ("estimated", "arithmetic", "measured")
            for scope, prefix in (("gated part", ""), ("whole run", "run_"))
        ),
    ),
)


def tables(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows in three tables; gates and dense first, their matched baselines separately."""
    shown = []
    for name, note, columns in TABLES:
        groups: dict[bool, list[tuple[str, list[Cell]]]] = {False: [], True: []}
        for row in rows:
            groups[row["for"] is not None].append(
                (place_name(row["role"], row["for"], row["gate"]), [make(row) for _, make in columns])
            )
        columns_shown = [column for column, _ in columns]
        shown.append(
            {"name": name, "note": note, "columns": columns_shown, "rows": groups[False], "more": groups[True]}
        )
    return shown


def against(rows: Sequence[Row], gates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Outcome of every gate against each of its baselines, and the baseline's top-1."""
    found = {(row["role"], row["for"]): row for row in rows}
    mine = {row["gate"]: row for row in rows if row["role"] == "gate"}
    roles = [role for role in ROLE_NAMES if any(role in gate["against"] for gate in gates)]
    lines = []
    for gate in gates:
        name = gate["gate"]
        cells = [{"word": _share_column("val_top1")(mine[name])["text"], "kind": "", "beside": ""}]
        for role in roles:
            outcome = gate["against"].get(role)
            if outcome is None:
                cells.append({"word": "-", "kind": "", "beside": ""})
                continue
            beside = _share_column("val_top1")(found[role, name])["text"]
            match = (found[role, name].get("match") or {}).get("mean")
            if match is not None and abs(match - 1) > 0.02:
                beside += f", matched at {match:.2f}"
            cells.append({"word": outcome, "kind": OUTCOME_CLASSES.get(outcome, ""), "beside": beside})
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
    rows = [
        (gate, [{"text": f"{1000 * times[name]:.3g} ms", "none": False} for name, _ in PARTS])
        for gate, times in parts.items()
    ]
    return {"columns": [name for _, name in PARTS], "rows": rows}


def parts_note(parts: Any, note: str | None) -> str:
    """How the times behind the machine's ceiling were measured, or why there are none."""
    if parts:
        return "Each part alone, timed in turns before the first run; medians."
    return f"The machine's ceiling is not measured: {note or 'its parts were not timed'}."
