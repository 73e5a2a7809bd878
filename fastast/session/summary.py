"""What a run leaves behind: weights, classes, per-sample figures, and the summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import nvidia.dali
import torch

from fastast.atomic_files import write_whole
from fastast.checkpoint.file_format import export_weights, save_checkpoint
from fastast.code_version import code_version
from fastast.cost_model import DENSE_COST
from fastast.device import device_name
from fastast.energy.fairness import comparable, steady_speed
from fastast.energy.savings import PartCounts, compute_summary, cost, emissions_g, energy_summary
from fastast.gates.base import Gate
from fastast.loggers.counters import PhaseCounts, total
from fastast.models.weights_info import WeightsInfo
from fastast.phases import WARMUP
from fastast.record.columns import write_columns
from fastast.run_folder import RunFolder
from fastast.session.gpu_limits import limits_summary
from fastast.train.run_energy import DENSE_PART, GATED_PART
from fastast.train.trainer import Trainer


def write_classes(folder: RunFolder, classes: tuple[str, ...]) -> None:
    """Writes `classes.json`: the class names, in the order of the network's outputs."""
    folder.write_json(folder.classes, list(classes))


def write_best(
    folder: RunFolder, weights: dict[str, torch.Tensor], epoch: int, val_top1: float, info: WeightsInfo
) -> None:
    """Writes the weights of the best epoch, for torch (`best.pt`) and for anyone (`model.safetensors`)."""
    save_checkpoint(folder.best, {"model": weights, "epoch": epoch, "val_top1": val_top1})
    export_weights(folder.weights, weights, info.to_metadata())


def write_samples(folder: RunFolder, trainer: Trainer) -> None:
    """Writes `samples.npz`: for each training picture how often it was offered and selected, and its last loss.

    Arrays of N pictures, by id: `id` int64, `label` int32, `offered` int32; `selected` int32, the steps that trained
    it; `last_loss` float32, its cross entropy in the last of them, before the first that of the probe, NaN without
    either; `path_bytes` uint8, all paths end to end; and `path_starts` int64[N + 1]: path i is
    `path_bytes[path_starts[i] : path_starts[i + 1]].tobytes()`.
    """
    catalog = trainer.dataset.train
    columns = {
        "id": np.arange(catalog.num_samples, dtype=np.int64),
        "label": catalog.labels,
        "offered": trainer.log.offered,
        "selected": trainer.engine.memory.selected.cpu().numpy(),
        "last_loss": trainer.engine.memory.score.cpu().numpy(),
    }
    write_whole(folder.samples, lambda file: write_columns(file, columns, catalog))


