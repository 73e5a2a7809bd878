"""The matrix of a bench: which runs, and in which order.

Seed by seed, and within a seed budget by budget, so that a machine that drifts affects all arms alike, and a bench that
is stopped has whole seeds.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastast.bench.arms import Arm, Budget

_LONGEST = 100  # characters of a folder's name


@dataclass(frozen=True, slots=True)
class Job:
    """One run."""

    arm: Arm
    budget: Budget
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        name = re.sub(r"[^\w.=,-]", "-", f"seed{self.seed}-{self.budget.name}-{self.arm.name}")
        digest = hashlib.sha256(self.arm.name.encode()).hexdigest()[:8]
        return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}-{digest}"

    @property
    def words(self) -> str:
        """It, for the user."""
        return f"seed {self.seed}, {self.budget.name}, {self.arm.name}"

    @property
    def options(self) -> dict[str, Any]:
        """Its own options, by field name of `TrainConfig`."""
        return {**self.arm.options, "gate": self.arm.gate, "seed": self.seed, "budget": self.budget.name}

    def entry(self, folder: str) -> dict[str, Any]:
        """What `bench.json` says of it, with its folder."""
        return {"arm": self.arm.name, "budget": self.budget.name, "seed": self.seed, "folder": folder}


def jobs_of(arms: Sequence[Arm], budgets: Sequence[Budget], seeds: Sequence[int]) -> list[Job]:
    """All runs in their order."""
    return [Job(arm, budget, seed) for seed, budget, arm in itertools.product(seeds, budgets, arms)]
