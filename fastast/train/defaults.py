"""Options that follow from the machine and the data, where the user left them open; plans that are too small."""

from __future__ import annotations

import dataclasses
import math

from fastast.config import TrainConfig
from fastast.config.config_checks import check_config, planned_epochs
from fastast.device import Runtime
from fastast.errors import InputError
from fastast.gates.registry import make_gate
from fastast.phases import PROBE
from fastast.plan.budget import MIN_STEPS


def complete_config(
    config: TrainConfig,
    runtime: Runtime,
    num_train: int,
    *,
    new_head: bool = False,
    num_ranks: int = 1,
) -> list[str]:
    """Fills in the options that were left to the machine.

    Args:
        config: to be completed. A batch that is larger than the training set shrinks.
        runtime: device of the run.
        num_train: size of the training set.
        new_head: `--weights` are for other classes.
        num_ranks: processes that train together; the default learning rate goes with the batch of all of them.

    Returns:
        What the user should know, a line each.

    Raises:
        InputError: the training set is too small for a batch, or options do not go with the start.
    """
    notes = []
    config.settle_start(new_head=new_head)
    check_config(config)  # again, as what follows from the start may not go with other options
    if config.batch_size is None:
        config.batch_size = 256 if runtime.device.type == "cuda" else 64
    if config.batch_size * num_ranks > num_train:
        if num_train < 2 * num_ranks:
            raise InputError(f"{num_train:,} training pictures: too few for a batch; add pictures")
        times = f" x {num_ranks} processes" if num_ranks > 1 else ""
        fits = 2 ** int(math.log2(num_train / num_ranks))
        notes.append(
            f"--batch-size {config.batch_size}{times}: larger than the training set of {num_train:,} pictures; {fits} "
            "is used"
        )
        config.batch_size = fits
    if config.lr is None:
        config.lr = _default_lr(config, config.batch_size * num_ranks / 256)
    return notes


def _default_lr(config: TrainConfig, batches: float) -> float:
    """The peak learning rate for a batch of `batches` x 256 over all ranks."""
    is_new = config.weights == "none"
    if config.optimizer == "adamw":
        # Liu et al., "A ConvNet for the 2020s", CVPR 2022: 4e-3 at 4096 from scratch, 5e-5 at 512 in fine-tuning; by
        # the square root, as adaptive optimizers take it (Malladi et al., NeurIPS 2022).
        return (1e-3 if is_new else 5e-5) * math.sqrt(batches)
    if config.start == PROBE:
        return 0.008 * batches  # benchmarks/results/bench_probe.md: 0.001 at batch 32
    # With weights 0.01 at batch 32, as our own fine-tuning bench needed (benchmarks/results/bench_finetune.md).
    return (0.1 if is_new else 0.08) * batches


def check_plan(config: TrainConfig, num_train: int, *, num_ranks: int = 1) -> list[str]:
    """Looks at what is planned before anything is trained.

    Args:
        config: completed options.
        num_train: size of the training set.
        num_ranks: processes that train together.

    Returns:
        A line for the user where `--epochs` makes fewer than MIN_STEPS optimizer steps.

    Raises:
        InputError: a budget of epochs does not pay for MIN_STEPS dense steps (after a probe, `require_probe` tells);
            `--dense-calibration` leaves the gate nothing.
    """
    epochs = planned_epochs(config)
    assert config.batch_size is not None, "complete_config was not called"
    if epochs is None:
        return []  # the pace will tell
    per_epoch = num_train / (config.batch_size * num_ranks)  # steps
    share, dense = 1.0, epochs
    if config.gate != "dense":
        calibration = config.dense_calibration / per_epoch
        if config.dense_calibration and calibration + config.anneal >= epochs:
            fits = math.ceil((epochs - config.anneal) * per_epoch) - 1
            remedy = f"use {fits} or fewer, or train longer" if fits > 0 else "leave it out, or train longer"
            raise InputError(
                f"--dense-calibration {config.dense_calibration}: these steps are {calibration:.3g} of "
                f"{epochs:g} epochs and leave --gate {config.gate} nothing; {remedy}"
            )
        gate = make_gate(config.gate, dataclasses.asdict(config))
        share = gate.planned_share(config.target)
        dense = min(epochs, max(config.warmup_epochs or 0.0, calibration) + config.anneal)
    if config.budget is not None:
        if config.start != PROBE:  # whose work is not known yet
            require_steps(config, num_train, num_ranks=num_ranks)
        return []
    num_steps = (dense + share * (epochs - dense)) * per_epoch
    if num_steps >= MIN_STEPS:
        return []
    smaller = f", or a --batch-size below {config.batch_size}" if config.batch_size > 2 else ""
    return [
        f"only about {num_steps:.0f} optimizer steps are planned, which teach a network little: give more "
        f"--epochs{smaller}"
    ]


def require_steps(config: TrainConfig, num_train: int, *, num_ranks: int = 1, probe: float = 0.0) -> None:
    """Refuses a budget of epochs that does not pay for MIN_STEPS dense steps.

    Args:
        config: completed options.
        num_train: size of the training set.
        num_ranks: processes that train together.
        probe: what a probe takes of the budget, in dense epochs.

    Raises:
        InputError: it does not; the message names a budget that does.
    """
    epochs = planned_epochs(config)
    if config.budget is None or epochs is None:
        return
    assert config.batch_size is not None
    per_epoch = num_train / (config.batch_size * num_ranks)  # steps
    steps = max(0.0, epochs - probe) * per_epoch
    if steps >= MIN_STEPS - 1e-6:
        return
    remedies = [f"--budget {math.ceil((MIN_STEPS / per_epoch + probe) * 100) / 100:g}ep"]
    if (fits := int(steps * config.batch_size / MIN_STEPS)) >= 2:
        remedies.append(f"--batch-size {fits}")
    if probe and epochs * per_epoch >= MIN_STEPS:
        remedies.append("--start random")
    less = f"the probe takes {probe:.2g}ep of it, and the rest " if probe else ""
    raise InputError(
        f"--budget {config.budget}: {less}pays for {steps:.0f} optimizer steps, and a run needs {MIN_STEPS}; use "
        + ", or ".join(remedies)
    )
