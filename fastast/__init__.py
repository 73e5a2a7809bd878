"""fastast: fast, honest sparse training of image classifiers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastast._version import __version__

if TYPE_CHECKING:
    from fastast.energy.energy_meter import EnergyMeter
    from fastast.gates.controller import PIController
    from fastast.gates.queue import SampleQueue
    from fastast.gates.score_memory import ScoreMemory
    from fastast.gates.significance import significance
    from fastast.python.run import load
    from fastast.python.training import train

# Imported on first use, so that the command line starts without torch.
_MODULES = {
    "EnergyMeter": "fastast.energy.energy_meter",
    "PIController": "fastast.gates.controller",
    "SampleQueue": "fastast.gates.queue",
    "ScoreMemory": "fastast.gates.score_memory",
    "load": "fastast.python.run",
    "significance": "fastast.gates.significance",
}

__all__ = ["EnergyMeter", "PIController", "SampleQueue", "ScoreMemory", "__version__", "load", "significance", "train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # a package, and callable
        return importlib.import_module("fastast.train")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'fastast' has no attribute {name!r}")
