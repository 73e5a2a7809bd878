"""The suite's items, in order of priority."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.gpu.settings import Report, Settings


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to measure.

    Attributes:
        name: its key in the results.
        what: in a few words.
        place: "module:function" under benchmarks.gpu, imported in the item's own process.
        budget_s: seconds after which it is ended.
        least_s: seconds under which it is not begun.
        needs_dali: whether it cannot do without DALI.
        gpu: index of the GPU among those this suite may use; None: all of them.
    """

    name: str
    what: str
    place: str
    budget_s: float
    least_s: float
    needs_dali: bool = True
    gpu: int | None = 0

    def function(self) -> Callable[[Settings, Report], None]:
        """What measures it."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(f"benchmarks.gpu.{module}"), name)


MACHINE = Item("machine", "hardware, driver, versions, `fastast doctor`", "correct:machine", 60, 5, needs_dali=False)

ITEMS = (
    Item("mixed_pixels", "GPU decoder against CPU decoder", "decoders:mixed_pixels", 90, 40),
    Item("hostile", "hostile pictures", "correct:hostile", 60, 15),
    Item("precisions", "number formats, CUDA graphs, memory in fp16", "dense:precisions", 90, 20, needs_dali=False),
    Item("ceilings", "matrix products, copies, forward and backward", "dense:ceilings", 45, 10, needs_dali=False),
    Item("dense", "dense training on synthetic pictures", "dense:dense", 150, 40, needs_dali=False),
    # Part of what is right, but long: after the first figures of a short call.
    Item("gpu_tests", "tests marked gpu", "correct:gpu_tests", 90, 30),
    Item("dense_large", "the same at twice the batch", "dense:dense_large", 150, 40, needs_dali=False),
    Item("dense_fp16", "the same in fp16", "dense:dense_fp16", 150, 40, needs_dali=False),
    Item("fed", "dense training from JPEGs", "fed:fed_training", 150, 40),
    Item("gates_10", "gates at 10 %", "gated:gates_at_10", 480, 240),
    Item("gates_30", "gates at 30 %", "gated:gates_at_30", 480, 240),
    Item("accuracy", "accuracy of gates beside dense and random", "gated:accuracy", 3600, 150),
)


def all_items(num_gpus: int, every_gpu: bool) -> list[Item]:
    """The items of a machine: with `every_gpu` the short ones on each further GPU, too, and how they scale."""
    items = list(ITEMS)
    if every_gpu:
        for gpu in range(1, num_gpus):
            for item in ITEMS:
                if item.name in ("ceilings", "dense"):
                    name, what = f"{item.name}, GPU {gpu}", f"{item.what}, GPU {gpu}"
                    items.append(Item(name, what, item.place, item.budget_s, item.least_s, item.needs_dali, gpu))
        items.append(Item("scaling", "dense training on several GPUs", "gated:scaling", 240, 60, gpu=None))
    return items
