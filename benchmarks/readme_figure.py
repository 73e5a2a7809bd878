"""Draws the picture of README and fills its tables, from the result files alone: no figure there is typed by hand.

    python -m benchmarks.readme_figure [--results DIR]

Written are docs/accuracy_against_cost.svg, and what stands in README.md between `<!-- NAME -->` and `<!-- /NAME -->`.
Run it after a benchmark has written or changed a file in benchmarks/results: every bench of three seeds or more at
equal work, with other trainers in it or not, becomes a panel and a row.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.common import RESULTS, ROOT, markdown_table
from benchmarks.index import hardware_words
from fastast.atomic_files import write_whole
from fastast.bench.student import MIN_SEEDS
from fastast.bench.verdict import BETTER, WORSE, cost_words
from fastast.gates.registry import GATES
from fastast.number_text import percent
from fastast.plots import svg
from fastast.plots.bench_plots import MARKERS, Look, accuracy_against_cost, curves_of
from fastast.run_folder import read_json

README, PICTURE = ROOT / "README.md", ROOT / "docs" / "accuracy_against_cost.svg"
STYLE = ROOT / "fastast" / "report" / "templates" / "style.css"
Result = Mapping[str, Any]
Options = Mapping[str, Any]

# Options that every arm of a bench may be given alike, which do not make it another way to train.
COMMON = {"lr", "start", "freeze_bn", "eval_every"}


def _is(**wanted: Any) -> Callable[[str, Options], bool]:
    """Whether an arm has just these options, apart from the common ones; ... stands for any value."""

    def fits(_: str, options: Options) -> bool:
        gate = GATES.get(options.get("gate", ""))
        kept = {"target": gate.default_target} if gate and "target" in gate.options else {}
        kept |= {key: value for key, value in options.items() if key not in COMMON}
        return kept.keys() == wanted.keys() and all(value in (..., kept[key]) for key, value in wanted.items())

    return fits


def _named(name: str) -> Callable[[str, Options], bool]:
    return lambda arm, _: arm == name


# What the reader is shown of a bench, by its name in the picture. Which arms these are is fixed, whatever they reach.
KINDS: dict[str, Callable[[str, Options], bool]] = {
    "fastast, every picture": _named("dense"),  # or whatever the bench compares with
    "fastast, gate memory (the default)": _is(gate="memory", target="auto"),
    "fastast, small pictures first": _is(gate="dense", train_size="auto"),
    "fastast, gate memory and small pictures first": _is(gate="memory", target="auto", train_size="auto"),
    "fastast, a random share": _is(gate="random", target=...),
    "fastast, the published rule": _is(gate="forward", selection="hard", target=0.1),
    "fastast, every picture, class weights": _is(gate="dense", class_weights="balanced"),
    "torchvision's loop": _named("torchvision"),
    "timm's loop": _named("timm"),
}
DENSE, *OTHERS = KINDS
DEFAULT, SMALL_FIRST, _, RANDOM, _, _, TORCHVISION, TIMM = OTHERS
UNDISTURBED = "headline_"  # begins the name of a bench whose runs had a core each, so that their seconds count
PANEL_PX, PANEL_HEIGHT_PX, TITLE_PX, LINE_PX = 370, 330, 30, 22


def benches(folder: Path) -> list[tuple[str, Result]]:
    """The names and results of the benches at equal work that have more of the kinds than one.

    Of several on the same data, by the first words of their titles, it is the one that was measured last.
    """
    found = [(path.stem, read_json(path)) for path in sorted(folder.glob("*.json"))]
    found = [(name, it) for name, it in found if it.get("cost_at_equal_accuracy")]
    found = [(name, it) for name, it in found if len(it["seeds"]) >= MIN_SEEDS and len(kinds_of(it)) > 1]
    found = [(name, it) for name, it in found if all(budget["kind"] == "ep" for budget in it["budgets"])]
    found.sort(key=lambda one: one[1]["measured_at"])
    last = {data_of(it): name for name, it in found}
    return sorted((name, it) for name, it in found if last[data_of(it)] == name)


def data_of(result: Result) -> str:
    """What a bench was run on: the first words of its title."""
    return result["title"].partition(":")[0]


def kinds_of(result: Result) -> dict[str, str]:
    """The arm of each kind that the bench has."""
    arms = {DENSE: result["cost_at_equal_accuracy"][0]["against"]}
    for kind, fits in KINDS.items():
        names = [arm["name"] for arm in result["arms"] if fits(arm["name"], arm["options"])]
        if names:
            arms.setdefault(kind, names[0])
    return arms


def headline(folder: Path) -> str:
    """The table: a row for each bench, at the accuracy that dense training reaches with its largest budget."""
    found = benches(folder)
    rows = [_row(name, result) for name, result in found]
    machines = dict.fromkeys(hardware_words(result["hardware"]) for _, result in found)
    with_joules = any(row["unit"] == "joules" for _, result in found for row in result["cost_at_equal_accuracy"])
    return (
        markdown_table(list(rows[0]), [list(row.values()) for row in rows], num_left=len(rows[0]))
        + f"\n\nMeasured on {'; '.join(machines)}."
        + ("" if with_joules else " Joules were not measured: none of these benches ran on a GPU.")
    )


def _row(name: str, result: Result) -> dict[str, str]:
    budget, arms = result["budgets"][-1]["name"], kinds_of(result)
    units = {"units": "work", "joules": "joules"} | ({"seconds": "time"} if name.startswith(UNDISTURBED) else {})
    costs: dict[str, list[str]] = {}
    for row in result["cost_at_equal_accuracy"]:
        if row["budget"] == budget and row["unit"] in units:
            words = cost_words(row).replace(" by the budgets tried", "")
            costs.setdefault(row["arm"], []).append(f"{units[row['unit']]}: {words}")
    top1 = next(p["top1"] for p in result["points"] if (p["arm"], p["budget"]) == (arms[DENSE], budget))

    def cell(kind: str) -> str:
        key = (arms.get(kind), arms[DENSE], budget)
        row = next((row for row in result["paired"] if (row["arm"], row["against"], row["budget"]) == key), None)
        if row is None:
            return "-"
        difference, *interval = (100 * value for value in (row["difference"], *row["interval"]))
        number = "**{:+.2f}**" if row["outcome"] in (BETTER, WORSE) else "{:+.2f}"
        options = next(arm["options"] for arm in result["arms"] if arm["name"] == row["arm"])
        share = [f"{percent(options['target'], 0)} of the pictures:"] if kind == RANDOM else []
        gain = f"{number.format(difference)} ({interval[0]:+.2f} to {interval[1]:+.2f})"
        return "<br>".join([*share, gain, *costs.get(row["arm"], [])])

    return {
        "data": f"[{data_of(result)}](benchmarks/results/{name}.md), n = {len(result['seeds'])}",
        "dense fastast": f"{100 * top1['mean']:.2f} ± {100 * top1['se']:.2f} %, {budget}",
        "`memory`": cell(DEFAULT),
        "small pictures first": cell(SMALL_FIRST),
        "`random`": cell(RANDOM),
        "torchvision": cell(TORCHVISION),
        "timm": cell(TIMM),
    }


def install_size(folder: Path) -> str:
    """What the newcomer's two commands took: space and time."""
    path = folder / "fresh_install.json"
    if not path.exists():
        return "The size of an installation was not measured."
    result = read_json(path)
    versions, (install, train) = result["versions"], result["steps"][:2]
    machine = hardware_words(result["hardware"])
    return (
        f"`pip install .` fills {result['size_gb']:.1f} GB, of which {result['gpu_only_gb']:.1f} GB serve GPUs only,\n"
        f"and took {install['seconds']:.0f} s; `fastast train` took {train['seconds']:.0f} s "
        f"({machine}, load {train['load']:.1f}; {result['measured_at'][:10]}, Python {versions['python']}, "
        f"torch {versions['torch']}, DALI {versions['dali']}).\n"
        "`fastast doctor` names the smallest set that fits the machine."
    )


