"""Run folders as a run writes them, without the hours it takes: of a machine with two GPUs, or with none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastast.energy.power_log import PowerRow, write_power_csv

CLASSES = ("fish & <chips>", "dog", 'a "cat"')
PER_CLASS = 8
NUM_TRAIN = 3200
BATCH, LOG_EVERY = 32, 10
TARGET = 0.2
EPOCH_S, EVAL_S = 30.0, 4.0
MEASURED: dict[str, Any] = {
    **{"savings_measured": 0.4127, "run_savings_measured": 0.3095, "source": "nvml counter"},
    **{"gpu_j": 36000.0, "train_gpu_j": 32000.0, "gpu_j_above_idle": 30000.0, "idle_w": 31.5},
    **{"dense_j_per_sample": 1.512, "gated_j_per_sample": 0.888},
}


def write_run(
    path: Path, *, gpus: int = 2, epochs: int = 4, name: str = "forward", classes: tuple[str, ...] = CLASSES
) -> Path:
    """Writes a finished run of `epochs` epochs, the first of them warm-up, and gives its folder."""
    path.mkdir(parents=True)
    rng = np.random.default_rng(0)
    write_json(path / "config.json", config(path, epochs, name))
    write_json(path / "classes.json", list(classes))
    lines = metrics(rng, epochs, measured=gpus > 0)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(path / "summary.json", summary(lines, name, measured=gpus > 0))
    if gpus:
        write_power_csv(path / "power.csv", power(rng, epochs, gpus))
    write_samples(path, rng, classes)
    write_predictions(path, rng, classes)
    quarantine = [{"id": None, "path": f"/pictures/<b>bad</b>{i}.jpg", "reason": "no end marker"} for i in range(230)]
    (path / "quarantine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in quarantine))
    return path


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def config(path: Path, epochs: int, gate: str) -> dict[str, Any]:
    return {
        "data": "/pictures/<script>alert(1)</script>",
        "out": str(path),
        "arch": "resnet18",
        "epochs": epochs,
        "batch_size": BATCH,
        "gate": gate,
        "target": TARGET,
        "log_every": LOG_EVERY,
    }


def metrics(rng: np.random.Generator, epochs: int, *, measured: bool) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    step = 0
    for epoch in range(1, epochs + 1):
        phase = "warmup" if epoch == 1 else "gated"
        active = 1.0 if epoch == 1 else TARGET
        for offered in range(BATCH * LOG_EVERY, NUM_TRAIN + 1, BATCH * LOG_EVERY):
            step += int(LOG_EVERY * active)
            lines.append(
                {
                    **{"kind": "step", "epoch": epoch, "phase": phase, "step": step, "loss": 2.0 / epoch, "lr": 0.1},
                    "offered": (epoch - 1) * NUM_TRAIN + offered,
                    "backward": step * BATCH,
                    "activation": active if epoch == 1 else active + rng.normal(0, 0.02),
                    "threshold": None if epoch == 1 else 4 + rng.normal(0, 0.1),
                    "offered_per_s": rng.uniform(95, 125) if epoch == 1 else rng.uniform(240, 280),
                    "data_wait_s": rng.uniform(0.05, 0.2),
                    "gpu_w": 150.0 if measured else None,
                }
            )
        selected, skipped = rng.integers(0, 90, 16), rng.integers(0, 300, 16)
        hist = {"edges": [i / 2 for i in range(16)], "selected": selected.tolist(), "skipped": skipped.tolist()}
        lines.append(
            {
                **{"kind": "epoch", "epoch": epoch, "phase": phase},
                **{"train_loss": 2.2 / epoch + 0.6, "val_loss": 1.8 / epoch + 0.5},
                **{"val_top1": 0.8 - 0.4 / epoch, "val_top5": 0.96 - 0.1 / epoch},
                "offered": NUM_TRAIN,
                "backward": int(NUM_TRAIN * active),
                "activation": active,
                "threshold": None if epoch == 1 else 4.0,
                "seconds": EPOCH_S + EVAL_S,
                "gpu_j": 9000.0 if measured else None,
                "hist": None if epoch == 1 else hist,
            }
        )
    return lines


def summary(lines: list[dict[str, Any]], gate: str, *, measured: bool) -> dict[str, Any]:
    ends = [line for line in lines if line["kind"] == "epoch"]
    offered, backward = sum(line["offered"] for line in ends), sum(line["backward"] for line in ends)
    scored = offered - ends[0]["offered"]
    reason = "savings not measured: the dense part trained for 24 s after its first steps; 30 s are needed"
    return {
        **{"schema": 1, "version": "0.1.0", "commit": "0123456789ab", "seed": 0, "stopped": None, "resumes": []},
        "argv": ["train", "--data", "/pictures/<script>alert(1)</script>"],
        "hardware": {"device": "cuda", "names": ["Tesla T4"], "world_size": 1, "driver": "570.86.15"},
        "data": {"train": NUM_TRAIN, "val": 500, "classes": len(CLASSES), "quarantined": 230, "fingerprint": "f"},
        "model": {"arch": "resnet18", "params": 11182668, "image_size": 64, "precision": "float16"},
        "gate": {
            **{"name": gate, "selection": "soft", "target": TARGET},
            **{"activation_rate": 0.2013, "threshold": 4.0, "warmup_epochs": 1.0},
        },
        "samples": {
            **{"offered": offered, "decoded": offered, "scored": scored, "selected": backward + 7},
            **{"backward": backward, "leftover": 7, "steps": backward // BATCH, "nonfinite_steps": 0},
        },
        "accuracy": {
            **{"val_top1": ends[-1]["val_top1"], "val_top5": ends[-1]["val_top5"]},
            **{"best_val_top1": ends[-1]["val_top1"], "best_epoch": ends[-1]["epoch"]},
        },
        "time_s": {"total": 136.0, "train": 120.0, "eval": 16.0, "data_wait": 5.5},
        "throughput": {"offered_per_s": 260.0, "backward_per_s": 52.0, "dense_offered_per_s": 110.0},
        "compute": {
            "forward_units": 3.0 * backward + scored,
            "dense_forward_units": 3.0 * offered,
            "speedup_ceiling": 1.87,
        },
        "energy": {
            **{"savings_estimated": 0.7907, "savings_arithmetic": 0.4653, "cpu_j": None},
            **{"run_savings_estimated": 0.5931, "run_savings_arithmetic": 0.349},
            **{name: value if measured else None for name, value in MEASURED.items()},
            "notes": ["CPU not read: no RAPL counters here"]
            + (["measured savings 41.3% +- 0.8%"] if measured else [reason]),
        },
    }


def power(rng: np.random.Generator, epochs: int, gpus: int) -> list[PowerRow]:
    """20 readings a second of each GPU, with 2 s in which the second one could not be read."""
    rows = []
    for t_s in np.arange(0, 3 + epochs * (EPOCH_S + EVAL_S), 0.05):
        epoch, within_s = divmod(t_s - 3, EPOCH_S + EVAL_S)
        phase = "" if t_s < 3 else "eval" if within_s > EPOCH_S else "warmup" if epoch == 0 else "gated"
        for gpu in range(gpus):
            mean_w = {"": 30, "eval": 170, "warmup": 240, "gated": 200}[phase] - 12 * gpu
            watts = None if gpu == 1 and 50 < t_s < 52 else mean_w + rng.uniform(-12, 12)
            rows.append(PowerRow(float(t_s), f"GPU-{gpu:08x}-aaaa-bbbb", watts, t_s * mean_w * 1e3, phase))
    return rows


def write_samples(path: Path, rng: np.random.Generator, classes: tuple[str, ...]) -> None:
    """`samples.npz`, with the pictures beside it; of the first class two cannot be shown."""
    pictures = path.parent / f"{path.name} pictures"
    pictures.mkdir()
    paths, labels = [], []
    for label in range(len(classes)):
        for i in range(PER_CLASS):
            file = pictures / f"{label} {i} ü.jpg"
            pixels = np.full((60, 80, 3), (60 + 60 * (label % 3), 20 * i, 120), np.uint8)
            Image.fromarray(pixels).save(file)
            paths.append(os.fsencode(file))
            labels.append(label)
    (pictures / "0 0 ü.jpg").unlink()
    (pictures / "0 1 ü.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    num = len(paths)
    selected = np.tile(np.arange(PER_CLASS), len(classes)) % 5
    last_loss = rng.uniform(0, 5, num).astype(np.float32)
    last_loss[::7] = np.nan
    np.savez_compressed(
        path / "samples.npz",
        id=np.arange(num),
        label=np.array(labels, np.int32),
        path_bytes=np.frombuffer(b"".join(paths), np.uint8),
        path_starts=np.cumsum([0, *map(len, paths)]),
        offered=np.full(num, 4, np.int32),
        selected=selected.astype(np.int32),
        last_loss=last_loss,
    )


def write_predictions(path: Path, rng: np.random.Generator, classes: tuple[str, ...]) -> None:
    """`predictions.npz` of the pictures of `write_samples`, of which a quarter is taken for another class."""
    with np.load(path / "samples.npz") as samples:
        label, paths = samples["label"], {name: samples[name] for name in ("path_bytes", "path_starts")}
    other = (label + rng.integers(1, len(classes), len(label))) % len(classes)
    predicted = np.where(rng.random(len(label)) < 0.75, label, other).astype(np.int32)
    predicted[5] = -1
    np.savez_compressed(
        path / "predictions.npz",
        epoch=np.array([4], np.int32),
        label=label,
        predicted=predicted,
        probability=rng.uniform(0.4, 1, len(label)).astype(np.float32),
        **paths,
    )
