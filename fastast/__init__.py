"""fastast: fast, honest sparse training of image classifiers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastast._version import __version__

if TYPE_CHECKING:
    from fastast.energy.meter import EnergyMeter
    from fastast.gates.controller import PIController
    from fastast.gates.queue import SampleQueue
    from fastast.gates.score_memory import ScoreMemory
    from fastast.gates.significance import significance
    from fastast.predict.classifier import load

# Imported on first use, so that the command line starts without torch.
_MODULES = {
    "EnergyMeter": "fastast.energy.meter",
    "PIController": "fastast.gates.controller",
    "SampleQueue": "fastast.gates.queue",
    "ScoreMemory": "fastast.gates.score_memory",
    "load": "fastast.predict.classifier",
    "significance": "fastast.gates.significance",
}

__all__ = ["EnergyMeter", "PIController", "SampleQueue", "ScoreMemory", "__version__", "load", "significance"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'fastast' has no attribute {name!r}")
