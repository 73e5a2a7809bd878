"""After running out of memory: finds by trial the batch size that fits."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Callable

import numpy as np
import torch

from fastast.config import TrainConfig
from fastast.device import Runtime, is_out_of_memory
from fastast.engine.compiled_engine import warm_up
from fastast.engine.engine import Engine
from fastast.train.loaders import Loaders


def fitting_batch(
    config: TrainConfig, runtime: Runtime, num_classes: int, open_loaders: Callable[[TrainConfig], Loaders]
) -> int | None:
    """Loads, scores, trains and evaluates at ever smaller powers of two until that does not run out of memory.

    The steps run uncompiled, since compiling each size would take minutes; a compiled run may need a little more or
    less. Call it once everything of the failed run is released: its trainer, and the error with the frames that its
    traceback holds.

    Args:
        config: completed options of the run that failed.
        runtime: where it ran.
        num_classes: outputs of the network.
        open_loaders: opens the loaders of a run with other options, whose decoders need memory of their own.

    Returns:
        The largest that fits, below `config.batch_size`; None if not even 2 does.
    """
    assert config.batch_size is not None, "complete_config was not called"
    runtime = dataclasses.replace(runtime, compiled=False)
    batch_size = 2 ** ((config.batch_size - 1).bit_length() - 1)
    while batch_size >= 2:
        if _fits(dataclasses.replace(config, batch_size=batch_size), runtime, num_classes, open_loaders):
            return batch_size
        batch_size //= 2
    return None


def describe_out_of_memory(config: TrainConfig, fitting: int | None) -> str:
    """One line for the user; `fitting` is what `fitting_batch` found."""
    if fitting is None:
        return (
            f"out of memory at --batch-size {config.batch_size}, and not even 2 fits; use a smaller --image-size "
            "or --arch"
        )
    return (
        f"out of memory at --batch-size {config.batch_size}: a training step fits at --batch-size {fitting}; use it, "
        "and scale --lr with it"
    )


def _fits(
    config: TrainConfig, runtime: Runtime, num_classes: int, open_loaders: Callable[[TrainConfig], Loaders]
) -> bool:
    assert config.batch_size is not None
    _free(runtime)
    try:
        with contextlib.closing(open_loaders(config)) as loaders:
            ids = np.arange(loaders.train.catalog.num_samples)
            batches = loaders.train.epoch(0, ids)
            next(batches)  # while it is open, the loader holds as many batches as in a run
            engine = Engine(config, runtime, weights="none", num_classes=num_classes, num_train=2 * config.batch_size)
            warm_up(engine)  # with its copy of the state, a little more than the run itself will need
            engine.read_status()  # waits for the device, whose errors come late
    except Exception as error:
        if is_out_of_memory(error):
            return False
        raise
    return True


def _free(runtime: Runtime) -> None:
    gc.collect()
    if runtime.device.type == "cuda":
        torch.cuda.empty_cache()
