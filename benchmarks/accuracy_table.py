"""What the accuracy runs add up to: means, standard errors, verdicts, and the tables in Markdown."""

from __future__ import annotations

import math
import statistics
from typing import Any

from benchmarks.common import stamp

TITLES = {
    "scratch": "**From scratch**: CIFAR-10 JPEGs, {train:,} for training, a ResNet-8 of 0.17 M parameters, {epochs:g} "
    "epochs of which the first is dense, target {target:.0%}.",
    "tuning": "**Fine-tuning**: the same network, trained on {train:,} other pictures to {start_top1:.2f} % first; "
    "{epochs:g} epochs over {train:,} fresh ones of which the first is dense, target {target:.0%}.",
}


def mean_and_error(values: list[float]) -> dict[str, float | None]:
    """Mean and its standard error, None with one value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "se": error}


def verdict(mine: dict[str, float | None], other: dict[str, float | None]) -> str:
    """Better or worse beyond 2 standard errors of the difference, or that no difference was shown."""
    if mine["mean"] is None or other["mean"] is None or mine["se"] is None or other["se"] is None:
        return "one seed"
    difference, error = mine["mean"] - other["mean"], math.hypot(mine["se"], other["se"])
    if abs(difference) <= 2 * error:
        return "no difference shown"
    return "better" if difference > 0 else "worse"


def rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each name: means over the seeds, both baselines, both verdicts."""

    def summed(chosen: list[dict[str, Any]]) -> dict[str, Any]:
        keys = ("top1", "activation", "forward_units", "seconds")
        return {"n": len(chosen), **{key: mean_and_error([run[key] for run in chosen]) for key in keys}}

    table = []
    for role, name in dict.fromkeys((run["role"], run["name"]) for run in runs if run["role"] in ("dense", "gate")):
        mine = sorted((run for run in runs if (run["role"], run["name"]) == (role, name)), key=lambda run: run["seed"])
        row: dict[str, Any] = {"role": role, "name": name, **summed(mine)}
        if role == "gate":
            dense = [run for run in runs if run["role"] == "dense_equal_units" and name in run["for"]]
            dense.sort(key=lambda run: run["seed"])
            share = [run for run in runs if run["role"] == "random_equal_share" and name in run["for"]]
            share = share or [run for run in runs if (run["role"], run["name"]) == ("gate", "random")]
            row["dense_equal_units"] = summed(dense)
            row["against_dense"] = verdict(row["top1"], row["dense_equal_units"]["top1"])
            pairs = zip(dense, mine, strict=True)
            row["units_off"] = max(abs(d["forward_units"] / m["forward_units"] - 1) for d, m in pairs)
            if name != "random" and share:
                row["random_equal_share"] = summed(share)
                row["against_random"] = verdict(row["top1"], row["random_equal_share"]["top1"])
        table.append(row)
    return table


def shown(value: dict[str, float | None]) -> str:
    """A mean with its standard error."""
    return f"{value['mean']:.2f}" + ("" if value["se"] is None else f" +- {value['se']:.2f}")


def table(result: dict[str, Any]) -> str:
    """The rows of both blocks as Markdown."""
    lines, sizes = [], result["sizes"]
    for block in result["blocks"]:
        lines += [
            TITLES[block["name"]].format(**block, **sizes) + f" Top-1 in percent on {sizes['val']:,} pictures, "
            "mean +- standard error over the seeds.",
            "",
            "| gate | n | trained | forward units | top-1 | random, same share | dense, same units |",
            "|---|---:|---:|---:|---:|---|---|",
        ]
        for row in block["rows"]:
            cells = []
            for baseline, against in (("random_equal_share", "against_random"), ("dense_equal_units", "against_dense")):
                known = baseline in row
                cells.append(f"{shown(row[baseline]['top1'])}: {row[against]}" if known else "")
            units, share = row["forward_units"]["mean"], row["activation"]["mean"]
            lines.append(
                f"| {row['name']} | {row['n']} | {share:.1%} | {units:,.0f} | {shown(row['top1'])} | "
                + " | ".join(cells)
                + " |"
            )
        off = max((row["units_off"] for row in block["rows"] if row["role"] == "gate"), default=0.0)
        lines += ["", f"Forward units of the dense baselines are within {off:.1%} of their gates'.", ""]
    hardware, seeds = result["hardware"], ", ".join(map(str, result["seeds"]))
    lines += [
        '"Trained" is of the gated part. Better or worse: the means differ by more than 2 standard errors of the '
        f"difference. With {len(result['seeds'])} seeds that also happens to equal gates, about once in eight "
        "comparisons with three: some of these verdicts are chance. Standard errors are over seeds; they do not cover "
        "the choice of pictures, nor in fine-tuning the one network that all runs start from. All rows of a block "
        "share one peak learning rate, tuned for none of them. `forward, soft, unbiased` also has an explore share of "
        "5 %, which bounds its weights.",
        "",
        f"{hardware['name']}, one thread a run, seeds {seeds}; {stamp(result)}. `{result['command']}`",
        "",
    ]
    return "\n".join(lines)
