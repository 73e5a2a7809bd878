"""What a gate decides, when, and what that costs. A new gate is one subclass and one line in `GATES`.

A policy may choose ids before decode (`plans`: the keep mask of an epoch), or ask for a scoring forward and select
after it (`scores`), or neither. Costs are in forwards of the full-size network for each offered sample; a trained
sample costs 3: one forward, and a backward worth two.
"""

from __future__ import annotations

import numpy as np

from fastast.errors import InputError
from fastast.philox import STREAM_PLAN, random_words

DENSE_COST = 3.0


class Policy:
    """Base of all gates.

    Attributes:
        name: as on the command line.
        scores: whether every offered sample gets a scoring forward.
        plans: whether `plan` chooses the samples that are read at all.
    """

    name: str
    scores = False
    plans = False

    def plan(self, num_samples: int, epoch: int, *, target: float, seed: int) -> np.ndarray | None:
        """The samples to read in an epoch: a keep mask, bool [num_samples], or None for all of them."""
        return None

    def cost(self, activation: float) -> float:
        """Forwards for each offered sample when the share `activation` of them is trained."""
        raise NotImplementedError

    def ceiling(self, activation: float) -> float:
        """The most that this gate can speed training up over dense, at this activation."""
        return DENSE_COST / self.cost(activation)


class Dense(Policy):
    """Trains every sample."""

    name = "dense"

    def cost(self, activation: float) -> float:
        return DENSE_COST


class Random(Policy):
    """Trains a fresh random share in each epoch and never reads the rest."""

    name = "random"
    plans = True

    def plan(self, num_samples: int, epoch: int, *, target: float, seed: int) -> np.ndarray:
        words = random_words(seed, epoch, np.arange(num_samples, dtype=np.int64), STREAM_PLAN)
        order = np.argsort((words[0] << 31) | (words[1] >> 1), kind="stable")
        keep = np.zeros(num_samples, dtype=bool)
        keep[order[: round(target * num_samples)]] = True
        return keep

    def cost(self, activation: float) -> float:
        return DENSE_COST * activation


class Forward(Policy):
    """Scores every sample with an eval-mode forward at full size and trains those selected."""

    name = "forward"
    scores = True

    def cost(self, activation: float) -> float:
        return 1.0 + DENSE_COST * activation


GATES: dict[str, type[Policy]] = {policy.name: policy for policy in (Dense, Random, Forward)}


def make_policy(name: str) -> Policy:
    """The gate of that name.

    Raises:
        InputError: there is none.
    """
    if name not in GATES:
        raise InputError(f"gate {name!r} is unknown: choose one of {', '.join(GATES)}")
    return GATES[name]()
