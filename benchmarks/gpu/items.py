"""The suite's items in order of priority, their settings, and how they report figures."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastast.atomic_files import write_whole
from fastast.run_folder import finite


class NotMeasured(Exception):
    """An item cannot be measured on this machine; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of an item.

    Attributes:
        device: "cuda" or "cpu".
        tiny: whether the sizes are `TINY`; the figures then mean nothing.
        data: folder with train/ and val/ class folders of JPEGs, or None.
        work: folder for pictures, packs and runs; kept between calls.
        seconds: the item's time limit.
        num_gpus: GPUs that this suite may use.
        seed: of pictures, networks and choices.
        arch, image_size, batch_size: what is trained, on pictures of so many pixels a side; the batch may get smaller.
        turn_s, rounds: seconds of a contender's turn, and its number of turns.
    """

    device: str
    tiny: bool
    data: Path | None
    work: Path
    seconds: float
    num_gpus: int = 1
    seed: int = 0
    arch: str = "resnet50"
    image_size: int = 224
    batch_size: int = 256
    turn_s: float = 2.0
    rounds: int = 3


# What a small CPU handles in a second.
TINY = {"arch": "benchmarks.nets:tiny_resnet", "image_size": 32, "batch_size": 8, "turn_s": 0.02, "rounds": 2}


class Report:
    """An item's figures, written to disk as soon as they are added, so that a crash or a timeout loses none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.figures: dict[str, Any] = {}

    def add(self, **figures: Any) -> None:
        """Adds figures, or replaces those of the same name. NaN and infinity become null."""
        self.figures.update(figures)
        write_whole(self._path, json.dumps(finite(self.figures), allow_nan=False))


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to measure.

    Attributes:
        name: its key in the results.
        what: in a few words.
        place: "module:function" under benchmarks.gpu, imported in the item's own process.
        limit_s: seconds after which it is stopped.
        least_s: seconds under which it is not started.
        needs_dali: whether it is impossible without DALI.
        gpu: index of the GPU among those this suite may use; None: all of them.
    """

    name: str
    what: str
    place: str
    limit_s: float
    least_s: float
    needs_dali: bool = True
    gpu: int | None = 0

    def function(self) -> Callable[[Settings, Report], None]:
        """What measures it."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(f"benchmarks.gpu.{module}"), name)


MACHINE = Item("machine", "hardware, driver, versions, `fastast doctor`", "correctness:machine", 60, 5, False)

# What nobody else can tell comes first: joules and seconds of dense training, of the gates, and of the default recipe.
ITEMS = (
    Item("dense", "dense training on synthetic pictures", "dense:dense", 120, 40, False),
    Item("gates_10", "gates at 10 %", "gated:gates_at_10", 300, 200),
    Item("accuracy", "accuracy, seconds and joules of gates and growing pictures", "gated:accuracy", 3600, 120),
    Item("fed", "dense training from JPEGs", "fed:fed_training", 150, 40),
    Item("precisions", "number formats, CUDA graphs, memory in fp16", "dense:precisions", 90, 20, False),
    Item("mixed_pixels", "GPU decoder against CPU decoder", "decoders:mixed_pixels", 90, 40),
    Item("ceilings", "matrix products and copies", "dense:ceilings", 45, 10, False),
    Item("gpu_tests", "tests marked gpu", "correctness:gpu_tests", 180, 30),
    Item("dense_large", "dense training at twice the batch", "dense:dense_large", 150, 40, False),
    Item("dense_fp16", "dense training in fp16", "dense:dense_fp16", 150, 40, False),
    Item("gates_30", "gates at 30 %", "gated:gates_at_30", 300, 200),
)


def all_items(num_gpus: int, every_gpu: bool) -> list[Item]:
    """The items for a machine; with `every_gpu` also the short ones on each further GPU, and their scaling."""
    items = list(ITEMS)
    if every_gpu:
        for gpu in range(1, num_gpus):
            for item in ITEMS:
                if item.name in ("ceilings", "dense"):
                    names = {"name": f"{item.name}, GPU {gpu}", "what": f"{item.what}, GPU {gpu}"}
                    items.append(dataclasses.replace(item, **names, gpu=gpu))
        items.append(Item("scaling", "dense training on several GPUs", "gated:scaling", 240, 60, gpu=None))
    return items
