"""What the peers' runs add up to, and the table in Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.common import markdown_table, mean_and_error, shown, stamp

FIGURES = ("top1", "seconds", "offered_per_s", "forward_units", "forward", "backward")

# What each is, and what of the common setting it does not let us choose.
NOTES = {
    "PyTorch loop": "as torchvision's references train: `ImageFolder`, `DataLoader` with 2 workers, SGD, cosine.",
    "fastast dense": "`fastast train --gate dense`.",
    "AST package": "PyPI `adaptive-sparse-training` {ast}, unchanged, by its `AdaptiveSparseTrainer`; target "
    "{target:.0%}, one warm-up epoch. It clips the gradient's norm to 1 and chooses by its own hard threshold; our "
    "schedule reaches it through a hook of the optimizer. Every batch goes forward twice and backward once in full, "
    "with the skipped rows' losses set to zero: hence 4 units for each picture, more than dense training's 3.",
    "InfoBatch": "Qin et al., ICLR 2024, re-stated: prunes half of the pictures below the mean loss, none in the last "
    "12.5 % of the epochs.",
    "Selective Backprop": "Jiang et al., 2019, re-stated from the documentation of MosaicML's Composer with its "
    "defaults: keeps half of every other batch between 50 % and 90 % of the run.",
    "fastast forward": "`fastast train --gate forward --target {target:g}`, one dense epoch first.",
    "fastast memory": "`fastast train --gate memory --target {target:g}`, one dense epoch first.",
}


def rows(runs: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """One row for each peer that has runs: means and standard errors over the seeds."""
    found = []
    for name in names:
        mine = [run for run in runs if run["peer"] == name]
        if mine:
            summed = {key: mean_and_error([run[key] for run in mine]) for key in FIGURES}
            offered = sum(run["offered"] for run in mine)
            per_picture = sum(run["forward_units"] for run in mine) / offered
            claims = [run["claim"] for run in sorted(mine, key=lambda run: run["seed"])]
            row = {"peer": name, "n": len(mine), **summed, "units_per_picture": per_picture, "claim": claims[0]}
            found.append(row)
    return found


def table(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    setting, sizes = result["setting"], result["sizes"]
    columns = ("", "n", "top-1, %", "training, s", "pictures offered/s", "forward units", "for each picture")
    cells = [
        (
            row["peer"],
            row["n"],
            shown(row["top1"], ".2f", 100),
            shown(row["seconds"], ".1f"),
            shown(row["offered_per_s"], ",.0f"),
            shown(row["forward_units"], ",.0f"),
            f"{row['units_per_picture']:.2f}",
            row["claim"],
        )
        for row in result["rows"]
    ]
    versions = {"target": setting["target"], "ast": result["packages"]["adaptive-sparse-training"]}
    names = {row["peer"] for row in result["rows"]}
    notes = [f"- **{name}**: {note.format(**versions)}" for name, note in NOTES.items() if name in names]
    notes += [f"- **{fail['peer']}**, seed {fail['seed']}, failed: {fail['reason']}" for fail in result["failures"]]
    note_lines = "\n".join(notes)
    return f"""\
**Peers**: {sizes["train"]:,} pictures for training and {sizes["val"]:,} for validation, {sizes["classes"]} classes, \
`{setting["arch"]}` at {setting["image_size"]} px, {setting["epochs"]} epochs, batches of {setting["batch_size"]}, \
peak learning rate {setting["lr"]:g}. Mean +- standard error over the seeds.

{markdown_table((*columns, "its own claim"), cells)}

Forward units are counted by hooks on the network, the same way for all: 1 for a picture that goes forward, 2 for one \
in a backward pass; evaluation and start-up are counted neither in them nor in the seconds. They include rows that only
fill up a last batch, which a run's own account does not. All share network, pictures, crops, batches, loss (plain \
cross entropy), optimizer (SGD, Nesterov momentum 0.9, weight decay 1e-4 on weights alone), peak learning rate and a \
cosine to zero. Each run is a process with all cores. With few seeds a difference below 2 standard errors is no \
difference.

{note_lines}

{result["hardware"]["name"]}, seeds {", ".join(map(str, result["seeds"]))}; {stamp(result)}. `{result["command"]}`
"""
