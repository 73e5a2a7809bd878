"""Which values the options of a run may have, one by one and together; a refusal names one that works."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fastast.config.options import parse_budget, parse_duration, require
from fastast.config.train_sizes import MIN_SIZE, train_sizes
from fastast.gates.registry import GATES, LEAST_SHARE
from fastast.loggers.available import logger_names
from fastast.phases import PROBE

if TYPE_CHECKING:
    from fastast.config.train_config import TrainConfig


def check_config(config: TrainConfig) -> None:
    """Checks options of the right types, whose open values are filled in as far as they follow from the others.

    Raises:
        InputError: a value is outside its range, or does not go with another.
    """
    for check in (_check_schedule, _check_gate, _check_network, _check_machine, _check_data):
        check(config)


def planned_epochs(config: TrainConfig) -> float | None:
    """Epochs that dense training would make; None where a time or an energy decides."""
    if config.budget is None:
        return config.epochs
    kind, value = parse_budget(config.budget, "--budget")
    return value if kind == "ep" else None


def idle_gate(config: TrainConfig) -> str | None:
    """A line for the user where the dense epochs leave the gate nothing, else None."""
    epochs, warmup_epochs = planned_epochs(config), config.warmup_epochs or 0.0
    if config.gate == "dense" or epochs is None or warmup_epochs + config.anneal < epochs:
        return None
    dense = f"--warmup-epochs {warmup_epochs:g}" + (f" and --anneal {config.anneal:g}" if config.anneal else "")
    whole = f"--epochs {epochs:g}" if config.budget is None else f"--budget {config.budget}"
    more = "give more epochs" if config.budget is None else "give a larger budget"
    take = "take" if config.anneal else "takes"
    return f"--gate {config.gate} never runs: {dense} {take} all {whole}; {more}, or --warmup-epochs 0"


def _check_schedule(config: TrainConfig) -> None:
    require(
        config.eval_every == "auto" or _is_positive(config.eval_every),
        f"--eval-every {config.eval_every}: give auto, or a number of epochs above 0, for example 1",
    )
    if config.budget is None:
        require((config.epochs or 0) > 0, f"--epochs {config.epochs:g}: must be above 0, for example 10")
    else:
        require(
            config.epochs is None,
            f"--budget {config.budget} and --epochs {config.epochs or 0:g}: exclude each other; leave one of them out",
        )
        parse_budget(config.budget, "--budget")


def _check_gate(config: TrainConfig) -> None:
    kinds = GATES[config.gate].significance
    if isinstance(config.target, str):
        require(
            GATES[config.gate].adapts or "target" not in GATES[config.gate].options,
            f"--target {config.target}: {config.gate} has no scores to find its share in; give a number, for example "
            "--target 0.1",
        )
    else:
        require(0 < config.target <= 1, f"--target {config.target:g}: must be in (0, 1], for example 0.1")
    require(
        config.significance is None or not kinds or config.significance in kinds,
        f"--significance {config.significance}: not with --gate {config.gate}; choose from {', '.join(kinds)}",
    )
    warmup_epochs = config.warmup_epochs or 0.0
    require(warmup_epochs >= 0, f"--warmup-epochs {warmup_epochs:g}: must be 0 or more")
    require(config.anneal >= 0, f"--anneal {config.anneal:g}: must be 0 or more")
    require(
        config.gate == "dense" or config.epochs is None or warmup_epochs + config.anneal <= config.epochs + 1e-9,
        f"--warmup-epochs {warmup_epochs:g} and --anneal {config.anneal:g}: take more than "
        f"--epochs {config.epochs or 0:g} has; shorten them, for example --warmup-epochs 0",
    )
    most = LEAST_SHARE if isinstance(config.target, str) else config.target
    require(
        0 <= config.explore < most,
        f"--explore {config.explore:g}: must be 0 or more and below "
        + (f"{most:g}, the least share of --target auto" if most != config.target else f"--target {most:g}"),
    )
    require(
        not (config.unbiased and config.selection == "hard"),
        "--unbiased needs --selection soft: under the hard rule a sample's probability is 0 or 1",
    )
    require(0 <= config.prune < 1, f"--prune {config.prune:g}: must be in [0, 1), for example 0.5")


def _check_network(config: TrainConfig) -> None:
    require(
        config.start != PROBE or config.weights != "none",
        "--start probe: needs --weights, since a network that knows nothing has no features worth a probe",
    )
    require(config.image_size >= MIN_SIZE, f"--image-size {config.image_size}: must be at least {MIN_SIZE} pixels")
    train_sizes(config.train_size, config.image_size)
    require(
        config.batch_size is None or config.batch_size >= 2,
        f"--batch-size {config.batch_size}: must be at least 2 (batch normalisation needs two samples)",
    )
    require(config.lr is None or config.lr > 0, f"--lr {config.lr}: must be above 0, for example 0.1")
    require(0 <= config.lr_warmup < 1, f"--lr-warmup {config.lr_warmup:g}: must be in [0, 1)")
    require(0 < config.momentum < 1, f"--momentum {config.momentum:g}: must be in (0, 1), for example 0.9")
    decay = config.weight_decay
    require(decay is None or decay >= 0, f"--weight-decay {decay}: must be 0 or more")
    require(0 <= config.label_smoothing < 1, f"--label-smoothing {config.label_smoothing:g}: must be in [0, 1)")
    require(0 < config.min_crop <= 1, f"--min-crop {config.min_crop:g}: must be in (0, 1], for example 0.25")


def _check_machine(config: TrainConfig) -> None:
    require(config.checkpoint_every >= 0, f"--checkpoint-every {config.checkpoint_every:g}: must be 0 or more minutes")
    require(config.stall_timeout >= 0, f"--stall-timeout {config.stall_timeout:g}: must be 0 or more seconds")
    if config.max_time is not None:
        parse_duration(config.max_time, "--max-time")
    require(config.dense_calibration >= 0, f"--dense-calibration {config.dense_calibration}: must be 0 or more steps")
    if isinstance(config.power_limit, float):
        require(config.power_limit > 0, f"--power-limit {config.power_limit:g}: must be above 0 watts, for example 250")
    clock = config.lock_clocks
    require(clock is None or clock > 0, f"--lock-clocks {clock}: must be above 0 MHz, for example 1200")
    for flag, value in (("--price-per-kwh", config.price_per_kwh), ("--gco2-per-kwh", config.gco2_per_kwh)):
        require(value is None or value >= 0, f"{flag} {value}: must be 0 or more")
    require(0 <= config.seed < 2**63, f"--seed {config.seed}: must be 0 or more, and below 2^63")
    require(
        config.nproc in (None, "auto") or ((config.nproc or "").isdecimal() and int(config.nproc or 0) > 0),
        f"--nproc {config.nproc}: give a number of processes, or auto",
    )
    require(config.threads is None or config.threads >= 1, f"--threads {config.threads}: must be at least 1")
    logger_names(config.log)
    require(config.log_every >= 1, f"--log-every {config.log_every}: must be at least 1")


def _check_data(config: TrainConfig) -> None:
    require(
        config.val_split is None or 0 < config.val_split < 1,
        f"--val-split {config.val_split}: must be in (0, 1), for example 0.05",
    )
    require(
        not (config.data and config.train_dir),
        "--data and --train-dir exclude each other: both name training folders, so leave one out",
    )
    require(
        all(part.strip() for part in (config.train_dir or "-").split(",")),
        f"--train-dir {config.train_dir}: has an empty part; leave out that comma",
    )
    require(
        not config.val_dir or bool(config.data or config.train_dir),
        "--val-dir needs --data or --train-dir: name the training folders too",
    )
    require(
        not (config.val_dir and config.val_split),
        "--val-dir and --val-split exclude each other: leave out --val-split to use the folder",
    )


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False
