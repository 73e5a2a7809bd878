"""What a run's page says first: the answer in a sentence, the main figures, and what the run saved."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastast.config import TrainConfig
from fastast.config.options import flag_of
from fastast.cost_model import DENSE_COST
from fastast.loggers.console import passes_told
from fastast.loggers.speeds import Speeds, find_speeds
from fastast.number_text import duration, percent
from fastast.phases import DENSE
from fastast.record.run_record import RunRecord, clean

# Name, keys of the summary (None: from the speeds), what is compared. In the order of what they are worth.
SAVINGS = (
    ("joules", "measured", "Measured: GPU joules per picture, against dense training in the same run."),
    ("time", None, "Measured: seconds per picture, against dense training in the same run"),
    ("work", "arithmetic", "Counted: forwards of the full-size network, of which a dense picture takes three."),
    ("by AST's count", "estimated", "Estimated: a trained picture counts 1, a skipped one 0.01."),
)

BENCH_BUDGETS = (2, 4)  # dense epochs' worth of work, beyond a dense epoch of warm-up

# Options by which a run of another gate or budget compares with this one.
_OF_DATA_AND_NETWORK = (
    *("data", "train_dir", "val_dir", "val_split", "arch", "weights", "freeze", "freeze_bn", "image_size"),
    *("train_size", "optimizer", "ema", "class_weights", "min_crop", "no_flip"),
)
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}


class Answer(NamedTuple):
    """A sentence, and a command that would tell more."""

    text: str
    command: str = ""


def option(record: RunRecord, key: str) -> str:
    """An option of the run as text."""
    return clean(str(record.config.get(key, "?")))


def gate_of(record: RunRecord) -> str:
    """Name of the run's gate."""
    return record.text("gate", "name") or option(record, "gate")


def title(record: RunRecord) -> str:
    """What was trained: network, data set and gate."""
    gate = gate_of(record)
    arch = record.text("model", "arch") or option(record, "arch")
    return f"{arch} on {data_name(record.config)}, {gate if gate == DENSE else f'{gate} gate'}"


def data_name(config: dict[str, Any]) -> str:
    """Name of the data set of a run with these options."""
    folders = config.get("data") or config.get("train_dir")
    if not folders:
        return "the demo set"
    paths = [Path(os.path.abspath(folder)) for folder in str(folders).split(",")]
    names = [path.name if config.get("data") else path.parent.name for path in paths]
    return clean(", ".join(dict.fromkeys(names)))


def last_top1(record: RunRecord) -> float | None:
    """Top-1 of the last evaluation."""
    if record.summary:
        return record.number("accuracy", "val_top1")
    return next((line["val_top1"] for line in reversed(record.epochs) if line["val_top1"] is not None), None)


def num_evaluated(record: RunRecord) -> int | None:
    """Pictures that an evaluation counts."""
    if record.predictions is not None:
        return int(record.predictions.known.sum())
    num = record.number("data", "val")
    return None if num is None or num < 1 else int(num)


def standard_error(top1: float, num: int) -> float:
    """Of a share of `num` pictures, if they are a random sample (binomial)."""
    return float(np.sqrt(max(0.0, top1 * (1 - top1)) / num))


def accuracy_text(record: RunRecord) -> str:
    """Last top-1 with its standard error, in percent."""
    top1, num = last_top1(record), num_evaluated(record)
    if top1 is None:
        return "-"
    return f"{100 * top1:.2f} ± {100 * standard_error(top1, num):.2f} %" if num else percent(top1)


def speeds(record: RunRecord) -> Speeds | None:
    """How fast the run went, if that is known."""
    return find_speeds(lambda key: record.number("throughput", key))


def answer(record: RunRecord) -> Answer:
    """Whether the run was worth it, as far as it can tell by itself."""
    if not record.summary:
        return Answer(_unfinished(record), f"fastast train --out {shlex.quote(str(record.path))} --resume")
    folder = shlex.quote(clean(str(record.path)))
    if gate_of(record) == DENSE:
        took = duration(record.number("time_s", "total") or 0.0)
        text = (
            f"Dense training: {accuracy_text(record)} top-1 in {took}, nothing skipped. To put a gated run beside it:"
        )
        return Answer(text, f"fastast report GATED_RUN --baseline {folder}")
    if record.number("gate", "activation_rate") is None:
        return Answer(
            f"{accuracy_text(record)} top-1, but the gate never ran: all of it was dense. "
            "Train longer, or with a shorter warm-up:",
            f"{_train_command(record)} --gate {gate_of(record)} --warmup-epochs 0",
        )
    text = f"{_cheaper(record)}; accuracy lost: unknown, no dense run beside it. {_bench_told(record)}:"
    return Answer(text, _bench_command(record))


