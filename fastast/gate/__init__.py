"""Gates: which samples are worth a backward pass. Plain torch, for any training loop."""

from fastast.gate.controller import PIController
from fastast.gate.gate import Gate, Total
from fastast.gate.infobatch import InfoBatch
from fastast.gate.lag import LaggedReader
from fastast.gate.memory import ScoreMemory
from fastast.gate.memory_policy import Memory, revisit_bound
from fastast.gate.policy import Plan, Policy, Window
from fastast.gate.queue import Rows, SampleQueue
from fastast.gate.registry import GATES, make_policy
from fastast.gate.significance import KINDS, Significance, significance
from fastast.gate.weights import importance_weights

__all__ = [
    "GATES",
    "KINDS",
    "Gate",
    "InfoBatch",
    "LaggedReader",
    "Memory",
    "PIController",
    "Plan",
    "Policy",
    "Rows",
    "SampleQueue",
    "ScoreMemory",
    "Significance",
    "Total",
    "Window",
    "importance_weights",
    "make_policy",
    "revisit_bound",
    "significance",
]
