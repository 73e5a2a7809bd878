"""Gates: which samples are worth a backward pass. Plain torch, for any training loop."""

from fastast.gate.controller import PIController
from fastast.gate.gate import Gate, Total
from fastast.gate.lag import LaggedReader
from fastast.gate.memory import ScoreMemory
from fastast.gate.policy import GATES, Policy, make_policy
from fastast.gate.queue import Rows, SampleQueue
from fastast.gate.significance import KINDS, Significance, significance

__all__ = [
    "GATES",
    "KINDS",
    "Gate",
    "LaggedReader",
    "PIController",
    "Policy",
    "Rows",
    "SampleQueue",
    "ScoreMemory",
    "Significance",
    "Total",
    "make_policy",
    "significance",
]
