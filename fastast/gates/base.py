"""What a gate decides, when, and what that costs.

A gate may choose ids before decode (`plans`: the plan of an epoch), or ask for a scoring forward and select after it
(`scores`), or neither. Costs are in forwards of the full-size network for each offered sample; a trained sample costs
DENSE_COST: one forward, and a backward worth two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from fastast.cost_model import DENSE_COST

ASSUMED_SHARE = 0.3  # where the gate finds it: what it will be is not known beforehand


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochContext:
    """What an epoch is planned from.

    Attributes:
        num_samples: size of the training set, N.
        epoch: index of the epoch; with `seed` it keys every draw.
        seed: any integer.
        target: share of the offered ids to choose, in (0, 1]; or "auto", where the gate finds it.
        progress: share of the run (with `--budget` of what it may spend) that lies before this epoch, in [0, 1).
        losses: float32 [N], last training losses, NaN for an id without one; None if there are none at all.
        offered: bool [N], the ids that the epoch offers; None for all.
        explore: share of the ids that are chosen by score which is drawn whatever the score.
        selection: "soft" or "hard".
        unbiased: ask for importance weights.
    """

    num_samples: int
    epoch: int
    seed: int
    target: float | str
    progress: float = 0.0
    losses: np.ndarray | None = None
    offered: np.ndarray | None = None
    explore: float = 0.0
    selection: str = "soft"
    unbiased: bool = False

    def offered_ids(self) -> np.ndarray:
        """The ids that the epoch offers, int64, ascending."""
        return np.arange(self.num_samples) if self.offered is None else np.flatnonzero(self.offered)

    def num_chosen(self, num_offered: int) -> int:
        """How many of the offered ids a target that is a number asks for: at least one, so that no epoch is empty."""
        return num_chosen(float(self.target), num_offered)


def num_chosen(share: float, num_offered: int) -> int:
    """Ids to choose of those offered: the share of them, but at least one, so that no epoch is empty."""
    return min(num_offered, max(1, round(share * num_offered)))


@dataclass(frozen=True, slots=True)
class Choice:
    """What a gate chose for an epoch.

    Attributes:
        keep: bool [N], the ids to read and train.
        weights: float32 [N], the weight of each id's loss, 0 for an id that is not kept; None for 1 throughout.
    """

    keep: np.ndarray
    weights: np.ndarray | None = None


class Gate(ABC):
    """Base of all gates. A new one is a file with a subclass, and an entry in `fastast.gates.registry.GATES`.

    Attributes:
        scores: whether every offered sample gets a scoring forward.
        score_units: cost of that forward, in forwards of the full-size network.
        plans: whether `plan` chooses the samples that are read at all.
        has_target: whether the share of samples that it trains is the target.
    """

    scores = False
    score_units = 0.0
    plans = False
    has_target = True

    def plan(self, context: EpochContext) -> Choice | None:
        """The samples to read in an epoch, or None for all that are offered."""
        return None

    @abstractmethod
    def cost(self, activation: float) -> float:
        """Forwards for each offered sample when the share `activation` of them is trained."""

    def ceiling(self, activation: float) -> float:
        """The most that this gate can speed training up over dense, at this activation."""
        return DENSE_COST / self.cost(activation)

    def planned_share(self, target: float | str) -> float:
        """Share of the offered samples that is expected to be trained, for a schedule to plan with."""
        return ASSUMED_SHARE if isinstance(target, str) else target
