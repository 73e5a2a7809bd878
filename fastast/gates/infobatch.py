"""InfoBatch: leaves out part of the well-learned samples and scales up the rest of them."""

from __future__ import annotations

import numpy as np

from fastast.cost_model import DENSE_COST
from fastast.errors import InputError
from fastast.gates.base import Choice, EpochContext, Gate
from fastast.gates.sampling import first_by_key, seeded_keys
from fastast.philox import STREAM_PLAN

ACTIVE_SHARE = 0.875  # of the run's epochs; delta in the paper


class InfoBatch(Gate):
    """Drops ids whose last loss lies below the mean with probability `prune` and weighs those kept by 1 / (1 - prune).

    Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning", ICLR 2024 (arXiv 2303.04947).
    The mean is that of the remembered losses of the offered ids. Ids at or above it, and ids never trained, are all
    kept with weight 1. In the last 12.5 % of the run's epochs nothing is dropped. A dropped id keeps its loss.

    The share trained follows from the losses, 1 - prune x (share below the mean): `target` has no part in it, nor
    have `selection`, `explore` and `unbiased`. As published, weights sum to the number of ids offered and so average
    more than 1 over those kept: an epoch has fewer steps, each of them longer.

    Args:
        prune: probability of leaving a well-learned sample out, in [0, 1); 0.5 as published. Exactly that share of
            them is left out, rounded.

    Raises:
        InputError: prune is outside [0, 1).
    """

    plans = True
    has_target = False

    def __init__(self, prune: float = 0.5) -> None:
        if not 0.0 <= prune < 1.0:
            raise InputError(f"infobatch prune {prune:g} is outside [0, 1): the published value is 0.5")
        self.prune = prune

    def plan(self, context: EpochContext) -> Choice | None:
        if context.progress >= ACTIVE_SHARE or context.losses is None:
            return None
        ids = context.offered_ids()
        losses = context.losses[ids]
        known = losses[np.isfinite(losses)]
        if len(known) == 0:
            return None
        learned = ids[losses < known.mean(dtype=np.float64)]  # false for NaN
        keys = seeded_keys(context.num_samples, context.seed, context.epoch, STREAM_PLAN)
        keep = np.zeros(context.num_samples, dtype=bool)
        keep[ids] = True
        keep[first_by_key(learned, keys, round(self.prune * len(learned)))] = False
        weights = keep.astype(np.float32)
        weights[learned] *= np.float32(1 / (1 - self.prune))
        return Choice(keep, weights)

    def cost(self, activation: float) -> float:
        return DENSE_COST * activation

    def planned_share(self, target: float | str) -> float:
        """Half of the samples below the mean loss: losses lean to the low side, so this is on the careful side."""
        return 1 - self.prune / 2
