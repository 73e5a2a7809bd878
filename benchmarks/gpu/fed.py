"""Training from JPEGs: our feed, its cost, and the loops that people use, in turns."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.feed import torchvision_passes
from benchmarks.gpu.items import Report, Settings
from benchmarks.gpu.pictures import picture_sets, sizes
from benchmarks.gpu.timing import largest_fitting, race
from benchmarks.gpu.training import (
    MIN_AREA,
    Batches,
    FastastStep,
    PlainStep,
    Task,
    fed,
    nvidia_batches,
    synthetic_batches,
)
from fastast.data import epoch_ids, open_folder
from fastast.device import open_runtime
from fastast.feed import LoaderOptions, TrainLoader

SYNTHETIC, FED = "synthetic", "from JPEGs"
NVIDIA, TORCHVISION = "NVIDIA-style DALI loop", "torchvision loop"
LEAD = 8  # batches that may be prefetched when a turn begins


def fed_training(settings: Settings, report: Report) -> None:
    """Our step on synthetic pictures and from JPEGs, decode alone, and both rivals' loops."""
    runtime = open_runtime(settings.device, compile="off" if settings.tiny else "auto")
    mode: bool | str = runtime.compiled and runtime.compile_mode
    report.add(compile_note=runtime.compile_note, precision=runtime.precision_note, sets={})

    def measure(batch_size: int) -> None:
        task = Task.of(settings, runtime.device, runtime.dtype, batch_size)
        for name, folder in picture_sets(settings).items():
            _race_on(name, folder / "train", settings, report, task, mode)

    largest_fitting(measure, settings.batch_size, runtime.device)


def _race_on(name: str, folder: Path, settings: Settings, report: Report, task: Task, mode: bool | str) -> None:
    """All contenders on one set of pictures."""
    threads = len(os.sched_getaffinity(0))
    ours, plain = FastastStep(task, mode), PlainStep(task, channels_last=True)
    catalog = open_folder(folder)
    loaders = {
        decode: TrainLoader(
            catalog,
            LoaderOptions(
                batch_size=task.batch_size,
                image_size=task.image_size,
                device=task.device,
                dtype=task.image_dtype,
                decode=decode,
            ),
            seed=task.seed,
            min_area=MIN_AREA,
        )
        for decode in (("auto", "gpu", "cpu") if task.device.type == "cuda" else ("cpu",))
    }
    steps: dict[str, Callable[[], int]] = {SYNTHETIC: fed(ours, synthetic_batches(task))}
    alone: dict[str, Callable[[], int]] = {}
    for decode, loader in loaders.items():
        steps[f"{FED}, decode {decode}" if FED in steps else FED] = fed(ours, _endless(loader, settings))
        alone[f"decode alone, {decode}"] = fed(lambda images, labels: len(labels), _endless(loader, settings))
    steps[NVIDIA] = fed(plain, nvidia_batches(folder, task, threads))
    workers = 1 if settings.tiny else threads
    torchvision = fed(plain, _torchvision_batches(folder, settings, task.batch_size, workers))
    entry: dict[str, Any] = {**sizes(folder), "batch_size": task.batch_size, "cores": threads, "rates": {}}
    report.figures["sets"][name] = entry
    report.add()
    # A loader serves one iterator at a time, so decode alone comes after training. Each worker of a DataLoader has
    # two batches prefetched when a turn begins: so that loop has one turn, of its own.
    lead = 1 if settings.tiny else LEAD
    try:
        for group, rounds, unused in (
            (steps, settings.rounds, lead),
            (alone, settings.rounds, lead),
            ({TORCHVISION: torchvision}, 1, 2 * workers + 1),
        ):
            rates = entry["rates"]
            rates.update(race(group, task.device, rounds=rounds, turn_s=settings.turn_s, lead=unused))
            entry["share_of_synthetic"] = rates[FED]["images_per_s"] / rates[SYNTHETIC]["images_per_s"]
            report.add()
    finally:  # a smaller batch may follow
        for loader in loaders.values():
            loader.close()


def _endless(loader: TrainLoader, settings: Settings) -> Batches:
    """Full batches without an end, from long epochs."""
    num = loader.catalog.num_samples
    ids = np.concatenate([epoch_ids(num, settings.seed, epoch) for epoch in range(2 if settings.tiny else 100)])
    for epoch in itertools.count():
        for batch in loader.epoch(epoch, ids):
            if batch.num_valid == len(batch.valid):
                yield batch.images, batch.labels


def _torchvision_batches(folder: Path, settings: Settings, batch_size: int, workers: int) -> Batches:
    """Full batches of `ImageFolder` and `DataLoader` with PIL, without an end."""
    count = 8 * batch_size if settings.tiny else 100_000
    run, _ = torchvision_passes(folder, settings.image_size, count, workers, pil=True, batch_size=batch_size)
    for epoch in itertools.count():
        for images, labels in run(epoch):
            if len(labels) == batch_size:
                yield images, labels