def fill(text: str, folder: Path) -> str:
    """README with what is between its markers made anew."""
    for name, part in (("headline", headline(folder)), ("install", install_size(folder))):
        pattern = re.compile(f"<!-- {name} -->\n.*?<!-- /{name} -->", re.DOTALL)
        assert len(pattern.findall(text)) == 1, f"README.md: has no pair of markers {name}"
        filled = f"<!-- {name} -->\n\n{part}\n\n<!-- /{name} -->"
        text = pattern.sub(lambda _, filled=filled: filled, text)  # type: ignore[misc]
    return text


def looks() -> dict[str, Look]:
    """How each kind is drawn, in every panel alike."""
    others = zip(OTHERS, itertools.cycle(svg.SERIES), MARKERS)  # a colour may come twice
    drawn = {kind: Look(kind, c, m, is_peer="fastast" not in kind, is_reference=False) for kind, c, m in others}
    return {DENSE: Look(DENSE, svg.INK, "s", is_peer=False, is_reference=True), **drawn}


def picture(folder: Path) -> str:
    """All benches with lines to draw as one SVG, two panels beside each other, with one legend."""
    matplotlib.rcParams["svg.hashsalt"] = "fastast"  # the same results give the same file
    panels, seen = [], set()
    for _, result in benches(folder):
        if len(result["budgets"]) < 2:
            continue  # no lines
        kinds = {arm: kind for kind, arm in kinds_of(result).items()}
        points = [{**point, "arm": kinds[point["arm"]]} for point in result["points"] if point["arm"] in kinds]
        curves = curves_of(list(looks().values()), points, "units")
        seen |= {look.name for look, _ in curves}
        panels.append((data_of(result), accuracy_against_cost(curves, "units").narrow))
    legend = [look for kind, look in looks().items() if kind in seen]
    top = LINE_PX * ((len(legend) + 1) // 2) + 16
    rows = (len(panels) + 1) // 2
    width, height = 2 * PANEL_PX, top + rows * (PANEL_HEIGHT_PX + TITLE_PX) + 8
    parts = [f'<rect width="{width}" height="{height}" fill="var(--paper)"/>']
    for index, look in enumerate(legend):
        x, y = 14 + index % 2 * PANEL_PX, 10 + index // 2 * LINE_PX
        parts.append(str(look.swatch).replace("<svg", f'<svg x="{x}" y="{y}" width="32" height="14"', 1))
        parts.append(f'<text x="{x + 40}" y="{y + 11}">{look.name}</text>')
    for index, (title, drawn) in enumerate(panels):
        x, y = index % 2 * PANEL_PX, top + index // 2 * (PANEL_HEIGHT_PX + TITLE_PX)
        parts.append(f'<text class="title" x="{x + 14}" y="{y + 22}">{title}</text>')
        place = f'x="{x}" y="{y + TITLE_PX}" width="{PANEL_PX - 10}" height="{PANEL_HEIGHT_PX}"'
        parts.append(str(drawn).replace("<svg", f"<svg {place}", 1))
    body = "\n".join(parts)
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f"<svg {names} {size}>\n<style>{_style()}</style>\n{body}\n</svg>\n"


def _style() -> str:
    """Colours of the report, for light and dark screens."""
    light, dark = (
        re.search(rf"{{% set {name} %}}(.*?){{% endset %}}", STYLE.read_text(), re.DOTALL)[1].strip()  # type: ignore[index]
        for name in ("light", "dark")
    )
    return (
        f"svg {{ {light} font: 12px system-ui, sans-serif }} text {{ fill: var(--ink) }} .title {{ font-weight: 600 }}"
        f"@media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    args = parser.parse_args(argv)
    write_whole(PICTURE, picture(args.results))
    write_whole(README, fill(README.read_text(), args.results))


if __name__ == "__main__":
    main()
