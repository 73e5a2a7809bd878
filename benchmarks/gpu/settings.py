"""What every item of the suite is told, and how it answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastast.atomic_files import write_whole
from fastast.run_folder import finite


class NotMeasured(Exception):
    """An item cannot be measured here; its message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One item's orders.

    Attributes:
        device: "cuda" or "cpu".
        tiny: sizes that a small CPU gets through in a second; the figures then mean nothing.
        data: folder with train/ and val/ class folders of JPEGs, or None.
        work: folder for what is drawn, packed and trained; kept between calls.
        seconds: the item's budget.
        num_gpus: GPUs that this suite may use.
        seed: of pictures, networks and choices.
    """

    device: str
    tiny: bool
    data: Path | None
    work: Path
    seconds: float
    num_gpus: int = 1
    seed: int = 0

    @property
    def arch(self) -> str:
        """The network."""
        return "benchmarks.nets:tiny_resnet" if self.tiny else "resnet50"

    @property
    def image_size(self) -> int:
        """Side, pixels."""
        return 32 if self.tiny else 224

    @property
    def batch_size(self) -> int:
        """Rows of a training batch, where memory allows."""
        return 8 if self.tiny else 256

    @property
    def block_s(self) -> float:
        """Seconds that a contender runs before the next has its turn."""
        return 0.02 if self.tiny else 3.0

    @property
    def rounds(self) -> int:
        """Turns of each contender."""
        return 2 if self.tiny else 3


class Report:
    """An item's figures, on disk from the moment they are added: what a crash or a time-out leaves counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.figures: dict[str, Any] = {}

    def add(self, **figures: Any) -> None:
        """Adds figures, or replaces those of the same name. NaN and infinity become null."""
        self.figures.update(figures)
        self.save()

    def save(self) -> None:
        """Writes all figures."""
        write_whole(self._path, json.dumps(finite(self.figures), allow_nan=False))
