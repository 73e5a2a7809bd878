"""Every gate by its name on the command line, without importing torch.

A new gate is one file with a subclass of `fastast.gates.base.Gate`, and one entry here: the command line, its checks,
the planner and the bench read the entry.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastast.errors import InputError

if TYPE_CHECKING:
    from fastast.gates.base import Gate


@dataclass(frozen=True, slots=True, kw_only=True)
class GateEntry:
    """What can be known of a gate before it is imported.

    Attributes:
        path: "module:Class".
        help: what it trains, in a few words, for `--help`.
        options: the gate options that have an effect with it, by field name of `TrainConfig`.
        arguments: those of them that its class takes.
        significance: the scores that it can select by, its default first; empty where it has none.
    """

    path: str
    help: str
    options: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    significance: tuple[str, ...] = ()

    @property
    def adapts(self) -> bool:
        """Whether it can find its share by itself, from its scores."""
        return "target" in self.options and bool(self.significance)

    @property
    def default_target(self) -> float | str:
        """The target where none is chosen; gates without a target ignore it."""
        return AUTO if self.adapts else 0.1


AUTO = "auto"  # a target: the gate finds its share, from its scores
LEAST_SHARE = 0.05  # that it finds
SHARE_POWER = 1.5  # of the effective sample size; with 1 the share stays too high on known data (gates/README.md)

# With every gate but `dense`, a run trains densely before and after the gated epochs.
_PHASES = ("warmup_epochs", "anneal", "dense_calibration")

GATES: dict[str, GateEntry] = {
    "dense": GateEntry(path="fastast.gates.dense:Dense", help="all of them"),
    "random": GateEntry(
        path="fastast.gates.random:Random",
        help="a fresh random share each epoch",
        options=("target", *_PHASES),
    ),
    "forward": GateEntry(
        path="fastast.gates.forward:Forward",
        help="those with high scores, after a forward of each",
        options=("target", "selection", "significance", "explore", "unbiased", *_PHASES),
        significance=("loss+std", "loss", "margin", "el2n", "gce", "uncertainty", "variance"),
    ),
    "memory": GateEntry(
        path="fastast.gates.memory:Memory",
        help="those that still had something to teach when last trained",
        options=("target", "selection", "significance", "explore", "unbiased", *_PHASES),
        arguments=("significance",),
        significance=("gce", "uncertainty", "variance", "loss"),
    ),
    "infobatch": GateEntry(
        path="fastast.gates.infobatch:InfoBatch",
        help="all but half of those below the mean loss",
        options=("prune", *_PHASES),
        arguments=("prune",),
    ),
}


def make_gate(name: str, options: dict[str, Any] | None = None) -> Gate:
    """The gate of that name.

    Args:
        name: one of the keys of `GATES`.
        options: values by option name; those that the gate's class takes are handed to it, others are ignored.

    Raises:
        InputError: there is none of that name, or an option is outside its range.
    """
    if name not in GATES:
        raise InputError(f"gate {name!r} is unknown: choose one of {', '.join(GATES)}")
    entry = GATES[name]
    module, _, class_name = entry.path.partition(":")
    arguments = {key: value for key, value in (options or {}).items() if key in entry.arguments}
    return getattr(importlib.import_module(module), class_name)(**arguments)


def unused_options(options: dict[str, object], gate: str) -> list[str]:
    """The names of those options that have no effect with the gate, though they have with another one."""
    gate_options = {name for entry in GATES.values() for name in entry.options}
    return [name for name in options if name in gate_options.difference(GATES[gate].options)]
