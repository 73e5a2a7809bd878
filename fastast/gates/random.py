"""The random gate: a fresh random share each epoch."""

from __future__ import annotations

import numpy as np

from fastast.cost_model import DENSE_COST
from fastast.gates.base import Choice, EpochContext, Gate
from fastast.gates.sampling import first_by_key, seeded_keys
from fastast.philox import STREAM_PLAN


class Random(Gate):
    """Trains a fresh random share in each epoch and never reads the rest.

    Every id has the same probability, so importance weights would all be 1: `unbiased` changes nothing.
    """

    plans = True

    def plan(self, context: EpochContext) -> Choice:
        ids = context.offered_ids()
        keys = seeded_keys(context.num_samples, context.seed, context.epoch, STREAM_PLAN)
        keep = np.zeros(context.num_samples, dtype=bool)
        keep[first_by_key(ids, keys, context.num_chosen(len(ids)))] = True
        return Choice(keep)

    def cost(self, activation: float) -> float:
        return DENSE_COST * activation
