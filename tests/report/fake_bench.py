"""The folder of a bench as its command writes it, without the hours it takes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

from fastast.bench.estimate import Outcome
from fastast.bench.matrix import Job, order_gates, walk
from fastast.bench.statistics import caveats, make_rows
from fastast.bench.verdict import judge
from tests.bench.fake_runs import NUM_TRAIN, fake_summary

WARMUP, TARGET = 1, 0.3
SECONDS = {"train_s": 0.0028, "decode_s": 0.0006}
GATES = ("random", "forward", "infobatch", "memory")


def parts() -> dict[str, dict[str, float]]:
    return {
        gate: {
            **SECONDS,
            "score_s": 0.0011 if gate == "forward" else 0.0,
            "decode_all_s": 0.0006 if gate in ("dense", "forward") else 0.0,
            "decode_selected_s": 0.0 if gate in ("dense", "forward") else 0.0006,
        }
        for gate in ("dense", *GATES)
    }


def top1_of(job: Job, rng: np.random.Generator) -> float:
    """More passes help, with less and less return; scoring gates a little more."""
    units = {"dense": 1.0, "random": 0.47, "forward": 0.52, "infobatch": 0.5, "memory": 0.56}[job.gate]
    return 0.82 - 0.3 * 0.72 ** (job.epochs * units) + rng.normal(0, 0.006)


def write_bench(path: Path, *, num_seeds: int = 3, epochs: int = 8, j: float | None = None) -> Path:
    """A bench of four gates with every baseline; `j` joules go into each forward unit."""
    rng = np.random.default_rng(3)
    summaries: dict[str, dict[str, Any]] = {}

    def run(job: Job):
        share = job.changes.get("target", TARGET)
        overhead = {"forward": 1.25, "infobatch": 1.2, "memory": 1.1}.get(job.gate, 1.0) * rng.uniform(0.97, 1.03)
        summary = fake_summary(
            job.gate, job.epochs, seed=job.seed, share=share, top1=top1_of(job, rng), overhead=2 * overhead, j=j
        )
        summary["accuracy"]["val_top5"] = 0.97 + rng.normal(0, 0.002)
        summary["hardware"] |= {"driver": None, "torch": "2.15.0", "dali": "2.4.0"}
        summary["model"] = {"arch": "resnet18", "params": 11_181_642, "image_size": 64, "precision": "float32"}
        summaries[job.name] = summary
        write_run_folder(path / "runs" / job.name, job, summary, rng)
        return Outcome(summary).work

    entries = walk(order_gates(GATES), range(num_seeds), epochs, run)
    runs = [
        {
            **{"role": entry.role, "for": entry.of, "seed": entry.job.seed, "folder": f"runs/{entry.job.name}"},
            **{"epochs": entry.job.epochs, "summary": copy.deepcopy(summaries[entry.job.name])},
        }
        for entry in entries
    ]
    rows = make_rows(runs, parts())
    failure = {"role": "gate", "for": None, "seed": 9, "gate": "forward", "folder": "runs/x", "reason": "<i>killed</i>"}
    bench = {
        **{"schema": 1, "finished": True, "version": "0.1.0", "commit": "a24ce546d693", "parts_note": None},
        "argv": ["bench", "--data", "/pictures/<b>x</b>", "--gates", ",".join(GATES), "--out", str(path)],
        "options": {"data": "/pictures/<b>x</b>", "arch": "resnet18", "image_size": 64, "target": TARGET},
        "epochs": epochs,
        "seeds": list(range(num_seeds)),
        "runs": runs,
        "failures": [failure],
        "parts": parts(),
        "rows": rows,
        "verdict": judge(rows),
        "notes": caveats(runs),
    }
    (path / "bench.json").write_text(json.dumps(bench, default=str), encoding="utf-8")
    return path


def write_run_folder(folder: Path, job: Job, summary: dict[str, Any], rng: np.random.Generator) -> None:
    """What the bench's page reads of a run."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"gate": job.gate, "target": TARGET, "batch_size": 16}))
    (folder / "report.html").write_text("<!DOCTYPE html><title>a run</title>")
    bad = [{"id": None, "path": "/pictures/<b>bad</b>.jpg", "reason": "no end marker"}]
    if job.seed == 0:
        bad.append({"id": 7, "path": "/pictures/late.jpg", "reason": "did not decode"})
    (folder / "quarantine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in bad))
    lines: list[dict[str, Any]] = []
    scores = job.gate == "forward"
    final = summary["accuracy"]["val_top1"]
    num_epochs = max(1, round(job.epochs))
    for epoch in range(1, num_epochs + 1):
        gated = job.gate != "dense" and epoch > WARMUP
        for offered in range(96, NUM_TRAIN + 1, 96):
            share = TARGET + (rng.normal(0, 0.06) if scores else 0.0)
            lines.append(
                {
                    **{"kind": "step", "epoch": epoch, "phase": "gated" if gated else "warmup"},
                    "offered": (epoch - 1) * NUM_TRAIN + offered,
                    "activation": share if gated else 1.0,
                    "threshold": 1.6 + 0.05 * epoch + rng.normal(0, 0.05) if gated and scores else None,
                    **{"offered_per_s": 300.0, "data_wait_s": 0.01},
                }
            )
        accuracy = final - 0.35 * (0.6**epoch - 0.6**num_epochs) + (rng.normal(0, 0.004) if epoch < num_epochs else 0)
        lines.append(
            {
                **{"kind": "epoch", "epoch": epoch, "phase": "gated" if gated else "warmup", "train_loss": 1.0},
                **{"val_loss": 1.0, "val_top1": accuracy, "val_top5": 0.97, "offered": NUM_TRAIN},
                **{"backward": 300, "activation": TARGET, "threshold": None, "seconds": 3.0, "gpu_j": None},
            }
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
