"""What a gate decides, when, and what that costs: the interface, and the gates that need no memory.

A policy may choose ids before decode (`plans`: the plan of a window, which is one epoch), or ask for a scoring forward
and select after it (`scores`), or neither. Costs are in forwards of the full-size network for each offered sample; a
trained sample costs 3: one forward, and a backward worth two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from fastast.cost_model import DENSE_COST
from fastast.errors import InputError
from fastast.gate.sampling import first_by_key, seeded_keys
from fastast.philox import STREAM_PLAN


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What a plan is made from. A window is one epoch.

    Attributes:
        num_samples: size of the training set, N.
        epoch: index of the epoch; with `seed` it keys every draw.
        seed: any integer.
        target: share of the offered ids to choose, in (0, 1].
        progress: share of the run's epochs that lie before this window, in [0, 1).
        scores: float32 [N], last training losses, NaN for an id without one; None if there are none at all.
        ages: int32 [N], windows since an id was last trained or chosen, or since the start; None if all are 0.
        offered: bool [N], the ids that the window offers; None for all.
        explore: share of the ids that reach the gate on scores which is drawn whatever the score.
        selection: "soft" or "hard".
        unbiased: ask for importance weights.
        clip: largest importance weight; None for no limit.
    """

    num_samples: int
    epoch: int
    seed: int
    target: float
    progress: float = 0.0
    scores: np.ndarray | None = None
    ages: np.ndarray | None = None
    offered: np.ndarray | None = None
    explore: float = 0.0
    selection: str = "soft"
    unbiased: bool = False
    clip: float | None = None

    def offered_ids(self) -> np.ndarray:
        """The ids that the window offers, int64, ascending."""
        return np.arange(self.num_samples) if self.offered is None else np.flatnonzero(self.offered)

    def num_chosen(self, num_offered: int) -> int:
        """How many of the offered ids the target asks for: at least one, so that no window is empty."""
        return min(num_offered, max(1, round(self.target * num_offered)))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a policy chose for a window.

    Attributes:
        keep: bool [N], the ids to read and train.
        weights: float32 [N], the weight of each id's loss, 0 for an id that is not kept; None for 1 throughout.
        num_clipped: weights that were cut to the limit.
    """

    keep: np.ndarray
    weights: np.ndarray | None = None
    num_clipped: int = 0


class Policy(ABC):
    """Base of all gates. A new one is a subclass and a line in `fastast.gate.registry.GATES`.

    Attributes:
        name: as on the command line.
        scores: whether every offered sample gets a scoring forward.
        score_units: cost of that forward, in forwards of the full-size network.
        upkeep_units: further work for each scored sample, such as a proxy network's own training.
        plans: whether `plan` chooses the samples that are read at all.
    """

    name: str
    scores = False
    score_units = 0.0
    upkeep_units = 0.0
    plans = False

    def plan(self, window: Window) -> Plan | None:
        """The samples to read in a window, or None for all that are offered."""
        return None

    @abstractmethod
    def cost(self, activation: float) -> float:
        """Forwards for each offered sample when the share `activation` of them is trained."""

    def ceiling(self, activation: float) -> float:
        """The most that this gate can speed training up over dense, at this activation."""
        return DENSE_COST / self.cost(activation)

    def planned_share(self, target: float) -> float:
        """Share of the offered samples that is expected to be trained, for a schedule to plan with."""
        return target


class Dense(Policy):
    """Trains every sample."""

    name = "dense"

    def cost(self, activation: float) -> float:
        return DENSE_COST

    def planned_share(self, target: float) -> float:
        return 1.0


class Random(Policy):
    """Trains a fresh random share in each window and never reads the rest.

    Every id has the same probability, so importance weights would all be 1: `unbiased` changes nothing.
    """

    name = "random"
    plans = True

    def plan(self, window: Window) -> Plan:
        ids = window.offered_ids()
        keys = seeded_keys(window.num_samples, window.seed, window.epoch, STREAM_PLAN)
        keep = np.zeros(window.num_samples, dtype=bool)
        keep[first_by_key(ids, keys, window.num_chosen(len(ids)))] = True
        return Plan(keep)

    def cost(self, activation: float) -> float:
        return DENSE_COST * activation


class Forward(Policy):
    """Scores every sample with an eval-mode forward at full size and trains those selected."""

    name = "forward"
    scores = True
    score_units = 1.0

    def cost(self, activation: float) -> float:
        return self.score_units + DENSE_COST * activation


class Proxy(Forward):
    """Scores every sample with a cheaper eval-mode forward and trains those selected.

    Args:
        score_units: cost of that forward, in forwards of the full-size network: (s/S)^2 for the same network at side
            s of S, the ratio of their floating-point operations for another.
        upkeep_units: further work for each offered sample, such as a proxy network's own training.

    Raises:
        InputError: score_units is not above 0, or upkeep_units is below 0.
    """

    name = "proxy"

    def __init__(self, score_units: float = 0.25, upkeep_units: float = 0.0) -> None:
        if not (score_units > 0.0 and upkeep_units >= 0.0):
            raise InputError(
                f"proxy costs {score_units:g} and {upkeep_units:g}: a forward costs more than 0, upkeep 0 or more"
            )
        self.score_units = score_units
        self.upkeep_units = upkeep_units

    def cost(self, activation: float) -> float:
        return super().cost(activation) + self.upkeep_units
