"""What each stretch of a run offers, which of it is read, and with which weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fastast.config import TrainConfig
from fastast.data import epoch_ids
from fastast.gate import Policy, ScoreMemory, Window, make_policy
from fastast.train.schedule import GATED, Schedule, Stretch


@dataclass(frozen=True, slots=True)
class StretchPlan:
    """A stretch's plan.

    Attributes:
        order: int64[n], the ids that the stretch offers, in order.
        places: int64[m], positions in `order` of the ids that are read.
        weights: float32[N] on the device, the weight of each sample's loss; None for 1.
        keep: bool[N] on the device, the ids that the policy chose; None where it did not choose.
    """

    order: np.ndarray
    places: np.ndarray
    weights: torch.Tensor | None = None
    keep: torch.Tensor | None = None


class Planner:
    """Turns the options of a run into its schedule, and asks the gate's policy for the plan of each stretch.

    Args:
        config: completed options.
        num_train: size of the training set.
        num_ranks: processes that train together.

    Attributes:
        policy: the gate.
        schedule: the stretches of the run.
    """

    def __init__(self, config: TrainConfig, num_train: int, *, num_ranks: int = 1) -> None:
        assert config.batch_size is not None, "complete_config was not called"
        self._config = config
        self._num_train = num_train
        options = {"infobatch": {"prune": config.prune}}
        self.policy: Policy = make_policy(config.gate, **options.get(config.gate, {}))
        self._warmup = max(config.warmup_epochs, config.dense_calibration * config.batch_size * num_ranks / num_train)
        self.schedule = Schedule(
            num_train,
            epochs=config.epochs,
            warmup_epochs=self._warmup,
            anneal_epochs=config.anneal,
            planned_share=self.policy.planned_share(config.target),
            gated=self.policy.name != "dense",
        )

    def plan(self, stretch: Stretch, bad_ids: np.ndarray, memory: ScoreMemory) -> StretchPlan:
        """Plans a stretch; where the policy chooses by remembered losses, this waits for the device.

        Args:
            stretch: one of the schedule's.
            bad_ids: bool[N], quarantined ids, which are not offered.
            memory: last training losses and ages.
        """
        config, num_train = self._config, self._num_train
        order = self._order(stretch, bad_ids)
        if stretch.phase != GATED or not self.policy.plans:
            return StretchPlan(order, np.arange(len(order)))
        offered = np.zeros(num_train, bool)
        offered[order] = True
        plan = self.policy.plan(
            Window(
                num_samples=num_train,
                epoch=stretch.epoch,
                seed=config.seed,
                target=config.target,
                progress=stretch.offered_before / self.schedule.num_offered,
                scores=memory.score.cpu().numpy(),
                ages=memory.age.cpu().numpy(),
                offered=offered,
                explore=config.explore,
                selection=config.selection,
                unbiased=config.unbiased,
            )
        )
        if plan is None:
            return StretchPlan(order, np.arange(len(order)))
        device = memory.score.device
        weights = None if plan.weights is None else torch.from_numpy(plan.weights).to(device)
        places, keep = np.flatnonzero(plan.keep[order]), torch.from_numpy(plan.keep).to(device)
        return StretchPlan(order, places, weights, keep)

    def restore(
        self, stretch: Stretch, bad_ids: np.ndarray, keep: torch.Tensor | None, weights: torch.Tensor | None
    ) -> StretchPlan:
        """The plan that `plan` made, from what it chose; `bad_ids` are those of that moment."""
        order = self._order(stretch, bad_ids)
        places = np.arange(len(order)) if keep is None else np.flatnonzero(keep.cpu().numpy()[order])
        return StretchPlan(order, places, weights, keep)

    def _order(self, stretch: Stretch, bad_ids: np.ndarray) -> np.ndarray:
        """int64[n], the ids that a stretch offers, in order."""
        order = epoch_ids(self._num_train, self._config.seed, stretch.epoch)[stretch.start : stretch.stop]
        return order[~bad_ids[order]]
