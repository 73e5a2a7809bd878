"""JPEGs to measure with: those of --data, and the drawn set, enlarged to ImageNet's sizes."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.gpu.items import Settings
from fastast.data.demo import draw_dataset

ENLARGE = 4  # 72 to 135 pixels a side become 288 to 540; ImageNet's mean is 469 x 387
GRAIN = 22  # levels: with it a picture has about 110 kB, as ImageNet's have
NUM_CLASSES, TRAIN, VAL = 12, 85, 12  # classes; pictures of each


def drawn_pictures(settings: Settings) -> Path:
    """A folder with train/ and val/, drawn on first use. Full size: 1,020 + 144 pictures; tiny: 96 + 24, small ones."""
    num_classes, train, val = (4, 24, 6) if settings.tiny else (NUM_CLASSES, TRAIN, VAL)
    small = settings.work / f"drawn-{num_classes}x{train}"
    draw_dataset(small, num_classes=num_classes, train_per_class=train, val_per_class=val, seed=settings.seed)
    if settings.tiny:
        return small
    large = settings.work / f"{small.name}-large"
    if not large.exists():
        temporary = large.with_name(f".{large.name}.{os.getpid()}.tmp")
        jobs = [(path, temporary / path.relative_to(small)) for path in sorted(small.glob("*/*/*.jpg"))]
        for folder in {target.parent for _, target in jobs}:
            folder.mkdir(parents=True)
        with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
            list(pool.map(_enlarge, *zip(*jobs, strict=True), range(len(jobs)), chunksize=32))
        temporary.rename(large)
    return large


def _enlarge(source: Path, target: Path, number: int) -> None:
    with Image.open(source) as image:
        size = (image.width * ENLARGE, image.height * ENLARGE)
        pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.int16)
    rng = np.random.default_rng(number)
    grain = rng.integers(-GRAIN, GRAIN + 1, (size[1], size[0], 1))
    Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(target, quality=90)


def picture_sets(settings: Settings) -> dict[str, Path]:
    """Folders to measure with, by name: that of --data, if any, and "drawn"."""
    own = {} if settings.data is None else {settings.data.name: settings.data}
    return {**own, "drawn": drawn_pictures(settings)}


def linked(folder: Path, target: Path, times: int) -> None:
    """Class folders in `target` that hold each picture of `folder` several times over, as links."""
    for path in sorted(folder.glob("*/*")):
        place = target / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        for number in range(times):
            (place / f"{path.stem}-{number}{path.suffix}").symlink_to(path.resolve())


def sizes(folder: Path) -> dict[str, float]:
    """Number, mean pixels and mean bytes of the pictures in class folders."""
    paths = sorted(folder.glob("*/*"))
    pixels = []
    for path in paths[:: max(1, len(paths) // 200)]:
        with Image.open(path) as image:
            pixels.append(image.width * image.height)
    mean_bytes = float(np.mean([path.stat().st_size for path in paths]))
    return {"pictures": len(paths), "mean_pixels": float(np.mean(pixels)), "mean_bytes": mean_bytes}
