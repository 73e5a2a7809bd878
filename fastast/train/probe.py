"""`--start probe`: a regression on the network's features sets its head and the remembered losses before training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastast.cost_model import DENSE_COST
from fastast.data import rank_slices
from fastast.models.feature_store import FeatureStore
from fastast.models.head import Head
from fastast.models.linear_probe import as_trained, collect, fit_flops, fit_probe, folds_of
from fastast.phases import PROBE
from fastast.train.defaults import require_steps

if TYPE_CHECKING:
    from fastast.train.trainer import Trainer

FEATURES = "features-{}.bin"  # among the checkpoints, until the probe is done


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


class RunProbe:
    """The probe of a run. What a stop interrupts goes on with the features that were saved.

    Args:
        trainer: whose network it is. All ranks call every method alike.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._store: FeatureStore | None = None
        self._num_batches = 0  # whose features are in the store
        self._begun = time.monotonic(), trainer.energy.meter.reading()
        self._earlier: dict[str, Any] = {"batches": 0, "seconds": 0.0, "gpu_j": 0.0}

    def run(self, check: Callable[[], object]) -> dict[str, Any]:
        """Fits the network's head to the training pictures as evaluation shows them, and fills the score memory.

        Args:
            check: called between two batches and two iterations, where `state_dict` may be called; may raise to end
                the run there.

        Returns:
            The `probe` entry of `summary.json`, without its accuracy.

        Raises:
            InputError: the network does not end in a linear layer, its features are not finite, or they find no space.
        """
        trainer = self._trainer
        config, engine, ranks = trainer.config, trainer.engine, trainer.ranks
        num_classes, weights = len(trainer.dataset.classes), engine.class_weights
        self._begun = time.monotonic(), trainer.energy.meter.reading()
        regression = trainer.reporter.counter("probe, regression")

        def on_iteration(done: int, total: int) -> None:
            regression(done, total)
            check()

        try:
            head = engine.open_head()
            store = self._collect(head, check)
            found = fit_probe(
                store,
                head.layer.weight.new_ones(num_classes) if weights is None else weights,
                trainer.dataset.train.num_samples,
                ranks,
                on_iteration,
            )
        finally:
            trainer.reporter.end()
        head.set(*found.head)
        engine.memory.fill(as_trained(found.losses, config.label_smoothing, num_classes))
        units = found.units(engine.forward_flops())
        spent = self._spent()
        self.close()
        return {
            "pictures": found.num_pictures,
            "forward_units": found.num_pictures + units,
            "fit_units": units,
            "penalty": found.penalty,
            "held_out_loss": found.held_out_loss,
            **spent,
        }

    def _collect(self, head: Head, check: Callable[[], object]) -> FeatureStore:
        """The features of this rank's pictures, of which those that are saved are not made again."""
        trainer = self._trainer
        catalog, ranks, device = trainer.dataset.train, trainer.ranks, head.layer.weight.device
        slices = list(rank_slices(np.arange(catalog.num_samples), trainer.batch_size, ranks.rank, ranks.size))
        name = f"{ranks.rank}-of-{ranks.size}-{trainer.config.image_size}px-{str(trainer.runtime.dtype)[6:]}"
        num_own = sum(map(len, slices))
        self._store = store = FeatureStore(
            num_own,
            head.layer.in_features,
            torch.from_numpy(catalog.labels).long().to(device),
            torch.from_numpy(folds_of(catalog.labels, trainer.config.seed)).to(device),
            trainer.folder.checkpoints / FEATURES.format(name),
        )
        self._num_batches = min(ranks.all_gather_object(self._earlier["batches"]))  # a rank may have found no space
        done = np.concatenate([np.arange(0), *slices[: self._num_batches]])
        if not all(ranks.all_gather_object(store.restore(done[~trainer.loaders.train.bad_ids[done]]))):
            store.restore(done[:0])
            self._num_batches = 0
        progress = trainer.reporter.counter("probe, features")

        def on_batch() -> None:
            self._num_batches += 1
            progress(store.num_rows, num_own)
            check()

        with contextlib.closing(trainer.loaders.open_probe()) as loader:
            collect(store, head, loader.over(slices[self._num_batches :]), trainer.engine.run, on_batch)
        return store

    def _spent(self) -> dict[str, Any]:
        """Seconds and joules of the probe so far, those of earlier processes included."""
        trainer, (began_s, begun) = self._trainer, self._begun
        joules, before_j = trainer.energy.joules_since(begun, trainer.ranks), self._earlier["gpu_j"]
        return {
            "seconds": self._earlier["seconds"] + time.monotonic() - began_s,
            "gpu_j": None if joules is None or before_j is None else before_j + joules,
        }

    def state_dict(self) -> dict[str, Any] | None:
        """What a process that goes on within the probe needs, beside the features, which are saved; None outside."""
        if self._store is None:
            return None
        return {"batches": self._num_batches if self._store.save() else 0, **self._spent()}

    def load_state_dict(self, states: Sequence[dict[str, Any] | None]) -> None:
        """Takes the states of all ranks; if there were as many, the probe goes on, else it starts again."""
        if (own := states[min(self._trainer.ranks.rank, len(states) - 1)]) is not None:
            same = len(states) == self._trainer.ranks.size
            self._earlier = {**own, "batches": own["batches"] if same else 0}

    def remove_saved(self) -> None:
        """Removes the saved features of all ranks, once a checkpoint has the head."""
        if self._trainer.ranks.is_first:
            for path in self._trainer.folder.checkpoints.glob(FEATURES.format("*")):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Frees the features; what is saved stays."""
        if self._store is not None:
            self._store.close()
        self._store = None
