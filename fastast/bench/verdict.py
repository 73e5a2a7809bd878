"""The verdict of a bench in two sentences, by fixed rules; in one where too few seeds tell nothing.

An arm wins if it is better than dense and than every random arm with one budget at least, and worse with none, by the
corrected outcomes of `paired`: with equal budgets, more accuracy is the same as less cost. The first sentence says who
wins, the second what the accuracy of dense training costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BETTER, WORSE, SAME, UNKNOWN = "better", "worse", "no difference shown", "unknown"
UNIT_OF_KIND = {"ep": "units", "time": "seconds", "joules": "joules"}  # what a budget is counted in
UNIT_NAMES = {"units": "work", "seconds": "time", "joules": "energy"}

Row = Mapping[str, Any]


def judge(
    arms: Sequence[Row],
    budgets: Sequence[Row],
    dense: str | None,
    *,
    paired: Sequence[Row],
    cost_at_equal_accuracy: Sequence[Row],
) -> dict[str, Any]:
    """The verdict from the arms, the budgets, the name of the dense arm, and the rows of `summarise`.

    Returns:
        sentences: one or two; winners: names of arms.
    """
    names = [arm["name"] for arm in arms if arm["name"] != dense]
    winners = [name for name in names if _wins([row for row in paired if row["arm"] == name])]
    unit = UNIT_OF_KIND.get(budgets[0]["kind"], "units") if budgets else "units"
    costs = [row for row in cost_at_equal_accuracy if row["unit"] == unit]
    if not any(row["p"] is not None for row in paired):
        return {"sentences": ["No verdict: a comparison needs at least three seeds with both arms."], "winners": []}
    return {"sentences": [_who(winners, paired), _what(winners, costs)], "winners": winners}


def _wins(rows: Sequence[Row]) -> bool:
    outcomes: dict[str, set[str]] = {}
    for row in rows:
        outcomes.setdefault(row["against"], set()).add(row["outcome"])
    return bool(outcomes) and all(BETTER in found and WORSE not in found for found in outcomes.values())


def _who(winners: Sequence[str], paired: Sequence[Row]) -> str:
    against = list(dict.fromkeys(row["against"] for row in paired))
    if winners:
        tested = dict.fromkeys(row["against"] for row in paired if row["arm"] in winners)
        beaten = [arm for arm in tested if arm not in winners]
        verb = "wins: it is" if len(winners) == 1 else "win: they are"
        lead = [
            f"{100 * row['difference']:+.1f} points with {row['budget']}"
            for row in paired
            if row["arm"] == winners[0] and row["against"] == against[0] and row["outcome"] == BETTER
        ]
        of = "" if len(winners) == 1 else f"{winners[0]}: "
        return f"{_list(winners)} {verb} more accurate than {_list(beaten)} for the same budget ({of}{_list(lead)})."
    worse = [
        arm
        for arm in dict.fromkeys(row["arm"] for row in paired)
        if any(row["outcome"] == WORSE for row in paired if (row["arm"], row["against"]) == (arm, against[0]))
    ]
    text = f"No arm is shown to be more accurate than {_list(against)} for the same budget"
    return text + (
        f"; {_list(worse)} {'is' if len(worse) == 1 else 'are'} less accurate than {against[0]}." if worse else "."
    )


def _what(winners: Sequence[str], costs: Sequence[Row]) -> str:
    """Cost at the highest accuracy of dense at which it is known, of the first winner or else the cheapest arm."""
    rows = [row for row in costs if not winners or row["arm"] == winners[0]]
    if not rows:
        return "What the same accuracy costs is not known."
    known = [row for row in rows if row["ratio"] is not None]
    if not known:
        row = max(rows, key=lambda row: (row["reached"], row["top1"]))
        level = f"the accuracy of {_level(row)}"
        if row["reached"]:
            return f"{row['arm']} reaches {level} for less than its smallest budget{_limits(row)}."
        return f"{row['arm']} does not reach {level} with the budgets tried{_limits(row)}."
    top1 = max(row["top1"] for row in known)
    row = min((row for row in known if row["top1"] == top1), key=lambda row: row["ratio"])
    interval, name = row["interval"], UNIT_NAMES[row["unit"]]
    differs = interval is not None and (interval[0] > 1 or (interval[1] is not None and interval[1] < 1))
    doubt = "" if differs or interval is None else ": it may cost as much as dense"
    return f"The accuracy of {_level(row)} costs {row['arm']} {row['ratio']:.2f} times the {name}{_limits(row)}{doubt}."


def _level(row: Row) -> str:
    return f"{row['against']} with {row['budget']} ({100 * row['top1']:.1f} %)"


def _limits(row: Row) -> str:
    return "" if row["interval"] is None else f" (95 % interval: {_range(row['interval'])})"


def _range(interval: Sequence[float | None]) -> str:
    low, high = interval
    if high is None:
        return f"at least {low:.2f}" if low else "not bounded by the budgets tried"
    return f"at most {high:.2f}" if low == 0 else f"{low:.2f} to {high:.2f}"


def cost_words(row: Row) -> str:
    """A ratio in a few words: the number, or what bounds it."""
    interval = row["interval"]
    if row["ratio"] is not None:
        return f"{row['ratio']:.2f}" + ("" if interval is None else f" ({_range(interval)})")
    if row["reached"]:
        return "less than tried" if interval is None else f"less than tried ({_range(interval)})"
    return "not reached" if interval is None else f"not reached ({_range(interval)})"


def _list(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
