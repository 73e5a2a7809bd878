"""Training from JPEGs: our feed, what it costs, and the loops that people use, in turns."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.feed import torchvision_passes
from benchmarks.gpu.dense import NUM_CLASSES, largest_fitting
from benchmarks.gpu.loops import MIN_AREA, Ours, Pictures, Plain, fed, nvidia_batches
from benchmarks.gpu.pictures import given_pictures, sizes
from benchmarks.gpu.settings import Report, Settings
from benchmarks.gpu.timing import race
from fastast.data import epoch_ids, open_folder
from fastast.device import open_machine
from fastast.feed import TrainLoader

SYNTHETIC, FED = "synthetic", "from JPEGs"
NVIDIA, TORCHVISION = "NVIDIA-style DALI loop", "torchvision loop"
LEAD = 8  # batches that may be ready when a turn begins


def fed_training(settings: Settings, report: Report) -> None:
    """Our step on synthetic pictures and from JPEGs, decode alone, and both rivals' loops."""
    machine = open_machine(settings.device, compile="off" if settings.tiny else "auto")
    mode: bool | str = machine.compiled and machine.compile_mode
    report.add(compile_note=machine.compile_note, precision=machine.precision_note, sets={})

    def measure(batch_size: int) -> None:
        for name, folder in given_pictures(settings).items():
            race_on(name, folder / "train", settings, report, machine.device, machine.dtype, mode, batch_size)

    largest_fitting(measure, settings.batch_size, machine.device)


def race_on(
    name: str,
    folder: Path,
    settings: Settings,
    report: Report,
    device: torch.device,
    dtype: torch.dtype,
    mode: bool | str,
    batch_size: int,
) -> None:
    """All contenders on one set of pictures."""
    threads = len(os.sched_getaffinity(0))
    side, common = settings.image_size, {"num_classes": NUM_CLASSES, "seed": settings.seed}
    ours = Ours(settings.arch, device, dtype, mode, batch_size=batch_size, image_size=side, **common)
    catalog = open_folder(folder)
    loaders: dict[str, TrainLoader] = {}
    for decode in ("auto", "gpu", "cpu") if device.type == "cuda" else ("cpu",):
        loaders[decode] = TrainLoader(
            catalog,
            batch_size=batch_size,
            image_size=side,
            device=device,
            dtype=torch.float16 if device.type == "cuda" else torch.float32,
            seed=settings.seed,
            decode=decode,
            min_area=MIN_AREA,
        )
    first = next(iter(loaders))
    synthetic = Pictures(device, batch_size=batch_size, image_size=side, **common)
    steps: dict[str, Callable[[], int]] = {SYNTHETIC: fed(ours, synthetic)}
    for decode, loader in loaders.items():
        shown = FED if decode == first else f"{FED}, decode {decode}"
        steps[shown] = fed(ours, endless(loader, settings))
    alone = {f"decode alone, {decode}": _counted(endless(loader, settings)) for decode, loader in loaders.items()}
    plain = Plain(settings.arch, device, dtype, channels_last=True, **common)
    steps[NVIDIA] = fed(
        plain,
        nvidia_batches(folder, device, batch_size=batch_size, image_size=side, num_threads=threads, seed=settings.seed),
    )
    workers = 1 if settings.tiny else threads
    torchvision = fed(plain, torchvision_batches(folder, settings, batch_size, workers))
    entry: dict[str, Any] = {**sizes(folder), "batch_size": batch_size, "cores": threads, "rates": {}}
    report.figures["sets"][name] = entry
    report.save()
    # A loader has one pass at a time, so decode alone comes when training is through. Each worker of a DataLoader has
    # two batches ready when a turn begins: so that loop has one turn, of its own.
    lead = 1 if settings.tiny else LEAD
    try:
        for group, rounds, unused in (
            (steps, settings.rounds, lead),
            (alone, settings.rounds, lead),
            ({TORCHVISION: torchvision}, 1, 2 * workers + 1),
        ):
            rates = entry["rates"]
            rates.update(race(group, device, rounds=rounds, block_s=settings.block_s, lead=unused))
            entry["share_of_synthetic"] = rates[FED]["images_per_s"] / rates[SYNTHETIC]["images_per_s"]
            report.save()
    finally:  # a smaller batch may follow
        for loader in loaders.values():
            loader.close()


def endless(loader: TrainLoader, settings: Settings) -> Iterator[tuple[Tensor, Tensor]]:
    """Full batches without an end, in one pass as far as possible."""
    num = loader.catalog.num_samples
    ids = np.concatenate([epoch_ids(num, settings.seed, epoch) for epoch in range(2 if settings.tiny else 100)])
    for epoch in itertools.count():
        for batch in loader.epoch(epoch, ids):
            if batch.num_valid == len(batch.valid):
                yield batch.images, batch.labels


def torchvision_batches(
    folder: Path, settings: Settings, batch_size: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Full batches of `ImageFolder` and `DataLoader` with PIL, without an end."""
    run, _ = torchvision_passes(
        folder,
        settings.image_size,
        8 * batch_size if settings.tiny else 100_000,
        workers,
        pil=True,
        batch_size=batch_size,
    )
    for epoch in itertools.count():
        for images, labels in run(epoch):
            if len(labels) == batch_size:
                yield images, labels


def _counted(batches: Iterator[tuple[Tensor, Tensor]]) -> Callable[[], int]:
    return lambda: len(next(batches)[1])