def _unfinished(record: RunRecord) -> str:
    top1 = last_top1(record)
    if top1 is not None:
        epoch = next(line["epoch"] for line in reversed(record.epochs) if line["val_top1"] is not None)
        return f"Not finished: {percent(top1)} top-1 after epoch {epoch:.0f}. To go on from the last checkpoint:"
    done = "no epoch has ended" if not record.epochs else "no epoch has been evaluated"
    return f"Not finished: {done} yet, so nothing is known of its accuracy. To go on from the last checkpoint:"


def _cheaper(record: RunRecord) -> str:
    """What a picture costs in the gated part beside the dense part: measured, or else counted."""
    speed, joules = speeds(record), record.number("energy", "savings_measured")
    own = "this run's own dense part"
    share = percent(record.number("gate", "activation_rate"), 0)
    fewer = f"{percent(abs(joules or 0), 0)} {'fewer' if (joules or 0) >= 0 else 'more'} GPU joules"
    if speed is not None and speed.ratio is not None:
        start = "" if speed.is_steady else " (with the start of each)"
        many = f"{speed.ratio:.1f}x as many pictures a second as"
        text = f"The gate goes through {many} {own}{start} and trains {share} of them"
        return text if joules is None else f"{text}, at {fewer} a picture"
    if joules is not None:
        return f"About {fewer} a picture than {own}"
    counted = record.number("energy", "savings_arithmetic")
    if counted is None:
        return "What the gate saved is not known"
    less = "less" if counted >= 0 else "more"
    return f"By counting, {percent(abs(counted), 0)} {less} work a picture than dense training"


def _bench_told(record: RunRecord) -> str:
    """How long the bench takes that would answer: 3 arms with 3 seeds, each with all budgets."""
    seconds, units = record.number("time_s", "total"), record.number("compute", "forward_units")
    num_train = record.number("data", "train")
    if not seconds or not units or not num_train:
        return "A bench tells"
    bench_s = seconds * 9 * sum(BENCH_BUDGETS) * DENSE_COST * num_train / units
    about = duration(bench_s) if bench_s >= 3600 else f"{math.ceil(bench_s / 60)} minutes"
    return f"A bench tells, which would take about {about} at this run's pace"


def _bench_command(record: RunRecord) -> str:
    """A bench of the run's gate, a random one at the same share, and dense training."""
    target = record.number("gate", "target")
    share = target or round(record.number("gate", "activation_rate") or 0.0, 2)
    at, found = "" if target is None else f":target={target:g}", f":target={share:g}" if share else ""
    budgets = ",".join(map(str, BENCH_BUDGETS))
    arms = dict.fromkeys(("dense", f"random{found}", f"{gate_of(record)}{at}"))
    return f'{_train_command(record, "bench")} --arms "{";".join(arms)}" --budgets {budgets}ep --out runs/bench'


def _train_command(record: RunRecord, command: str = "train") -> str:
    """The command with the run's data and network, and what else decides what its network can learn."""
    words = ["fastast", command]
    for name in _OF_DATA_AND_NETWORK:
        value = record.config.get(name)
        if value is True:
            words.append(flag_of(name))
        elif value is not None and (value != _DEFAULTS[name] or name in ("arch", "image_size")):
            words += [flag_of(name), clean(str(value))]
    return shlex.join(words)


