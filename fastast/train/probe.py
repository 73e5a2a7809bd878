"""`--start probe`: a regression on the network's features sets its head and the remembered losses before training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastast.cost_model import DENSE_COST
from fastast.data import rank_slices
from fastast.models.linear_probe import as_trained, fit_flops, fit_probe
from fastast.phases import PROBE
from fastast.train.defaults import require_steps

if TYPE_CHECKING:
    from fastast.train.trainer import Trainer


def require_probe(trainer: Trainer) -> None:
    """Refuses a probe that cannot be made, or that leaves too little of the budget; before the folder is taken.

    Raises:
        InputError: the network does not end in a linear layer, or the budget does not pay for the training too.
    """
    config, engine, num_train = trainer.config, trainer.engine, trainer.dataset.train.num_samples
    if config.start != PROBE:
        return
    units = trainer.log.probe_units
    if not units:
        num_features = engine.open_head().layer.in_features
        flops = fit_flops(num_train, num_features, len(trainer.dataset.classes))
        units = num_train + flops / max(1, engine.forward_flops())
    require_steps(config, num_train, num_ranks=trainer.ranks.size, probe=units / (DENSE_COST * num_train))


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
    num_classes, weights = len(trainer.dataset.classes), engine.class_weights
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
                class_weights=head.layer.weight.new_ones(num_classes) if weights is None else weights,
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
