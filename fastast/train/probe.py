"""`--start probe`: a regression on the network's features sets its head and the remembered losses before training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastast.cost_model import DENSE_COST
from fastast.data import rank_slices
from fastast.errors import InputError
from fastast.models.linear_probe import as_trained, fit_probe

if TYPE_CHECKING:
    from fastast.train.trainer import Trainer


def run_probe(trainer: Trainer, check: Callable[[], object]) -> dict[str, Any]:
    """Fits the network's head to the training pictures as evaluation shows them, and fills the score memory.

    Stopped within, a run that resumes starts its probe again: nothing is changed before it is done.

    Args:
        trainer: whose network it is. All ranks call this.
        check: called between two batches and two iterations; may raise to end the run there.

    Returns:
        The `probe` entry of `summary.json`, without its accuracy.

    Raises:
        InputError: the network does not end in a linear layer, its features are not finite, or they find no space.
    """
    config, engine, ranks, catalog = trainer.config, trainer.engine, trainer.ranks, trainer.dataset.train
    num_classes = len(trainer.dataset.classes)
    began_s, begun = time.monotonic(), trainer.energy.meter.reading()
    slices = list(rank_slices(np.arange(catalog.num_samples), trainer.batch_size, ranks.rank, ranks.size))
    num_own = sum(map(len, slices))
    features, regression = (trainer.reporter.counter(f"probe, {what}") for what in ("features", "regression"))

    def on_batch(num_seen: int) -> None:
        features(num_seen, num_own)
        check()

    def on_iteration(done: int, total: int) -> None:
        regression(done, total)
        check()

    try:
        head = engine.open_head()
        with contextlib.closing(trainer.loaders.open_probe()) as loader:
            found = fit_probe(
                head,
                loader.over(slices),
                catalog.labels,
                num_own=num_own,
                run=engine.run,
                num_classes=num_classes,
                seed=config.seed,
                ranks=ranks,
                folder=trainer.folder.path,
                on_batch=on_batch,
                on_iteration=on_iteration,
            )
    finally:
        trainer.reporter.end()
    head.set(*found.head)
    engine.memory.fill(as_trained(found.losses, config.label_smoothing, num_classes))
    units = found.units(engine.forward_flops())
    seconds = time.monotonic() - began_s
    return {
        "pictures": found.num_pictures,
        "forward_units": found.num_pictures + units,
        "fit_units": units,
        "penalty": found.penalty,
        "held_out_loss": found.held_out_loss,
        "seconds": seconds,
        "gpu_j": trainer.energy.joules_since(begun, ranks),
    }


def begin_budget(trainer: Trainer) -> None:
    """Lets the progress begin after what the probe took of a budget of epochs.

    Raises:
        InputError: nothing is left.
    """
    budget, log = trainer.budget, trainer.log
    if budget is None or budget.kind != "ep":
        return
    budget.before = budget.spent
    if not budget.pays_for(log.step_units(trainer.config.train_sizes[-1])):
        took = log.probe_units / (DENSE_COST * trainer.dataset.train.num_samples)
        raise InputError(
            f"--budget {trainer.config.budget}: the probe took {took:.3g}ep, which leaves nothing for training; give "
            "more, in another --out or with --resume --force, or use --start random in another --out"
        )
