"""The evaluation of a run on its validation pictures: counted in its time and energy, and in its budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from fastast.data import rank_slices
from fastast.distributed.gradient_averaging import average_statistics
from fastast.distributed.ranks import Ranks
from fastast.engine.engine import Engine
from fastast.engine.evaluation import Accuracy, evaluate
from fastast.feed import Batch
from fastast.loggers.counters import Counters
from fastast.phases import EVAL
from fastast.record.predictions import LastPredictions
from fastast.train.budget_meter import BudgetMeter
from fastast.train.loaders import Loaders
from fastast.train.run_energy import RunEnergy

# Share of the validation batches by which a budget of time or energy learns early what an evaluation costs.
TIMED_SHARE = 0.05
# Its first batches, in which the loader fills up, do not count.
LEAD = 4


class Validation:
    """Evaluates the network that trains; all ranks together, each on its share of the pictures.

    Args:
        engine: holds the network.
        loaders: read the pictures.
        counters: take the time that it needed.
        energy: meters it.
        budget_meter: pays for it.
        ranks: who takes part.
        num_pictures: in the validation set.
        batch_size: on each rank.

    Attributes:
        predictions: of the weights that did best in the last evaluation.
        average: what it said of the average of the weights: the decay at its end, its top1, that of the plain weights,
            and whether the average was used; None where it did not try it.
    """

    def __init__(
        self,
        engine: Engine,
        loaders: Loaders,
        counters: Counters,
        energy: RunEnergy,
        budget_meter: BudgetMeter,
        ranks: Ranks,
        *,
        num_pictures: int,
        batch_size: int,
    ) -> None:
        self._engine, self._loaders, self._counters = engine, loaders, counters
        self._energy, self._budget_meter, self._ranks = energy, budget_meter, ranks
        self._num_pictures, self._batch_size = num_pictures, batch_size
        self.predictions = LastPredictions(num_pictures, engine.device)
        self.average: dict[str, Any] | None = None

    def run(
        self, between: Callable[[], None], at_end: Callable[[], None], phase: str = EVAL, *, is_last: bool = False
    ) -> Accuracy:
        """Evaluates on all pictures; at the end of the run the average of the weights too, if there is one.

        Args:
            between: called between two batches; may raise to end the run there.
            at_end: called after the last one, before the time is read.
            phase: that its energy counts to.
            is_last: whether it is at the end of the run.

        Returns:
            The accuracy of `engine.best_weights`.
        """
        ema = self._engine.ema
        self._energy.meter.set_phase(phase)
        began = time.monotonic()
        self._budget_meter.begin_evaluation()
        self.average = None
        try:
            accuracy = self._evaluate(between)
            if ema is not None:
                ema.is_better = False
            if ema is not None and is_last:
                plain = self.predictions
                self.predictions = LastPredictions(self._num_pictures, self._engine.device)
                with ema.swapped():
                    averaged = self._evaluate(between)
                ema.is_better = averaged.top1 > accuracy.top1
                self.average = {"decay": ema.decay, "top1": averaged.top1, "plain_top1": accuracy.top1}
                self.average["used"] = ema.is_better
                if ema.is_better:
                    accuracy = averaged
                else:
                    self.predictions = plain
            at_end()
            self._budget_meter.end_evaluation(self._share(is_last))
        finally:
            self._counters.eval_s += time.monotonic() - began
        return accuracy

    def _share(self, is_last: bool) -> float:
        """What an evaluation is of the last one, which evaluates twice if weights are averaged."""
        return 1.0 if is_last or self._engine.ema is None else 0.5

    def _evaluate(self, between: Callable[[], None]) -> Accuracy:
        self.predictions.clear()

        def take(batch: Batch, logits: torch.Tensor) -> None:
            self.predictions.add(batch, logits)
            between()

        average_statistics(self._engine.model, self._ranks)
        return evaluate(
            self._engine.eval_step,
            self._batches(self._num_pictures),
            run=self._engine.evaluate,
            on_logits=take,
            ranks=self._ranks,
        )

    def time_part(self) -> None:
        """Runs a small part of an evaluation, so that the last one can be kept back from a budget of time or energy."""
        self._energy.meter.set_phase(EVAL)
        began = time.monotonic()
        size = self._batch_size * self._ranks.size
        num_batches = -(-self._num_pictures // size)  # the last one costs as much as the others
        num_timed = min(max(round(TIMED_SHARE * num_batches), 4 * LEAD), num_batches)
        lead = min(LEAD, num_timed // 2)
        for number, batch in enumerate(self._batches(min(num_timed * size, self._num_pictures))):
            if number == lead:
                self._engine.synchronize()
                self._budget_meter.begin_evaluation()
            self._engine.evaluate(batch.images, batch.labels, batch.valid)
        self._engine.synchronize()
        self._budget_meter.end_evaluation((num_timed - lead) / num_batches * self._share(is_last=False))
        self._counters.eval_s += time.monotonic() - began

    def _batches(self, num_pictures: int) -> Iterator[Batch]:
        """This rank's batches of the first pictures."""
        slices = rank_slices(np.arange(num_pictures), self._batch_size, self._ranks.rank, self._ranks.size)
        return self._loaders.val.over(slices)
