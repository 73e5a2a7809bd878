"""Options that follow from the machine and the data, where the user left them open."""

from __future__ import annotations

import math

from fastast.config import TrainConfig, planned_epochs
from fastast.cores import usable_cores
from fastast.device import Runtime
from fastast.errors import InputError
from fastast.train.budget import MIN_STEPS

# Hosts with hundreds of cores need no thread on each.
MAX_DECODER_THREADS = 32


def complete_config(
    config: TrainConfig, runtime: Runtime, num_train: int, *, num_ranks: int = 1, num_local: int = 1
) -> None:
    """Fills in the options that were left to the machine.

    Args:
        config: to be completed.
        runtime: device of the run.
        num_train: size of the training set.
        num_ranks: processes that train together; the default learning rate goes with the batch of all of them.
        num_local: those of them on this machine, which share its cores.

    Raises:
        InputError: a batch of all processes is larger than the training set; the budget pays for too few steps.
    """
    if config.batch_size is None:
        config.batch_size = 256 if runtime.device.type == "cuda" else 64
    if config.lr is None:
        # With weights 0.01 at batch 32, as our own fine-tuning bench needed (benchmarks/results/bench_finetune.md).
        config.lr = (0.1 if config.weights == "none" else 0.08) * config.batch_size * num_ranks / 256
    if config.threads is None:
        config.threads = max(1, min(MAX_DECODER_THREADS, usable_cores() // num_local))
    if config.batch_size * num_ranks > num_train:
        fits = num_train >= 2 * num_ranks
        remedy = f"use --batch-size {2 ** int(math.log2(num_train / num_ranks))}" if fits else "add pictures"
        times = f" x {num_ranks} processes" if num_ranks > 1 else ""
        raise InputError(
            f"--batch-size {config.batch_size}{times}: larger than the training set of {num_train:,} pictures; {remedy}"
        )
    _check_budget(config, num_train, num_ranks)


def _check_budget(config: TrainConfig, num_train: int, num_ranks: int) -> None:
    """Refuses a budget of epochs that does not pay for MIN_STEPS dense steps."""
    epochs, batch_size = planned_epochs(config), config.batch_size
    assert batch_size is not None
    if config.budget is None or epochs is None:
        return
    num_steps = epochs * num_train / (batch_size * num_ranks)
    if num_steps >= MIN_STEPS:
        return
    least = math.ceil(MIN_STEPS * batch_size * num_ranks / num_train * 100) / 100
    fits = int(epochs * num_train / (MIN_STEPS * num_ranks))
    smaller = f", or --batch-size {fits}" if fits >= 2 else ""
    raise InputError(
        f"--budget {config.budget}: pays for {num_steps:.0f} optimizer steps, and a run needs {MIN_STEPS}; "
        f"use --budget {least:g}ep{smaller}"
    )