def build_summary(trainer: Trainer, driver: str | None, argv: list[str], stopped: str | None) -> dict[str, Any]:
    """The contents of `summary.json`, schema 1: counts of executed work, never of planned work.

    All ranks call it.
    """
    config, runtime, dataset, log = trainer.config, trainer.runtime, trainer.dataset, trainer.log
    energy, names = (
        trainer.energy.over_ranks(trainer.ranks),
        trainer.ranks.all_gather_object(device_name(runtime.device)),
    )
    limits, limit_notes = limits_summary(config, trainer.energy, trainer.ranks)
    counters = log.counters
    version, commit = code_version()
    whole, gated = counters.whole, total([counters.gated])
    gate_is_dense = config.gate == "dense"
    dense_counts, gated_counts = (
        [
            part_counts(counts, trainer.gate, trainer.engine.units[size], trainer.engine.train_cost)
            for size, counts in sizes.items()
        ]
        for sizes in (counters.dense, counters.gated)
    )
    gated_energy = energy.parts.get(DENSE_PART if gate_is_dense else GATED_PART)
    dense_energy = None if gate_is_dense else energy.parts.get(DENSE_PART)
    dense_per_s = dense_speed(counters.dense, counters.gated)
    dense_blocks, gated_blocks = comparable(dense_energy, gated_energy)
    last = next((line for line in reversed(log.epochs) if line["val_top1"] is not None), None)
    best_epoch, best_top1 = max(log.evaluated, key=lambda one: one[1], default=(None, None))
    probe = log.probe
    return {
        "schema": 1,
        "version": version,
        "commit": commit,
        "seed": config.seed,
        "argv": argv,
        "stopped": stopped,
        "resumes": counters.resumes,
        "budget": None if trainer.budget is None else trainer.budget.summary(),
        "probe": probe,
        "hardware": {
            "device": runtime.device.type,
            "names": names,
            "world_size": trainer.ranks.size,
            "driver": driver,
            "torch": torch.__version__,
            "dali": nvidia.dali.__version__,
        },
        "data": {
            "train": dataset.train.num_samples,
            "val": dataset.val.num_samples,
            "classes": len(dataset.classes),
            "quarantined": counters.quarantined,
            "fingerprint": dataset.fingerprint,
            "bits": dataset.train.bits,
        },
        "model": {
            "arch": config.arch,
            "start": config.start,
            "params": sum(p.numel() for p in trainer.engine.model.parameters()),
            "image_size": config.image_size,
            "train_sizes": list(config.train_sizes),
            "precision": str(runtime.dtype).removeprefix("torch."),
            "compiled": runtime.compiled,
            "compile_note": runtime.compile_note,
            "train_cost": trainer.engine.train_cost,
        },
        "gate": {
            "name": config.gate,
            "selection": config.selection,
            "target": config.target if trainer.gate.has_target and not isinstance(config.target, str) else None,
            "shares": [line["target"] for line in log.epochs],
            "activation_rate": gated.selected / gated.offered if gated.offered else None,
            "threshold": next((e["threshold"] for e in reversed(log.epochs) if e["threshold"] is not None), None),
            "warmup_epochs": total([counters.phases[WARMUP]]).offered / dataset.train.num_samples,
        },
        "samples": {
            "offered": whole.offered,
            "decoded": whole.decoded,
            "scored": whole.scored,
            "selected": whole.selected,
            "backward": whole.backward,
            "leftover": log.num_leftover,
            "steps": whole.steps,
            "nonfinite_steps": log.num_nonfinite,
        },
        "accuracy": {
            "val_top1": last["val_top1"] if last else None,
            "val_top5": last["val_top5"] if last else None,
            "best_val_top1": best_top1,
            "best_epoch": best_epoch,
            "probe_top1": probe.get("val_top1") if probe else None,
            "balanced_top1": last["val_balanced_top1"] if last else None,
            "ema": log.ema,
            "per_class": per_class(dataset.classes, log.by_class),
        },
        "time_s": {
            "total": counters.total_s,
            "train": whole.seconds,
            "eval": counters.eval_s,
            "data_wait": whole.data_wait,
        },
        "throughput": {
            "offered_per_s": gated.offered / gated.seconds if gated.seconds else None,
            "backward_per_s": gated.backward / gated.seconds if gated.seconds else None,
            "dense_offered_per_s": dense_per_s,
            # Without the first steps of each part, and without waits for a cold page cache.
            "steady_offered_per_s": steady_speed(gated_blocks),
            "steady_dense_offered_per_s": None if dense_per_s is None else steady_speed(dense_blocks),
        },
        "compute": compute_summary(dense_counts, gated_counts, log.probe_units),
        "energy": energy_summary(
            dense=dense_counts,
            gated=gated_counts,
            gate_is_dense=gate_is_dense,
            run=energy.run,
            idle=trainer.energy.idle,
            dense_energy=dense_energy,
            gated_energy=gated_energy,
            probe_units=log.probe_units,
            probe_j=probe["gpu_j"] if probe else None,
            limits=limits,
            notes=[*price_notes(energy.run.joules, config.price_per_kwh, config.gco2_per_kwh), *limit_notes],
        ),
    }


def per_class(classes: Sequence[str], by_class: list[list[int]] | None) -> list[dict[str, Any]] | None:
    """Accuracy of each class in the last evaluation, `by_class` being its pictures and those that were right."""
    if by_class is None:
        return None
    return [
        {"class": name, "top1": right / count if count else None, "count": count}
        for name, count, right in zip(classes, *by_class, strict=True)
    ]


def price_notes(gpu_j: float | None, price_per_kwh: float | None, gco2_per_kwh: float | None) -> list[str]:
    """Cost and CO2 of the run's GPU energy, where a price was given and the energy was measured."""
    if gpu_j is None:
        return []
    notes = []
    if price_per_kwh is not None:
        notes.append(f"GPU energy cost {cost(gpu_j, price_per_kwh):.4g} at {price_per_kwh:g} per kWh")
    if gco2_per_kwh is not None:
        notes.append(f"GPU energy emitted {emissions_g(gpu_j, gco2_per_kwh):.4g} g CO2 at {gco2_per_kwh:g} g per kWh")
    return notes


def dense_speed(dense: dict[int, PhaseCounts], gated: dict[int, PhaseCounts]) -> float | None:
    """Offered samples per second of a gated run's dense part; None without one, or if its pictures had other sizes."""
    counts = total([dense])
    if not counts.seconds or dense.keys() != gated.keys() or len(dense) > 1:
        return None
    return counts.offered / counts.seconds


def part_counts(counts: PhaseCounts, gate: Gate, unit: float = 1.0, train_cost: float = DENSE_COST) -> PartCounts:
    """Work of a phase under a gate.

    Args:
        counts: of the phase.
        gate: scores at a cost.
        unit: cost of a forward there, in forwards at `--image-size`.
        train_cost: cost of training a sample, in forwards.
    """
    return PartCounts(
        offered=counts.offered,
        selected=counts.selected,
        backward=counts.backward,
        scored=counts.scored,
        score_units=gate.score_units,
        unit=unit,
        train_cost=train_cost,
    )
