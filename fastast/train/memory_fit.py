"""Out of memory: telling it from other failures, and finding by trial the batch size that would fit."""

from __future__ import annotations

import dataclasses
import errno
import gc
import re

import torch

from fastast.config import TrainConfig
from fastast.train.engine import Engine
from fastast.train.setup import Machine

# As torch's allocators, CUDA, cuDNN, cuBLAS, nvJPEG, DALI and libstdc++ put it.
_NO_MEMORY = re.compile(
    r"out of memory|(can't|cannot|could not|failed to|unable to) allocate|allocation failed|bad_alloc"
    r"|ALLOC_FAILED|ALLOCATOR_FAILURE|MemoryAllocation",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, means that host or device memory ran out."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__
    return False


def fitting_batch(config: TrainConfig, machine: Machine, num_classes: int) -> int | None:
    """Scores, trains and evaluates at ever smaller powers of two until that does not run out of memory.

    The steps run uncompiled, since compiling each size would take minutes; a compiled run may need a little more or
    less. Call it once everything of the failed run is released: its trainer, and the error with the frames that its
    traceback holds.

    Args:
        config: completed options of the run that failed.
        machine: where it ran.
        num_classes: outputs of the network.

    Returns:
        The largest that fits, below `config.batch_size`; None if not even 2 does.
    """
    assert config.batch_size is not None, "complete_config was not called"
    machine = dataclasses.replace(machine, compiled=False)
    batch_size = 2 ** ((config.batch_size - 1).bit_length() - 1)
    while batch_size >= 2:
        if _fits(dataclasses.replace(config, batch_size=batch_size), machine, num_classes):
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


def _fits(config: TrainConfig, machine: Machine, num_classes: int) -> bool:
    assert config.batch_size is not None
    _free(machine)
    try:
        engine = Engine(config, machine, weights="none", num_classes=num_classes, num_train=2 * config.batch_size)
        engine.warm_up()  # with its copy of the state, a little more than the run itself will need
        engine.read_status()  # waits for the device, whose errors come late
    except Exception as error:
        if is_out_of_memory(error):
            return False
        raise
    return True


def _free(machine: Machine) -> None:
    gc.collect()
    if machine.device.type == "cuda":
        torch.cuda.empty_cache()