def tiles(record: RunRecord) -> list[tuple[str, str, str]]:
    """The main figures: value, name, and what to compare it with. Those that are not known are left out."""
    top1, num, best = last_top1(record), num_evaluated(record), record.number("accuracy", "best_val_top1")
    found = []
    if top1 is not None:
        error = f"± {100 * standard_error(top1, num):.2f} on {num:,} pictures" if num else ""
        other = ""
        if best is not None and best != top1:
            other = f"best {percent(best)}".replace(" ", "\N{NO-BREAK SPACE}")  # or a line starts with its %
        found.append((percent(top1), "validation top-1", ", ".join(filter(None, (error, other)))))
    if (probe := record.number("accuracy", "probe_top1")) is not None:
        gained = "" if top1 is None else f"{100 * (top1 - probe):+.2f} points by training"
        points = gained.replace("-", "\N{MINUS SIGN}")
        found.append((percent(probe), "top-1 of the probe", points))
    balanced = record.number("accuracy", "balanced_top1")
    if balanced is not None and top1 is not None and percent(balanced) != percent(top1):
        found.append((percent(balanced), "top-1, mean over classes", ""))
    if (rate := record.number("gate", "activation_rate")) is not None and gate_of(record) != DENSE:
        target = record.number("gate", "target")
        beside = "found by the gate" if target is None else f"target {percent(target, 1)}"
        found.append((percent(rate, 1), "share, gated part", beside))
    if (speed := speeds(record)) is not None:
        where = "" if gate_of(record) == DENSE else ", gated part"
        where += " after its first steps" if speed.is_steady else ""
        beside = "" if speed.dense is None else f"dense part {speed.dense:,.0f}/s"
        found.append((f"{speed.gated:,.0f}/s", f"pictures offered{where}", beside))
    if (total_s := record.number("time_s", "total")) is not None:
        found.append((duration(total_s), "training and evaluation", ""))
    if (joules := record.number("energy", "gpu_j")) is not None:
        found.append((f"{joules:,.0f} J", "GPU energy", ""))
    return found


def savings(record: RunRecord) -> list[dict[str, Any]]:
    """What is known of the savings, the most telling first: name, meaning, and a bar each for gated part and run."""
    if gate_of(record) == DENSE:
        return []
    entries = []
    for name, key, meaning in SAVINGS:
        if key is None:
            values, speed = _time_saved(record), speeds(record)
            meaning += ", after the first steps." if speed is not None and speed.is_steady else ", its start included."
        else:
            values = [record.number("energy", f"{scope}savings_{key}") for scope in ("", "run_")]
        bars = [
            {
                "scope": scope,
                "text": percent(value, 1).replace("-", "\N{MINUS SIGN}"),
                "length": f"{100 * min(abs(value), 1):.2f}",
                "value": value,
            }
            for scope, value in zip(("gated part", "whole run"), values, strict=True)
            if value is not None
        ]
        if bars:
            about = f"{key} savings"  # how a note on what differs between the two parts begins
            note = next((note for note in record.texts("energy", "notes") if note.startswith(about)), "")
            entries.append({"name": name, "meaning": meaning, "bars": bars, "note": note})
    return entries


def passes(record: RunRecord) -> str:
    """Where the saving of a run went that spent a budget, in one line; nothing where there was none."""
    offered, num_train = record.number("samples", "offered"), record.number("data", "train")
    if not record.summary.get("budget") or record.summary.get("stopped") or offered is None or not num_train:
        return ""
    told = passes_told(offered / num_train, record.number("energy", "run_savings_arithmetic"))
    return "" if told is None else f"The budget was spent, so {told}."


def _time_saved(record: RunRecord) -> list[float | None]:
    """Shares of the time per offered picture that the gated part and the whole run saved."""
    speed = speeds(record)
    seconds, offered = record.number("time_s", "train"), record.number("samples", "offered")
    if speed is None or speed.dense is None or seconds is None or not offered:
        return [None, None]
    probe = record.number("probe", "seconds") or 0.0
    return [1 - speed.dense / speed.gated, 1 - (probe + seconds) * speed.dense / offered]


def unmeasured(record: RunRecord) -> str:
    """Why there are no joules, in one line; nothing where there are some, or where the run is not over."""
    if not record.summary or record.number("energy", "savings_measured") is not None:
        return ""
    notes = record.texts("energy", "notes")
    reasons = [note for note in notes if "savings not measured" in note]
    reasons += [note for note in notes if note.startswith("GPU")]
    reason = reasons[0].removeprefix("savings not measured: ") if reasons else "the run recorded no reason"
    return f"Joules were not measured: {reason}."
