"""Gates: which samples are worth a backward pass. Plain torch, for any training loop."""

from fastast.gate.controller import PIController
from fastast.gate.gate import Gate, Total
from fastast.gate.infobatch import InfoBatch
from fastast.gate.lag import LaggedReader
from fastast.gate.memory import ScoreMemory
from fastast.gate.memory_policy import Memory, revisit_bound
from fastast.gate.policy import Plan, Policy, Proxy, Window
from fastast.gate.proxy import ProxyTwin, RankCorrelation, rank_correlation, shrink
from fastast.gate.queue import Rows, SampleQueue
from fastast.gate.registry import GATES, make_policy
from fastast.gate.significance import KINDS, Significance, significance
from fastast.gate.target import TARGET_SCHEDULES, planned_work, target_at
from fastast.gate.weights import importance_weights

__all__ = [
    "GATES",
    "KINDS",
    "TARGET_SCHEDULES",
    "Gate",
    "InfoBatch",
    "LaggedReader",
    "Memory",
    "PIController",
    "Plan",
    "Policy",
    "Proxy",
    "ProxyTwin",
    "RankCorrelation",
    "Rows",
    "SampleQueue",
    "ScoreMemory",
    "Significance",
    "Total",
    "Window",
    "importance_weights",
    "make_policy",
    "planned_work",
    "rank_correlation",
    "revisit_bound",
    "shrink",
    "significance",
    "target_at",
]
