"""What each segment of a run offers, which of it is read, and with which weight."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from fastast.config import TrainConfig
from fastast.config.options import parse_budget
from fastast.cost_model import DENSE_COST
from fastast.data import epoch_ids
from fastast.gates.base import EpochContext, Gate
from fastast.gates.registry import make_gate
from fastast.gates.score_memory import ScoreMemory
from fastast.phases import GATED
from fastast.plan.budget import Budget, MeteredBudget
from fastast.plan.open_schedule import OpenSchedule
from fastast.plan.schedule import Schedule, Segment


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """The plan of a segment.

    Attributes:
        order: int64[n], the ids that the segment offers, in order.
        places: int64[m], positions in `order` of the ids that are read.
        weights: float32[N] on the device, the weight of each sample's loss; None for 1.
        keep: bool[N] on the device, the ids that the gate chose; None where it did not choose.
    """

    order: np.ndarray
    places: np.ndarray
    weights: torch.Tensor | None = None
    keep: torch.Tensor | None = None


class EpochPlanner:
    """Turns the options of a run into its schedule, and asks the gate for the plan of each segment.

    Args:
        config: completed options.
        num_train: size of the training set.
        num_val: size of the validation set.
        num_classes: outputs of the network.
        num_ranks: processes that train together.
        units: cost of a forward at each size of the pictures, in forwards at `--image-size`; None if they have that.
        train_cost: cost of training a sample, in forwards.

    Attributes:
        gate: the gate.
        schedule: the segments of the run.
        budget: what the run may spend; None with `--epochs`.
        units: cost of a forward at each size.
        train_cost: as given.
        planned_share: share of gated samples that is expected to be trained.
    """

    def __init__(
        self,
        config: TrainConfig,
        num_train: int,
        num_val: int,
        num_classes: int,
        *,
        num_ranks: int = 1,
        units: dict[int, float] | None = None,
        train_cost: float = DENSE_COST,
    ) -> None:
        assert config.batch_size is not None, "complete_config was not called"
        self._config = config
        self._num_train, self._num_classes = num_train, num_classes
        self.train_cost = train_cost
        self.units = units or {config.image_size: 1.0}
        self.gate: Gate = make_gate(config.gate, dataclasses.asdict(config))
        share = self.planned_share = self.gate.planned_share(config.target)
        batch_size = config.batch_size * num_ranks
        warmup_epochs = max(config.warmup_epochs or 0.0, config.dense_calibration * batch_size / num_train)
        gated, eval_every = config.gate != "dense", None if config.eval_every == "auto" else float(config.eval_every)
        averages = config.ema == "auto"
        self.budget: Budget | None = None
        self.schedule: Schedule | OpenSchedule
        if config.budget is not None:
            amount = parse_budget(config.budget, "--budget")
            self.budget = Budget(amount, num_train) if amount.kind == "ep" else MeteredBudget(amount, num_train)
            self.schedule = OpenSchedule(
                self.budget,
                num_train,
                warmup_epochs=warmup_epochs,
                anneal_epochs=config.anneal,
                gated=gated,
                batch_size=batch_size,
                last_unit=self.units[config.train_sizes[-1]],
                train_cost=train_cost,
                num_val=num_val,
                averages=averages,
                eval_every=eval_every,
            )
            return
        assert config.epochs is not None, "a run has --epochs where it has no --budget"
        self.schedule = Schedule(
            num_train,
            epochs=config.epochs,
            warmup_epochs=warmup_epochs,
            anneal_epochs=config.anneal,
            planned_share=share,
            gated_cost=self.gate.cost(share) - (DENSE_COST - train_cost) * share,
            train_cost=train_cost,
            gated=gated,
            units=[self.units[size] for size in config.train_sizes],
            num_val=num_val,
            averages=averages,
            eval_every=eval_every,
        )

    def scores(self, segment: Segment) -> bool:
        """Whether the gate scores the batches of a segment."""
        return segment.phase == GATED and self.gate.scores

    def plan(self, segment: Segment, bad_ids: np.ndarray, memory: ScoreMemory) -> EpochPlan:
        """Plans a segment; where the gate chooses by remembered scores, this waits for the device.

        Args:
            segment: one of the schedule's.
            bad_ids: bool[N], quarantined ids, which are not offered.
            memory: last training losses.
        """
        config, num_train = self._config, self._num_train
        order = self._order(segment, bad_ids)
        if segment.phase != GATED or not self.gate.plans:
            return EpochPlan(order, np.arange(len(order)))
        offered = np.zeros(num_train, bool)
        offered[order] = True
        choice = self.gate.plan(
            EpochContext(
                num_samples=num_train,
                epoch=segment.epoch,
                seed=config.seed,
                target=config.target,
                progress=self.schedule.offered_share(segment),
                losses=memory.score.cpu().numpy(),
                label_smoothing=config.label_smoothing,
                num_classes=self._num_classes,
                offered=offered,
                explore=config.explore,
                selection=config.selection,
                unbiased=config.unbiased,
            )
        )
        if choice is None:
            return EpochPlan(order, np.arange(len(order)))
        device = memory.score.device
        weights = None if choice.weights is None else torch.from_numpy(choice.weights).to(device)
        places, keep = np.flatnonzero(choice.keep[order]), torch.from_numpy(choice.keep).to(device)
        return EpochPlan(order, places, weights, keep)

    def target(self, segment: Segment, plan: EpochPlan) -> float | str | None:
        """The share that the gate aims at in a planned segment.

        Returns:
            1 where the gate does not run, None if it has no target; "auto" where its scores will tell, batch by batch.
        """
        if segment.phase != GATED:
            return 1.0
        if not self.gate.has_target:
            return None
        if not isinstance(self._config.target, str) or self.gate.scores:
            return self._config.target
        return len(plan.places) / max(1, len(plan.order))

    def restore(
        self, segment: Segment, bad_ids: np.ndarray, keep: torch.Tensor | None, weights: torch.Tensor | None
    ) -> EpochPlan:
        """The plan that `plan` made, from what the gate chose and the `bad_ids` of that time."""
        order = self._order(segment, bad_ids)
        places = np.arange(len(order)) if keep is None else np.flatnonzero(keep.cpu().numpy()[order])
        return EpochPlan(order, places, weights, keep)

    def position_after(self, segment: Segment, bad_ids: np.ndarray, num_offered: int) -> int:
        """The position in the epoch's order after the first ids that a segment offers, at least one of them."""
        order = epoch_ids(self._num_train, self._config.seed, segment.epoch)[segment.start : segment.stop]
        return segment.start + int(np.flatnonzero(~bad_ids[order])[num_offered - 1]) + 1

    def _order(self, segment: Segment, bad_ids: np.ndarray) -> np.ndarray:
        """int64[n], the ids that a segment offers, in order."""
        order = epoch_ids(self._num_train, self._config.seed, segment.epoch)[segment.start : segment.stop]
        return order[~bad_ids[order]]
